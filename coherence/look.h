/* How a name stands here: as this host believes it without asking, or as the file server has it. The one place that knows which
 * system calls ask and which do not; does not know entries of others, nor how a wrong belief is cured. */
#ifndef DWRAP_LOOK_H
#define DWRAP_LOOK_H

#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

#include "protocol/manifest.h"

enum { CACHED = AT_STATX_DONT_SYNC, ASK = AT_STATX_FORCE_SYNC };

/* The entry of a path relative to a descriptor ("": its own), CACHED or by asking. False with errno. */
bool look(struct entry *out, int fd, const char *path, int how);
/* The same; is it a regular file? */
bool look_closely(struct entry *out, int fd, const char *path, int how, bool *regular);
/* Do both tell the same of a file's bytes and times? */
bool look_same(const struct entry *a, const struct entry *b);
/* Does this errno of a look say that nothing is there? */
bool look_is_missing(int error);
/* What this host believes of a name in a directory, without asking: a descriptor (O_PATH), -1 with ENOENT, or -1 with EAGAIN. */
int look_believed(int directory, const char *name);
/* Its file system, as this host numbers them; UINT64_MAX when that is not known. */
uint64_t look_device(int fd);

/* The entry of a path as it is here now, asking the server when `ask`. False with errno when it cannot be told; a path that is
 * not there gives a G entry. Its `path` is the argument. */
bool look_entry(struct entry *entry, const char *path, bool ask);

/* The entry of a file that is open here: what the server has of it once all that was written is stored there. */
bool look_entry_open(struct entry *entry, int fd, const char *path);

/* The same of a path, as stat sees it: what is cached here, as long as it counts. Of a directory: never its old
 * times, which this host's own changes leave behind. */
bool look_entry_as_stat(struct entry *entry, const char *path);

enum { LOOK_COHERENT = 1, LOOK_NUMBERED = 2 };

/* The next two in one question: fstatfs asks a server, so a process asks once for one file system after another. */
unsigned look_traits(int fd);

/* Does every host see one truth of the file system that this descriptor lies on? True for disks and memory of this machine. */
bool look_is_coherent(int fd);

/* Are inode numbers of its file system the same on every host that mounts it? */
bool look_numbers_agree(int fd);

#endif
