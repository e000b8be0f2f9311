/* Removing what a lost attempt made, before the command runs here. */
#ifndef DWRAP_UNDO_H
#define DWRAP_UNDO_H

#include "protocol/fields.h"
#include "wrapper/talk.h"

/* Removes the names under `undo`, last to first; a directory in which something is stays, and what is not there is fine. Returns the
 * name that it does not remove, and why, or NULL. No other attempt of the job lives, nor will: it was handed back to this process. */
const char *undo_names(struct fields fields, const struct job *job, const char **why);

#endif
