/* The loop between GO and the end; see relay.h.
 *
 * It always reads its socket: the distributor is never made to wait for our reader, since no more output is under way
 * than the credit that was given, and the ring of each stream holds that much. A connection that breaks is made anew (attach.c), and
 * the attempt goes on at the right byte (attempt.c).
 * Does not know how a job is placed, or what happens after its end. */
#include "wrapper/relay.h"

#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "coherence/view.h"
#include "wrapper/attach.h"
#include "wrapper/attempt.h"
#include "wrapper/reads.h"
#include "wrapper/undo.h"

enum {
    SIGNAL_PATIENCE_MS = 2000, /* after a deadly signal, when nothing is heard any more */
    ANSWER_MS = 1000,          /* within which a PING is answered by whoever lives */
    SILENT_MS = 5000,          /* without an answer, after which a new connection is worth a try */
    STOP_FLUSH_MS = 200,
};

enum { ON_LINK, ON_SIGNAL, ON_STDIN, ON_STDOUT, ON_STDERR, POLLED };

struct relay {
    struct link *link;
    struct job *job;
    struct signals *signals;
    struct ending *ending;
    struct attempt *attempt;
    struct absence absence;
    bool missing;       /* nobody hears of the agent, or no agent has it */
    bool over;          /* the ending is known */
    bool resulted;      /* it came as a RESULT, which wants an ACK */
    bool viewed;        /* a MANIFEST came */
    bool malformed;     /* and could not be read to its end */
    int deadly;         /* the first signal that should end the command, and when it came */
    int64_t deadly_ms;
};

static struct view view; /* large: not on the stack */


__attribute__((format(printf, 3, 4))) static void end(struct relay *r, enum ending_kind kind, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    r->over = true;
    r->ending->kind = kind;
    vsnprintf(r->ending->reason, sizeof r->ending->reason, format, arguments);
    va_end(arguments);
}

static void end_by_signal(struct relay *r)
{
    end(r, ENDED_BY_SIGNAL, "nobody answers");
    r->ending->status = r->deadly;
}

/* What became of the command cannot be told any more. */
static void end_broken(struct relay *r)
{
    if (r->deadly)
        end_by_signal(r);
    else
        end(r, ENDED_UNKNOWN, "the connection to %s is lost: %.600s; %s may have run or not: look at its outputs, then run it again", r->link->name,
            r->link->why, r->job->name);
}

/* The connection is of no use any more. A distributor that does not count attempts knows of no other one. */
static void lose(struct relay *r, int64_t silent_ms)
{
    r->viewed = r->malformed = false; /* what was told of it is told again */
    attempt_detach(r->attempt);
    absence_begin(&r->absence, r->link, silent_ms);
    if (r->attempt->number == 0)
        end_broken(r);
}

/* What an earlier attempt printed cannot be taken back. */
static void end_differing(struct relay *r)
{
    end(r, ENDED_UNKNOWN, "it was run again after an agent was lost, and did not print the same; look at its outputs, then run it again");
}

/* While the connection is away: tries to get another one. */
static void come_back(struct relay *r)
{
    if (absence_try(&r->absence, r->link))
        attempt_attach(r->attempt);
    else if (r->deadly && now_ms() - r->deadly_ms >= SIGNAL_PATIENCE_MS)
        end_by_signal(r);
    else if (absence_is_too_long(&r->absence, 0))
        end_broken(r);
}

static void take_output(struct relay *r, const struct message *m)
{
    switch (attempt_take_output(r->attempt, m)) {
    case TAKEN:
        break;
    case TAKEN_WRONG:
        snprintf(r->link->why, sizeof r->link->why, "it sent output that nobody asked for");
        end_broken(r);
        break;
    case TAKEN_DIFFERS:
        end_differing(r);
        break;
    }
}

static void take_credit(struct relay *r, const struct message *m)
{
    if (!attempt_take_credit(r->attempt, m))
        end(r, ENDED_UNKNOWN, "a part of its input was lost with a connection, and cannot be read again; run it again");
}

/* What the command wrote must be seen here before its end is told. */
static void take_manifest(struct relay *r, const struct message *m)
{
    if (!r->job->settings->views)
        return;
    if (!r->viewed)
        view_start(&view);
    r->viewed = true;
    if (!view_apply(&view, m->data, m->data_length))
        r->malformed = true;
    reads_take(m->data, m->data_length);
}

