/* Running the command here. */
#ifndef DWRAP_LOCAL_H
#define DWRAP_LOCAL_H

#include "wrapper/options.h"

/* Becomes the command at once: inside a job, where the agent already holds a slot for it. */
__attribute__((noreturn)) void run_in_place(const struct settings *s);

/* Logs why it runs here, waits for a local slot (not when the user asked for local), and becomes the command. */
__attribute__((noreturn)) void run_here(const struct settings *s, const char *reason, const char *cwd);

#endif
