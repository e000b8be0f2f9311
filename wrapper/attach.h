/* Coming back after a torn connection: when to try again, and for how long.
 * Does not know what is said once the connection is there. */
#ifndef DWRAP_ATTACH_H
#define DWRAP_ATTACH_H

#include "wrapper/link.h"

enum { ATTACH_MOST_MS = 1000 };

/* `used_ms` of the patience are gone. Time counts from the moment from which nothing was heard any more, and until the first word over a
 * new connection; time in which we were stopped does not. */
struct absence {
    const struct address *address;
    bool insecure;
    int64_t patience_ms;
    bool away;         /* nothing was heard since the connection was lost */
    int64_t used_ms;
    int64_t looked_ms; /* up to when it was counted */
    int64_t opened_ms; /* when the connection at hand was made; 0: it is the first */
    int64_t next_ms;   /* when to try again */
    int64_t bound_ms;  /* for how long */
};

/* The connection is lost; for `silent_ms` nothing had been heard. Closes it. */
void absence_begin(struct absence *a, struct link *l, int64_t silent_ms);

/* Connects anew if it is time to. True when the connection is there. Takes ATTACH_MOST_MS at most. */
bool absence_try(struct absence *a, struct link *l);

/* Something was heard: whoever speaks there knows of the job. */
void absence_end(struct absence *a);

/* Is the patience over? `least_ms`: as if it were that much at least. */
bool absence_is_too_long(struct absence *a, int64_t least_ms);

/* How long to wait before the next try. */
int64_t absence_pause_ms(const struct absence *a);

#endif
