/* What was written, found by time stamps: where a command could not be heard, the directories that it names and everything below
 * its working directory are looked through for what is new. This finds what commands are told to write, not all that they
 * could: hence the word "approximate". Knows directories and clocks; does not know what is done with what it finds. */
#include "agent/runner.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_ENTRIES 16384
#define MAX_DEPTH 32
#define CLOCK_SLACK_SECONDS 2 /* file times are the server's */

struct scan {
    const struct found *found;
    struct timespec since;
    bool everything; /* not only what is new */
    unsigned left;   /* names that may still be looked at */
};

static bool is_new(const struct scan *scan, const struct stat *st)
{
    const struct timespec *changed = &st->st_ctim;
    return scan->everything || changed->tv_sec > scan->since.tv_sec ||
           (changed->tv_sec == scan->since.tv_sec && changed->tv_nsec >= scan->since.tv_nsec);
}

static void look_through(struct scan *scan, int fd, const char *path, int depth);

static void look_at(struct scan *scan, int directory, const char *above, const char *name, int depth)
{
    char path[PATH_ROOM];
    struct stat st;
    if (!path_join(path, sizeof path, above, name) || fstatat(directory, name, &st, AT_SYMLINK_NOFOLLOW) != 0)
        return;
    if (!S_ISDIR(st.st_mode)) {
        if (is_new(scan, &st))
            scan->found->file(scan->found->to, path);
    } else if (depth > 0) {
        int inner = openat(directory, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (inner >= 0)
            look_through(scan, inner, path, depth - 1);
    }
}

/* Looks through an open directory and closes it. */
static void look_through(struct scan *scan, int fd, const char *path, int depth)
{
    struct stat st;
    DIR *directory = fdopendir(fd);
    if (!directory) {
        close(fd);
        return;
    }
    if (fstat(fd, &st) == 0 && is_new(scan, &st))
        scan->found->directory(scan->found->to, path);
    for (struct dirent *entry; scan->left > 0 && (entry = readdir(directory));) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        scan->left--;
        look_at(scan, fd, path, entry->d_name, depth);
    }
    closedir(directory);
}

static void look_into(struct scan *scan, const char *cwd, const char *path, int depth)
{
    char whole[PATH_ROOM];
    int fd = path_join(whole, sizeof whole, cwd, path) ? open(whole, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (fd >= 0)
        look_through(scan, fd, whole, depth);
}

/* The directory of an argument that looks like a path: "a/b", "-oa/b", "@a/b". */
static void look_beside(struct scan *scan, const char *cwd, const char *argument, char last[PATH_ROOM])
{
    const char *path = argument[0] == '@' ? argument + 1 : argument;
    if (argument[0] == '-')
        path = strlen(argument) > 2 ? argument + 2 : "";
    const char *slash = strrchr(path, '/');
    size_t size = slash ? (size_t)(slash - path) : 0;
    if (size == 0 || size >= PATH_ROOM || (strncmp(last, path, size) == 0 && last[size] == '\0'))
        return; /* objects of one directory come in rows */
    memcpy(last, path, size);
    last[size] = '\0';
    look_into(scan, cwd, last, 0);
}

void scan_job(const struct spec *spec, struct timespec since, const struct found *found)
{
    char last[PATH_ROOM] = "";
    struct scan scan = {.found = found, .since = since, .left = MAX_ENTRIES};
    scan.since.tv_sec -= CLOCK_SLACK_SECONDS;
    /* Named directories first: the bound must not cut off what the command was told to write. */
    for (size_t i = 0; i < spec->path_count; i++)
        look_into(&scan, spec->cwd, spec->paths[i], 0);
    for (const char **argument = spec->argv + 1; *argument; argument++)
        look_beside(&scan, spec->cwd, *argument, last);
    look_into(&scan, spec->cwd, ".", MAX_DEPTH);
}

void scan_all(const char *directory, unsigned most, const struct found *found)
{
    struct scan scan = {.found = found, .everything = true, .left = most};
    look_into(&scan, "/", directory, MAX_DEPTH);
}