/* A command that failed ends as it failed; but whoever looks for the reason must know. */
static void judge_view(struct relay *r)
{
    struct ending *e = r->ending;
    char reason[REASON_BYTES];
    if (!r->viewed || (!r->malformed && view.unseen == 0))
        return;
    if (r->malformed)
        snprintf(reason, sizeof reason, "what it wrote on %s was not told in a form that this dwrap knows; update dwrap on one of them", e->agent);
    else
        snprintf(reason, sizeof reason, "this machine does not see %s as %s wrote it%s; check its mount with `dwrapctl doctor`, then run it again",
                 view.path, e->agent, view.unseen > 1 ? ", and more" : "");
    if (e->kind == ENDED_STATUS && e->status == 0)
        end(r, ENDED_UNKNOWN, "%s", reason);
    else
        say("%s: %s (job %s)", r->job->name, reason, r->job->id);
}

static void take_result(struct relay *r, const struct message *m)
{
    struct ending *e = r->ending;
    const char *error = fields_get(m->fields, "error"), *reason = fields_get(m->fields, "reason"), *agent = fields_get(m->more, "agent");
    uint64_t status = UINT64_MAX;
    r->resulted = true;
    snprintf(e->agent, sizeof e->agent, "%s", agent ? agent : "an agent");
    e->queued_ms = fields_number(m->more, "queued_ms", 0);
    e->run_ms = fields_number(m->fields, "run_ms", 0);
    e->flush_ms = fields_number(m->fields, "flush_ms", 0);
    source_give_back(&r->attempt->in, fields_number(m->fields, "stdin_taken", error ? 0 : r->attempt->in.sent));
    if (!reason)
        reason = "no reason was given";
    if (attempt_is_incomplete(r->attempt, m))
        end(r, ENDED_UNKNOWN, "a part of the command's output is lost; run it again");
    else if (attempt_fell_short(r->attempt))
        end_differing(r);
    else if (error)
        end(r, strcmp(error, "not_found") == 0        ? ENDED_NOT_FOUND
               : strcmp(error, "not_executable") == 0 ? ENDED_NOT_EXECUTABLE
               : strcmp(error, "cwd") == 0 && attempt_is_untouched(r->attempt) ? ENDED_NEVER_RAN
                                                      : ENDED_UNKNOWN, "%s", reason);
    else if (!field_number(fields_get(m->fields, "status"), &status) || status > 0xffff)
        end(r, ENDED_UNKNOWN, "the result holds no status; update dwrap on this machine or on the agent");
    else
        end(r, ENDED_STATUS, "%s", "");
    e->status = (int)(status & 0xffff);
    judge_view(r);
    if (r->job->seen_known)
        reads_keep(r->job->build);
}

/* No result will come. It may run here when nothing of it was seen, and once nothing of it is left. */
static void take_failure(struct relay *r, const struct message *m, bool safe)
{
    const char *reason = fields_get(m->fields, "reason"), *left, *why;
    if (!reason)
        reason = "no reason was given";
    source_give_back(&r->attempt->in, 0);
    if (r->deadly) {
        end_by_signal(r);
    } else if (!safe || !attempt_is_untouched(r->attempt)) {
        end(r, ENDED_UNKNOWN, "%s", reason);
    } else if ((left = undo_names(m->fields, r->job, &why))) {
        end(r, ENDED_UNKNOWN, "%.200s, and %.600s, which it is said to have made, is not removed: %s; look at it, then run it again", reason,
            left, why);
    } else {
        end(r, ENDED_NEVER_RAN, "%s", reason);
    }
}

/* It is to be run anew: an earlier GO is void, or its attempt is lost and will never be heard of again. */
static void answer_offer(struct relay *r, const struct message *m, const char *stamp)
{
    const char *why = r->deadly ? NULL : attempt_restart(r->attempt, m);
    if (r->deadly) {
        end_by_signal(r);
    } else if (why) {
        end(r, ENDED_UNKNOWN, "its agent is lost, and it is not run again because %s; look at its outputs, then run it again", why);
    } else {
        r->viewed = r->malformed = false;
        if (fields_number(m->fields, "views", 0) == 1)
            views_prepare(r->job, r->link);
        if (go_send(r->link, r->job, stamp, &r->signals->inherited) == LINK_FINE)
            attempt_started(r->attempt);
        else
            lose(r, 0);
    }
}

