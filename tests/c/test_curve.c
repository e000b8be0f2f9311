/* curve.c and zmtp.c's use of it against the golden vectors: `test_curve VECTORS`. Prints what failed; status 1 when anything did.
 * What the client draws is given by the vectors, so that every byte is known. */
#include <assert.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "wrapper/zmtp.h"

enum { MOST_BYTES = 1024, MOST_MESSAGES = 16, LINE = 8192 };

struct bytes {
    unsigned char at[MOST_BYTES];
    size_t length;
};

struct one {
    char direction;
    unsigned flags;
    struct bytes data, message;
};

static struct bytes client, server, drawn, hello, welcome, initiate, ready;
static struct one messages[MOST_MESSAGES];
static size_t message_count, drawn_at;
static int failures, checks;
static struct zmtp z;

static void check(bool good, const char *what)
{
    checks++;
    if (good)
        return;
    failures++;
    printf("FAILED %s\n", what);
}

static void unhex(const char *hex, struct bytes *out)
{
    const char *end;
    out->length = 0;
    if (*hex != '-')
        assert(sodium_hex2bin(out->at, sizeof out->at, hex, strspn(hex, "0123456789abcdef"), NULL, &out->length, &end) == 0);
}

static void read_line(char *line)
{
    static const struct {
        const char *name;
        struct bytes *into;
    } names[] = { { "client ", &client }, { "server ", &server }, { "random ", &drawn }, { "hello ", &hello },
                  { "welcome ", &welcome }, { "initiate ", &initiate }, { "ready ", &ready } };
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (strncmp(line, names[i].name, strlen(names[i].name)) == 0)
            unhex(line + strlen(names[i].name), names[i].into);
    if (*line != '+' && *line != '-')
        return;
    struct one *m = &messages[message_count++];
    static char data[LINE], message[LINE];
    assert(message_count <= MOST_MESSAGES && sscanf(line, "%c %u %8191s %8191s", &m->direction, &m->flags, data, message) == 4);
    unhex(data, &m->data);
    unhex(message, &m->message);
}

/* libsodium's source of random bytes: the vectors', once they are there. */
static void draw(void *out, size_t size)
{
    memset(out, 0, size);
    if (drawn.length == 0)
        return; /* libsodium's own start */
    assert(drawn_at + size <= drawn.length);
    memcpy(out, drawn.at + drawn_at, size);
    drawn_at += size;
}

static const char *name(void)
{
    return "vectors";
}

static uint32_t number(void)
{
    uint32_t drawn_number;
    draw(&drawn_number, sizeof drawn_number);
    return drawn_number;
}

static struct curve_keys keys(void)
{
    struct curve_keys k;
    memcpy(k.public, client.at, 32);
    memcpy(k.secret, client.at + 32, 32);
    memcpy(k.server, server.at, 32);
    return k;
}

static bool same(const struct bytes *wanted, const void *at, size_t length)
{
    return wanted->length == length && memcmp(wanted->at, at, length) == 0;
}

static void start(struct curve *c)
{
    struct curve_keys k = keys();
    drawn_at = 0;
    check(curve_start(c, &k), "starts");
}

static void shake(struct curve *c)
{
    unsigned char out[CURVE_INITIATE_BYTES], hello_bytes[CURVE_HELLO_BYTES];
    struct bytes copy = ready;
    struct curve_part said;
    size_t length = 0;
    start(c);
    curve_hello(c, hello_bytes);
    check(same(&hello, hello_bytes, sizeof hello_bytes), "HELLO");
    check(!curve_welcome(c, welcome.at, welcome.length, "\x0bSocket-Type\0\0\0\x06" "DEALER", 22, out, &length), "WELCOME");
    check(same(&initiate, out, length), "INITIATE");
    check(!curve_ready(c, copy.at, copy.length, &said) && said.length == copy.length - 30 && memcmp(said.at, "\x0bSocket-Type\0\0\0\x06ROUTER", 22) == 0,
          "READY");
    check(sodium_is_zero(c->keys.secret, 32) && sodium_is_zero(c->transient_secret, 32), "secrets are wiped once they are not needed");
}

static void check_messages(struct curve *c)
{
    for (size_t i = 0; i < message_count; i++) {
        struct one m = messages[i];
        unsigned char out[MOST_BYTES + CURVE_FRONT_BYTES];
        struct curve_part carried;
        unsigned flags = 99;
        if (m.direction == '+') {
            memcpy(out + CURVE_FRONT_BYTES, m.data.at, m.data.length);
            curve_seal(c, out, m.data.length, m.flags);
            check(same(&m.message, out, CURVE_FRONT_BYTES + m.data.length), "a message to the server");
        } else {
            check(!curve_open(c, m.message.at, m.message.length, &flags, &carried), "a message is opened");
            check(flags == m.flags && same(&m.data, carried.at, carried.length), "a message of the server");
        }
    }
}

