/* Changes names on a shared tree, and says how they look: what the proofs in the lab run on its hosts, as jobs and plainly.
 *
 *     hand ACT PATH [ARGUMENT] [ACT PATH [ARGUMENT]]...      does them in order, one line of answer for each
 *     hand serve                                             the same for lines on stdin (words end at tabs), then a line "."
 * Acts that write take CONTENT, "SERIAL:BYTES": that many bytes, different for each serial. An act answers "ok PATH" or
 * "failed PATH ERRNO"; `look` answers "file PATH INODE SIZE MTIME MODE HASH INODE-AS-OPENED" or what else is there; exit status 1
 * when an act failed. Three more go to coherence/view.c: `entry PATH` answers with the entry of a manifest,
 * `agree ENTRIES` (each with a '|' after it) applies them, `refresh DIRECTORY` asks about all that is cached there; both answer with
 * the view's counts. Does not know what the truth is, nor who else looks. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "coherence/look.h"
#include "coherence/view.h"

enum { MAX_CONTENT = 1 << 20, MAX_WORDS = 4096 };

/* ---- contents ---- */

static char content_bytes[MAX_CONTENT];

static size_t content_of(const char *text)
{
    char *end;
    uint64_t serial = strtoull(text, &end, 10);
    size_t size = *end == ':' ? strtoull(end + 1, NULL, 10) : 0;
    if (size > MAX_CONTENT)
        size = MAX_CONTENT;
    char line[32];
    int length = snprintf(line, sizeof line, "%" PRIu64 ".", serial);
    for (size_t i = 0; i < size; i++)
        content_bytes[i] = line[i % (size_t)length];
    return size;
}

static uint64_t hash_more(uint64_t hash, const void *data, size_t size)
{
    for (const unsigned char *at = data; size--; at++)
        hash = (hash ^ *at) * 1099511628211u;
    return hash;
}

#define HASH_START 14695981039346656037u

static int write_content(int fd, const char *text)
{
    if (fd < 0)
        return -1;
    size_t size = content_of(text);
    bool right = write(fd, content_bytes, size) == (ssize_t)size && ftruncate(fd, (off_t)size) == 0;
    int error = errno;
    if (close(fd) == 0 && right)
        return 0;
    if (!right)
        errno = error;
    return -1;
}

static const char *beside(const char *path, const char *ending)
{
    static char name[4][PATH_MAX];
    static unsigned next;
    char *to = name[next++ % 4];
    snprintf(to, PATH_MAX, "%s%s", path, ending);
    return to;
}

/* ---- acts ---- */

static int create(const char *path, const char *text)
{
    return write_content(open(path, O_WRONLY | O_CREAT | O_EXCL, 0644), text);
}

static int rewrite(const char *path, const char *text)
{
    return write_content(open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644), text);
}

static int patch(const char *path, const char *text)
{
    return write_content(open(path, O_WRONLY), text);
}

/* A new file renamed over the old one, whose inode stays alive under another name. */
static int replace(const char *path, const char *text)
{
    const char *fresh = beside(path, ".new"), *old = beside(path, ".old");
    unlink(old);
    if (link(path, old) < 0 && errno != ENOENT)
        return -1;
    return rewrite(fresh, text) < 0 ? -1 : rename(fresh, path);
}

static int recreate(const char *path, const char *text)
{
    return unlink(path) < 0 ? -1 : create(path, text);
}

/* As an editor with backups does. */
static int save(const char *path, const char *text)
{
    if (rename(path, beside(path, "~")) < 0)
        return -1;
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0644);
    size_t size = content_of(text);
    if (fd < 0 || write(fd, content_bytes, size) != (ssize_t)size || fsync(fd) < 0)
        return -1;
    return close(fd);
}

