/* zmtp.c and fields.h against the golden vectors: `test_zmtp VECTORS`. Prints what failed; status 1 when anything did.
 * Reads the same file as the Python tests, so that both languages agree on every byte. */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "protocol/fields.h"
#include "wrapper/zmtp.h"

enum { MOST = 1 << 20 };

static struct zmtp z;
static int failures, checks;

struct vector {
    char name[64];
    bool bad;
    struct {
        unsigned char *at;
        size_t length;
    } frames[16];
    size_t frame_count;
    unsigned char *wire;
    size_t wire_length;
};

static void check(bool good, const char *name, const char *what)
{
    checks++;
    if (good)
        return;
    failures++;
    printf("FAILED %s: %s\n", name, what);
}

static unsigned char *unhex(const char *hex, size_t *length)
{
    *length = strspn(hex, "0123456789abcdef") / 2;
    unsigned char *out = malloc(*length + 1);
    assert(out);
    for (size_t i = 0; i < *length; i++) {
        unsigned byte;
        sscanf(hex + 2 * i, "%2x", &byte);
        out[i] = (unsigned char)byte;
    }
    return out;
}

static void feed(const void *bytes, size_t length)
{
    size_t room;
    char *space = zmtp_space(&z, &room);
    assert(room >= length);
    memcpy(space, bytes, length);
    zmtp_received(&z, length);
}

static size_t greeting_of_router(unsigned char out[128])
{
    static const char ready[] = "\x04\x26\x05READY\x0bSocket-Type\0\0\0\x06ROUTER\x08Identity\0\0\0";
    memset(out, 0, 64);
    memcpy(out, "\xff\0\0\0\0\0\0\0\1\x7f\3\1NULL", 16);
    memcpy(out + 64, ready, sizeof ready);
    out[65] = (unsigned char)(sizeof ready - 2);
    return 64 + sizeof ready;
}

static void open_connection(void)
{
    unsigned char hello[128];
    size_t length = greeting_of_router(hello);
    zmtp_start(&z, NULL, false);
    feed(hello, length);
    enum zmtp_event event = zmtp_next(&z);
    check(event == ZMTP_OPENED, "handshake", z.why);
}

/* The message comes out of the bytes, whatever the pieces they arrive in. */
static void check_decoding(const struct vector *v, size_t piece)
{
    open_connection();
    enum zmtp_event event = ZMTP_MORE;
    for (size_t at = 0; at < v->wire_length; at += piece) {
        check(event == ZMTP_MORE, v->name, "ends early");
        feed(v->wire + at, v->wire_length - at < piece ? v->wire_length - at : piece);
        event = zmtp_next(&z);
    }
    check(event == ZMTP_MESSAGE && z.frame_count == v->frame_count, v->name, "is not decoded");
    for (size_t i = 0; event == ZMTP_MESSAGE && i < v->frame_count; i++)
        check(z.frames[i].length == v->frames[i].length && memcmp(z.frames[i].at, v->frames[i].at, v->frames[i].length) == 0, v->name,
              "a frame differs");
    check(zmtp_next(&z) == ZMTP_MORE, v->name, "leaves something behind");
}

static void check_encoding(const struct vector *v)
{
    static unsigned char wire[MOST];
    size_t length = 0;
    for (size_t i = 0; i < v->frame_count; i++) {
        length += zmtp_frame_header(wire + length, v->frames[i].length, i + 1 < v->frame_count);
        memcpy(wire + length, v->frames[i].at, v->frames[i].length);
        length += v->frames[i].length;
    }
    check(length == v->wire_length && memcmp(wire, v->wire, length) == 0, v->name, "is encoded differently");
}

/* Fields read and written again are the same bytes. */
static void check_fields(const struct vector *v)
{
    static char again[MOST];
    struct fields all = fields_of(v->frames[1].at, v->frames[1].length);
    struct fields_out out = fields_into(again, sizeof again);
    struct field one;
    char key[DWRAP_MAX_KEY + 1];
    check(fields_valid(v->frames[1].at, v->frames[1].length), v->name, "its fields are refused");
    while (fields_next(&all, &one)) {
        snprintf(key, sizeof key, "%.*s", (int)one.key_length, one.key);
        fields_add_bytes(&out, key, one.value, one.value_length);
    }
    check(!out.overflow && out.length == v->frames[1].length && memcmp(again, v->frames[1].at, out.length) == 0, v->name,
          "its fields are written differently");
}

static bool is_refused(const struct vector *v)
{
    bool verb = v->frames[0].length >= 1 && v->frames[0].length <= 16;
    for (size_t i = 0; i < v->frames[0].length; i++)
        verb = verb && v->frames[0].at[i] >= 'A' && v->frames[0].at[i] <= 'Z';
    return v->frame_count < 2 || v->frame_count > DWRAP_MAX_FRAMES || !verb || !fields_valid(v->frames[1].at, v->frames[1].length);
}

static void check_vector(const struct vector *v)
{
    if (v->frame_count == 0)
        return;
    if (v->bad) {
        check(is_refused(v), v->name, "is not refused");
        return;
    }
    check_decoding(v, v->wire_length);
    check_decoding(v, 1);
    check_decoding(v, 7);
    check_encoding(v);
    check_fields(v);
}

static void clear(struct vector *v)
{
    for (size_t i = 0; i < v->frame_count; i++)
        free(v->frames[i].at);
    free(v->wire);
    memset(v, 0, sizeof *v);
}

