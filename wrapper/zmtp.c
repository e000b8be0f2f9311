/* ZMTP 3.1 decoder, handshake and liveness; see zmtp.h. Does not know sockets, verbs or fields. */
#include "wrapper/zmtp.h"

#include <stdint.h>
#include <string.h>
#include <strings.h>

enum { FLAG_MORE = 1, FLAG_LONG = 2, FLAG_COMMAND = 4, FLAGS_KNOWN = 7, SMALL_ROOM = 16 * 1024 };

static const char greeting[ZMTP_GREETING_BYTES] = { '\xff', 0, 0, 0, 0, 0, 0, 0, 1, '\x7f', 3, 1, 'N', 'U', 'L', 'L' };

/* READY with Socket-Type=DEALER. */
static const char ready[] = "\x04\x1c\x05READY\x0bSocket-Type\0\0\0\x06"
                            "DEALER";

static void reply_add(struct zmtp *z, const void *bytes, size_t length)
{
    if (length > sizeof z->reply - z->reply_length)
        return; /* only a flood of PINGs gets here, and one PONG says all there is to say */
    memcpy(z->reply + z->reply_length, bytes, length);
    z->reply_length += length;
}

void zmtp_start(struct zmtp *z)
{
    /* Not memset: the buffer's pages stay untouched until they are needed. */
    z->state = ZMTP_IN_GREETING;
    z->why = "";
    z->frame_count = 0;
    z->start = z->at = z->end = 0;
    z->delivered = false;
    z->reply_length = 0;
    reply_add(z, greeting, sizeof greeting);
}

static enum zmtp_event broken(struct zmtp *z, const char *why)
{
    z->state = ZMTP_BROKEN;
    z->why = why;
    return ZMTP_BAD;
}

char *zmtp_space(struct zmtp *z, size_t *room)
{
    if (z->delivered) {
        z->start = z->at;
        z->delivered = false;
        z->frame_count = 0;
    }
    if (z->start > 0 && (z->start == z->end || sizeof z->buffer - z->end < SMALL_ROOM)) {
        memmove(z->buffer, z->buffer + z->start, z->end - z->start);
        z->at -= z->start;
        z->end -= z->start;
        z->start = 0;
    }
    *room = sizeof z->buffer - z->end;
    if (*room > ZMTP_READ_BYTES)
        *room = ZMTP_READ_BYTES;
    return z->buffer + z->end;
}

void zmtp_received(struct zmtp *z, size_t length)
{
    z->end += length;
}

static enum zmtp_event read_greeting(struct zmtp *z)
{
    const unsigned char *at = (unsigned char *)z->buffer;
    size_t have = z->end;
    if (have >= 1 && at[0] != 0xff)
        return broken(z, "it does not speak ZMTP");
    if (have >= 10 && (at[9] & 1) == 0)
        return broken(z, "it does not speak ZMTP");
    if (have >= 11 && at[10] < 3)
        return broken(z, "it speaks a ZMTP older than 3");
    if (have < ZMTP_GREETING_BYTES)
        return ZMTP_MORE;
    if (memcmp(at + 12, greeting + 12, 20) != 0)
        return broken(z, "it asks for a security mechanism, and no keys are set up here");
    z->at = z->start = ZMTP_GREETING_BYTES;
    z->state = ZMTP_IN_HANDSHAKE;
    reply_add(z, ready, sizeof ready - 1);
    return ZMTP_OPENED; /* of this step only: zmtp_next goes on to the handshake */
}

static uint64_t big_endian(const unsigned char *at, size_t bytes)
{
    uint64_t value = 0;
    for (size_t i = 0; i < bytes; i++)
        value = value << 8 | at[i];
    return value;
}

/* Reads one frame at z->at without consuming it. ZMTP_MESSAGE means it is whole. */
static enum zmtp_event read_frame(struct zmtp *z, unsigned *flags, struct zmtp_frame *frame)
{
    const unsigned char *at = (unsigned char *)z->buffer + z->at;
    size_t have = z->end - z->at;
    if (have < 1)
        return ZMTP_MORE;
    *flags = at[0];
    if ((*flags & ~(unsigned)FLAGS_KNOWN) || ((*flags & FLAG_COMMAND) && (*flags & FLAG_MORE)))
        return broken(z, "it sent a malformed frame");
    size_t header = *flags & FLAG_LONG ? 9 : 2;
    if (have < header)
        return ZMTP_MORE;
    uint64_t length = header == 9 ? big_endian(at + 1, 8) : at[1];
    if (length > sizeof z->buffer - header - (z->at - z->start))
        return broken(z, "it sent an oversized message");
    if (have - header < length)
        return ZMTP_MORE;
    *frame = (struct zmtp_frame){ z->buffer + z->at + header, (size_t)length };
    return ZMTP_MESSAGE;
}

