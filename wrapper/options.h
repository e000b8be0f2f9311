/* What the user asked for: the command line, the environment and client.conf, read once into one struct. */
#ifndef DWRAP_OPTIONS_H
#define DWRAP_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

struct settings {
    char **command; /* argv of the command, NULL-terminated, never empty */
    int count;

    const char *hosts;  /* comma list of distributors, or NULL: none is configured */
    const char *path;   /* $PATH */
    const char *inside; /* the job we run inside of, or NULL */
    const char *local;  /* why it must run here whatever else is said, or NULL */
    const char *labels; /* K=V,… or NULL */
    const char *build;  /* its name, or NULL: found from our ancestors */
    const char *log_directory; /* where here.log lies, or NULL */
    int64_t patience_ms;
    long priority;
    long local_slots; /* 0: as many as there are processors */
    bool explain;
    bool any_environment; /* DWRAP_ENVIRONMENT=any */
    bool native;        /* DWRAP_NATIVE: only where the processor is as here */
    bool remote;        /* skip the "must run here" rules */
    bool fallback_fail; /* DWRAP_FALLBACK=fail */
    bool verbose;
    bool insecure;
    bool views;     /* tell and be told what changed on a tree that each host sees through a cache of its own */
    bool slot_held; /* a command above us holds a local slot already */
};

/* Reads everything. Leaves the process for --help, --version (0), a bad option (2) and a bad setting (125). */
void settings_read(struct settings *s, int argc, char **argv);

/* The file that this program was started from: links to it are no commands. */
bool stat_self(struct stat *out);

#endif
