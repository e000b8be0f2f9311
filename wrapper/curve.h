/* CurveZMQ (RFC 26), the client's half: a distributor that proves that it has the key we know, the proof of our own key,
 * and then frames that only the two can read, in their order, each once.
 *
 * Pure: no sockets, no files, no clock; random bytes are libsodium's randombytes, which tests replace. zmtp.c says when
 * each command is due. Functions that take what the peer sent return NULL, or what is wrong with it.
 * Does not know frames' headers, nor where keys lie. */
#ifndef DWRAP_CURVE_H
#define DWRAP_CURVE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    CURVE_KEY_BYTES = 32,
    CURVE_HELLO_BYTES = 200,
    CURVE_METADATA_BYTES = 32,                               /* at most, of ours */
    CURVE_INITIATE_BYTES = 9 + 96 + 8 + 16 + 128 + CURVE_METADATA_BYTES, /* at most */
    CURVE_FRONT_BYTES = 8 + 8 + 16 + 1,                      /* of a MESSAGE, before what it carries; flags are the last byte */
    CURVE_MORE = 1,
    CURVE_COMMAND = 2,
};

/* What a connection needs: the distributor's key, and our pair. */
struct curve_keys {
    unsigned char server[CURVE_KEY_BYTES];
    unsigned char public[CURVE_KEY_BYTES];
    unsigned char secret[CURVE_KEY_BYTES];
};

enum curve_step { CURVE_GREETED, CURVE_VOUCHED, CURVE_READY };

struct curve {
    enum curve_step step;
    struct curve_keys keys;                          /* the secret half until INITIATE */
    unsigned char transient_public[CURVE_KEY_BYTES]; /* this connection's own pair, */
    unsigned char transient_secret[CURVE_KEY_BYTES]; /* wiped with INITIATE */
    unsigned char shared[CURVE_KEY_BYTES];           /* between that pair and the server's key; from WELCOME on, its transient key */
    uint64_t sent, heard;                            /* the last nonces */
};

/* Something that lies in what the peer sent. */
struct curve_part {
    unsigned char *at;
    size_t length;
};

/* Makes a key pair for one connection. False: the server's key is none, or there are no random bytes. */
bool curve_start(struct curve *c, const struct curve_keys *keys);

/* Wipes what is secret. */
void curve_end(struct curve *c);

void curve_hello(struct curve *c, unsigned char out[CURVE_HELLO_BYTES]);

/* Takes WELCOME, and writes the INITIATE that answers it, with our metadata; *written is its length. */
const char *curve_welcome(struct curve *c, const unsigned char *at, size_t length, const void *metadata, size_t metadata_length,
                          unsigned char out[CURVE_INITIATE_BYTES], size_t *written);

/* Takes READY. What it says is decrypted where it lies. */
const char *curve_ready(struct curve *c, unsigned char *at, size_t length, struct curve_part *metadata);

/* Takes a MESSAGE. What it carries is decrypted where it lies. */
const char *curve_open(struct curve *c, unsigned char *at, size_t length, unsigned *flags, struct curve_part *carried);

/* Makes a MESSAGE of the `length` bytes at front + CURVE_FRONT_BYTES, where they lie. */
void curve_seal(struct curve *c, unsigned char *front, size_t length, unsigned flags);

#endif
