/* What can be decided about a command without asking anyone: must it run here, and which directories does it name? */
#ifndef DWRAP_DECIDE_H
#define DWRAP_DECIDE_H

#include <stdbool.h>
#include <stddef.h>

#include "protocol/fields.h"

/* Why the command must run here, by the rule table, or NULL. `argv` has `count` words, `cwd` is absolute. */
const char *rule_for_here(char *const argv[], int count, const char *cwd);

/* Does what this command makes depend on the processor that it runs on? */
bool is_native(char *const argv[], int count);

/* Adds a `path` field for each directory that an argument names and that no IMAGE rule and no earlier field covers.
 * Returns why the command must run here (too many of them), or NULL. */
const char *add_paths(struct fields_out *out, char *const argv[], int count, const char *cwd);

/* Does the name of an environment variable match a STAYS rule? */
bool variable_stays(const char *name, size_t length);

#endif
