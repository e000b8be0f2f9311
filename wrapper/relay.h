/* From GO to the end: the command's streams and signals, until its outcome is known and its output is written. */
#ifndef DWRAP_RELAY_H
#define DWRAP_RELAY_H

#include "wrapper/link.h"
#include "wrapper/talk.h"

enum ending_kind {
    ENDED_STATUS,    /* `status` is the raw wait status */
    ENDED_NOT_FOUND, /* there is no such command on the agent */
    ENDED_NOT_EXECUTABLE,
    ENDED_NEVER_RAN, /* no attempt was started, or all are fenced, and nothing of one was seen: it may run again */
    ENDED_UNKNOWN,   /* status 125: what became of it cannot be told, or must not be repeated */
    ENDED_BY_SIGNAL, /* a signal came here and nobody answers any more: `status` is the signal */
};

struct ending {
    enum ending_kind kind;
    int status;
    char reason[REASON_BYTES];
    char agent[128];
    uint64_t queued_ms, run_ms, flush_ms;
};

/* The signal mask as it was inherited, and the descriptor on which signals arrive instead. */
struct signals {
    int fd;
    sigset_t inherited;
};

/* From here on signals are read, not suffered. Those that were ignored or blocked on entry stay so. */
void signals_take(struct signals *signals);

/* As they were on entry: before anything else is executed here. */
void signals_restore(const struct signals *signals);

/* Answers the OFFER with this stamp and stays until the end. */
void relay_run(struct link *l, struct job *job, const char *stamp, struct signals *signals, struct ending *ending);

#endif
