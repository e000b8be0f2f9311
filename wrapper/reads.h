/* The directories that a build is known to read from, and telling when they have changed here.
 *
 * A manifest's R entries name them; they are kept between the commands of a build (memory.h). What changes in them without a
 * wrapped command (the user, a generator, an archive) is told to the agents before the next command of that build is handed over. */
#ifndef DWRAP_READS_H
#define DWRAP_READS_H

#include <stdbool.h>
#include <stddef.h>

enum { READS_TOLD_BYTES = 128 * 1024 };

/* Recalls what is known of this build, looks at it, and writes entries of what has changed since it was told last. The bytes.
 * `numbered` as in seen.h. */
size_t reads_changed(const char *build, bool numbered, char *out, size_t room);

/* Takes a piece of a manifest: new directories, and changes that are the farm's own and known to it. */
void reads_take(const void *piece, size_t length);

/* Keeps it all for the next command, once it is known that what was told has arrived. */
void reads_keep(const char *build);

#endif
