/* ZMTP 3.1, the client's half (a DEALER; mechanism NULL, or CURVE with curve.h): bytes in, events out.
 *
 * Pure: no sockets, no clock, no allocation. The caller puts what it received at zmtp_space, calls zmtp_received, then
 * zmtp_next until it says ZMTP_MORE; after each round it sends what zmtp_reply holds. Messages lie in the decoder's own
 * buffer and stay valid until the next zmtp_space. With CURVE each frame is a whole that is encrypted where it lies, and that must
 * be sent in the order in which it was made: what zmtp_reply holds goes before any frame that is made later.
 * Does not know verbs or fields, nor where keys lie. */
#ifndef DWRAP_ZMTP_H
#define DWRAP_ZMTP_H

#include <stdbool.h>
#include <stddef.h>

#include "protocol/protocol.h"
#include "wrapper/curve.h"

enum {
    ZMTP_GREETING_BYTES = 64,
    ZMTP_HEADER_BYTES = 9,
    ZMTP_FRONT_BYTES = ZMTP_HEADER_BYTES + CURVE_FRONT_BYTES,
    ZMTP_PING_BYTES = 2 + CURVE_FRONT_BYTES + 7, /* at most */
    /* The largest message taken. All that a distributor sends fits: fields are at most 256 KiB, data 32 KiB. */
    ZMTP_BUFFER_BYTES = 512 * 1024,
    ZMTP_READ_BYTES = 128 * 1024,
};

enum zmtp_event {
    ZMTP_MORE,    /* nothing until more bytes come */
    ZMTP_OPENED,  /* the handshake is over: messages may be sent from now on, and not before */
    ZMTP_MESSAGE, /* frames, frame_count */
    ZMTP_BAD,     /* the peer broke the protocol; `why` says how; every further call says the same */
};

enum zmtp_state { ZMTP_IN_GREETING, ZMTP_IN_HANDSHAKE, ZMTP_OPEN, ZMTP_BROKEN };

/* Of ZMTP_BAD: what it means for whoever wanted to talk. */
enum zmtp_fault {
    ZMTP_STRANGE,     /* it breaks the protocol, or is something else */
    ZMTP_UNPROVEN,    /* it does not prove that it has the key that is known of it */
    ZMTP_ASKS_KEYS,   /* it speaks CURVE only, and we were given no keys */
    ZMTP_REFUSES_KEY, /* it does not let our key in */
    ZMTP_UNABLE,      /* it cannot check keys now */
    ZMTP_LEAVES,      /* it ends the handshake before it has proved anything: whatever it says of that is nobody's word */
};

struct zmtp_frame {
    const char *at;
    size_t length;
};

struct zmtp {
    enum zmtp_state state;
    enum zmtp_fault fault;
    const char *why;
    bool secure;  /* CURVE */
    bool careful; /* what we speak is only said once we know what the peer does */
    struct curve curve;
    struct zmtp_frame frames[DWRAP_MAX_FRAMES];
    size_t frame_count;

    size_t offsets[DWRAP_MAX_FRAMES]; /* of the frames so far, from `start`: compacting moves them along */
    size_t start, at, end;            /* first byte of the message at hand, first unparsed, first free */
    bool delivered;                   /* the message at hand was handed out: the next call drops it */
    char reply[640];                  /* bytes the caller must send */
    size_t reply_length;
    char buffer[ZMTP_BUFFER_BYTES];
};

/* Starts a connection: `reply` then holds our greeting. With keys it is encrypted, and to their server only; `keys` may go then.
 * `careful`: libzmq does not say what it speaks to somebody who speaks something else, so say nothing of that first. It costs a round trip,
 * save with keys, where it is always done. */
void zmtp_start(struct zmtp *z, const struct curve_keys *keys, bool careful);

/* Ends it: forgets what is secret. */
void zmtp_end(struct zmtp *z);

/* Where to put received bytes; *room is how many fit (0: the message is larger than any that we take). */
char *zmtp_space(struct zmtp *z, size_t *room);
void zmtp_received(struct zmtp *z, size_t length);

enum zmtp_event zmtp_next(struct zmtp *z);

/* Writes a plain message frame's header (2 or 9 bytes) and returns its length. */
size_t zmtp_frame_header(unsigned char out[ZMTP_HEADER_BYTES], size_t length, bool more);

/* Writes what goes before `length` bytes of a message frame on this connection and returns how much that is. Once they follow it,
 * zmtp_seal encrypts them where they lie, where the connection is encrypted. */
size_t zmtp_front(const struct zmtp *z, unsigned char out[ZMTP_FRONT_BYTES], size_t length, bool more);
void zmtp_seal(struct zmtp *z, unsigned char *bytes, size_t length);

/* Writes a PING that asks for a PONG, and returns its length. */
size_t zmtp_ping(struct zmtp *z, unsigned char out[ZMTP_PING_BYTES]);

#endif
