/* Finding a place for the command elsewhere, and running it there. */
#ifndef DWRAP_REMOTE_H
#define DWRAP_REMOTE_H

#include "wrapper/relay.h"

enum answer_kind {
    ANSWER_RAN,         /* `ending` tells how it went */
    ANSWER_HERE,        /* a rule says that it runs here */
    ANSWER_UNAVAILABLE, /* nobody takes it: the fallback decides */
    ANSWER_REFUSED,     /* status 125 */
    ANSWER_EXPLAINED,   /* `reason` is the explanation */
};

struct answer {
    enum answer_kind kind;
    char reason[REASON_BYTES];
    struct ending ending;
};

/* Asks the distributors in turn. With DWRAP_FALLBACK=fail asks again until the patience is over. */
void remote_run(struct job *job, struct signals *signals, struct answer *answer);

#endif