/* ATTACH again: it lacked the proof of who we are, or an agent that could answer it. */
static void take_request(struct relay *r, const char *stamp)
{
    if (stamp)
        snprintf(r->attempt->stamp, sizeof r->attempt->stamp, "%s", stamp);
    attempt_attach(r->attempt);
}

/* Of this job, and of no attempt but the one at hand? */
static bool is_ours(const struct relay *r, const struct message *m)
{
    const char *id = fields_get(m->fields, "job");
    uint64_t ours = r->attempt->number;
    if (id && strcmp(id, r->job->id) != 0)
        return false;
    return ours == 0 || strcmp(m->verb, "OFFER") == 0 || fields_number(m->fields, "attempt", ours) == ours;
}

static void take_message(struct relay *r, const struct message *m)
{
    const char *stamp = fields_get(m->fields, "stamp");
    if (stamp && strlen(stamp) >= STAMP_BYTES)
        stamp = NULL;
    if (strcmp(m->verb, "OUTPUT") == 0)
        take_output(r, m);
    else if (strcmp(m->verb, "CREDIT") == 0)
        take_credit(r, m);
    else if (strcmp(m->verb, "RESULT") == 0)
        take_result(r, m);
    else if (strcmp(m->verb, "FAILED") == 0)
        take_failure(r, m, fields_number(m->fields, "safe", 0) == 1);
    else if (strcmp(m->verb, "HERE") == 0 || strcmp(m->verb, "UNAVAILABLE") == 0)
        take_failure(r, m, true); /* our GO came too late, and meanwhile nobody may take it any more */
    else if (strcmp(m->verb, "REFUSED") == 0)
        take_failure(r, m, false);
    else if (strcmp(m->verb, "OFFER") == 0 && stamp)
        answer_offer(r, m, stamp);
    else if ((strcmp(m->verb, "PROVE") == 0 && stamp) || strcmp(m->verb, "RESUME") == 0)
        take_request(r, stamp);
    else if (strcmp(m->verb, "MANIFEST") == 0)
        take_manifest(r, m);
}

static void take_messages(struct relay *r)
{
    struct message m;
    enum link_status status = link_receive(r->link);
    while (status == LINK_FINE && !r->over && r->link->fd >= 0 && link_next(r->link, &m, &status)) {
        if (!is_ours(r, &m))
            continue;
        absence_end(&r->absence);
        r->missing = strcmp(m.verb, "MISSING") == 0 || strcmp(m.verb, "QUEUED") == 0;
        take_message(r, &m);
    }
    if (status != LINK_FINE && !r->over)
        lose(r, 0);
}

/* Stops as the command was told to; the message must be gone before. Then the command continues too. */
static void stop_here(struct relay *r)
{
    int64_t deadline = now_ms() + STOP_FLUSH_MS;
    struct pollfd waiting = { .fd = r->link->fd, .events = POLLOUT };
    while (r->link->fd >= 0 && link_flush(r->link) == LINK_FINE && r->link->out_end > 0 && now_ms() < deadline)
        poll(&waiting, 1, STOP_FLUSH_MS);
    if (signals_stop_here() && !r->over)
        attempt_pass_signal(r->attempt, SIGCONT);
}

static void take_signals(struct relay *r)
{
    struct signalfd_siginfo info;
    while (read(r->signals->fd, &info, sizeof info) == sizeof info) {
        int number = (int)info.ssi_signo;
        if (!r->over)
            attempt_pass_signal(r->attempt, number);
        if (number == SIGTSTP) {
            stop_here(r);
        } else if (signal_is_deadly(number)) {
            if (!r->deadly)
                r->deadly_ms = now_ms();
            r->deadly = number;
        }
    }
}

static void judge_silence(struct relay *r)
{
    int64_t now = now_ms(), silent = link_silence_ms(r->link, now), patience = r->job->settings->patience_ms;
    int64_t most = patience < ANSWER_MS ? ANSWER_MS : patience < SILENT_MS ? patience : SILENT_MS;
    if (r->deadly && (silent >= ANSWER_MS || r->absence.away || r->missing) && now - r->deadly_ms >= SIGNAL_PATIENCE_MS) {
        end_by_signal(r);
    } else if (silent >= most) {
        snprintf(r->link->why, sizeof r->link->why, "nothing was heard for %lld s", (long long)(now - r->link->heard_ms) / 1000);
        lose(r, silent);
    } else if (r->absence.away && absence_is_too_long(&r->absence, ANSWER_MS)) {
        snprintf(r->link->why, sizeof r->link->why, "it does not know the command any more");
        end_broken(r);
    }
}

