/* Many agents in one process that finish every job at once: a load for the distributor, not a simulation of work.
 *
 *     agents HOST PORT AGENTS SLOTS      prints `ready` when all are registered, runs until it is ended
 *
 * Each has a connection and a heartbeat of its own, as real ones have; the heartbeats are spread over their second.
 * Knows PROTOCOL.md's agent side. */
#include "load.h"

enum { MAX_AGENTS = 4096, MAX_EVENTS = 512 };
static const double HEARTBEAT_SECONDS = 1.0;

struct agent {
    struct peer peer; /* first: a pointer to the one is a pointer to the other */
    int number;
    bool is_leased;
    char token[80];
};

static int slots, leased;

static void join(struct peer *p)
{
    char fields[200], serves[16] = "any";
    if (getuid())
        snprintf(serves, sizeof serves, "%d", (int)getuid());
    int size = snprintf(fields, sizeof fields, "version=1%cname=sim-%04d%cslots=%d%croot=/%cserves=%s%callow_root=1%c", 0,
                        ((struct agent *)p)->number, 0, slots, 0, 0, serves, 0, 0);
    say(p, "REGISTER", fields, size, false);
}

static void beat(struct agent *a)
{
    char fields[200];
    int size = snprintf(fields, sizeof fields, "token=%s%cforeign=0%cmemory_available_bytes=17179869184%c", a->token, 0, 0, 0);
    say(&a->peer, "HEARTBEAT", fields, size, false);
}

static void answer(struct peer *p, struct bytes verb, struct bytes fields)
{
    struct agent *a = (struct agent *)p;
    char done[200];
    if (is_verb(verb, "ASSIGN")) {
        int size = snprintf(done, sizeof done, "job=%s%cattempt=%s%cstatus=0%crun_ms=0%c", field(fields, "job"), 0, field(fields, "attempt"), 0, 0, 0);
        say(p, "RESULT", done, size, false);
    } else if (is_verb(verb, "WELCOME")) {
        snprintf(a->token, sizeof a->token, "%s", field(fields, "token"));
        beat(a);
    } else if (is_verb(verb, "LEASE")) {
        leased += !a->is_leased;
        a->is_leased = true;
    } else if (!is_verb(verb, "ACK")) {
        surprise(verb, fields);
    }
}

int main(int argc, char **argv)
{
    static struct agent all[MAX_AGENTS];
    struct epoll_event events[MAX_EVENTS];
    if (argc != 5 || atoi(argv[3]) > MAX_AGENTS) {
        fprintf(stderr, "usage: agents HOST PORT AGENTS SLOTS, at most %d agents\n", MAX_AGENTS);
        return 2;
    }
    int count = atoi(argv[3]);
    bool has_told = false;
    slots = atoi(argv[4]);
    connect_to(argv[1], argv[2]);
    for (int i = 0; i < count; i++) {
        all[i].number = i;
        open_peer(&all[i].peer);
    }
    double next_beat = seconds();
    for (int turn = 0;;) {
        double wait = next_beat - seconds();
        int ready = epoll_wait(poller, events, MAX_EVENTS, wait > 0 ? (int)(wait * 1000) + 1 : 0);
        for (int i = 0; i < ready; i++)
            readable(events[i].data.ptr, join, answer);
        if (leased == count && !has_told) {
            has_told = true;
            puts("ready");
            fflush(stdout);
        }
        for (; seconds() >= next_beat; next_beat += HEARTBEAT_SECONDS / count, turn = (turn + 1) % count)
            if (all[turn].is_leased) {
                beat(&all[turn]);
                flush(&all[turn].peer);
            }
    }
}
