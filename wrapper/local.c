/* Becoming the command, and the record of it.
 *
 * The record: one line a command in here.log, in ${XDG_STATE_HOME:-~/.local/state}/dwrap (mode 0600), tab-separated:
 *     TIME  PID  REASON  CWD  COMMAND
 * TIME is seconds since 1970 with three decimals; COMMAND is the arguments joined by spaces, cut at 2,048 bytes.
 * Bytes of what is not printable, and backslashes, are written \xNN. Beyond 1 MiB the file becomes here.log.1. `dwrapctl why` reads it.
 * Does not know how it came to running here. */
#include "wrapper/local.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <paths.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "wrapper/say.h"
#include "wrapper/slots.h"

enum { LOG_MOST_BYTES = 1024 * 1024, COMMAND_BYTES = 2048, LINE_BYTES = 16 * 1024 };

struct line {
    size_t length;
    char text[LINE_BYTES];
};

static void add_escaped(struct line *l, const char *text, size_t most)
{
    static const char hex[] = "0123456789abcdef";
    size_t end = l->length + most < sizeof l->text - 8 ? l->length + most : sizeof l->text - 8;
    while (*text && l->length + 4 <= end) {
        unsigned char c = (unsigned char)*text;
        size_t size = c == '\\' ? 0 : printable(text);
        const char escaped[] = { '\\', 'x', hex[c >> 4], hex[c & 15] };
        memcpy(l->text + l->length, size ? text : escaped, size ? size : sizeof escaped);
        l->length += size ? size : sizeof escaped;
        text += size ? size : 1;
    }
}

/* False with errno set when it is another user's, or not there. */
static bool is_ours(const char *directory)
{
    struct stat st;
    if (stat(directory, &st) < 0)
        return false;
    errno = EPERM;
    return S_ISDIR(st.st_mode) && st.st_uid == geteuid();
}

/* Makes it, and up to `levels` directories above it, in a directory of ours: a home that does not exist stays so, and
 * under sudo nothing of root's appears in somebody's home. */
static bool make_directories(const char *directory, int levels)
{
    char parent[PATH_MAX];
    snprintf(parent, sizeof parent, "%s", directory);
    char *slash = strrchr(parent, '/');
    if (!slash || slash == parent)
        return false;
    *slash = 0;
    if (access(parent, F_OK) < 0 && (levels == 0 || !make_directories(parent, levels - 1)))
        return false;
    return is_ours(parent) && (mkdir(directory, 0700) == 0 || errno == EEXIST);
}

/* Many wrappers may find it too long at once: the lock, and the second look, let one of them rename it. */
static void rotate(int fd, const char *path)
{
    char old[PATH_MAX + 2];
    struct stat ours, named;
    snprintf(old, sizeof old, "%s.1", path);
    if (flock(fd, LOCK_EX | LOCK_NB) == 0 && fstat(fd, &ours) == 0 && stat(path, &named) == 0 && ours.st_ino == named.st_ino)
        rename(path, old);
}

static int open_log(const char *directory)
{
    char path[PATH_MAX];
    struct stat st;
    int flags = O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK;
    if (!is_ours(directory) && (errno != ENOENT || !make_directories(directory, 2)))
        return -1;
    snprintf(path, sizeof path, "%s/here.log", directory);
    int fd = open(path, flags, 0600);
    if (fd >= 0 && fstat(fd, &st) == 0 && st.st_size > LOG_MOST_BYTES) {
        rotate(fd, path);
        close(fd);
        fd = open(path, flags, 0600);
    }
    return fd;
}

static void log_it(const struct settings *s, const char *reason, const char *cwd)
{
    static struct line l;
    struct timespec now;
    int fd = s->log_directory ? open_log(s->log_directory) : -1;
    if (fd < 0)
        return; /* a home that cannot be written must not stop a build */
    clock_gettime(CLOCK_REALTIME, &now);
    int used = snprintf(l.text, sizeof l.text, "%lld.%03ld\t%d\t", (long long)now.tv_sec, now.tv_nsec / 1000000, (int)getpid());
    l.length = (size_t)used;
    add_escaped(&l, reason, REASON_BYTES);
    l.text[l.length++] = '\t';
    add_escaped(&l, cwd, PATH_MAX);
    l.text[l.length++] = '\t';
    size_t start = l.length;
    for (int i = 0; i < s->count && l.length - start < COMMAND_BYTES; i++) {
        if (i)
            l.text[l.length++] = ' ';
        add_escaped(&l, s->command[i], COMMAND_BYTES - (l.length - start));
    }
    l.text[l.length++] = '\n';
    if (write(fd, l.text, l.length) < 0)
        errno = 0;
    close(fd);
}

/* As execvp: a file without an interpreter line is a script of the shell. */
static void execute(const char *path, char *const argv[], int count)
{
    execve(path, argv, environ);
    if (errno != ENOEXEC)
        return;
    char **shell = malloc(((size_t)count + 2) * sizeof *shell);
    if (!shell)
        return;
    shell[0] = argv[0];
    shell[1] = (char *)(uintptr_t)path;
    memcpy(shell + 2, argv + 1, (size_t)count * sizeof *shell);
    execve(_PATH_BSHELL, shell, environ);
    errno = ENOEXEC;
    free(shell);
}

/* Tries the command in each directory of PATH, but not where it is a link to ourselves. */
static void execute_on_path(const struct settings *s)
{
    char full[PATH_MAX];
    struct stat self = { 0 }, st;
    bool denied = false;
    bool known = stat_self(&self);
    for (const char *at = s->path; at; at = *at ? at + 1 : NULL) {
        size_t length = strcspn(at, ":");
        int used = snprintf(full, sizeof full, "%.*s/%s", length ? (int)length : 1, length ? at : ".", s->command[0]);
        at += length;
        if (used < 0 || (size_t)used >= sizeof full || stat(full, &st) < 0)
            continue;
        if (known && st.st_dev == self.st_dev && st.st_ino == self.st_ino)
            continue;
        execute(full, s->command, s->count);
        if (errno == EACCES)
            denied = true;
        else if (errno != ENOENT && errno != ENOTDIR)
            return;
    }
    errno = denied ? EACCES : ENOENT;
}

__attribute__((noreturn)) static void become(const struct settings *s)
{
    const char *name = s->command[0];
    if (strchr(name, '/'))
        execute(name, s->command, s->count);
    else if (*name)
        execute_on_path(s);
    else
        errno = ENOENT;
    bool missing = errno == ENOENT || errno == ENOTDIR;
    say("cannot run %s: %s; %s", name, strerror(errno), missing ? "check its spelling and PATH" : "check its permissions and format");
    _exit(missing ? EXIT_NOT_FOUND : EXIT_NOT_EXECUTABLE);
}

void run_in_place(const struct settings *s)
{
    become(s);
}

void run_here(const struct settings *s, const char *reason, const char *cwd)
{
    if (s->verbose)
        say("%s runs here: %s", s->command[0], reason);
    log_it(s, reason, cwd);
    if (!s->local && !s->slot_held) {
        slots_take(s->local_slots);
        setenv("DWRAP_SLOT_HELD", "1", 1);
    }
    become(s);
}