static bool command_is(const struct zmtp_frame *frame, const char *name)
{
    size_t length = strlen(name);
    return frame->length > length && (size_t)(unsigned char)frame->at[0] == length && memcmp(frame->at + 1, name, length) == 0;
}

/* READY's properties: a length and a name, four bytes of length and a value. True when we talk to a ROUTER. */
static bool ready_is_router(const struct zmtp_frame *frame)
{
    const unsigned char *at = (const unsigned char *)frame->at + 6, *end = (const unsigned char *)frame->at + frame->length;
    bool router = false;
    while (at < end) {
        size_t name = *at;
        const unsigned char *name_at = at + 1;
        if ((size_t)(end - name_at) < name + 4)
            return false;
        uint64_t value = big_endian(name_at + name, 4);
        const unsigned char *value_at = name_at + name + 4;
        if ((uint64_t)(end - value_at) < value)
            return false;
        if (name == 11 && strncasecmp((const char *)name_at, "Socket-Type", 11) == 0)
            router = value == 6 && memcmp(value_at, "ROUTER", 6) == 0;
        at = value_at + value;
    }
    return router;
}

static void answer_ping(struct zmtp *z, const struct zmtp_frame *ping)
{
    /* "\4PING", two bytes of time to live, up to 16 of context, which comes back. */
    size_t context = ping->length >= 7 ? ping->length - 7 : 0;
    char pong[2 + 5 + 16] = "\x04\x05\x04PONG";
    if (context > 16)
        context = 16;
    if (context)
        memcpy(pong + 7, ping->at + 7, context);
    pong[1] = (char)(5 + context);
    reply_add(z, pong, 7 + context);
}

static enum zmtp_event take_command(struct zmtp *z, const struct zmtp_frame *frame)
{
    if (command_is(frame, "ERROR"))
        return broken(z, "it refused the handshake");
    if (z->state == ZMTP_IN_HANDSHAKE) {
        if (!command_is(frame, "READY"))
            return broken(z, "its handshake is not a ROUTER's");
        if (!ready_is_router(frame))
            return broken(z, "it is a ZeroMQ socket, but not a distributor's");
        z->state = ZMTP_OPEN;
        return ZMTP_OPENED;
    }
    if (command_is(frame, "PING"))
        answer_ping(z, frame);
    return ZMTP_MORE; /* of this command; PONG and unknown commands only show that the peer lives */
}

/* Takes one whole frame of a message. ZMTP_MESSAGE when it was the last. */
static enum zmtp_event take_part(struct zmtp *z, unsigned flags, const struct zmtp_frame *frame)
{
    if (z->state != ZMTP_OPEN)
        return broken(z, "it sent a message before its handshake");
    if (z->frame_count == DWRAP_MAX_FRAMES)
        return broken(z, "it sent a message of too many frames");
    z->offsets[z->frame_count] = (size_t)(frame->at - z->buffer) - z->start;
    z->frames[z->frame_count++].length = frame->length;
    if (flags & FLAG_MORE)
        return ZMTP_MORE;
    for (size_t i = 0; i < z->frame_count; i++)
        z->frames[i].at = z->buffer + z->start + z->offsets[i];
    z->delivered = true;
    return ZMTP_MESSAGE;
}

enum zmtp_event zmtp_next(struct zmtp *z)
{
    if (z->state == ZMTP_BROKEN)
        return ZMTP_BAD;
    if (z->delivered) {
        z->start = z->at;
        z->delivered = false;
        z->frame_count = 0;
    }
    if (z->state == ZMTP_IN_GREETING) {
        enum zmtp_event event = read_greeting(z);
        if (event != ZMTP_OPENED)
            return event;
    }
    for (;;) {
        unsigned flags = 0;
        struct zmtp_frame frame = { 0 };
        enum zmtp_event event = read_frame(z, &flags, &frame);
        if (event != ZMTP_MESSAGE)
            return event;
        z->at = (size_t)(frame.at - z->buffer) + frame.length;
        event = flags & FLAG_COMMAND ? take_command(z, &frame) : take_part(z, flags, &frame);
        if (z->frame_count == 0)
            z->start = z->at; /* a command between messages leaves nothing to keep */
        if (event != ZMTP_MORE)
            return event;
    }
}

size_t zmtp_frame_header(unsigned char out[ZMTP_HEADER_BYTES], size_t length, bool more)
{
    out[0] = more ? FLAG_MORE : 0;
    if (length < 256) {
        out[1] = (unsigned char)length;
        return 2;
    }
    out[0] |= FLAG_LONG;
    for (int i = 0; i < 8; i++)
        out[1 + i] = (unsigned char)((uint64_t)length >> (56 - 8 * i));
    return 9;
}

void zmtp_ping(unsigned char out[ZMTP_PING_BYTES])
{
    memcpy(out, "\x04\x07\x04PING\0\0", ZMTP_PING_BYTES);
}