static void read_line(struct vector *v, const char *line)
{
    if (strncmp(line, "vector ", 7) == 0 || strncmp(line, "bad ", 4) == 0) {
        check_vector(v);
        clear(v);
        v->bad = line[0] == 'b';
        sscanf(strchr(line, ' '), "%63s", v->name);
    } else if (strncmp(line, "frame", 5) == 0 && v->frame_count < 16) {
        const char *hex = line[5] == ' ' ? line + 6 : "";
        v->frames[v->frame_count].at = unhex(hex, &v->frames[v->frame_count].length);
        v->frame_count++;
    } else if (strncmp(line, "wire ", 5) == 0) {
        v->wire = unhex(line + 5, &v->wire_length);
    }
}

static void check_bad(const char *name, const void *bytes, size_t length, bool opened)
{
    if (opened)
        open_connection();
    else
        zmtp_start(&z, NULL, false);
    feed(bytes, length);
    enum zmtp_event event;
    do
        event = zmtp_next(&z);
    while (event == ZMTP_MESSAGE);
    check(event == ZMTP_BAD && *z.why, name, "is not refused");
    check(zmtp_next(&z) == ZMTP_BAD, name, "recovers");
}

static void check_peers(void)
{
    unsigned char hello[128], nine[18];
    check_bad("http", "HTTP/1.1 400 Bad Request\r\n", 26, false);
    check_bad("zmtp 1", "\x01\x00", 2, false);
    check_bad("zmtp 2", "\xff\0\0\0\0\0\0\0\1\x7f\1\5\0\0", 14, false);
    size_t length = greeting_of_router(hello);
    memcpy(hello + 12, "CURVE", 5);
    check_bad("curve", hello, length, false);
    greeting_of_router(hello);
    memcpy(strstr((char *)hello + 64 + 8, "Type") + 8, "PUBxxx", 6);
    check_bad("publisher", hello, length, false);
    check_bad("oversized", "\x02\0\0\0\0\x7f\xff\xff\xff", 9, true);
    check_bad("huge", "\x02\xff\xff\xff\xff\xff\xff\xff\xff", 9, true);
    check_bad("reserved flags", "\x80\0", 2, true);
    check_bad("command with more", "\x05\0", 2, true);
    for (int i = 0; i < 9; i++)
        memcpy(nine + 2 * i, "\x01", 2);
    check_bad("nine frames", nine, sizeof nine, true);
}

static void check_ping(void)
{
    open_connection();
    z.reply_length = 0;
    feed("\x04\x0a\x04PING\x01\x02" "abc", 12);
    check(zmtp_next(&z) == ZMTP_MORE, "ping", "is not swallowed");
    check(z.reply_length == 10 && memcmp(z.reply, "\x04\x08\x04PONGabc", 10) == 0, "ping", "is not answered with its context");
    for (int i = 0; i < 1000; i++) {
        feed("\x04\x07\x04PING\0\0", 9);
        check(zmtp_next(&z) == ZMTP_MORE, "ping flood", "is not swallowed");
    }
    check(z.reply_length <= sizeof z.reply, "ping flood", "grows");
}

/* Messages that fill the buffer again and again: compaction must keep them whole. */
static void check_long_stream(void)
{
    static unsigned char message[4 + 2 + 9 + 32768];
    static const size_t pieces[] = { 65536, 1, 4096, 70000, 13 };
    size_t length = 0, messages = 0;
    memcpy(message, "\x01\x01X\x01\x00", 5);
    length = 5 + zmtp_frame_header(message + 5, 32768, false);
    for (size_t i = 0; i < 32768; i++)
        message[length + i] = (unsigned char)(i * 7);
    length += 32768;
    open_connection();
    for (size_t sent = 0, round = 0; sent < 200 * length; round++) {
        size_t room, piece = pieces[round % 5];
        char *space = zmtp_space(&z, &room);
        piece = piece < room ? piece : room;
        piece = piece < 200 * length - sent ? piece : 200 * length - sent;
        for (size_t i = 0; i < piece; i++)
            space[i] = (char)message[(sent + i) % length];
        zmtp_received(&z, piece);
        sent += piece;
        while (zmtp_next(&z) == ZMTP_MESSAGE) {
            messages++;
            check(z.frame_count == 3 && z.frames[2].length == 32768 && memcmp(z.frames[2].at, message + length - 32768, 32768) == 0,
                  "long stream", "a message differs");
        }
    }
    check(messages == 200, "long stream", "messages are missing");
}

static void check_numbers(void)
{
    uint64_t value = 7;
    check(field_number("0", &value) && value == 0, "numbers", "0");
    check(field_number("999999999999999999", &value) && value == 999999999999999999u, "numbers", "18 digits");
    check(!field_number("1000000000000000000", &value), "numbers", "19 digits");
    check(!field_number("", &value) && !field_number("-1", &value) && !field_number("1x", &value) && !field_number(NULL, &value), "numbers",
          "what is none");
}

int main(int argc, char **argv)
{
    static char line[MOST];
    struct vector v = { 0 };
    FILE *file = argc == 2 ? fopen(argv[1], "r") : NULL;
    if (!file)
        return 2;
    while (fgets(line, sizeof line, file))
        read_line(&v, line);
    check_vector(&v);
    clear(&v);
    fclose(file);
    check_peers();
    check_ping();
    check_long_stream();
    check_numbers();
    printf("%d checks, %d failures\n", checks, failures);
    return failures != 0;
}
