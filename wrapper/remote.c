/* From SUBMIT to OFFER: which distributor answers, within which time, and what it says. The bounds are what keeps a build
 * going without a distributor: the first word must come within 1.5 s, and within 60 ms where silence is remembered (0.1 s with
 * everything else that a wrapper does). One that was alive a minute ago may be starting anew, so within those bounds it is asked
 * again when it refuses; and whoever waited for it already gives it 10 s.
 * Does not know the streams; relay.c has them after GO. */
#include "wrapper/remote.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "wrapper/memory.h"

enum {
    FIRST_WORD_MS = 1500,
    FIRST_WORD_AGAIN_MS = 60,
    ANSWER_MS = 1000,
    RETRY_MS = 250,
    RESTART_MS = 10000,      /* for a distributor to start anew, while commands wait for it */
    RESTART_RETRY_MS = 50,   /* at first; thousands that wait would be a load, so later it is more */
    RESTART_RETRY_MOST_MS = 800,
    STEADY_MS = 1000,        /* a connection that lasted less than this before it broke was none */
    HOSTS = 16,
    NEAR = 100,
    FAR = 20000,
};

static struct link connection; /* large: not on the stack */

__attribute__((format(printf, 3, 4))) static void answer_with(struct answer *a, enum answer_kind kind, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    a->kind = kind;
    vsnprintf(a->reason, sizeof a->reason, format, arguments);
    va_end(arguments);
}

static void explain(const struct message *m, struct answer *a)
{
    const char *where = fields_get(m->fields, "where"), *agent = fields_get(m->fields, "agent"), *reason = fields_get(m->fields, "reason");
    bool named = where && strcmp(where, "agent") == 0 && agent && *agent;
    if (where && strcmp(where, "nowhere") == 0) { /* what follows from that is for the settings to say */
        answer_with(a, ANSWER_UNAVAILABLE, "%s", reason && *reason ? reason : "no reason was given");
        return;
    }
    answer_with(a, ANSWER_EXPLAINED, "%s%s%s: %s", where ? where : "?", named ? " " : "", named ? agent : "",
                reason && *reason ? reason : "no reason was given");
}

/* The answers that end the exchange before GO. False when it goes on. */
static bool take_word(const struct message *m, struct answer *a)
{
    const char *reason = fields_get(m->fields, "reason");
    if (!reason)
        reason = "no reason was given";
    if (strcmp(m->verb, "HERE") == 0)
        answer_with(a, ANSWER_HERE, "%s", reason);
    else if (strcmp(m->verb, "UNAVAILABLE") == 0)
        answer_with(a, ANSWER_UNAVAILABLE, "%s", reason);
    else if (strcmp(m->verb, "REFUSED") == 0)
        answer_with(a, ANSWER_REFUSED, "%s", reason);
    else if (strcmp(m->verb, "EXPLAINED") == 0)
        explain(m, a);
    else
        return false;
    return true;
}

/* Commits, and stays to the end. Anything but LINK_FINE: GO did not go whole, so it is none. */
static enum link_status run_to_end(const struct address *address, struct job *job, const struct message *offer, const char *stamp,
                                   struct signals *signals, struct answer *a)
{
    if (fields_number(offer->fields, "views", 0) == 1)
        views_prepare(job, &connection);
    connection.quiet_ms = PING_AFTER_MS;
    signals_take(signals);
    job->first_go_ms = boot_ms();
    enum link_status status = go_send(&connection, job, stamp, &signals->inherited);
    if (status != LINK_FINE) {
        signals_restore(signals);
        return status;
    }
    relay_run(&connection, address, job, offer, signals, &a->ending);
    a->kind = ANSWER_RAN;
    if (a->ending.kind == ENDED_NEVER_RAN) {
        signals_restore(signals);
        answer_with(a, ANSWER_UNAVAILABLE, "%s", a->ending.reason);
    }
    return LINK_FINE;
}

/* Thousands that wait far back in a queue would be a load by their PINGs alone: those ask more seldom. */
static void ask_by_place(struct link *l, uint64_t ahead)
{
    l->quiet_ms = PING_AFTER_MS;
    if (ahead > NEAR)
        l->quiet_ms += 2 * (int64_t)(ahead < FAR ? ahead - NEAR : FAR);
}

/* The next message. Waits in steps, so that a PING is sent after a second or more in which nothing was
 * heard; when a second later nothing has come still, nobody is there. */
static enum link_status next_message(struct message *m)
{
    struct link *l = &connection;
    for (;;) {
        link_keep_alive(l, now_ms());
        int64_t last = l->heard_ms > l->pinged_ms ? l->heard_ms : l->pinged_ms;
        bool asked = l->asked_ms > l->heard_ms;
        enum link_status status = link_await(l, m, last + (asked ? ANSWER_MS : l->quiet_ms));
        if (status != LINK_SILENT || link_silence_ms(l, now_ms()) >= ANSWER_MS)
            return status;
    }
}

