/* HELLO, WELCOME, INITIATE, READY, MESSAGE as bytes; see curve.h.
 *
 *     HELLO     "\5HELLO" version:2 zeros:72 C':32 nonce:8 box:80    box = zeros:64, C' to S
 *     WELCOME   "\7WELCOME" nonce:16 box:144                         box = S':32 cookie:96, S to C'
 *     INITIATE  "\10INITIATE" cookie:96 nonce:8 box                  box = C:32 nonce:16 vouch:80 metadata, C' to S'
 *                                                                    vouch = C':32 S:32, C to S'
 *     READY     "\5READY" nonce:8 box                                box = metadata, S' to C'
 *     MESSAGE   "\7MESSAGE" nonce:8 box                              box = flags:1 bytes, between C' and S'
 *
 * C and S are the long keys, C' and S' those of one connection. A short nonce counts up; the word before it is the command's, so that
 * no two boxes of one pair of keys have the same 24 bytes. Does not know frames. */
#include "wrapper/curve.h"

#include <sodium.h>
#include <string.h>

enum {
    MAC_BYTES = crypto_box_MACBYTES,
    WORD_BYTES = 16, /* before a short nonce */
    COOKIE_BYTES = 96,
    WELCOME_BYTES = 8 + 16 + MAC_BYTES + CURVE_KEY_BYTES + COOKIE_BYTES,
    VOUCH_BYTES = MAC_BYTES + 2 * CURVE_KEY_BYTES,
    MESSAGE_NONCE_AT = 8,
    MESSAGE_BOX_AT = 16,
    READY_NONCE_AT = 6,
    READY_BOX_AT = 14,
};

static void put_number(unsigned char out[8], uint64_t number)
{
    for (int i = 0; i < 8; i++)
        out[i] = (unsigned char)(number >> (56 - 8 * i));
}

static uint64_t get_number(const unsigned char at[8])
{
    uint64_t number = 0;
    for (int i = 0; i < 8; i++)
        number = number << 8 | at[i];
    return number;
}

/* A nonce of a command's word and eight bytes. */
static void short_nonce(unsigned char out[crypto_box_NONCEBYTES], const char word[WORD_BYTES + 1], const unsigned char number[8])
{
    memcpy(out, word, WORD_BYTES);
    memcpy(out + WORD_BYTES, number, 8);
}

/* Boxes what lies after the room for the MAC at `box`, with the next of our nonces, which it writes to `number`. */
static void seal(struct curve *c, const char word[WORD_BYTES + 1], unsigned char number[8], unsigned char *box, size_t length)
{
    unsigned char nonce[crypto_box_NONCEBYTES];
    put_number(number, ++c->sent);
    short_nonce(nonce, word, number);
    crypto_box_detached_afternm(box + MAC_BYTES, box, box + MAC_BYTES, length, nonce, c->shared);
}

/* Opens a box where it lies: what was in it is at box + MAC_BYTES. */
static bool open_box(const struct curve *c, const char word[WORD_BYTES + 1], const unsigned char number[8], unsigned char *box, size_t length)
{
    unsigned char nonce[crypto_box_NONCEBYTES];
    short_nonce(nonce, word, number);
    return crypto_box_open_detached_afternm(box + MAC_BYTES, box + MAC_BYTES, box, length - MAC_BYTES, nonce, c->shared) == 0;
}

bool curve_start(struct curve *c, const struct curve_keys *keys)
{
    memset(c, 0, sizeof *c);
    if (sodium_init() < 0)
        return false;
    c->keys = *keys;
    return crypto_box_keypair(c->transient_public, c->transient_secret) == 0 &&
           crypto_box_beforenm(c->shared, keys->server, c->transient_secret) == 0;
}

void curve_end(struct curve *c)
{
    sodium_memzero(c, sizeof *c);
}

void curve_hello(struct curve *c, unsigned char out[CURVE_HELLO_BYTES])
{
    memset(out, 0, CURVE_HELLO_BYTES);
    memcpy(out, "\x05HELLO\x01", 7);
    memcpy(out + 80, c->transient_public, CURVE_KEY_BYTES);
    seal(c, "CurveZMQHELLO---", out + 112, out + 120, CURVE_HELLO_BYTES - 120 - MAC_BYTES);
}

