/* What this machine sees of the paths that a command names: GO's third body. */
#ifndef DWRAP_SEEN_H
#define DWRAP_SEEN_H

#include <stdbool.h>
#include <stddef.h>

/* Writes entries: the working directory first, then what the arguments name, each after its directory. The bytes used.
 * `numbered`: inode numbers of the working directory's file system mean the same elsewhere (coherence/look.h). */
size_t seen_write(char *out, size_t room, char *const argv[], int count, const char *cwd, bool numbered);

#endif
