/* The loop between GO and the end; see relay.h.
 *
 * It always reads its socket: the distributor is never made to wait for our reader, since no more output is under way
 * than the credit that was given, and the ring of each stream holds that much. Everything that a reattachment would have
 * to know (offsets received and sent, limits) is in `struct relay`.
 * Does not know how a job is placed, or what happens after its end. */
#include "wrapper/relay.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "coherence/view.h"
#include "wrapper/reads.h"

enum {
    CREDIT_STEP = DWRAP_INITIAL_OUTPUT_CREDIT / 2, /* credit is renewed in pieces of this size */
    SIGNAL_PATIENCE_MS = 2000,                     /* after a deadly signal, when nothing is heard any more */
    ANSWER_MS = 1000,                              /* within which a PING is answered by whoever lives */
    STOP_FLUSH_MS = 200,
};

enum { ON_LINK, ON_SIGNAL, ON_STDIN, ON_STDOUT, ON_STDERR, POLLED };

struct output {
    struct sink sink;
    const char *name;
    uint64_t limit; /* the credit given */
    bool closed;    /* CLOSE was sent */
    bool expected;  /* the command's stream comes here */
};

struct relay {
    struct link *link;
    struct job *job;
    struct signals *signals;
    struct ending *ending;
    struct source in;
    struct output *out; /* two */
    bool over;          /* the ending is known */
    bool resulted;      /* it came as a RESULT, which wants an ACK */
    bool viewed;        /* a MANIFEST came */
    bool malformed;     /* and could not be read to its end */
    int deadly;         /* the first signal that should end the command, and when it came */
    int64_t deadly_ms;
};

static struct view view; /* large: not on the stack */

static const int forwarded[] = { SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGCONT, SIGWINCH, SIGTSTP };

void signals_take(struct signals *signals)
{
    sigset_t taken, blocked;
    sigemptyset(&taken);
    sigprocmask(SIG_BLOCK, NULL, &signals->inherited);
    for (size_t i = 0; i < sizeof forwarded / sizeof forwarded[0]; i++) {
        struct sigaction action;
        sigaction(forwarded[i], NULL, &action);
        if (action.sa_handler != SIG_IGN && !sigismember(&signals->inherited, forwarded[i]))
            sigaddset(&taken, forwarded[i]);
    }
    blocked = taken;
    sigaddset(&blocked, SIGPIPE); /* a reader that left is an error to us, and a CLOSE to the command */
    sigprocmask(SIG_BLOCK, &blocked, NULL);
    signals->fd = signalfd(-1, &taken, SFD_CLOEXEC | SFD_NONBLOCK);
}

void signals_restore(const struct signals *signals)
{
    struct timespec now = { 0 };
    sigset_t pipe_only;
    sigemptyset(&pipe_only);
    sigaddset(&pipe_only, SIGPIPE);
    if (!sigismember(&signals->inherited, SIGPIPE))
        while (sigtimedwait(&pipe_only, NULL, &now) > 0)
            continue; /* ours, not the command's */
    close(signals->fd);
    sigprocmask(SIG_SETMASK, &signals->inherited, NULL);
}

static void end(struct relay *r, enum ending_kind kind, const char *reason)
{
    r->over = true;
    r->ending->kind = kind;
    snprintf(r->ending->reason, sizeof r->ending->reason, "%s", reason);
}

/* After the connection is of no use any more. */
static void end_broken(struct relay *r)
{
    char reason[REASON_BYTES];
    snprintf(reason, sizeof reason, "the connection to %s is lost: %.600s; %s may have run or not: look at its outputs, then run it again",
             r->link->name, r->link->why, r->job->name);
    end(r, ENDED_UNKNOWN, reason);
    if (!r->deadly)
        return;
    r->ending->kind = ENDED_BY_SIGNAL;
    r->ending->status = r->deadly;
}

/* Queues a message about this job. */
static void tell(struct relay *r, const char *verb, struct fields_out *fields, const void *data, size_t length)
{
    if (r->over || link_queue(r->link, verb, fields, data, length))
        return;
    snprintf(r->link->why, sizeof r->link->why, "it does not read any more");
    end_broken(r);
}

static struct fields_out about(const struct relay *r, char *buffer, size_t size)
{
    struct fields_out fields = fields_into(buffer, size);
    fields_add(&fields, "job", r->job->id);
    return fields;
}

