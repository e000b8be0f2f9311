/* What the command wrote, made durable and told: from the record (trace.c), and where that is in doubt from what time stamps show
 * (scan.c), each file on the shared tree is written back as the user, and becomes an entry of the manifest. Knows files, entries
 * and their order; does not know how the record came to be, nor who reads the manifest.
 *
 * File systems of one machine need no write-back: every process there sees one truth. On NFS a fresh descriptor's fsync stores
 * what any process wrote, stores through mmap after the last close included. Numbers are read after it. */
#include "agent/runner.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "coherence/look.h"

enum { MAX_MANIFEST = 16 * 1024 * 1024, MAX_READ = 256, MAX_BELOW = 65536 };

struct written {
    char *path; /* real, as the tree's other hosts write it */
    size_t above; /* length of its directory's path */
    unsigned flags;
};

struct list {
    struct written *all;
    size_t count, room;
};

struct buffer {
    char *data;
    size_t size, room;
};

struct work {
    const struct spec *spec;
    const char *scratch;
    struct outputs result;
    struct list outputs, directories, read;
    struct buffer entries;
    char last[PATH_ROOM], last_real[PATH_ROOM]; /* the directory resolved last: outputs come in rows */
};

/* ---- lists ---- */

static void list_add(struct list *list, const char *path, unsigned flags)
{
    if (list->count == list->room) {
        size_t room = list->room ? list->room * 2 : 64;
        struct written *all = realloc(list->all, room * sizeof *all);
        if (!all)
            return;
        list->all = all;
        list->room = room;
    }
    char *copy = strdup(path);
    const char *slash = copy ? strrchr(copy, '/') : NULL;
    if (slash)
        list->all[list->count++] = (struct written){copy, slash == copy ? 1 : (size_t)(slash - copy), flags};
    else
        free(copy);
}

/* By directory, then by name; so a directory comes before those in it. */
static int compare(const void *left, const void *right)
{
    const struct written *a = left, *b = right;
    size_t both = a->above < b->above ? a->above : b->above;
    int order = memcmp(a->path, b->path, both);
    if (order == 0)
        order = (a->above > b->above) - (a->above < b->above);
    return order ? order : strcmp(a->path + a->above, b->path + b->above);
}

/* Sorts, and makes one of those that name one path: it was absent only if every mention says so. */
static void list_unify(struct list *list)
{
    size_t kept = 0;
    if (list->count)
        qsort(list->all, list->count, sizeof *list->all, compare);
    for (size_t i = 0; i < list->count; i++) {
        struct written *last = kept ? &list->all[kept - 1] : NULL;
        if (last && strcmp(last->path, list->all[i].path) == 0) {
            last->flags = ((last->flags | list->all[i].flags) & ~REC_ABSENT) | (last->flags & list->all[i].flags & REC_ABSENT);
            free(list->all[i].path);
        } else {
            list->all[kept++] = list->all[i];
        }
    }
    list->count = kept;
}

static void list_free(struct list *list)
{
    for (size_t i = 0; i < list->count; i++)
        free(list->all[i].path);
    free(list->all);
}

/* ---- where a path leads ---- */

/* Follows the links on the way to the last name, not that itself. False when its directory is there no more. */
static bool resolve(struct work *work, const char *path, char out[PATH_ROOM])
{
    char above[PATH_ROOM];
    const char *name = path_split(path, above);
    if (!name)
        return path_real(path, out);
    if (strcmp(above, work->last) != 0) {
        work->last[0] = '\0';
        if (!path_real(above, work->last_real))
            return false;
        strcpy(work->last, above);
    }
    bool fits = path_join(out, PATH_ROOM, "/", work->last_real) && path_join(out, PATH_ROOM, out, name);
    if (fits)
        (void)spec_name_by_root(work->spec, out);
    return fits;
}

/* ---- gathering ---- */

/* What a command leaves outside of the roots stays on this agent: its user should know. */
static void count_escaped(struct work *work, const char *path, unsigned flags)
{
    struct stat st;
    if (!(flags & REC_DATA) || lstat(path, &st) != 0 || !S_ISREG(st.st_mode))
        return;
    if (work->result.escaped++ == 0)
        snprintf(work->result.escaped_path, sizeof work->result.escaped_path, "%s", path);
}

static void gather(struct work *work, const char *path, unsigned flags);

static void gather_file(void *to, const char *path) { gather(to, path, REC_DATA); }
static void gather_directory(void *to, const char *path) { gather(to, path, REC_MADE); }

