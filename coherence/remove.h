/* Removing a name that a lost attempt made, so that the command can run anew. */
#ifndef DWRAP_REMOVE_H
#define DWRAP_REMOVE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* What may be removed at all. */
struct removal {
    const char *root;     /* only below it; links on the way to it are followed. "": anywhere */
    const dev_t *devices; /* only on these file systems; NULL: on any */
    size_t device_count;
    int64_t since_ms; /* only what was made after this moment of CLOCK_BOOTTIME; 0: that is not known */
};

/* NULL when it is gone, or is a directory in which something is. Else why it is left: it cannot be what a command made, or the
 * kernel's word. As the current user. */
const char *remove_made(const char *path, const struct removal *limits);

#endif
