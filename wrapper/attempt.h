/* The attempt at hand, as the submitter sees it: how far each stream has come, what was passed on, and the messages that say so.
 *
 * All of it is counted from the attempt's beginning, so that after a torn connection both ends can say again what the other may
 * have missed; and a new attempt is compared with what earlier ones have printed, which is printed once.
 * Does not know when a connection is lost or made, or how the job ends. */
#ifndef DWRAP_ATTEMPT_H
#define DWRAP_ATTEMPT_H

#include "wrapper/link.h"
#include "wrapper/streams.h"
#include "wrapper/talk.h"

enum { PASSED_KEPT = 16 };

/* One output stream over all attempts. `sink.received` bytes were printed, or wait to be; the attempt at hand has sent `heard`,
 * which is less as long as it repeats what an earlier one printed. */
struct output {
    struct sink sink;
    const char *name;
    uint64_t heard, heard_hash;
    uint64_t printed_hash;
    uint64_t limit; /* the credit given */
    bool closed;    /* CLOSE was sent */
    bool expected;  /* the command's stream comes here */
};

struct attempt {
    struct link *link;
    struct job *job;
    uint64_t number; /* 0: the distributor does not count attempts */
    char epoch[STAMP_BYTES]; /* in which it was offered; empty: that was not said */
    int64_t go_ms;   /* when GO was sent, on the clock that counts suspend */
    struct source in;
    struct output out[2];
    bool attaching;  /* ATTACH was sent on this connection, or will be, and the agent has not answered it */
    bool clogged;    /* a message found no room: the peer does not read any more */
    char stamp[STAMP_BYTES]; /* from PROVE; empty: this connection has none */
    uint64_t passed, passed_before; /* signals that were passed on in all, and before this attempt */
    int signals[PASSED_KEPT];       /* the last of them, by sequence number */
    bool touched; /* one was passed on whose effect nobody knows: from then on there is no other attempt */
};

enum taken { TAKEN, TAKEN_WRONG, TAKEN_DIFFERS };

/* GO has just been sent in answer to this OFFER. */
void attempt_start(struct attempt *a, struct link *l, struct job *job, const struct message *offer);

/* It is to be run anew. Returns why that cannot be, or NULL. */
const char *attempt_restart(struct attempt *a, const struct message *offer);

/* GO has been sent for the new one. */
void attempt_started(struct attempt *a);

/* Takes an OUTPUT. TAKEN_WRONG: nobody asked for it; TAKEN_DIFFERS: it is not what an earlier attempt printed. */
enum taken attempt_take_output(struct attempt *a, const struct message *m);

/* Takes a CREDIT for stdin. False when the agent lacks input that is not known any more. */
bool attempt_take_credit(struct attempt *a, const struct message *m);

/* Was more said to have been printed than has come? */
bool attempt_is_incomplete(const struct attempt *a, const struct message *result);

/* Did it end before it printed what an earlier one had? */
bool attempt_fell_short(const struct attempt *a);

/* Nothing of any attempt was seen here, or changed it: no output, no input that cannot be given back, no signal. */
bool attempt_is_untouched(const struct attempt *a);

/* Writes what waits, and gives credit for what was written; says so when nobody reads it any more. */
void attempt_write(struct attempt *a, int stream);

/* Sends the input that can be read now. */
void attempt_send_input(struct attempt *a);

/* Passes a signal on: now, or, when there is no connection, after the next ATTACH. */
void attempt_pass_signal(struct attempt *a, int number);

/* The connection is gone: nothing is said, and no input read, until the agent has told how much of it has come. */
void attempt_detach(struct attempt *a);

/* Says ATTACH, and what may have been lost. */
void attempt_attach(struct attempt *a);

/* Says that RESULT has come. */
void attempt_acknowledge(struct attempt *a);

#endif
