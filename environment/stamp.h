/* When did a file change last? A hash of what stat(2) says of several files, to compare with an earlier one. */
#ifndef DWRAP_STAMP_H
#define DWRAP_STAMP_H

#include <stdint.h>

struct stamp {
    uint64_t hash;
};

void stamp_start(struct stamp *stamp);

/* Adds a file, or that it is not there. */
void stamp_add(struct stamp *stamp, const char *root, const char *path);

#endif
