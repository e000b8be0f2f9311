/* One connection and one handshake per job, as wrappers make them: a load for a ROUTER.
 *
 *     connections echo|talk|job HOST PORT COUNT AT_ONCE      prints completed exchanges per second
 *
 * echo  connect, ZMTP handshake, one message there and one back, close
 * job   connect, handshake, SUBMIT, OFFER, GO, RESULT, ACK, close
 * talk  the messages of `job`, with a ROUTER that sends each back: what is left when nothing is scheduled
 * Knows PROTOCOL.md's submitter side. Does not know who answers. */
#include "load.h"

enum { MAX_AT_ONCE = 512 };

struct connection {
    struct peer peer; /* first: a pointer to the one is a pointer to the other */
    char job[40];
    int answers;
};

static enum { ECHO_ONCE, TALK, JOB } what;
static long started, done, wanted;

static void begin(struct connection *c)
{
    c->answers = 0;
    snprintf(c->job, sizeof c->job, "conn-%d-%ld", (int)getpid(), started++);
    open_peer(&c->peer);
}

static void submit(struct peer *p)
{
    struct connection *c = (struct connection *)p;
    char fields[200];
    int size = snprintf(fields, sizeof fields, "version=1%cjob=%s%ccwd=/%ccommand=true%cbuild=bench%c", 0, c->job, 0, 0, 0, 0);
    say(p, "SUBMIT", fields, size, false);
}

static void go(struct connection *c, const char *stamp)
{
    char fields[200];
    int size = snprintf(fields, sizeof fields, "job=%s%cstamp=%s%cstdin=null%cstdout=stream%cstderr=stream%c", c->job, 0, stamp, 0, 0, 0, 0);
    say(&c->peer, "GO", fields, size, true);
    put_frame(&c->peer, MORE, "true", 5);
    put_frame(&c->peer, 0, "PATH=/usr/bin:/bin", 19);
}

static void finish(struct connection *c)
{
    close_peer(&c->peer);
    done++;
    if (started < wanted)
        begin(c);
}

static void acknowledge(struct connection *c)
{
    char fields[64];
    say(&c->peer, "ACK", fields, snprintf(fields, sizeof fields, "job=%s%c", c->job, 0), false);
    finish(c);
}

static void answer(struct peer *p, struct bytes verb, struct bytes fields)
{
    struct connection *c = (struct connection *)p;
    c->answers++;
    if (what == ECHO_ONCE)
        finish(c);
    else if (what == TALK && c->answers == 1)
        go(c, "0123456789abcdef0123456789abcdef");
    else if (what == TALK || is_verb(verb, "RESULT"))
        acknowledge(c);
    else if (is_verb(verb, "OFFER"))
        go(c, field(fields, "stamp"));
    else if (!is_verb(verb, "QUEUED"))
        surprise(verb, fields);
}

int main(int argc, char **argv)
{
    static struct connection all[MAX_AT_ONCE];
    struct epoll_event events[MAX_AT_ONCE];
    if (argc != 6) {
        fprintf(stderr, "usage: connections echo|talk|job HOST PORT COUNT AT_ONCE\n");
        return 2;
    }
    what = !strcmp(argv[1], "job") ? JOB : !strcmp(argv[1], "talk") ? TALK : ECHO_ONCE;
    connect_to(argv[2], argv[3]);
    wanted = atol(argv[4]);
    double from = seconds();
    for (int i = 0; i < atoi(argv[5]) && i < MAX_AT_ONCE && started < wanted; i++)
        begin(&all[i]);
    while (done < wanted) {
        int count = epoll_wait(poller, events, MAX_AT_ONCE, 10000);
        if (count <= 0)
            fail("no answer within 10 s");
        for (int i = 0; i < count; i++)
            readable(events[i].data.ptr, submit, answer);
    }
    printf("%.0f\n", (double)wanted / (seconds() - from));
    return 0;
}
