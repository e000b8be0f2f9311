/* libFuzzer target: the decoder and the fields parser on whatever a peer may send.
 *
 * The first byte of the input chooses the pieces in which the rest arrives, and whether it starts with a good handshake.
 * With -DPLANTED_BUG the value of a field is copied into a buffer that is large enough for each of the seeds: the run must
 * find it, which shows that the fuzzer gets through handshake, frames and fields by itself. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "protocol/fields.h"
#include "wrapper/zmtp.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct zmtp z;
static volatile size_t sink;

static void touch(const char *bytes, size_t length)
{
    size_t sum = 0;
    for (size_t i = 0; i < length; i++)
        sum += (unsigned char)bytes[i];
    sink += sum;
}

/* The planted bug: room for 48 bytes, and no check. */
static void copy_value(const struct field *one)
{
#ifdef PLANTED_BUG
    char *small = calloc(1, 48);
    memcpy(small, one->value, one->value_length);
    touch(small, 1);
    free(small);
#else
    touch(one->value, one->value_length);
#endif
}

static void take_message(void)
{
    for (size_t i = 0; i < z.frame_count; i++)
        touch(z.frames[i].at, z.frames[i].length);
    if (z.frame_count < 2 || !fields_valid(z.frames[1].at, z.frames[1].length))
        return;
    struct fields rest = fields_of(z.frames[1].at, z.frames[1].length);
    struct field one;
    uint64_t number;
    while (fields_next(&rest, &one)) {
        copy_value(&one);
        if (one.value[one.value_length] != 0)
            abort();
        (void)field_number(one.value, &number);
    }
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
        if (z.reply_length > sizeof z.reply)
            abort();
        z.reply_length = 0;
        if (event == ZMTP_BAD)
            return;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char hello[64] = "\xff\0\0\0\0\0\0\0\1\x7f\3\1NULL";
    static const char ready[] = "\x04\x1c\x05READY\x0bSocket-Type\0\0\0\x06ROUTER";
    if (size < 1)
        return 0;
    zmtp_start(&z, NULL, false);
    if (data[0] & 1) {
        feed((const uint8_t *)hello, sizeof hello, sizeof hello);
        feed((const uint8_t *)ready, sizeof ready - 1, sizeof ready);
    }
    feed(data + 1, size - 1, (size_t)(data[0] >> 1) + 1);
    return 0;
}
