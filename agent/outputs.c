/* What the command wrote, made durable and visible before the result is told. Knows file systems and time stamps.
 *
 * File systems of this machine need nothing: every process here sees one truth. On others (NFS) what changed since the start is
 * looked for, in the working directory (to the bottom, bounded) and in the directories that arguments name, and is fsynced as the
 * user. This finds what commands are told to write, not all that they could: hence the word "approximate". How the list is
 * found is flush_tree's matter alone; a tracer of write-opens can take its place. */
#include "agent/runner.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#define MAX_ENTRIES 4096
#define MAX_DEPTH 32
#define CLOCK_SLACK_SECONDS 2 /* file times are the server's */

struct scan {
    struct outputs found;
    struct timespec since;
    unsigned entries;
    bool always;
    const char *last; /* the directory looked at last: objects of one directory come in rows */
    size_t last_size;
};

static bool is_coherent(int fd)
{
    static const unsigned long local[] = {
        0xEF53 /* ext2-4 */,       0x58465342 /* xfs */,  0x9123683E /* btrfs */, 0x01021994 /* tmpfs */, 0x794C7630 /* overlay */,
        0x2FC12FC1 /* zfs */,      0xF2F52010 /* f2fs */, 0x858458F6 /* ramfs */, 0xCA451A4E /* bcachefs */};
    struct statfs fs;
    if (fstatfs(fd, &fs) != 0)
        return false;
    for (size_t i = 0; i < sizeof local / sizeof *local; i++)
        if (((unsigned long)fs.f_type & 0xFFFFFFFFul) == local[i])
            return true;
    return false;
}

static bool is_new(const struct scan *scan, const struct stat *st)
{
    return st->st_mtim.tv_sec > scan->since.tv_sec ||
           (st->st_mtim.tv_sec == scan->since.tv_sec && st->st_mtim.tv_nsec >= scan->since.tv_nsec);
}

/* EINVAL and EROFS say that there is nothing to write back; every other error is the loss of an output. */
static void sync_one(struct scan *scan, int fd, const char *name)
{
    scan->found.count++;
    if (fsync(fd) == 0 || errno == EINVAL || errno == EROFS || scan->found.error)
        return;
    scan->found.error = errno;
    snprintf(scan->found.path, sizeof scan->found.path, "%s", name);
}

static void sync_file(struct scan *scan, int directory, const char *name)
{
    int fd = openat(directory, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0 && errno == EACCES)
        fd = openat(directory, name, O_WRONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return; /* gone again, or not this user's to open: then it is not this command's either */
    sync_one(scan, fd, name);
    close(fd);
}

/* Looks through an open directory and closes it. */
static void flush_tree(struct scan *scan, int fd, int depth)
{
    struct stat st;
    DIR *directory = is_coherent(fd) && !scan->always ? NULL : fdopendir(fd);
    if (!directory) {
        close(fd);
        return;
    }
    scan->found.word = "approximate";
    if (fstat(fd, &st) == 0 && is_new(scan, &st))
        sync_one(scan, fd, ".");
    for (struct dirent *entry; scan->entries < MAX_ENTRIES && (entry = readdir(directory));) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        scan->entries++;
        if (fstatat(fd, entry->d_name, &st, AT_SYMLINK_NOFOLLOW) != 0)
            continue;
        if (S_ISREG(st.st_mode) && is_new(scan, &st))
            sync_file(scan, fd, entry->d_name);
        if (S_ISDIR(st.st_mode) && depth > 0) {
            int inner = openat(fd, entry->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
            if (inner >= 0)
                flush_tree(scan, inner, depth - 1);
        }
    }
    closedir(directory);
}

static void flush_directory(struct scan *scan, int cwd, const char *path, int depth)
{
    int fd = openat(cwd, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0)
        flush_tree(scan, fd, depth);
}

/* The directory of an argument that looks like a path: "a/b", "-oa/b", "@a/b". */
static void flush_argument(struct scan *scan, int cwd, const char *argument)
{
    const char *path = argument[0] == '@' ? argument + 1 : argument;
    if (argument[0] == '-')
        path = strlen(argument) > 2 ? argument + 2 : "";
    const char *slash = strrchr(path, '/');
    if (!slash || slash == path || slash - path >= PATH_MAX)
        return;
    size_t size = (size_t)(slash - path);
    if (size == scan->last_size && memcmp(path, scan->last, size) == 0)
        return;
    scan->last = path;
    scan->last_size = size;
    char *directory = strndup(path, size);
    if (directory)
        flush_directory(scan, cwd, directory, 0);
    free(directory);
}

struct outputs outputs_flush(const struct spec *spec, struct timespec started)
{
    struct scan scan = {.found = {.word = "coherent"}, .since = started, .always = spec->views};
    scan.since.tv_sec -= CLOCK_SLACK_SECONDS;
    bool user = identity_assume(spec);
    int cwd = user ? open(spec->cwd, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (cwd >= 0) {
        /* Named directories first: the bound must not cut off what the command was told to write. */
        for (size_t i = 0; i < spec->path_count; i++)
            flush_directory(&scan, cwd, spec->paths[i], 0);
        for (const char **argument = spec->argv + 1; *argument; argument++)
            flush_argument(&scan, cwd, *argument);
        flush_directory(&scan, cwd, ".", MAX_DEPTH);
        close(cwd);
    }
    identity_drop(spec);
    return scan.found;
}