/* What kind of file it is; 0 when it is not there. This host has just had it in its hands: no server is asked. */
static mode_t kind_of(const char *path)
{
    struct statx st;
    bool known = statx(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW | AT_STATX_DONT_SYNC, STATX_TYPE, &st) == 0;
    return known ? st.stx_mode & S_IFMT : 0;
}

/* What was written to, or touched, through a link is what the link leads to. */
static void gather_behind(struct work *work, const char *path, unsigned flags)
{
    char target[PATH_ROOM], again[PATH_ROOM];
    mode_t kind = kind_of(path);
    if (S_ISLNK(kind) && flags & (REC_DATA | REC_TOUCHED) && path_real(path, target) && resolve(work, target, again)) {
        if (spec_is_shared(work->spec, again))
            list_add(&work->outputs, again, REC_DATA);
        else
            count_escaped(work, again, flags);
    }
    if (S_ISDIR(kind) && flags & REC_PLACED) /* all of it has a new name */
        scan_all(path, MAX_BELOW, &(struct found){work, gather_file, gather_directory});
}

static void gather(struct work *work, const char *path, unsigned flags)
{
    char real[PATH_ROOM];
    if (!resolve(work, path, real))
        return; /* gone with its directory, which tells for it */
    if (spec_is_shared(work->spec, real))
        list_add(&work->outputs, real, flags);
    else
        count_escaped(work, real, flags);
    if (flags & (REC_DATA | REC_TOUCHED | REC_PLACED))
        gather_behind(work, real, flags);
}

/* ---- telling ---- */

static void fail(struct work *work, const char *path, int error)
{
    if (work->result.error)
        return;
    work->result.error = error;
    snprintf(work->result.path, sizeof work->result.path, "%s", path);
}

/* Adds an entry. False when the manifest is full: then its directory has to do. */
static bool tell(struct work *work, const struct entry *entry)
{
    struct buffer *to = &work->entries;
    if (to->size + MANIFEST_PATH_BYTES + 128 > to->room) {
        size_t room = to->room ? to->room * 2 : 64 * 1024;
        char *data = room <= MAX_MANIFEST ? realloc(to->data, room) : NULL;
        if (!data)
            return false;
        to->data = data;
        to->room = room;
    }
    to->size += entry_write(to->data + to->size, to->room - to->size, entry);
    return true;
}

static void mark_directory(struct work *work, const char *path, size_t length)
{
    char above[PATH_ROOM];
    const struct list *list = &work->directories;
    const char *last = list->count ? list->all[list->count - 1].path : "";
    if (strncmp(last, path, length) == 0 && last[length] == '\0')
        return;
    memcpy(above, path, length);
    above[length] = '\0';
    if (spec_is_shared(work->spec, above))
        list_add(&work->directories, above, 0);
}

static void mark_read(void *to, const char *directory)
{
    struct work *work = to;
    char path[PATH_ROOM], real[PATH_ROOM];
    if (work->read.count >= MAX_READ || !path_join(path, sizeof path, work->spec->cwd, directory) || strcmp(path, work->last) == 0)
        return;
    strcpy(work->last, path);
    if (!path_real(path, work->last_real) || !path_join(real, sizeof real, "/", work->last_real))
        return;
    bool known = !spec_name_by_root(work->spec, real);
    for (size_t i = 0; !known && i < work->read.count; i++)
        known = strcmp(work->read.all[i].path, real) == 0;
    if (!known)
        list_add(&work->read, real, 0);
}

/* Is it this user's disk that is full, or the tree that is broken, and not just a file that is not this user's to open? */
static bool is_loss(int error)
{
    return error != ENOENT && error != ENOTDIR && error != EACCES && error != EPERM && error != ELOOP && error != ENXIO && error != ESTALE;
}

/* A descriptor by which the file can be written back. Opening to read asks for least; what may only be written will do. */
static int open_output(const char *path)
{
    int fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    return fd < 0 && errno == EACCES ? open(path, O_WRONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC) : fd;
}

/* For a file that may not be opened any more: everything its file system holds back. */
static void write_back_all(struct work *work, const char *path, size_t above)
{
    char directory[PATH_ROOM];
    memcpy(directory, path, above);
    directory[above] = '\0';
    int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return;
    if (!look_is_coherent(fd) && syncfs(fd) != 0 && is_loss(errno))
        fail(work, path, errno);
    close(fd);
}