/* Every bit of what the server says counts, and so does every length. */
static void check_damage(void)
{
    unsigned char out[CURVE_INITIATE_BYTES];
    struct curve_part said;
    struct curve c;
    size_t length;
    for (size_t bit = 0; bit < 8 * welcome.length; bit++) {
        struct bytes copy = welcome;
        copy.at[bit / 8] ^= (unsigned char)(1 << bit % 8);
        if (bit % 97 == 0 || bit < 64) { /* each costs a key exchange */
            start(&c);
            check(curve_welcome(&c, copy.at, copy.length, "", 0, out, &length) != NULL, "a bit of WELCOME");
        }
    }
    for (length = 0; length < welcome.length; length += 7) {
        size_t written;
        start(&c);
        check(curve_welcome(&c, welcome.at, length, "", 0, out, &written) != NULL, "a short WELCOME");
    }
    for (size_t bit = 0; bit < 8 * ready.length; bit += 11) {
        struct bytes copy = ready;
        copy.at[bit / 8] ^= (unsigned char)(1 << bit % 8);
        shake(&c);
        c.step = CURVE_VOUCHED;
        check(curve_ready(&c, copy.at, copy.length, &said) != NULL, "a bit of READY");
    }
    shake(&c);
    for (length = 0; length < 64; length++) {
        c.step = CURVE_VOUCHED;
        struct bytes copy = ready;
        check(length == ready.length || curve_ready(&c, copy.at, length, &said) != NULL, "a short READY");
    }
}

static const struct one *first_from_server(void)
{
    for (size_t i = 0; i < message_count; i++)
        if (messages[i].direction == '-')
            return &messages[i];
    abort();
}

static void check_damaged_messages(void)
{
    const struct one *m = first_from_server();
    struct curve_part carried;
    struct curve c;
    unsigned flags;
    shake(&c);
    for (size_t bit = 0; bit < 8 * m->message.length; bit++) {
        struct bytes copy = m->message;
        copy.at[bit / 8] ^= (unsigned char)(1 << bit % 8);
        check(curve_open(&c, copy.at, copy.length, &flags, &carried) != NULL, "a bit of a message");
    }
    for (size_t length = 0; length < m->message.length; length++) {
        struct bytes copy = m->message;
        check(curve_open(&c, copy.at, length, &flags, &carried) != NULL, "a short message");
    }
    struct bytes good = m->message, again = m->message, next = m[1].message, after = m[2].message;
    check(!curve_open(&c, good.at, good.length, &flags, &carried), "the message itself, after all those");
    check(curve_open(&c, again.at, again.length, &flags, &carried) != NULL, "a message twice");
    check(curve_open(&c, after.at, after.length, &flags, &carried) != NULL, "a message after one that is missing");
    check(!curve_open(&c, next.at, next.length, &flags, &carried), "the next one");
}

/* In the wrong order: nothing counts before its turn. */
static void check_order(void)
{
    unsigned char out[CURVE_INITIATE_BYTES];
    struct bytes early = ready, twice = ready;
    struct curve_part said;
    struct curve c;
    size_t length;
    start(&c);
    check(curve_ready(&c, early.at, early.length, &said) != NULL, "READY before WELCOME");
    shake(&c);
    check(curve_welcome(&c, welcome.at, welcome.length, "", 0, out, &length) != NULL, "WELCOME twice");
    check(curve_ready(&c, twice.at, twice.length, &said) != NULL, "READY twice");
    struct curve_keys none = keys();
    memset(none.server, 0, sizeof none.server);
    drawn_at = 0;
    check(!curve_start(&c, &none), "a server's key that is a point of small order");
    curve_end(&c);
    check(sodium_is_zero((unsigned char *)&c, sizeof c), "the end leaves nothing");
}

static void feed(const void *bytes, size_t length)
{
    size_t room;
    char *space = zmtp_space(&z, &room);
    assert(room >= length);
    memcpy(space, bytes, length);
    zmtp_received(&z, length);
}

static void feed_frame(const struct bytes *body, unsigned char flags)
{
    unsigned char header[ZMTP_HEADER_BYTES];
    size_t length = zmtp_frame_header(header, body->length, false);
    header[0] |= flags;
    feed(header, length);
    feed(body->at, body->length);
}