/* Our word that C' is ours, which only the holder of S' can read. False: S' is no key. */
static bool vouch(const struct curve *c, const unsigned char server_transient[CURVE_KEY_BYTES], unsigned char *out)
{
    unsigned char nonce[crypto_box_NONCEBYTES] = "VOUCH---", both[2 * CURVE_KEY_BYTES];
    randombytes_buf(nonce + 8, 16);
    memcpy(out, nonce + 8, 16);
    memcpy(both, c->transient_public, CURVE_KEY_BYTES);
    memcpy(both + CURVE_KEY_BYTES, c->keys.server, CURVE_KEY_BYTES);
    return crypto_box_easy(out + 16, both, sizeof both, nonce, server_transient, c->keys.secret) == 0;
}

const char *curve_welcome(struct curve *c, const unsigned char *at, size_t length, const void *metadata, size_t metadata_length,
                          unsigned char out[CURVE_INITIATE_BYTES], size_t *written)
{
    unsigned char nonce[crypto_box_NONCEBYTES] = "WELCOME-", plain[CURVE_KEY_BYTES + COOKIE_BYTES];
    unsigned char *box = out + 9 + COOKIE_BYTES + 8, *inside = box + MAC_BYTES;
    if (c->step != CURVE_GREETED || length != WELCOME_BYTES || memcmp(at, "\x07WELCOME", 8) != 0 || metadata_length > CURVE_METADATA_BYTES)
        return "its handshake is not CurveZMQ's";
    memcpy(nonce + 8, at + 8, 16);
    if (crypto_box_open_detached_afternm(plain, at + 24 + MAC_BYTES, at + 24, sizeof plain, nonce, c->shared) != 0)
        return "it does not have the key that is known of it";
    memcpy(out, "\x08INITIATE", 9);
    memcpy(out + 9, plain + CURVE_KEY_BYTES, COOKIE_BYTES);
    memcpy(inside, c->keys.public, CURVE_KEY_BYTES);
    if (!vouch(c, plain, inside + CURVE_KEY_BYTES) || crypto_box_beforenm(c->shared, plain, c->transient_secret) != 0)
        return "its handshake has a key that is none";
    memcpy(inside + CURVE_KEY_BYTES + 16 + VOUCH_BYTES, metadata, metadata_length);
    size_t inside_length = CURVE_KEY_BYTES + 16 + VOUCH_BYTES + metadata_length;
    seal(c, "CurveZMQINITIATE", box - 8, box, inside_length);
    *written = (size_t)(inside - out) + inside_length;
    sodium_memzero(c->keys.secret, sizeof c->keys.secret);
    sodium_memzero(c->transient_secret, sizeof c->transient_secret);
    c->step = CURVE_VOUCHED;
    return NULL;
}

const char *curve_ready(struct curve *c, unsigned char *at, size_t length, struct curve_part *metadata)
{
    if (c->step != CURVE_VOUCHED || length < READY_BOX_AT + MAC_BYTES || memcmp(at, "\x05READY", 6) != 0)
        return "its handshake is not CurveZMQ's";
    if (!open_box(c, "CurveZMQREADY---", at + READY_NONCE_AT, at + READY_BOX_AT, length - READY_BOX_AT))
        return "its handshake was changed on the way";
    c->heard = get_number(at + READY_NONCE_AT);
    c->step = CURVE_READY;
    *metadata = (struct curve_part){ at + READY_BOX_AT + MAC_BYTES, length - READY_BOX_AT - MAC_BYTES };
    return NULL;
}

const char *curve_open(struct curve *c, unsigned char *at, size_t length, unsigned *flags, struct curve_part *carried)
{
    if (length < CURVE_FRONT_BYTES || memcmp(at, "\x07MESSAGE", 8) != 0)
        return "it sent something that is not encrypted";
    uint64_t number = get_number(at + MESSAGE_NONCE_AT);
    if (number != c->heard + 1) /* the RFC asks for growth only; libzmq counts by one, so that a frame that was taken out shows too */
        return "what it sent came twice, not at all or in another order";
    if (!open_box(c, "CurveZMQMESSAGES", at + MESSAGE_NONCE_AT, at + MESSAGE_BOX_AT, length - MESSAGE_BOX_AT))
        return "what it sent was changed on the way";
    c->heard = number;
    *flags = at[CURVE_FRONT_BYTES - 1];
    *carried = (struct curve_part){ at + CURVE_FRONT_BYTES, length - CURVE_FRONT_BYTES };
    return NULL;
}

void curve_seal(struct curve *c, unsigned char *front, size_t length, unsigned flags)
{
    memcpy(front, "\x07MESSAGE", 8);
    front[CURVE_FRONT_BYTES - 1] = (unsigned char)flags;
    seal(c, "CurveZMQMESSAGEC", front + MESSAGE_NONCE_AT, front + MESSAGE_BOX_AT, 1 + length);
}
