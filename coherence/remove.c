/* Removes one name that a lost attempt made; see remove.h. Who names it may be mistaken, or lie: so it goes only if it can be that.
 *
 * It is told as it lay in its real directory. That directory is entered step by step, and what is removed is that name in it: a link
 * that took the place of a directory since then leads nobody astray. Links that the user cannot have put there are followed.
 * A command makes what belongs to its user, and nothing of it is older than the command. Both are told by the file system, whose clock
 * and whose idea of users may be another than this machine's: a file that is made beside the name shows them.
 * Does not know who made the name, or why it goes. */
#include "coherence/remove.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#define SECOND INT64_C(1000000000)
#define TICKS (SECOND / 50) /* time stamps are that of the kernel's last tick, here and there */

/* What files that are made now look like on a file system. */
struct sample {
    bool known;
    dev_t device;
    uid_t owner;
    int64_t made, now; /* by its clock, and by ours */
};

static int64_t boot_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_BOOTTIME, &t);
    return (int64_t)t.tv_sec * SECOND + t.tv_nsec;
}

static bool is_name(const char *at, size_t length)
{
    bool dots = (length == 1 && at[0] == '.') || (length == 2 && at[0] == '.' && at[1] == '.');
    return length > 0 && length <= NAME_MAX && !dots;
}

/* Absolute, and each part of it a name. */
static bool is_plain(const char *path)
{
    bool plain = path[0] == '/' && path[1] && strlen(path) < PATH_MAX;
    for (const char *at = path; plain && *at;) {
        size_t length = strcspn(++at, "/");
        plain = is_name(at, length);
        at += length;
    }
    return plain;
}

static size_t length_of_root(const char *root)
{
    size_t length = strlen(root);
    while (length > 0 && root[length - 1] == '/')
        length--;
    return length;
}

static bool is_below(const char *path, const char *root)
{
    size_t length = length_of_root(root);
    return strncmp(path, root, length) == 0 && path[length] == '/';
}

/* To open a directory for reading asks a file server whether what is believed of it still holds. */
static int enter(int at, const char *name, int how)
{
    int fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | how);
    return fd >= 0 || errno != EACCES ? fd : openat(at, name, O_PATH | O_DIRECTORY | O_CLOEXEC | how);
}

