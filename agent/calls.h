/* A table of system calls (calls.c). */
#ifndef DWRAP_CALLS_H
#define DWRAP_CALLS_H

#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>

/* The columns of numbers. */
enum { ABI_X86_64, ABI_I386, ABI_AARCH64, ABIS };

enum { NAMES_PER_CALL = 2 };

#define OPENS_TO_WRITE (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC | (O_TMPFILE & ~O_DIRECTORY))

enum watch {
    WATCH,          /* always */
    WATCH_WRITERS,  /* when its flags open for writing, create or truncate */
    WATCH_LISTENER, /* when its flags ask for a seccomp listener */
    REFUSE,         /* ENOSYS, as on a kernel without it */
};

enum effect {
    EFFECT_NONE,
    EFFECT_OPEN,     /* opened as its flags say */
    EFFECT_OPEN_HOW, /* as the struct that its third argument points to says */
    EFFECT_CREATE,   /* opened, created, truncated */
    EFFECT_MAKE,     /* made, when it was not there */
    EFFECT_PLACE,    /* something else takes this name */
    EFFECT_LEAVE,    /* it loses this name */
    EFFECT_REMOVE,
    EFFECT_CUT,      /* its size is changed */
    EFFECT_TOUCH,    /* its mode, owner, times or attributes are changed */
    EFFECT_TOUCH_LINK, /* those of a link, where it is one */
    EFFECT_BIND,     /* as MAKE, the path is in a socket address */
    EFFECT_CONNECT,
    EFFECT_RUN, /* the program at this path takes the process over */
    EFFECT_NEW_ROOT,
    EFFECT_HANDLE, /* a file is opened, and nobody can tell its name */
    EFFECT_LISTENER,
};

/* Which arguments name one path. */
struct naming {
    int8_t directory; /* a directory's descriptor; -1: the working directory */
    int8_t path;      /* a string; -1: the descriptor is what is named */
    uint8_t effect;
};

struct call {
    int16_t number[ABIS]; /* -1: not there */
    uint8_t watch;
    int8_t flags; /* of an open, a rename, or AT_...: which argument; -1: none */
    struct naming names[NAMES_PER_CALL];
};

extern const struct call calls[];
extern const size_t call_count;

/* ---- filter.c ---- */

struct seccomp_data;

/* Which call was stopped; NULL: none of the table. */
const struct call *filter_call_of(const struct seccomp_data *data);

#endif