/* After the first word: waits for the OFFER as long as the distributor is alive, and runs it. LINK_FINE: it is answered. */
static enum link_status converse(const struct address *address, struct job *job, struct message *m, struct signals *signals, struct answer *a)
{
    struct link *l = &connection;
    enum link_status status = LINK_FINE;
    while (status == LINK_FINE) {
        const char *stamp = fields_get(m->fields, "stamp");
        if (take_word(m, a))
            return LINK_FINE;
        if (strcmp(m->verb, "OFFER") == 0 && stamp && strlen(stamp) < STAMP_BYTES)
            return run_to_end(address, job, m, stamp, signals, a);
        if (strcmp(m->verb, "QUEUED") == 0)
            ask_by_place(l, fields_number(m->fields, "ahead", 0));
        status = next_message(m);
    }
    if (status == LINK_SILENT)
        memory_mark_silent(l->name);
    return status;
}

/* Connects, submits, and waits for the first word. */
static enum link_status reach(const struct address *address, struct job *job, int64_t deadline_ms, struct message *m, const char **here)
{
    enum link_status status = link_open(&connection, address, job->settings->insecure, deadline_ms);
    if (status != LINK_FINE)
        return status;
    int64_t began = now_ms();
    if (!job->submit_length)
        *here = submit_prepare(job);
    if (*here)
        return status;
    deadline_ms += now_ms() - began; /* rpm may need seconds to tell what is installed here: that is no silence of theirs */
    struct fields_out fields = submit_fields(job);
    link_queue(&connection, "SUBMIT", &fields, NULL, 0); /* there is room: the connection is new */
    status = link_flush(&connection);
    if (!job->go_length)
        *here = go_prepare(job);
    return *here || status != LINK_FINE ? status : link_await(&connection, m, deadline_ms);
}

/* Whoever is meant may not be back yet. */
static bool is_refusal(enum link_status status)
{
    return status == LINK_UNREACHABLE || status == LINK_LOST || status == LINK_UNTRUSTED;
}

/* Not a matter of time: the same will be found when it is asked again. */
static bool is_final(enum link_status status)
{
    return status == LINK_DENIED || status == LINK_FORBIDDEN;
}

/* The same, but one that refuses and was alive a moment ago is given until the deadline to start anew. */
static enum link_status reach_patiently(const struct address *address, struct job *job, int64_t deadline_ms, struct message *m, const char **here)
{
    enum link_status status = reach(address, job, deadline_ms, m, here);
    if (!is_refusal(status) || !memory_is_alive(address->text))
        return status;
    while (is_refusal(status) && now_ms() + RESTART_RETRY_MS < deadline_ms) {
        link_close(&connection);
        poll(NULL, 0, RESTART_RETRY_MS);
        job_name(job);
        status = reach(address, job, deadline_ms, m, here);
    }
    if (status != LINK_FINE && !*here)
        memory_forget_alive(address->text); /* those after us need not wait in vain */
    return status;
}

/* Thousands that come back at once would keep a distributor from starting, and the machine from everything else: those far back in the
 * queue come half a millisecond later for each that is ahead of them, and ask as much more seldom. */
static int64_t stagger_ms(void)
{
    int64_t more = connection.quiet_ms - PING_AFTER_MS;
    return more > 0 ? more / 4 : 0;
}

/* The connection broke while the command waited for its turn: nothing of it has run. Asks the same distributor for a new place. */
static enum link_status ask_again(const struct address *address, struct job *job, struct signals *signals, struct answer *a)
{
    enum link_status status = LINK_LOST;
    int64_t stagger = stagger_ms(), deadline = now_ms() + RESTART_MS + 2 * stagger;
    for (int pause = RESTART_RETRY_MS; status != LINK_FINE && now_ms() < deadline; pause = pause < RESTART_RETRY_MOST_MS ? 2 * pause : pause) {
        struct message m;
        const char *here = NULL;
        link_close(&connection);
        poll(NULL, 0, pause + (int)stagger);
        job_name(job);
        status = reach(address, job, deadline, &m, &here);
        if (is_final(status))
            return status;
        if (status != LINK_FINE)
            continue;
        int64_t began = now_ms();
        status = converse(address, job, &m, signals, a);
        if (status == LINK_SILENT)
            return status;
        if (now_ms() - began < STEADY_MS)
            continue;
        stagger = stagger_ms();
        deadline = now_ms() + RESTART_MS + 2 * stagger;
        pause = RESTART_RETRY_MS / 2;
    }
    return status;
}

