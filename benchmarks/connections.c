/* One connection and one handshake per job: a load for a ROUTER, cheap enough to leave the processor to what is measured.
 *
 *     connections echo|job HOST PORT COUNT AT_ONCE      prints completed exchanges per second
 *
 * echo  connect, ZMTP handshake, one message there and one back, close
 * job   the same with SUBMIT, OFFER, GO, RESULT, ACK
 * Knows just enough ZMTP 3 and PROTOCOL.md for that. Does not know who answers: any surprise ends it with a message. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { GREETING = 64, ROOM = 4096, MORE = 1, COMMAND = 4, MAX_AT_ONCE = 512 };

struct connection {
    int fd;
    bool greeted;
    size_t have;
    unsigned char in[ROOM];
    char job[40];
};

static struct sockaddr_in server;
static bool with_jobs;
static long started, done, wanted;
static int poller;

static void fail(const char *what)
{
    fprintf(stderr, "connections: %s: %s; is the server up and idle?\n", what, strerror(errno));
    exit(1);
}

/* Append one ZMTP frame to `out`; returns the end. */
static unsigned char *frame(unsigned char *out, int flags, const void *body, size_t size)
{
    if (size > 255)
        fail("a frame of this load is short");
    *out++ = (unsigned char)flags;
    *out++ = (unsigned char)size;
    memcpy(out, body, size);
    return out + size;
}

static void put(struct connection *c, const unsigned char *from, const unsigned char *to)
{
    if (send(c->fd, from, (size_t)(to - from), MSG_NOSIGNAL) != to - from)
        fail("cannot send");
}

/* Send a message of a verb and fields; `fields` has a NUL after each. */
static void say(struct connection *c, const char *verb, const char *fields, size_t size, const char *argv, const char *env)
{
    unsigned char out[1024], *end = frame(out, MORE, verb, strlen(verb));
    end = frame(end, argv ? MORE : 0, fields, size);
    if (argv) {
        end = frame(end, MORE, argv, strlen(argv) + 1);
        end = frame(end, 0, env, strlen(env) + 1);
    }
    put(c, out, end);
}

static void begin(struct connection *c)
{
    static const unsigned char greeting[GREETING] = {0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0x7f, 3, 1, 'N', 'U', 'L', 'L'};
    memset(c, 0, offsetof(struct connection, in));
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&server, sizeof server))
        fail("cannot connect");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    put(c, greeting, greeting + GREETING);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &event))
        fail("epoll");
    snprintf(c->job, sizeof c->job, "conn-%d-%ld", (int)getpid(), started++);
}

static void finish(struct connection *c)
{
    close(c->fd);
    c->fd = -1;
    done++;
    if (started < wanted)
        begin(c);
}

static void submit(struct connection *c)
{
    char fields[200];
    if (!with_jobs) {
        say(c, "ECHO", c->job, strlen(c->job), NULL, NULL);
        return;
    }
    int size = snprintf(fields, sizeof fields, "version=1%cjob=%s%ccwd=/%ccommand=true%cbuild=bench%c", 0, c->job, 0, 0, 0, 0);
    say(c, "SUBMIT", fields, (size_t)size, NULL, NULL);
}

static void go(struct connection *c, const unsigned char *offered, size_t size)
{
    const unsigned char *stamp = memmem(offered, size, "stamp=", 6);
    char fields[200];
    if (!stamp)
        fail("an OFFER without a stamp");
    int length = snprintf(fields, sizeof fields, "job=%s%c%s%cstdin=null%cstdout=stream%cstderr=stream%c", c->job, 0, (const char *)stamp, 0, 0, 0, 0);
    say(c, "GO", fields, (size_t)length, "true", "PATH=/usr/bin:/bin");
}

/* A whole message has come: `verb`, then its fields frame. */
static void answer(struct connection *c, const unsigned char *verb, size_t verb_size, const unsigned char *fields, size_t size)
{
    char text[64];
    if (!with_jobs) {
        finish(c);
    } else if (verb_size == 5 && !memcmp(verb, "OFFER", 5)) {
        go(c, fields, size);
    } else if (verb_size == 6 && !memcmp(verb, "RESULT", 6)) {
        int length = snprintf(text, sizeof text, "job=%s%c", c->job, 0);
        say(c, "ACK", text, (size_t)length, NULL, NULL);
        finish(c);
    } else if (verb_size != 6 || memcmp(verb, "QUEUED", 6)) {
        fprintf(stderr, "connections: unexpected %.*s %.*s\n", (int)verb_size, (const char *)verb, (int)size, (const char *)fields);
        exit(1);
    }
}

/* Take one frame or message off the front of what has come; false when it is not whole yet, or the connection has ended. */
static bool take(struct connection *c)
{
    size_t at = 0, sizes[8];
    const unsigned char *bodies[8];
    int frames = 0, flags;
    do {
        if (frames == 8)
            fail("too many frames");
        if (c->have < at + 2)
            return false;
        flags = c->in[at];
        size_t size = c->in[at + 1], head = 2;
        if (flags & 2) {
            if (c->have < at + 9)
                return false;
            size = (size_t)c->in[at + 7] << 8 | c->in[at + 8];
            head = 9;
        }
        if (c->have < at + head + size)
            return false;
        bodies[frames] = c->in + at + head;
        sizes[frames++] = size;
        at += head + size;
    } while (flags & MORE);
    if (flags & COMMAND)
        submit(c);
    else
        answer(c, bodies[0], sizes[0], bodies[frames > 1], sizes[frames > 1]);
    if (c->fd < 0 || c->have < at || !c->greeted)
        return false;
    memmove(c->in, c->in + at, c->have - at);
    c->have -= at;
    return true;
}

static void readable(struct connection *c)
{
    static const unsigned char ready[] = "\x04\x1c\x05READY\x0bSocket-Type\0\0\0\x06" "DEALER";
    ssize_t got = recv(c->fd, c->in + c->have, ROOM - c->have, 0);
    if (got <= 0)
        fail("the server closed a connection");
    c->have += (size_t)got;
    if (!c->greeted) {
        if (c->have < GREETING)
            return;
        c->greeted = true;
        put(c, ready, ready + 2 + ready[1]);
        memmove(c->in, c->in + GREETING, c->have -= GREETING);
    }
    while (take(c))
        ;
}

int main(int argc, char **argv)
{
    static struct connection all[MAX_AT_ONCE];
    struct epoll_event events[MAX_AT_ONCE];
    struct timespec from, to;
    if (argc != 6) {
        fprintf(stderr, "usage: connections echo|job HOST PORT COUNT AT_ONCE\n");
        return 2;
    }
    with_jobs = !strcmp(argv[1], "job");
    server = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(argv[3]))};
    if (inet_pton(AF_INET, argv[2], &server.sin_addr) != 1)
        fail("HOST is no IPv4 address");
    wanted = atol(argv[4]);
    poller = epoll_create1(EPOLL_CLOEXEC);
    clock_gettime(CLOCK_MONOTONIC, &from);
    for (int i = 0; i < atoi(argv[5]) && i < MAX_AT_ONCE && started < wanted; i++)
        begin(&all[i]);
    while (done < wanted) {
        int count = epoll_wait(poller, events, MAX_AT_ONCE, 10000);
        if (count <= 0)
            fail("no answer within 10 s");
        for (int i = 0; i < count; i++)
            readable(events[i].data.ptr);
    }
    clock_gettime(CLOCK_MONOTONIC, &to);
    printf("%.0f\n", (double)wanted / ((double)(to.tv_sec - from.tv_sec) + (double)(to.tv_nsec - from.tv_nsec) / 1e9));
    return 0;
}
