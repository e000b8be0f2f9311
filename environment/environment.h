/* What a machine is for a build: a line that is equal where a command makes the same of the same input. */
#ifndef DWRAP_ENVIRONMENT_H
#define DWRAP_ENVIRONMENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum { ENVIRONMENT_BYTES = 240, CPU_BYTES = 128 };

/* Changes whenever environment_read may say something else. Costs a look at two dozen files. */
uint64_t environment_stamp(const char *root);

/* The line `ARCHITECTURE SYSTEM TOOL=VERSION,… … #DIGEST` of what is installed under `root` ("": here). The digest is over all that
 * counts (counts.def), each of which is also written to `list`, `NAME VERSION` a line, if that is not NULL. dwrap itself never counts.
 * False when something could not be read: the line is one for now, and equal to none that is. */
bool environment_read(const char *root, char line[ENVIRONMENT_BYTES], FILE *list);

/* The line `MODEL #DIGEST` of the processor: equal where -march=native means the same. */
void cpu_read(char line[CPU_BYTES]);

/* All of it on stdout: `environment=LINE`, `cpu=LINE`, `stamp=STAMP`, an empty line, the list. Of a machine that still has the stamp
 * `known` (NULL: none is known) the stamp alone. `said`: the line that is told others, where that is another (NULL: it is not). False as
 * above. */
bool environment_print(const char *root, const char *known, const char *said);

#endif
