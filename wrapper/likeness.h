/* What SUBMIT says of this machine, so that the command runs where it gives the same result. */
#ifndef DWRAP_LIKENESS_H
#define DWRAP_LIKENESS_H

#include "protocol/fields.h"
#include "wrapper/options.h"

/* The line of this machine as others are told it (environment/environment.h): remembered, or made. */
const char *environment_here(void);

/* Adds `identity`, unless any environment will do, and `cpu` when what the command makes depends on the processor. */
void likeness_add(struct fields_out *out, const struct settings *s);

#endif
