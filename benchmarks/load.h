/* A ZMTP 3 peer, cheap enough to leave the processors to what is measured: what the loads of the benchmarks share.
 *
 * Knows ZMTP's NULL handshake, frames, and that a message of ours is a verb, fields and bodies. Does not know what any
 * message means. Any surprise ends the program with a message. Reads what is there, writes once per `flush`. */
#ifndef DWRAP_BENCHMARKS_LOAD_H
#define DWRAP_BENCHMARKS_LOAD_H
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { GREETING = 64, ROOM = 1 << 16, MORE = 1, LARGE = 2, COMMAND = 4, MAX_FRAMES = 8 };

struct bytes {
    const unsigned char *at;
    size_t size;
};

struct peer {
    int fd;
    unsigned opened; /* how many times */
    bool is_greeted;
    size_t have, unsent;
    unsigned char in[ROOM], out[ROOM];
};

static struct sockaddr_in server;
static int poller;

static inline void fail(const char *what)
{
    fprintf(stderr, "load: %s: %s; is the server up, and no other load on it?\n", what, strerror(errno));
    exit(1);
}

static inline double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static inline void connect_to(const char *host, const char *port)
{
    server = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(port))};
    if (inet_pton(AF_INET, host, &server.sin_addr) != 1)
        fail("HOST is no IPv4 address");
    poller = epoll_create1(EPOLL_CLOEXEC);
    if (poller < 0)
        fail("epoll");
}

static inline void put(struct peer *p, const void *bytes, size_t size)
{
    if (size > ROOM - p->unsent)
        fail("too much to send at once");
    memcpy(p->out + p->unsent, bytes, size);
    p->unsent += size;
}

static inline void flush(struct peer *p)
{
    if (p->unsent && send(p->fd, p->out, p->unsent, MSG_NOSIGNAL) != (ssize_t)p->unsent)
        fail("cannot send");
    p->unsent = 0;
}

static inline void put_frame(struct peer *p, int flags, const void *body, size_t size)
{
    unsigned char head[9] = {(unsigned char)flags, (unsigned char)size};
    bool is_large = size > 255;
    if (is_large) {
        head[0] |= LARGE;
        for (int i = 0; i < 8; i++)
            head[1 + i] = (unsigned char)(size >> (56 - 8 * i));
    }
    put(p, head, is_large ? 9 : 2);
    put(p, body, size);
}

/* Say a verb and its fields (`size` bytes, a NUL after each). `more` says that bodies follow. */
static inline void say(struct peer *p, const char *verb, const char *fields, int size, bool more)
{
    put_frame(p, MORE, verb, strlen(verb));
    put_frame(p, more ? MORE : 0, fields, (size_t)size);
}

static inline void open_peer(struct peer *p)
{
    static const unsigned char greeting[GREETING] = {0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0x7f, 3, 1, 'N', 'U', 'L', 'L'};
    p->opened++;
    p->is_greeted = false;
    p->have = p->unsent = 0;
    p->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (p->fd < 0 || connect(p->fd, (struct sockaddr *)&server, sizeof server))
        fail("cannot connect");
    setsockopt(p->fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    put(p, greeting, GREETING);
    flush(p);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = p};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, p->fd, &event))
        fail("epoll");
}

static inline void close_peer(struct peer *p)
{
    flush(p);
    close(p->fd);
    p->fd = -1;
}

static inline bool is_verb(struct bytes frame, const char *verb)
{
    return frame.size == strlen(verb) && !memcmp(frame.at, verb, frame.size);
}

/* The value of a field, which has a NUL after it; ends the program when there is none. */
static inline const char *field(struct bytes fields, const char *key)
{
    size_t length = strlen(key);
    for (const unsigned char *at = fields.at, *end = at + fields.size; at < end; at += strnlen((const char *)at, (size_t)(end - at)) + 1)
        if ((size_t)(end - at) > length && !memcmp(at, key, length) && at[length] == '=')
            return (const char *)at + length + 1;
    fail("a message lacks a field");
    return "";
}

/* End the program because of a message that has no place in this load. */
static inline void surprise(struct bytes verb, struct bytes fields)
{
    fprintf(stderr, "load: unexpected %.*s", (int)verb.size, (const char *)verb.at);
    for (size_t i = 0; i < fields.size; i++)
        fputc(fields.at[i] ? fields.at[i] : ' ', stderr);
    fprintf(stderr, "\n");
    exit(1);
}

/* The message at `at`: its frames, and where it ends; NULL when it is not whole yet. `flags` are the last frame's. */
static inline const unsigned char *message_at(const unsigned char *at, const unsigned char *end, struct bytes frames[MAX_FRAMES], int *flags)
{
    int count = 0;
    do {
        size_t size = 0, head = 2;
        if (count == MAX_FRAMES)
            fail("too many frames");
        if (end - at < 2)
            return NULL;
        *flags = at[0];
        head = at[0] & LARGE ? 9 : 2;
        if ((size_t)(end - at) < head)
            return NULL;
        for (size_t i = 1; i < head; i++)
            size = size << 8 | at[i];
        if ((size_t)(end - at) - head < size)
            return NULL;
        frames[count++] = (struct bytes){at + head, size};
        at += head + size;
    } while (*flags & MORE);
    return at;
}

/* Take in what a peer has sent: `ready` is called after the handshake, `answer` with each message; what they say is then sent. */
static inline void readable(struct peer *p, void (*ready)(struct peer *), void (*answer)(struct peer *, struct bytes verb, struct bytes fields))
{
    static const unsigned char hello[] = "\x04\x1c\x05READY\x0bSocket-Type\0\0\0\x06" "DEALER";
    const unsigned char *at = p->in, *next;
    struct bytes frames[MAX_FRAMES];
    unsigned opened = p->opened;
    int flags = 0;
    ssize_t got = recv(p->fd, p->in + p->have, ROOM - p->have, 0);
    if (got <= 0)
        fail("the server closed a connection, or sent too large a message");
    p->have += (size_t)got;
    if (!p->is_greeted) {
        if (p->have < GREETING)
            return;
        p->is_greeted = true;
        put(p, hello, (size_t)2 + hello[1]);
        at += GREETING;
    }
    while ((next = message_at(at, p->in + p->have, frames, &flags))) {
        if (flags & COMMAND)
            ready(p);
        else
            answer(p, frames[0], frames[1]);
        if (p->fd < 0 || p->opened != opened)
            return; /* closed by the answer, perhaps to be another connection now */
        at = next;
    }
    p->have -= (size_t)(at - p->in);
    memmove(p->in, at, p->have);
    flush(p);
}
#endif