static bool is_link(int at, const char *name)
{
    struct stat st;
    return fstatat(at, name, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISLNK(st.st_mode);
}

/* Is it certain that the user can put nothing in that directory? A kernel that does not know the question has not answered it. */
static bool is_closed_to_user(int directory)
{
    return faccessat(directory, "", W_OK, AT_EACCESS | AT_EMPTY_PATH) != 0 && (errno == EACCES || errno == EROFS);
}

/* One step. -1 with ELOOP at a link that somebody may have put there meanwhile. */
static int step(int at, const char *name, bool before_root)
{
    int fd = enter(at, name, O_NOFOLLOW);
    if (fd >= 0 || (errno != ENOTDIR && errno != ELOOP))
        return fd;
    if (!is_link(at, name)) {
        errno = ENOTDIR;
        return -1;
    }
    if (before_root || is_closed_to_user(at))
        return enter(at, name, 0);
    errno = ELOOP;
    return -1;
}

/* The directory of a name, and in `name` the last part of the path. -1 with errno. */
static int enter_above(const char *path, const char *root, char name[NAME_MAX + 1])
{
    int fd = enter(AT_FDCWD, "/", 0);
    for (const char *at = path + 1; fd >= 0;) {
        size_t length = strcspn(at, "/");
        memcpy(name, at, length);
        name[length] = '\0';
        at += length;
        if (*at++ == '\0')
            return fd;
        int next = step(fd, name, (size_t)(at - 1 - path) <= length_of_root(root));
        int error = errno;
        close(fd);
        errno = error;
        fd = next;
    }
    return -1;
}

/* Makes a file in that directory, looks at it, and removes it. False with errno. */
static bool take_sample(int directory, struct sample *sample)
{
    uint64_t number = 0;
    char name[40];
    struct stat st;
    if (getrandom(&number, sizeof number, 0) != (ssize_t)sizeof number)
        return false;
    snprintf(name, sizeof name, ".dwrap-%016llx", (unsigned long long)number);
    sample->now = boot_now(); /* before: what takes long must not make anything look younger */
    int fd = openat(directory, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        return false;
    sample->known = fstat(fd, &st) == 0;
    int error = errno;
    close(fd);
    unlinkat(directory, name, 0);
    sample->device = st.st_dev;
    sample->owner = st.st_uid;
    sample->made = (int64_t)st.st_ctim.tv_sec * SECOND + st.st_ctim.tv_nsec;
    errno = error;
    return sample->known;
}

/* The last one taken, if it was there. */
static const struct sample *sample_of(int directory, dev_t device)
{
    static struct sample sample;
    if ((!sample.known || sample.device != device) && !take_sample(directory, &sample))
        return NULL;
    return &sample;
}

static int64_t nanoseconds(struct statx_timestamp t) { return t.tv_sec * SECOND + t.tv_nsec; }

/* When it was made, or, where that is not told, last changed. */
static int64_t birth_of(const struct statx *stx)
{
    bool told = stx->stx_mask & STATX_BTIME && nanoseconds(stx->stx_btime) != 0;
    return nanoseconds(told ? stx->stx_btime : stx->stx_ctime);
}

static bool is_older(const struct statx *stx, const struct sample *sample, int64_t since_ms)
{
    int64_t birth = birth_of(stx), since = sample->made - (sample->now - since_ms * (SECOND / 1000));
    bool whole_seconds = birth % SECOND == 0 && sample->made % SECOND == 0;
    return birth + (whole_seconds ? SECOND : TICKS) < since;
}

static bool is_listed(dev_t device, const struct removal *limits)
{
    bool listed = !limits->devices;
    for (size_t i = 0; !listed && i < limits->device_count; i++)
        listed = limits->devices[i] == device;
    return listed;
}

/* Why it cannot be what a command of this user's made, or NULL. */
static const char *judge(int directory, const struct statx *stx, const struct removal *limits)
{
    const mode_t kind = stx->stx_mode & S_IFMT;
    const dev_t device = makedev(stx->stx_dev_major, stx->stx_dev_minor);
    const bool is_foreign = stx->stx_uid != geteuid(), is_dated = limits->since_ms != 0;
    if (!is_listed(device, limits))
        return "it is on another file system than what the command names";
    if (kind == S_IFCHR || kind == S_IFBLK)
        return "it is a device";
    if (!is_foreign && !is_dated)
        return NULL;
    const struct sample *sample = sample_of(directory, device);
    if (!sample)
        return strerror(errno);
    if (is_foreign && stx->stx_uid != sample->owner)
        return "it belongs to another user";
    return is_dated && is_older(stx, sample, limits->since_ms) ? "it was there before the command" : NULL;
}

static bool is_gone(int error) { return error == ENOENT || error == ENOTDIR; }

static const char *remove_name(int directory, const char *name, const struct removal *limits)
{
    struct statx stx;
    if (statx(directory, name, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT, STATX_BASIC_STATS | STATX_BTIME, &stx) != 0)
        return is_gone(errno) ? NULL : strerror(errno);
    const char *why = judge(directory, &stx, limits);
    bool folder = S_ISDIR(stx.stx_mode);
    if (why || unlinkat(directory, name, folder ? AT_REMOVEDIR : 0) == 0 || is_gone(errno))
        return why;
    return folder && (errno == ENOTEMPTY || errno == EEXIST) ? NULL : strerror(errno); /* others have put something in it */
}

const char *remove_made(const char *path, const struct removal *limits)
{
    char name[NAME_MAX + 1];
    if (!is_plain(path))
        return "that is no plain path";
    if (!is_below(path, limits->root))
        return "it is not on a shared root";
    int directory = enter_above(path, limits->root, name);
    if (directory < 0)
        return is_gone(errno) ? NULL : errno == ELOOP ? "a link has taken the place of a directory" : strerror(errno);
    const char *why = remove_name(directory, name, limits);
    close(directory);
    return why;
}