static void send_credit(struct relay *r, struct output *o)
{
    char buffer[160];
    uint64_t limit = o->sink.written + DWRAP_INITIAL_OUTPUT_CREDIT;
    if (limit - o->limit < CREDIT_STEP || o->sink.broken)
        return;
    struct fields_out fields = about(r, buffer, sizeof buffer);
    fields_add(&fields, "stream", o->name);
    fields_addf(&fields, "limit", "%llu", (unsigned long long)limit);
    tell(r, "CREDIT", &fields, NULL, 0);
    o->limit = limit;
}

static void send_close(struct relay *r, struct output *o)
{
    char buffer[160];
    if (!o->sink.broken || o->closed)
        return;
    struct fields_out fields = about(r, buffer, sizeof buffer);
    fields_add(&fields, "stream", o->name);
    tell(r, "CLOSE", &fields, NULL, 0);
    o->closed = true;
}

static void send_signal(struct relay *r, int number)
{
    char buffer[160];
    struct fields_out fields = about(r, buffer, sizeof buffer);
    fields_addf(&fields, "signal", "%d", number);
    tell(r, "SIGNAL", &fields, NULL, 0);
}

static void send_input(struct relay *r)
{
    static char data[DWRAP_MAX_DATA_BYTES];
    char buffer[160];
    uint64_t offset = r->in.sent;
    size_t length = source_read(&r->in, data, sizeof data);
    if (length == 0 && !r->in.ended)
        return;
    struct fields_out fields = about(r, buffer, sizeof buffer);
    fields_addf(&fields, "offset", "%llu", (unsigned long long)offset);
    if (r->in.ended)
        fields_add(&fields, "eof", "1");
    tell(r, "INPUT", &fields, data, length);
}

static void take_output(struct relay *r, const struct message *m)
{
    const char *stream = fields_get(m->fields, "stream");
    uint64_t offset;
    struct output *o = stream && strcmp(stream, "stdout") == 0 ? &r->out[0] : stream && strcmp(stream, "stderr") == 0 ? &r->out[1] : NULL;
    if (!o || !field_number(fields_get(m->fields, "offset"), &offset) || !sink_take(&o->sink, offset, m->data, m->data_length)) {
        snprintf(r->link->why, sizeof r->link->why, "it sent output that nobody asked for");
        end_broken(r);
        return;
    }
    send_credit(r, o);
    send_close(r, o);
}

/* Was more said to have been printed than has come? */
static bool is_incomplete(const struct relay *r, const struct message *m)
{
    static const char *const fields[2] = { "stdout_bytes", "stderr_bytes" };
    for (int i = 0; i < 2; i++)
        if (r->out[i].expected && !r->out[i].sink.broken && fields_number(m->fields, fields[i], 0) > r->out[i].sink.received)
            return true;
    return false;
}

/* Nothing of an attempt was seen here: no output, no input that cannot be given back. */
static bool is_untouched(const struct relay *r)
{
    return r->out[0].sink.received == 0 && r->out[1].sink.received == 0 && (r->in.sent == 0 || r->in.seekable);
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
        end(r, ENDED_UNKNOWN, reason);
    else
        say("%s: %s (job %s)", r->job->name, reason, r->job->id);
}

static void take_result(struct relay *r, const struct message *m)
{
    struct ending *e = r->ending;
    r->resulted = true;
    const char *error = fields_get(m->fields, "error"), *reason = fields_get(m->fields, "reason"), *agent = fields_get(m->more, "agent");
    uint64_t status = UINT64_MAX;
    snprintf(e->agent, sizeof e->agent, "%s", agent ? agent : "an agent");
    e->queued_ms = fields_number(m->more, "queued_ms", 0);
    e->run_ms = fields_number(m->fields, "run_ms", 0);
    e->flush_ms = fields_number(m->fields, "flush_ms", 0);
    source_give_back(&r->in, fields_number(m->fields, "stdin_taken", error ? 0 : r->in.sent));
    if (!reason)
        reason = "no reason was given";
    if (error)
        end(r, strcmp(error, "not_found") == 0        ? ENDED_NOT_FOUND
               : strcmp(error, "not_executable") == 0 ? ENDED_NOT_EXECUTABLE
               : strcmp(error, "cwd") == 0 && is_untouched(r) ? ENDED_NEVER_RAN
                                                      : ENDED_UNKNOWN, reason);
    else if (!field_number(fields_get(m->fields, "status"), &status) || status > 0xffff)
        end(r, ENDED_UNKNOWN, "the result holds no status; update dwrap on this machine or on the agent");
    else if (is_incomplete(r, m))
        end(r, ENDED_UNKNOWN, "a part of the command's output is lost; run it again");
    else
        end(r, ENDED_STATUS, "");
    e->status = (int)(status & 0xffff);
    judge_view(r);
    if (r->job->seen_known)
        reads_keep(r->job->build);
}

