/* Which build is this? Named after the nearest ancestor that stands for it. */
#ifndef DWRAP_ANCESTRY_H
#define DWRAP_ANCESTRY_H

#include <stddef.h>

/* Writes COMM.PID.STARTTIME@HOST of that ancestor. */
void build_from_ancestors(char *out, size_t size, const char *host);

#endif
