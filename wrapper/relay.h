/* From GO to the end: the command's streams and signals, until its outcome is known and its output is written. */
#ifndef DWRAP_RELAY_H
#define DWRAP_RELAY_H

#include "wrapper/link.h"
#include "wrapper/signals.h"
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

/* Stays until the end of a job whose GO has just gone over this connection, in answer to this OFFER, and connects anew to the same
 * address when it breaks. */
void relay_run(struct link *l, const struct address *address, struct job *job, const struct message *offer, struct signals *signals,
               struct ending *ending);

#endif
