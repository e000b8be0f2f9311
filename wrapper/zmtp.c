/* ZMTP 3.1 decoder, handshake and liveness; see zmtp.h. Does not know sockets, verbs or fields. */
#include "wrapper/zmtp.h"

#include <stdint.h>
#include <string.h>
#include <strings.h>

enum { FLAG_MORE = 1, FLAG_LONG = 2, FLAG_COMMAND = 4, FLAGS_KNOWN = 7, SMALL_ROOM = 16 * 1024 };

enum { VERSION_BYTES = 11, MECHANISM_AT = 12, MECHANISM_BYTES = 20, METADATA_BYTES = 22 };

static const char mechanisms[2][MECHANISM_BYTES] = { "NULL", "CURVE" };

/* READY with Socket-Type=DEALER, which is all that we say of us in INITIATE too. */
static const char ready[] = "\x04\x1c\x05READY\x0bSocket-Type\0\0\0\x06"
                            "DEALER";
static const char *const metadata = ready + 8;

static void reply_add(struct zmtp *z, const void *bytes, size_t length)
{
    if (length > sizeof z->reply - z->reply_length)
        return; /* only a flood of PINGs gets here, and one PONG says all there is to say */
    memcpy(z->reply + z->reply_length, bytes, length);
    z->reply_length += length;
}

static enum zmtp_event broken_by(struct zmtp *z, enum zmtp_fault fault, const char *why)
{
    z->state = ZMTP_BROKEN;
    z->fault = fault;
    z->why = why;
    return ZMTP_BAD;
}

static enum zmtp_event broken(struct zmtp *z, const char *why)
{
    return broken_by(z, ZMTP_STRANGE, why);
}

/* Our greeting from one byte to another. */
static void greet(struct zmtp *z, size_t from, size_t to)
{
    char greeting[ZMTP_GREETING_BYTES] = { '\xff', 0, 0, 0, 0, 0, 0, 0, 1, '\x7f', 3, 1 };
    memcpy(greeting + MECHANISM_AT, mechanisms[z->secure], MECHANISM_BYTES);
    reply_add(z, greeting + from, to - from);
}

void zmtp_start(struct zmtp *z, const struct curve_keys *keys, bool careful)
{
    /* Not memset: the buffer's pages stay untouched until they are needed. */
    z->state = ZMTP_IN_GREETING;
    z->why = "";
    z->secure = keys != NULL;
    z->careful = careful || z->secure;
    z->frame_count = 0;
    z->start = z->at = z->end = 0;
    z->delivered = false;
    z->reply_length = 0;
    greet(z, 0, z->careful ? VERSION_BYTES : ZMTP_GREETING_BYTES);
    if (keys && !curve_start(&z->curve, keys))
        broken_by(z, ZMTP_UNPROVEN, "the key that is known of it is none");
}

