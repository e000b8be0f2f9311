/* Removing what a lost attempt made, before the command runs here. */
#ifndef DWRAP_UNDO_H
#define DWRAP_UNDO_H

#include "protocol/fields.h"

/* Removes the names under `undo`, last to first: files, links and empty directories; what is not there is fine. Returns the name
 * that could not be removed, with errno set, or NULL. */
const char *undo_names(struct fields fields);

#endif
