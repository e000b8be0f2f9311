/* libFuzzer target: the CURVE handshake and what comes encrypted, on whatever a peer may send.
 *
 * The first byte of the input chooses the pieces in which the rest arrives, and whether a good handshake goes before. The client's
 * random bytes and keys are those of curve_vectors.txt, so what the server says there is right for it: seeds that the fuzzer damages.
 * With -DSTUBBED and the cryptography's names redefined (test_curve_wire.py) every box opens as if it were right and in clear, so that
 * what lies behind is reached. With -DPLANTED_BUG a message's first frame is copied to a buffer that is large enough for each of the seeds. */
#include <sodium.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "wrapper/zmtp.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

static struct zmtp z;
static volatile size_t sink;
static size_t drawn;

#ifdef STUBBED
int crypto_box_open_detached_afternm(unsigned char *m, const unsigned char *c, const unsigned char *mac, unsigned long long length,
                                     const unsigned char *nonce, const unsigned char *key)
{
    (void)nonce;
    sink += mac[0] + mac[15] + key[0];
    memmove(m, c, length);
    return 0;
}

int crypto_box_beforenm(unsigned char *key, const unsigned char *public, const unsigned char *secret)
{
    sink += public[31] + secret[31];
    memset(key, 7, 32);
    return 0;
}

int crypto_box_easy(unsigned char *c, const unsigned char *m, unsigned long long length, const unsigned char *nonce, const unsigned char *public,
                    const unsigned char *secret)
{
    sink += public[31] + secret[31] + nonce[23];
    memset(c, 0, 16);
    memcpy(c + 16, m, length);
    return 0;
}
#endif

/* 32 bytes of the transient key, then 0x50, 0x51, ... for the vouch. */
static void draw(void *out, size_t size)
{
    for (size_t i = 0; i < size; i++, drawn++)
        ((unsigned char *)out)[i] = drawn < 32 ? 0x33 : (unsigned char)(0x50 + drawn - 32);
}

static const char *name(void)
{
    return "fixed";
}

static uint32_t number(void)
{
    return 4;
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    static struct randombytes_implementation fixed = { .implementation_name = name, .random = number, .buf = draw };
    (void)argc;
    (void)argv;
    return randombytes_set_implementation(&fixed) != 0 || sodium_init() < 0;
}

static void touch(const char *bytes, size_t length)
{
    size_t sum = 0;
    for (size_t i = 0; i < length; i++)
        sum += (unsigned char)bytes[i];
    sink += sum;
}

static void take_message(void)
{
    for (size_t i = 0; i < z.frame_count; i++) {
        if (z.frames[i].at < z.buffer || z.frames[i].length > sizeof z.buffer - (size_t)(z.frames[i].at - z.buffer))
            abort();
        touch(z.frames[i].at, z.frames[i].length);
    }
#ifdef PLANTED_BUG
    char *small = calloc(1, 16);
    memcpy(small, z.frames[0].at, z.frames[0].length);
    touch(small, 1);
    free(small);
#endif
}

/* An answer, as the caller would send it: once it is gone there is room for more. */
static void take_reply(void)
{
    if (z.reply_length > sizeof z.reply)
        abort();
    touch(z.reply, z.reply_length);
    z.reply_length = 0;
}

static void feed(const uint8_t *data, size_t size, size_t piece)
{
    while (size > 0) {
        size_t room, step = size < piece ? size : piece;
        char *space = zmtp_space(&z, &room);
        step = step < room ? step : room;
        if (step == 0)
            return; /* larger than any message that is taken */
        memcpy(space, data, step);
        zmtp_received(&z, step);
        data += step;
        size -= step;
        enum zmtp_event event;
        while ((event = zmtp_next(&z)) == ZMTP_MESSAGE || event == ZMTP_OPENED)
            if (event == ZMTP_MESSAGE)
                take_message();
        take_reply();
        if (event == ZMTP_BAD)
            return;
    }
}

static struct curve_keys keys(void)
{
    struct curve_keys k;
    static const unsigned char server[] = { SERVER_KEY };
    memset(k.secret, 0x11, sizeof k.secret);
    memset(k.public, 0x12, sizeof k.public);
    memcpy(k.server, server, sizeof k.server);
    return k;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint8_t greeting[64] = "\xff\0\0\0\0\0\0\0\1\x7f\3\1CURVE";
    static const uint8_t handshake[] = { HANDSHAKE };
    struct curve_keys k = keys();
    if (size < 1)
        return 0;
    drawn = 0;
    zmtp_start(&z, &k, false);
    if (data[0] & 1)
        feed(greeting, sizeof greeting, sizeof greeting);
    if ((data[0] & 3) == 3)
        feed(handshake, sizeof handshake, sizeof handshake);
    feed(data + 1, size - 1, (size_t)(data[0] >> 2) * 4 + 1);
    zmtp_end(&z);
    return 0;
}