/* Loudly, but not for each command of a build: once an hour for each user and address. */
static void warn(const struct address *address)
{
    if (memory_is_time_to_say(address->text))
        say("%s is not encrypted: everyone on the way can read and change your commands; DWRAP_INSECURE=1 allows it; dwrapctl join ends it",
            address->text);
}

static void remember(const struct address *address, enum link_status status)
{
    if (status == LINK_SILENT)
        memory_mark_silent(address->text);
    else
        memory_forget_silent(address->text);
    if (status == LINK_FINE)
        memory_mark_alive(address->text);
}

/* Has the first word; stays to the end. */
static void stay(const struct address *address, struct job *job, struct message *m, struct signals *signals, struct answer *a)
{
    enum link_status status = converse(address, job, m, signals, a);
    if (status != LINK_FINE && status != LINK_SILENT)
        status = ask_again(address, job, signals, a);
    if (is_final(status) || status == LINK_UNTRUSTED)
        answer_with(a, ANSWER_UNAVAILABLE, "%s: %s", address->text, connection.why);
    else if (status != LINK_FINE)
        answer_with(a, ANSWER_UNAVAILABLE, "%s: %.900s while the command waited for a slot", address->text, connection.why);
}

/* Asks one distributor. True when its answer counts, false when the next one is to be tried; *denied when it need not be asked again. */
static bool ask(const struct address *address, struct job *job, int64_t share_ms, struct signals *signals, struct answer *a, bool *denied)
{
    struct message m;
    const char *here = NULL;
    job_name(job);
    bool brief = memory_is_silent(address->text);
    int64_t patience = brief && FIRST_WORD_AGAIN_MS < share_ms ? FIRST_WORD_AGAIN_MS : share_ms;
    enum link_status status = reach_patiently(address, job, now_ms() + patience, &m, &here);
    if (connection.exposed)
        warn(address);
    remember(address, status);
    *denied = status == LINK_DENIED;
    if (here)
        answer_with(a, ANSWER_HERE, "%s", here);
    else if (status == LINK_FINE)
        stay(address, job, &m, signals, a);
    else if (status == LINK_FORBIDDEN)
        answer_with(a, ANSWER_REFUSED, "%s: %s", address->text, connection.why);
    else if (status == LINK_DENIED || status == LINK_UNTRUSTED)
        answer_with(a, ANSWER_UNAVAILABLE, "%s: %s", address->text, connection.why);
    else if (status == LINK_STRANGE)
        answer_with(a, ANSWER_UNAVAILABLE, "something else answers at %s: %s; check the address", address->text, connection.why);
    else
        answer_with(a, ANSWER_UNAVAILABLE, "no distributor answers at %s: %s", address->text, connection.why);
    link_close(&connection);
    return a->kind != ANSWER_UNAVAILABLE;
}

static size_t parse_hosts(const char *hosts, struct address addresses[HOSTS])
{
    size_t count = 0;
    for (const char *at = hosts; at && count < HOSTS;) {
        size_t length = strcspn(at, ",");
        const char *problem = address_parse(at, length, &addresses[count]);
        if (problem)
            say_and_leave("cannot understand the distributor's address '%.*s': %s; write tcp://HOST:PORT or ipc:///PATH", (int)length, at, problem);
        count++;
        at = at[length] ? at + length + 1 : NULL;
    }
    return count;
}

/* Asks those that have not denied themselves. False when no other answer is to be expected from any. */
static bool ask_each(struct job *job, const struct address *addresses, size_t count, bool denied[HOSTS], struct signals *signals, struct answer *a)
{
    int64_t deadline = now_ms() + FIRST_WORD_MS;
    bool again = false;
    for (size_t i = 0; i < count; i++) {
        int64_t left = deadline - now_ms(), share = left / (int64_t)(count - i);
        if (!denied[i] && ask(&addresses[i], job, share > FIRST_WORD_AGAIN_MS ? share : FIRST_WORD_AGAIN_MS, signals, a, &denied[i]))
            return false;
        again = again || !denied[i];
    }
    return again;
}

void remote_run(struct job *job, struct signals *signals, struct answer *answer)
{
    static struct address addresses[HOSTS];
    bool denied[HOSTS] = { false };
    const struct settings *s = job->settings;
    size_t count = parse_hosts(s->hosts, addresses);
    int64_t give_up = now_ms() + s->patience_ms;
    if (count == 0) {
        answer_with(answer, ANSWER_UNAVAILABLE, "no distributor is configured");
        return;
    }
    while (ask_each(job, addresses, count, denied, signals, answer) && s->fallback_fail && !s->explain && now_ms() < give_up)
        poll(NULL, 0, RETRY_MS);
}