/* Also takes the numbers: with the descriptor they cost no question of their own. */
static void write_back(struct work *work, const struct written *output, struct entry *entry)
{
    int fd = open_output(output->path);
    if (fd < 0 && is_loss(errno))
        fail(work, output->path, errno);
    if (fd < 0) {
        if (errno == EACCES || errno == EPERM)
            write_back_all(work, output->path, output->above);
        (void)look_entry_as_stat(entry, output->path);
        return;
    }
    /* EINVAL and EROFS say that there is nothing to write back; every other error is the loss of an output. */
    if (!look_is_coherent(fd) && fsync(fd) != 0 && errno != EINVAL && errno != EROFS)
        fail(work, output->path, errno);
    (void)look_entry_open(entry, fd, output->path);
    if (depfile_is_named(output->path))
        depfile_read(fd, work, mark_read);
    close(fd);
}

static void tell_file(struct work *work, const struct written *output, struct entry *entry)
{
    if (S_ISREG(kind_of(output->path))) {
        work->result.count++;
        write_back(work, output, entry);
    } else {
        (void)look_entry_as_stat(entry, output->path); /* a rename has changed its time on the server */
    }
    if (!tell(work, entry))
        mark_directory(work, output->path, output->above);
}

static void tell_output(struct work *work, const struct written *output)
{
    struct entry entry;
    bool known = look_entry(&entry, output->path, false);
    if (output->flags & REC_NAME)
        mark_directory(work, output->path, output->above);
    if (!known) /* not this user's to look at */
        return;
    if (entry.kind == MANIFEST_DIRECTORY)
        mark_directory(work, output->path, strlen(output->path));
    else if (entry.kind == MANIFEST_FILE)
        tell_file(work, output, &entry);
    else if (!(output->flags & REC_ABSENT) && output->flags & ~REC_TOUCHED && !tell(work, &entry))
        mark_directory(work, output->path, output->above);
}

/* A root may be a link: what is meant is what it leads to. */
static bool directory_entry(struct entry *entry, const char *path)
{
    char inside[PATH_ROOM + 2];
    if (!look_entry(entry, path, true))
        return false;
    snprintf(inside, sizeof inside, "%s/.", path);
    if (entry->kind == MANIFEST_FILE && !look_entry(entry, inside, true))
        return false;
    entry->path = path;
    return entry->kind == MANIFEST_DIRECTORY;
}

/* Directories come last, so that the server's numbers hold all that was done, and go to the front, those above first. */
static void tell_directories(struct work *work)
{
    struct buffer files = work->entries;
    struct entry entry;
    work->entries = (struct buffer){0};
    list_unify(&work->directories);
    for (size_t i = 0; i < work->directories.count; i++)
        if (directory_entry(&entry, work->directories.all[i].path))
            tell(work, &entry);
    for (size_t i = 0; i < work->read.count; i++)
        tell(work, &(struct entry){.kind = MANIFEST_READ, .path = work->read.all[i].path});
    size_t front = work->entries.size;
    char *whole = realloc(work->entries.data, front + files.size + 1);
    if (whole && files.size)
        memcpy(whole + front, files.data, files.size);
    work->entries.data = whole;
    work->result.manifest = whole;
    work->result.manifest_size = whole ? front + files.size : 0;
    free(files.data);
}

static void forget(struct work *work)
{
    list_free(&work->outputs);
    list_free(&work->directories);
    list_free(&work->read);
}

struct outputs outputs_flush(const struct spec *spec, const struct trace *trace, struct timespec started)
{
    static struct work work;
    work = (struct work){.spec = spec, .scratch = trace->scratch, .result = {.word = trace->why ? "approximate" : "exact"}};
    if (!identity_assume(spec)) {
        identity_drop(spec);
        fail(&work, spec->cwd, EPERM);
        return work.result;
    }
    for (size_t i = 0; i < trace->record.count; i++)
        gather(&work, trace->record.paths[i].path, trace->record.paths[i].flags);
    if (trace->why) {
        scan_job(spec, started, &(struct found){&work, gather_file, gather_directory});
        write_back_all(&work, spec->cwd, strlen(spec->cwd));
    }
    list_unify(&work.outputs);
    for (size_t i = 0; i < work.outputs.count; i++)
        tell_output(&work, &work.outputs.all[i]);
    tell_directories(&work);
    forget(&work);
    identity_drop(spec);
    return work.result;
}

size_t outputs_piece(const char *at, size_t left)
{
    if (left <= MANIFEST_PIECE_BYTES)
        return left;
    size_t size = MANIFEST_PIECE_BYTES;
    while (size > 0 && at[size - 1] != '\0')
        size--;
    return size;
}