static void take_failure(struct relay *r, const char *reason, bool safe)
{
    source_give_back(&r->in, 0);
    end(r, r->deadly ? ENDED_BY_SIGNAL : safe && is_untouched(r) ? ENDED_NEVER_RAN : ENDED_UNKNOWN, reason ? reason : "no reason was given");
    r->ending->status = r->deadly;
}

/* A GO that did not go whole is none, and an earlier one is void once there is a new OFFER. */
static void answer_offer(struct relay *r, const char *stamp, bool views)
{
    if (views)
        views_prepare(r->job, r->link);
    if (go_send(r->link, r->job, stamp, &r->signals->inherited) != LINK_FINE)
        end(r, is_untouched(r) ? ENDED_NEVER_RAN : ENDED_UNKNOWN, "the connection broke before the command was handed over");
}

static void take_message(struct relay *r, const struct message *m)
{
    const char *id = fields_get(m->fields, "job"), *reason = fields_get(m->fields, "reason");
    if (id && strcmp(id, r->job->id) != 0)
        return;
    if (strcmp(m->verb, "OUTPUT") == 0) {
        take_output(r, m);
    } else if (strcmp(m->verb, "CREDIT") == 0) {
        uint64_t limit = fields_number(m->fields, "limit", 0);
        if (limit > r->in.limit)
            r->in.limit = limit;
    } else if (strcmp(m->verb, "RESULT") == 0) {
        take_result(r, m);
    } else if (strcmp(m->verb, "FAILED") == 0) {
        take_failure(r, reason, fields_number(m->fields, "safe", 0) == 1);
    } else if (strcmp(m->verb, "HERE") == 0 || strcmp(m->verb, "UNAVAILABLE") == 0) {
        take_failure(r, reason, true); /* our GO came too late, and meanwhile nobody may take it any more */
    } else if (strcmp(m->verb, "REFUSED") == 0) {
        take_failure(r, reason, false);
    } else if (strcmp(m->verb, "OFFER") == 0 && fields_get(m->fields, "stamp")) {
        answer_offer(r, fields_get(m->fields, "stamp"), fields_number(m->fields, "views", 0) == 1);
    } else if (strcmp(m->verb, "MANIFEST") == 0) {
        take_manifest(r, m);
    }
}

static void take_messages(struct relay *r)
{
    struct message m;
    enum link_status status = link_receive(r->link);
    while (status == LINK_FINE && !r->over && link_next(r->link, &m, &status))
        take_message(r, &m);
    if (status != LINK_FINE && !r->over)
        end_broken(r);
}

/* Stops as the command was told to, by the signal itself: shells tell it from SIGSTOP, and the kernel drops it where nobody
 * could continue us. The message must be gone before. Then the command continues too, also when no SIGCONT of ours tells. */
static void stop_here(struct relay *r)
{
    sigset_t stop, pending;
    int64_t deadline = now_ms() + STOP_FLUSH_MS;
    struct pollfd waiting = { .fd = r->link->fd, .events = POLLOUT };
    while (link_flush(r->link) == LINK_FINE && r->link->out_end > 0 && now_ms() < deadline)
        poll(&waiting, 1, STOP_FLUSH_MS);
    sigemptyset(&stop);
    sigaddset(&stop, SIGTSTP);
    kill(getpid(), SIGTSTP);
    sigprocmask(SIG_UNBLOCK, &stop, NULL);
    sigprocmask(SIG_BLOCK, &stop, NULL);
    if (sigpending(&pending) == 0 && !sigismember(&pending, SIGCONT))
        send_signal(r, SIGCONT);
}

static void take_signals(struct relay *r)
{
    struct signalfd_siginfo info;
    while (read(r->signals->fd, &info, sizeof info) == sizeof info) {
        int number = (int)info.ssi_signo;
        send_signal(r, number);
        if (number == SIGTSTP) {
            stop_here(r);
        } else if (number == SIGINT || number == SIGTERM || number == SIGHUP || number == SIGQUIT) {
            if (!r->deadly)
                r->deadly_ms = now_ms();
            r->deadly = number;
        }
    }
}