/* Stores through a mapping after the descriptor has been closed, as some linkers do. */
static int map(const char *path, const char *text)
{
    size_t size = content_of(text);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0755);
    if (fd < 0 || ftruncate(fd, (off_t)size) < 0)
        return -1;
    void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED || close(fd) < 0)
        return -1;
    memcpy(at, content_bytes, size);
    return munmap(at, size);
}

static void empty_directory(const char *path)
{
    DIR *directory = opendir(path);
    for (struct dirent *entry; directory && (entry = readdir(directory));)
        if (entry->d_name[0] != '.')
            unlinkat(dirfd(directory), entry->d_name, 0);
    if (directory)
        closedir(directory);
}

/* A new directory, with one file `in`, takes the place of the old one, which lives on as PATH.was. */
static int swap(const char *path, const char *text)
{
    const char *fresh = beside(path, ".next"), *was = beside(path, ".was");
    empty_directory(was);
    if (rmdir(was) < 0 && errno != ENOENT)
        return -1;
    if (mkdir(fresh, 0755) < 0 || create(beside(path, ".next/in"), text) < 0)
        return -1;
    return rename(path, was) < 0 ? -1 : rename(fresh, path);
}

static int remove_file(const char *path, const char *unused)
{
    (void)unused;
    return unlink(path);
}

static int make_directory(const char *path, const char *unused)
{
    (void)unused;
    return mkdir(path, 0755);
}

static int remove_directory(const char *path, const char *unused)
{
    (void)unused;
    empty_directory(path);
    return rmdir(path);
}

static int change_mode(const char *path, const char *mode)
{
    return chmod(path, (mode_t)strtoul(mode, NULL, 8));
}

static int touch(const char *path, const char *unused)
{
    (void)unused;
    return utimensat(AT_FDCWD, path, NULL, 0);
}

static int point(const char *path, const char *target)
{
    return unlink(path) < 0 && errno != ENOENT ? -1 : symlink(target, path);
}

/* ---- looks ---- */

static uint64_t hash_file(int fd)
{
    static char block[64 * 1024];
    uint64_t hash = HASH_START;
    for (ssize_t got; (got = read(fd, block, sizeof block)) > 0;)
        hash = hash_more(hash, block, (size_t)got);
    return hash;
}

static void look_at_file(const char *path, const struct stat *seen)
{
    struct stat opened;
    int fd = open(path, O_RDONLY);
    if (fd < 0 || fstat(fd, &opened) < 0) {
        printf("unopened %s %d\n", path, errno);
    } else {
        uint64_t hash = hash_file(fd);
        printf("file %s %" PRIu64 " %lld %lld %o %016" PRIx64 " %" PRIu64 "\n", path, (uint64_t)seen->st_ino, (long long)seen->st_size,
               seen->st_mtim.tv_sec * 1000000000LL + seen->st_mtim.tv_nsec, seen->st_mode & 07777, hash, (uint64_t)opened.st_ino);
    }
    if (fd >= 0)
        close(fd);
}

static int look_at(const char *path, const char *unused)
{
    (void)unused;
    struct stat seen;
    if (lstat(path, &seen) < 0)
        printf(errno == ENOENT ? "gone %s\n" : "unseen %s %d\n", path, errno);
    else if (S_ISDIR(seen.st_mode))
        printf("directory %s %" PRIu64 "\n", path, (uint64_t)seen.st_ino);
    else if (S_ISLNK(seen.st_mode)) {
        char target[PATH_MAX];
        ssize_t length = readlink(path, target, sizeof target);
        printf("link %s %.*s\n", path, length < 0 ? 0 : (int)length, target);
    } else
        look_at_file(path, &seen);
    return 0;
}

static int is_name(const struct dirent *entry)
{
    return strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
}

static int list(const char *path, const char *unused)
{
    (void)unused;
    struct dirent **names;
    int count = scandir(path, &names, is_name, alphasort);
    printf("names %s", path);
    for (int i = 0; i < count; i++) {
        printf(" %s", names[i]->d_name);
        free(names[i]);
    }
    printf(count < 0 ? " !%d\n" : "\n", errno);
    if (count >= 0)
        free(names);
    return 0;
}

