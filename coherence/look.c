/* What look.h promises. openat2(RESOLVE_CACHED) of one name in an open directory sends nothing: it answers with what this host
 * believes without asking (a descriptor, or ENOENT), or with EAGAIN. Kernels before 5.12 cannot tell. */
#include "coherence/look.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#ifndef RESOLVE_CACHED
#define RESOLVE_CACHED 0x20
#endif

static int64_t nanoseconds(struct statx_timestamp t)
{
    return t.tv_sec < 0 ? 0 : (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* With any smaller mask a file system need not ask, not even when it is told to. */
bool look_closely(struct entry *out, int fd, const char *path, int how, bool *regular)
{
    struct statx st;
    if (statx(fd, path, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | how, STATX_BASIC_STATS, &st) != 0)
        return false;
    *out = (struct entry){.kind = S_ISDIR(st.stx_mode) ? MANIFEST_DIRECTORY : MANIFEST_FILE, .ino = st.stx_ino, .size = st.stx_size,
                          .mtime = nanoseconds(st.stx_mtime), .ctime = nanoseconds(st.stx_ctime), .path = path};
    *regular = S_ISREG(st.stx_mode);
    return true;
}

bool look(struct entry *out, int fd, const char *path, int how)
{
    bool regular;
    return look_closely(out, fd, path, how, &regular);
}

bool look_same(const struct entry *a, const struct entry *b)
{
    return a->ctime == b->ctime && a->mtime == b->mtime && (a->size == b->size || a->kind == MANIFEST_DIRECTORY);
}

bool look_is_missing(int error)
{
    return error == ENOENT || error == ENOTDIR || error == ESTALE;
}

static bool entry_of(struct entry *entry, const char *path, int how)
{
    if (!look(entry, AT_FDCWD, path, how)) {
        if (!look_is_missing(errno))
            return false;
        *entry = (struct entry){.kind = MANIFEST_GONE};
    }
    entry->path = path;
    return true;
}

bool look_entry(struct entry *entry, const char *path, bool ask)
{
    return entry_of(entry, path, ask ? ASK : CACHED);
}

bool look_entry_open(struct entry *entry, int fd, const char *path)
{
    bool known = look(entry, fd, "", AT_STATX_SYNC_AS_STAT);
    entry->path = path;
    return known;
}

bool look_entry_as_stat(struct entry *entry, const char *path)
{
    return entry_of(entry, path, AT_STATX_SYNC_AS_STAT);
}

/* What is believed of a name: a descriptor, or -1 with ENOENT, or -1 with EAGAIN for nothing. Kernels before 5.12 cannot tell:
 * there the server is asked about every name. */
int look_believed(int directory, const char *name)
{
    static bool cannot_tell;
    struct open_how how = {.flags = O_PATH | O_NOFOLLOW | O_CLOEXEC, .resolve = RESOLVE_CACHED};
    int fd = cannot_tell ? -1 : (int)syscall(SYS_openat2, directory, name, &how, sizeof how);
    if (fd >= 0 || (!cannot_tell && errno != ENOSYS && errno != EINVAL && errno != EPERM))
        return fd;
    cannot_tell = true;
    return openat(directory, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
}

/* What is known of file systems by their magic numbers. Those that are not listed are neither. */
static unsigned traits_of(unsigned long magic)
{
    static const struct {
        unsigned long magic;
        unsigned traits;
    } known[] = {
        {0xEF53, LOOK_COHERENT | LOOK_NUMBERED} /* ext2-4 */, {0x58465342, LOOK_COHERENT | LOOK_NUMBERED} /* xfs */,
        {0x9123683E, LOOK_COHERENT | LOOK_NUMBERED} /* btrfs */, {0xF2F52010, LOOK_COHERENT | LOOK_NUMBERED} /* f2fs */,
        {0x2FC12FC1, LOOK_COHERENT | LOOK_NUMBERED} /* zfs */, {0x01021994, LOOK_COHERENT} /* tmpfs */,
        {0x794C7630, LOOK_COHERENT} /* overlay */, {0x858458F6, LOOK_COHERENT} /* ramfs */, {0xCA451A4E, LOOK_COHERENT} /* bcachefs */,
        {0x6969, LOOK_NUMBERED} /* nfs */};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if ((magic & 0xFFFFFFFFul) == known[i].magic)
            return known[i].traits;
    return 0;
}

uint64_t look_device(int fd)
{
    struct statx st;
    bool known = statx(fd, "", AT_EMPTY_PATH | CACHED, STATX_BASIC_STATS, &st) == 0;
    return known ? (uint64_t)st.stx_dev_major << 32 | st.stx_dev_minor : UINT64_MAX;
}

/* Is it NFS, as this kernel's list of mounts has it? statfs would ask the server. */
static bool is_listed_as_nfs(uint64_t device)
{
    char line[8192];
    unsigned long major, minor;
    bool found = false;
    FILE *mounts = device >> 32 == 0 ? fopen("/proc/self/mountinfo", "re") : NULL; /* what has a disk is none */
    while (mounts && !found && fgets(line, sizeof line, mounts))
        found = sscanf(line, "%*u %*u %lu:%lu ", &major, &minor) == 2 && major == 0 && minor == device && strstr(line, " - nfs");
    if (mounts)
        fclose(mounts);
    return found;
}

/* The answer for the file system that was asked about last is kept: most of a job is about one. */
unsigned look_traits(int fd)
{
    static uint64_t last_device = UINT64_MAX;
    static unsigned last_traits;
    uint64_t device = look_device(fd);
    struct statfs fs;
    if (device != UINT64_MAX && device == last_device)
        return last_traits;
    bool nfs = is_listed_as_nfs(device);
    if (!nfs && fstatfs(fd, &fs) != 0)
        return 0;
    last_traits = nfs ? LOOK_NUMBERED : traits_of((unsigned long)fs.f_type);
    last_device = device;
    return last_traits;
}

bool look_is_coherent(int fd)
{
    return look_traits(fd) & LOOK_COHERENT;
}

bool look_numbers_agree(int fd)
{
    return look_traits(fd) & LOOK_NUMBERED;
}