static void judge_silence(struct relay *r, int64_t now)
{
    int64_t silent = link_silence_ms(r->link, now), patience = r->job->settings->patience_ms;
    if (r->deadly && silent >= ANSWER_MS && now - r->deadly_ms >= SIGNAL_PATIENCE_MS) {
        end(r, ENDED_BY_SIGNAL, "nobody answers");
        r->ending->status = r->deadly;
    } else if (silent >= (patience > ANSWER_MS ? patience : ANSWER_MS)) {
        snprintf(r->link->why, sizeof r->link->why, "nothing was heard for %lld s", (long long)(now - r->link->heard_ms) / 1000);
        end_broken(r);
    }
}

/* Waits for whatever comes first. Once the ending is known only the sinks and signals count. */
static void wait_for_events(struct relay *r, struct pollfd polled[POLLED])
{
    polled[ON_LINK] = (struct pollfd){ .fd = r->over ? -1 : r->link->fd, .events = r->link->out_end > 0 ? POLLIN | POLLOUT : POLLIN };
    polled[ON_SIGNAL] = (struct pollfd){ .fd = r->signals->fd, .events = POLLIN };
    bool wanted = !r->over && link_room(r->link) > 2 * DWRAP_MAX_DATA_BYTES && source_is_wanted(&r->in);
    polled[ON_STDIN] = (struct pollfd){ .fd = wanted ? r->in.stream.fd : -1, .events = POLLIN };
    for (int i = 0; i < 2; i++) {
        const struct sink *s = &r->out[i].sink;
        polled[ON_STDOUT + i] = (struct pollfd){ .fd = sink_is_empty(s) ? -1 : s->stream.fd, .events = POLLOUT };
    }
    if (poll(polled, POLLED, PING_AFTER_MS) < 0)
        for (int i = 0; i < POLLED; i++)
            polled[i].revents = 0;
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
        send_input(r);
    for (int i = 0; i < 2; i++) {
        if (!polled[ON_STDOUT + i].revents)
            continue;
        sink_write(&r->out[i].sink);
        send_credit(r, &r->out[i]);
        send_close(r, &r->out[i]);
    }
    if (r->over)
        return;
    int64_t now = now_ms();
    judge_silence(r, now);
    link_keep_alive(r->link, now);
    if (!r->over && link_flush(r->link) != LINK_FINE)
        end_broken(r);
}

static bool is_drained(const struct relay *r)
{
    return sink_is_empty(&r->out[0].sink) && sink_is_empty(&r->out[1].sink);
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

static void acknowledge(struct relay *r)
{
    char buffer[160];
    struct fields_out fields = about(r, buffer, sizeof buffer);
    if (link_queue(r->link, "ACK", &fields, NULL, 0))
        (void)link_flush(r->link);
}

static void start(struct relay *r)
{
    const struct stream *streams = r->job->streams;
    bool joined = streams_same(&streams[1], &streams[2]);
    source_start(&r->in, &streams[0]);
    for (int i = 0; i < 2; i++) {
        enum stream_kind kind = streams[1 + i].kind;
        r->out[i].sink.stream = streams[1 + i];
        r->out[i].name = i ? "stderr" : "stdout";
        r->out[i].limit = DWRAP_INITIAL_OUTPUT_CREDIT;
        r->out[i].expected = kind != STREAM_CLOSED && kind != STREAM_NULL && !(i && joined);
    }
}

void relay_run(struct link *l, struct job *job, const char *stamp, struct signals *signals, struct ending *ending)
{
    static struct output outputs[2];
    struct relay r = { .link = l, .job = job, .signals = signals, .ending = ending, .out = outputs };
    *ending = (struct ending){ 0 };
    start(&r);
    answer_offer(&r, stamp, false); /* the caller has prepared it */
    while (!r.over)
        step(&r);
    drain(&r);
    if (r.resulted)
        acknowledge(&r);
    for (int i = 0; i < 2; i++)
        if (outputs[i].sink.error && ending->kind == ENDED_STATUS) {
            end(&r, ENDED_UNKNOWN, "");
            snprintf(ending->reason, sizeof ending->reason, "%s cannot be written: %s; make room or redirect it elsewhere", outputs[i].name,
                     strerror(outputs[i].sink.error));
        }
}