/* ---- what the daemons' view makes of it ---- */

static int tell_entry(const char *path, const char *unused)
{
    static char text[PATH_MAX + 100];
    struct entry entry;
    (void)unused;
    if (!look_entry(&entry, path, true) || !entry_write(text, sizeof text, &entry))
        return -1;
    printf("entry %s\n", text);
    return 0;
}

/* The entries came with '|' where a manifest has NUL. */
static int agree(const char *entries, const char *unused)
{
    (void)unused;
    static char piece[MANIFEST_PIECE_BYTES];
    static struct view view;
    size_t length = strlen(entries);
    if (length > sizeof piece)
        return -1;
    for (size_t i = 0; i < length; i++)
        piece[i] = entries[i] == '|' ? '\0' : entries[i];
    view_start(&view);
    bool right = view_apply(&view, piece, length);
    printf("%s checked=%u synced=%u stale=%u healed=%u unseen=%u %s\n", right ? "agreed" : "malformed", view.checked, view.synced, view.stale,
           view.healed, view.unseen, view.path);
    view_end(&view);
    return 0;
}

static int refresh(const char *path, const char *unused)
{
    (void)unused;
    static struct view view;
    view_start(&view);
    view_refresh(&view, path, 50000);
    printf("refreshed checked=%u synced=%u stale=%u\n", view.checked, view.synced, view.stale);
    view_end(&view);
    return 0;
}

/* ---- which is which ---- */

static const struct act {
    const char *name;
    int (*how)(const char *path, const char *argument);
    bool has_argument, is_look;
} acts[] = {
    { "create", create, true, false },         { "rewrite", rewrite, true, false },
    { "patch", patch, true, false },           { "replace", replace, true, false },
    { "recreate", recreate, true, false },     { "save", save, true, false },
    { "map", map, true, false },               { "swap", swap, true, false },
    { "point", point, true, false },           { "chmod", change_mode, true, false },
    { "touch", touch, false, false },          { "remove", remove_file, false, false },
    { "mkdir", make_directory, false, false }, { "rmdir", remove_directory, false, false },
    { "look", look_at, false, true },            { "list", list, false, true },
    { "entry", tell_entry, false, true },      { "agree", agree, false, true },
    { "refresh", refresh, false, true },
};

/* Does the act that begins at words[0]; the words used, 0 when there is no such act. */
static int do_one(char **words, int count, bool *failed)
{
    for (const struct act *act = acts; act < acts + sizeof acts / sizeof *acts; act++) {
        int used = act->has_argument ? 3 : 2;
        if (strcmp(words[0], act->name) != 0 || count < used)
            continue;
        if (act->how(words[1], words[2]) < 0) {
            printf("failed %s %d\n", words[1], errno);
            *failed = true;
        } else if (!act->is_look)
            printf("ok %s\n", words[1]);
        return used;
    }
    fprintf(stderr, "hand: no act %s\n", words[0]);
    return 0;
}

static int do_all(char **words, int count)
{
    bool failed = false;
    for (int used; count > 0; words += used, count -= used)
        if (!(used = do_one(words, count, &failed)))
            return 2;
    return failed;
}

static int serve(void)
{
    static char *words[MAX_WORDS + 1];
    char *line = NULL;
    size_t room = 0;
    while (getline(&line, &room, stdin) > 0) {
        int count = 0;
        line[strcspn(line, "\n")] = 0;
        for (char *word = strtok(line, "\t"); word && count < MAX_WORDS; word = strtok(NULL, "\t"))
            words[count++] = word;
        words[count] = NULL;
        do_all(words, count);
        puts(".");
        fflush(stdout);
    }
    free(line);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "serve") == 0)
        return serve();
    return argc > 1 ? do_all(argv + 1, argc - 1) : 2;
}
