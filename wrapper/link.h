/* One connection to a distributor: connect, handshake, is it who it should be, whole messages in and out, and whether anybody is there.
 * Knows ZMTP, keys and sockets; does not know what the messages mean. */
#ifndef DWRAP_LINK_H
#define DWRAP_LINK_H

#include <stdbool.h>
#include <stdint.h>

#include "protocol/fields.h"
#include "wrapper/address.h"
#include "wrapper/say.h"
#include "wrapper/zmtp.h"

enum {
    PING_AFTER_MS = 1000,             /* of silence, unless the link says otherwise */
    LINK_OUT_BYTES = 384 * 1024,      /* the largest SUBMIT, and 128 KiB for what else waits */
    LINK_URGENT_BYTES = 64 * 1024,    /* of it, kept for credit and signals: input stays out of it */
};

enum link_status {
    LINK_FINE,
    LINK_UNREACHABLE, /* nobody listens there, or the name is not known */
    LINK_SILENT,      /* no answer in time */
    LINK_STRANGE,     /* something answers that is not a distributor, or breaks the protocol */
    LINK_FORBIDDEN,   /* it would carry commands unprotected over a network, or our keys cannot be used */
    LINK_DENIED,      /* it does not let us in, or cannot be known: asking again is of no use */
    LINK_UNTRUSTED,   /* it is not who it should be; who should may come back */
    LINK_LOST,        /* it was open and is not any more */
};

struct link {
    int fd;
    const char *name; /* the address, for messages */
    bool exposed;     /* it goes to another machine without encryption */
    char why[REASON_BYTES]; /* what is wrong, unless LINK_FINE */
    int64_t heard_ms;  /* when the last bytes came */
    int64_t asked_ms;  /* when the first PING since then was sent; earlier than heard_ms: none was */
    int64_t pinged_ms; /* when the last PING was sent */
    int64_t quiet_ms;  /* silence after which one is sent */
    size_t out_start, out_end;
    char out[LINK_OUT_BYTES];
    struct zmtp zmtp;
};

struct message {
    char verb[17];
    struct fields fields;
    struct fields more; /* a second fields frame, as RESULT has; empty when there is none */
    const char *data;   /* the body */
    size_t data_length;
};

/* Connects, shakes hands and makes sure of who is there, all before `deadline_ms`. Where its key is known it must prove that it has it; else on
 * this machine it must be run by somebody who is trusted, and elsewhere nobody is unless `insecure`. `why` has a remedy where there is one. */
enum link_status link_open(struct link *l, const struct address *address, bool insecure, int64_t deadline_ms);
void link_close(struct link *l);

/* Queues one message. `data` may be NULL: then there is no body. False when there is no room. */
bool link_queue(struct link *l, const char *verb, const struct fields_out *fields, const void *data, size_t length);

/* Queues what the connection itself has to answer; whatever is sent past the queue goes after it. False when there is no room. */
bool link_queue_reply(struct link *l);

/* Room for input, after what is kept for credit and signals. */
size_t link_room(const struct link *l);

/* Sends what is queued, as far as it goes without waiting. */
enum link_status link_flush(struct link *l);

/* Receives what is there, without waiting. */
enum link_status link_receive(struct link *l);

/* Takes the next message out of what was received. False when there is none, or the status is not LINK_FINE. */
bool link_next(struct link *l, struct message *m, enum link_status *status);

/* Waits for a message until the deadline, sending and answering PINGs meanwhile. LINK_SILENT when it passes. */
enum link_status link_await(struct link *l, struct message *m, int64_t deadline_ms);

/* Queues a PING when nothing was heard for a while. */
void link_keep_alive(struct link *l, int64_t now);

/* For how long has the peer owed an answer? Time in which nobody asked it (we were stopped, say) does not count. */
static inline int64_t link_silence_ms(const struct link *l, int64_t now)
{
    return l->asked_ms > l->heard_ms ? now - l->asked_ms : 0;
}

#endif
