/* The packages that are installed under a root, whatever manages them. */
#ifndef DWRAP_PACKAGES_H
#define DWRAP_PACKAGES_H

#include <stdbool.h>

#include "environment/stamp.h"

/* The name under which it is told that packages are being changed. */
#define PACKAGES_UNFINISHED "unfinished"

/* Is told of each package: its name, its version, and its architecture or "". */
typedef void package_seen(void *context, const char *name, const char *version, const char *architecture);

/* Tells of every package that the databases of dpkg, apk, pacman and rpm under `root` ("" for this machine) know as installed. False when
 * one of them could not be read to its end. */
bool packages_each(const char *root, package_seen *seen, void *context);

/* Adds what changes whenever one of those databases does. */
void packages_stamp(const char *root, struct stamp *stamp);

#endif