void zmtp_end(struct zmtp *z)
{
    if (z->secure)
        curve_end(&z->curve);
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

/* Never a weaker one than ours: whoever stands between could choose it. */
static enum zmtp_event wrong_mechanism(struct zmtp *z, const unsigned char *theirs)
{
    if (z->secure)
        return broken_by(z, ZMTP_UNPROVEN, "it speaks without encryption");
    if (memcmp(theirs, mechanisms[true], MECHANISM_BYTES) == 0)
        return broken_by(z, ZMTP_ASKS_KEYS, "it asks for keys");
    return broken(z, "it asks for a security mechanism that is not known here");
}

static void say_hello(struct zmtp *z)
{
    unsigned char hello[2 + CURVE_HELLO_BYTES] = { FLAG_COMMAND, CURVE_HELLO_BYTES };
    curve_hello(&z->curve, hello + 2);
    reply_add(z, hello, sizeof hello);
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
    if (memcmp(at + MECHANISM_AT, mechanisms[z->secure], MECHANISM_BYTES) != 0)
        return wrong_mechanism(z, at + MECHANISM_AT);
    z->at = z->start = ZMTP_GREETING_BYTES;
    z->state = ZMTP_IN_HANDSHAKE;
    if (z->careful)
        greet(z, VERSION_BYTES, ZMTP_GREETING_BYTES);
    if (z->secure)
        say_hello(z);
    else
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
static bool names_a_router(const void *properties, size_t length)
{
    const unsigned char *at = properties, *end = at + length;
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

/* The front of a frame: its header and, with CURVE, room for what goes before `length` bytes in it. */
static size_t front(const struct zmtp *z, unsigned char *out, size_t length, unsigned flags)
{
    size_t header = zmtp_frame_header(out, length + (z->secure ? CURVE_FRONT_BYTES : 0), false);
    if (!z->secure) {
        out[0] |= (unsigned char)flags;
        return header;
    }
    out[header + CURVE_FRONT_BYTES - 1] = (flags & FLAG_MORE ? CURVE_MORE : 0) | (flags & FLAG_COMMAND ? CURVE_COMMAND : 0);
    return header + CURVE_FRONT_BYTES;
}

/* A command that comes in clear, as we write it, on this connection. */
static size_t command(struct zmtp *z, unsigned char *out, const char *clear, size_t length)
{
    size_t before = front(z, out, length - 2, FLAG_COMMAND);
    memcpy(out + before, clear + 2, length - 2);
    zmtp_seal(z, out + before, length - 2);
    return before + length - 2;
}

static void reply_command(struct zmtp *z, const char *clear, size_t length)
{
    unsigned char bytes[2 + CURVE_FRONT_BYTES + 32];
    reply_add(z, bytes, command(z, bytes, clear, length));
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
    reply_command(z, pong, 7 + context);
}

static enum zmtp_event opened(struct zmtp *z, const void *properties, size_t length)
{
    if (!names_a_router(properties, length))
        return broken(z, "it is a ZeroMQ socket, but not a distributor's");
    z->state = ZMTP_OPEN;
    return ZMTP_OPENED;
}

static enum zmtp_event take_command(struct zmtp *z, const struct zmtp_frame *frame)
{
    if (command_is(frame, "ERROR"))
        return broken(z, "it refused the handshake");
    if (z->state == ZMTP_IN_HANDSHAKE) {
        if (!command_is(frame, "READY"))
            return broken(z, "its handshake is not a ROUTER's");
        return opened(z, frame->at + 6, frame->length - 6);
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

static enum zmtp_event take_clear(struct zmtp *z, unsigned flags, const struct zmtp_frame *frame)
{
    return flags & FLAG_COMMAND ? take_command(z, frame) : take_part(z, flags, frame);
}

/* ERROR in the handshake: whoever sends it before WELCOME has not proved anything yet. */
static enum zmtp_event take_refusal(struct zmtp *z, const struct zmtp_frame *frame)
{
    if (z->curve.step == CURVE_GREETED)
        return broken_by(z, ZMTP_LEAVES, "it ended the handshake");
    bool denied = frame->length == 10 && memcmp(frame->at + 6, "\x03" "400", 4) == 0;
    return denied ? broken_by(z, ZMTP_REFUSES_KEY, "it does not let this key in") : broken_by(z, ZMTP_UNABLE, "it cannot check keys now");
}

/* WELCOME, then READY. */
static enum zmtp_event take_handshake(struct zmtp *z, const struct zmtp_frame *frame)
{
    unsigned char initiate[ZMTP_HEADER_BYTES + CURVE_INITIATE_BYTES], *bytes = (unsigned char *)z->buffer + (frame->at - z->buffer);
    struct curve_part properties;
    size_t length;
    if (command_is(frame, "ERROR"))
        return take_refusal(z, frame);
    if (!command_is(frame, "WELCOME")) {
        const char *why = curve_ready(&z->curve, bytes, frame->length, &properties);
        return why ? broken_by(z, ZMTP_UNPROVEN, why) : opened(z, properties.at, properties.length);
    }
    const char *why = curve_welcome(&z->curve, bytes, frame->length, metadata, METADATA_BYTES, initiate + ZMTP_HEADER_BYTES, &length);
    if (why)
        return broken_by(z, ZMTP_UNPROVEN, why);
    zmtp_frame_header(initiate, length, false); /* it is longer than 255 bytes: all nine */
    initiate[0] |= FLAG_COMMAND;
    reply_add(z, initiate, ZMTP_HEADER_BYTES + length);
    return ZMTP_MORE;
}

/* A frame of an encrypted connection. */
static enum zmtp_event take_secure(struct zmtp *z, unsigned flags, const struct zmtp_frame *frame)
{
    struct curve_part carried;
    unsigned inner;
    if (z->state == ZMTP_IN_HANDSHAKE)
        return flags & FLAG_COMMAND ? take_handshake(z, frame) : broken(z, "it sent a message before its handshake");
    if (flags & (FLAG_COMMAND | FLAG_MORE))
        return broken(z, "it sent something that is not encrypted");
    const char *why = curve_open(&z->curve, (unsigned char *)z->buffer + (frame->at - z->buffer), frame->length, &inner, &carried);
    if (why)
        return broken(z, why);
    if (inner > CURVE_COMMAND)
        return broken(z, "it sent a malformed frame");
    flags = inner == CURVE_COMMAND ? FLAG_COMMAND : inner == CURVE_MORE ? FLAG_MORE : 0;
    return take_clear(z, flags, &(struct zmtp_frame){ (char *)carried.at, carried.length });
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
        event = z->secure ? take_secure(z, flags, &frame) : take_clear(z, flags, &frame);
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

size_t zmtp_front(const struct zmtp *z, unsigned char out[ZMTP_FRONT_BYTES], size_t length, bool more)
{
    return front(z, out, length, more ? FLAG_MORE : 0);
}

void zmtp_seal(struct zmtp *z, unsigned char *bytes, size_t length)
{
    if (z->secure)
        curve_seal(&z->curve, bytes - CURVE_FRONT_BYTES, length, bytes[-1]);
}

size_t zmtp_ping(struct zmtp *z, unsigned char out[ZMTP_PING_BYTES])
{
    return command(z, out, "\x04\x07\x04PING\0\0", 9);
}
