/* ZMTP 3.1, the client's half (a DEALER, mechanism NULL): bytes in, events out.
 *
 * Pure: no sockets, no clock, no allocation. The caller puts what it received at zmtp_space, calls zmtp_received, then
 * zmtp_next until it says ZMTP_MORE; after each round it sends what zmtp_reply holds. Messages lie in the decoder's own
 * buffer and stay valid until the next zmtp_space. The mechanism is a seam: a security handshake sits between
 * greeting and OPEN, and wraps frames in zmtp_next and zmtp_frame_header; nothing outside this file changes for it.
 * Does not know verbs or fields. */
#ifndef DWRAP_ZMTP_H
#define DWRAP_ZMTP_H

#include <stdbool.h>
#include <stddef.h>

#include "protocol/protocol.h"

enum {
    ZMTP_GREETING_BYTES = 64,
    ZMTP_HEADER_BYTES = 9,
    ZMTP_PING_BYTES = 9,
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

struct zmtp_frame {
    const char *at;
    size_t length;
};

struct zmtp {
    enum zmtp_state state;
    const char *why;
    struct zmtp_frame frames[DWRAP_MAX_FRAMES];
    size_t frame_count;

    size_t offsets[DWRAP_MAX_FRAMES]; /* of the frames so far, from `start`: compacting moves them along */
    size_t start, at, end;            /* first byte of the message at hand, first unparsed, first free */
    bool delivered;                   /* the message at hand was handed out: the next call drops it */
    char reply[256];                  /* bytes the caller must send */
    size_t reply_length;
    char buffer[ZMTP_BUFFER_BYTES];
};

/* Starts a connection: `reply` then holds our greeting. */
void zmtp_start(struct zmtp *z);

/* Where to put received bytes; *room is how many fit (0: the message is larger than any that we take). */
char *zmtp_space(struct zmtp *z, size_t *room);
void zmtp_received(struct zmtp *z, size_t length);

enum zmtp_event zmtp_next(struct zmtp *z);

/* Writes a message frame's header (2 or 9 bytes) and returns its length. */
size_t zmtp_frame_header(unsigned char out[ZMTP_HEADER_BYTES], size_t length, bool more);

/* Writes a PING that asks for a PONG. */
void zmtp_ping(unsigned char out[ZMTP_PING_BYTES]);

#endif