/* Waits for whatever comes first. Once the ending is known only the sinks and signals count. */
static void wait_for_events(struct relay *r, struct pollfd polled[POLLED])
{
    struct link *l = r->link;
    bool connected = !r->over && l->fd >= 0;
    polled[ON_LINK] = (struct pollfd){ .fd = connected ? l->fd : -1, .events = l->out_end > 0 ? POLLIN | POLLOUT : POLLIN };
    polled[ON_SIGNAL] = (struct pollfd){ .fd = r->signals->fd, .events = POLLIN };
    bool wanted = connected && link_room(l) > 2 * DWRAP_MAX_DATA_BYTES && source_is_wanted(&r->attempt->in);
    polled[ON_STDIN] = (struct pollfd){ .fd = wanted ? r->attempt->in.stream.fd : -1, .events = POLLIN };
    for (int i = 0; i < 2; i++) {
        const struct sink *s = &r->attempt->out[i].sink;
        polled[ON_STDOUT + i] = (struct pollfd){ .fd = sink_is_empty(s) ? -1 : s->stream.fd, .events = POLLOUT };
    }
    if (poll(polled, POLLED, connected || r->over ? PING_AFTER_MS : (int)absence_pause_ms(&r->absence)) < 0)
        for (int i = 0; i < POLLED; i++)
            polled[i].revents = 0;
}

/* What the connection itself needs, once everything that came was taken. */
static void look_after_link(struct relay *r)
{
    if (r->link->fd < 0) {
        come_back(r);
        return;
    }
    judge_silence(r);
    if (r->over || r->link->fd < 0)
        return;
    link_keep_alive(r->link, now_ms());
    if (r->attempt->clogged)
        snprintf(r->link->why, sizeof r->link->why, "it does not read any more");
    if (r->attempt->clogged || link_flush(r->link) != LINK_FINE)
        lose(r, 0);
}

static void step(struct relay *r)
{
    struct pollfd polled[POLLED];
    wait_for_events(r, polled);
    if (polled[ON_LINK].revents & (POLLIN | POLLERR | POLLHUP))
        take_messages(r);
    if (polled[ON_SIGNAL].revents)
        take_signals(r);
    if (polled[ON_STDIN].revents && !r->over)
        attempt_send_input(r->attempt);
    while (!r->over && source_is_behind(&r->attempt->in) && link_room(r->link) > 2 * DWRAP_MAX_DATA_BYTES)
        attempt_send_input(r->attempt);
    for (int i = 0; i < 2; i++)
        if (polled[ON_STDOUT + i].revents && r->over)
            sink_write(&r->attempt->out[i].sink);
        else if (polled[ON_STDOUT + i].revents)
            attempt_write(r->attempt, i);
    if (!r->over)
        look_after_link(r);
}

static bool is_drained(const struct relay *r)
{
    return sink_is_empty(&r->attempt->out[0].sink) && sink_is_empty(&r->attempt->out[1].sink);
}

/* Writes what waits. The command has ended, so a deadly signal from now on is for us alone. */
static void drain(struct relay *r)
{
    r->deadly = 0;
    while (!is_drained(r) && !r->deadly)
        step(r);
    if (!r->deadly)
        return;
    r->ending->kind = ENDED_BY_SIGNAL;
    r->ending->status = r->deadly;
}

void relay_run(struct link *l, const struct address *address, struct job *job, const struct message *offer, struct signals *signals,
               struct ending *ending)
{
    static struct attempt at_hand; /* large: not on the stack */
    const struct settings *s = job->settings;
    struct relay r = { .link = l, .job = job, .signals = signals, .ending = ending, .attempt = &at_hand };
    r.absence = (struct absence){ .address = address, .insecure = s->insecure, .patience_ms = s->patience_ms };
    *ending = (struct ending){ 0 };
    attempt_start(&at_hand, l, job, offer);
    while (!r.over)
        step(&r);
    drain(&r);
    if (r.resulted) {
        attempt_acknowledge(&at_hand);
        (void)link_flush(l);
    }
    for (int i = 0; i < 2; i++) {
        int error = at_hand.out[i].sink.error;
        if (error && ending->kind == ENDED_STATUS)
            end(&r, ENDED_UNKNOWN, "%s cannot be written: %s; make room or redirect it elsewhere", at_hand.out[i].name, strerror(error));
    }
}