static void greet(const char *mechanism)
{
    unsigned char greeting[64] = "\xff\0\0\0\0\0\0\0\1\x7f\3\1";
    struct curve_keys k = keys();
    memcpy(greeting + 12, mechanism, strlen(mechanism));
    drawn_at = 0;
    zmtp_start(&z, &k, false);
    feed(greeting, sizeof greeting);
}

static void await_ready(void)
{
    greet("CURVE");
    check(zmtp_next(&z) == ZMTP_MORE && same(&hello, z.reply + 64 + 2, z.reply_length - 66), "HELLO as a frame");
    z.reply_length = 0;
    feed_frame(&welcome, 4);
    check(zmtp_next(&z) == ZMTP_MORE && same(&initiate, z.reply + 9, z.reply_length - 9), "INITIATE as a frame");
    z.reply_length = 0;
}

static void open_connection(void)
{
    await_ready();
    feed_frame(&ready, 4);
    check(zmtp_next(&z) == ZMTP_OPENED, "READY as a frame");
}

/* The server's messages of the vectors: OFFER in two frames, PONG, 300 zeros. */
static void check_zmtp(void)
{
    const struct one *m = first_from_server();
    open_connection();
    for (int i = 0; i < 4; i++)
        feed_frame(&m[i].message, 0);
    check(zmtp_next(&z) == ZMTP_MESSAGE && z.frame_count == 2 && z.frames[0].length == 5 && memcmp(z.frames[0].at, "OFFER", 5) == 0 &&
              z.frames[1].length == 8 && memcmp(z.frames[1].at, "stamp=1", 8) == 0,
          "a message of two encrypted frames");
    check(zmtp_next(&z) == ZMTP_MESSAGE && z.frame_count == 1 && z.frames[0].length == 300 && z.frames[0].at[299] == 0, "a message after a command");
    check(zmtp_next(&z) == ZMTP_MORE, "and no more");
    zmtp_end(&z);
}

static void check_refused(const char *what, enum zmtp_fault fault)
{
    check(zmtp_next(&z) == ZMTP_BAD && z.fault == fault && *z.why && zmtp_next(&z) == ZMTP_BAD, what);
}

static void check_faults(void)
{
    static const struct bytes denied = { "\5ERROR\3" "400", 10 }, unable = { "\5ERROR\3" "500", 10 }, broken = { "\5ERROR", 6 };
    const struct one *m = first_from_server();
    greet("NULL");
    check_refused("a server without keys", ZMTP_UNPROVEN);
    greet("PLAIN");
    check_refused("a server with passwords", ZMTP_UNPROVEN);
    await_ready();
    feed_frame(&denied, 4);
    check_refused("a key that is not let in", ZMTP_REFUSES_KEY);
    await_ready();
    feed_frame(&unable, 4);
    check_refused("a server that cannot check keys", ZMTP_UNABLE);
    await_ready();
    feed_frame(&broken, 4);
    check_refused("an error without reason", ZMTP_UNABLE);
    greet("CURVE");
    feed_frame(&denied, 4);
    check_refused("an error of somebody who has proved nothing", ZMTP_LEAVES);
    greet("CURVE");
    feed_frame(&ready, 4);
    check_refused("READY first", ZMTP_UNPROVEN);
    greet("CURVE");
    feed_frame(&welcome, 0);
    check_refused("WELCOME as a message", ZMTP_STRANGE);
    open_connection();
    feed("\0\5HELLO", 7);
    check_refused("a frame in clear", ZMTP_STRANGE);
    open_connection();
    feed("\4\x07\4PING\0\0", 9);
    check_refused("a command in clear", ZMTP_STRANGE);
    open_connection();
    feed_frame(&m[0].message, 1);
    check_refused("a flag outside", ZMTP_STRANGE);
    zmtp_start(&z, NULL, false);
    feed("\xff\0\0\0\0\0\0\0\1\x7f\3\1CURVE\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 64);
    check_refused("a server that asks for keys", ZMTP_ASKS_KEYS);
}

int main(int argc, char **argv)
{
    static struct randombytes_implementation vectors = { .implementation_name = name, .random = number, .buf = draw };
    static char line[LINE];
    struct curve c;
    FILE *file = argc == 2 ? fopen(argv[1], "r") : NULL;
    if (!file || randombytes_set_implementation(&vectors) != 0 || sodium_init() < 0)
        return 2;
    while (fgets(line, sizeof line, file))
        read_line(line);
    fclose(file);
    shake(&c);
    check_messages(&c);
    check_damage();
    check_damaged_messages();
    check_order();
    check_zmtp();
    check_faults();
    printf("%d checks, %d failures\n", checks, failures);
    return failures != 0;
}
