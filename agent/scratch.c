/* The job's private TMPDIR: made for its user under the agent's work directory, removed when the tree is gone.
 * Knows directories; follows no link: what a job left there cannot lead anywhere else. */
#include "agent/runner.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_DEPTH 100   /* directories are held open on the way down */
#define MAX_ROUNDS 1000 /* each takes MAX_DEPTH levels off */

/* As the user: nobody learns from where a TMPDIR is what lies where he may not look. */
static bool is_shared_directory(const struct spec *spec, const char *path)
{
    struct stat st;
    bool found = path[0] == '/' && spec_is_shared(spec, path) && identity_assume(spec) && stat(path, &st) == 0 && S_ISDIR(st.st_mode);
    identity_drop(spec);
    return found;
}

static bool set_variables(struct spec *spec, const char *path)
{
    static const char *const names[] = {"TMPDIR", "TMP", "TEMP"};
    for (int i = 0; i < 3; i++) {
        char *assignment;
        if (i > 0 && !spec_env(spec, names[i]))
            continue;
        if (asprintf(&assignment, "%s=%s", names[i], path) < 0)
            return false;
        spec_set_env(spec, assignment);
    }
    return true;
}

static bool make_directory(const struct spec *spec, const char *path)
{
    if (mkdir(path, 0700) != 0 && !spare_take(spec, "directory", path))
        return false;
    return !spec->become || lchown(path, spec->uid, spec->gid) == 0;
}

const char *scratch_make(struct spec *spec)
{
    const char *own = spec_env(spec, "TMPDIR");
    char *path;
    if (spec->work[0] == '\0' || (own && is_shared_directory(spec, own)))
        return "";
    if (asprintf(&path, "%s/%d-%.8s", spec->work, (int)getpid(), spec->job) < 0)
        return NULL;
    if (make_directory(spec, path) && set_variables(spec, path))
        return path;
    int error = errno;
    rmdir(path);
    errno = error;
    return NULL;
}

bool scratch_renew(const struct spec *spec, const char *path)
{
    scratch_remove(spec, path);
    return path[0] == '\0' || make_directory(spec, path);
}

/* Empties the directory and closes it. What lies too deep is moved to `top`; false when there is such, and it is to be emptied again. */
static bool empty_directory(int fd, int top, int depth)
{
    static unsigned moved;
    bool done = true;
    DIR *directory = fdopendir(fd);
    if (!directory) {
        close(fd);
        return true;
    }
    fchmod(fd, 0700);
    for (struct dirent *entry; (entry = readdir(directory));) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0 || unlinkat(fd, entry->d_name, 0) == 0)
            continue;
        if (fchmodat(fd, entry->d_name, 0700, AT_SYMLINK_NOFOLLOW) != 0) /* it may have been made unreadable */
            continue;
        if (depth >= MAX_DEPTH) {
            char name[32];
            snprintf(name, sizeof name, "deep-%u", moved++);
            renameat(fd, entry->d_name, top, name); /* where the name is taken, the next round finds it free */
            done = false;
            continue;
        }
        int inner = openat(fd, entry->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (inner >= 0)
            done &= empty_directory(inner, top, depth + 1);
        unlinkat(fd, entry->d_name, AT_REMOVEDIR);
    }
    closedir(directory);
    return done;
}

void scratch_remove(const struct spec *spec, const char *path)
{
    if (path[0] == '\0' || rmdir(path) == 0)
        return;
    int top = identity_assume(spec) ? open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC) : -1;
    for (int round = 0, again; top >= 0 && round < MAX_ROUNDS; round++)
        if ((again = openat(top, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC)) < 0 || empty_directory(again, top, 0))
            break;
    if (top >= 0)
        close(top);
    identity_drop(spec);
    rmdir(path);
}
