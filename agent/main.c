/* The runner's steps and its loop: start the command, relay its streams, end its tree, flush, report (runner.h).
 * Knows the order of things and the time limits after the command's end; each step's how is in the file of its name.
 *
 * With `views` the start has a step before it (revalidate.c), the command is heard (trace.c), and it may be started a second
 * time: when it failed while the view was stale, or when it turns out to need the listener for itself. */
#include "agent/run.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define GRACE_MS 1000     /* for what the command left running, before SIGTERM */
#define TERMINATE_MS 500  /* and from there to SIGKILL */

static int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void enter(struct run *run, enum phase phase)
{
    run->phase = phase;
    run->deadline_ms = phase == GRACE ? now_ms() + GRACE_MS : phase == TERMINATING ? now_ms() + TERMINATE_MS : 0;
    if (phase == TERMINATING) {
        tree_signal_all(&run->tree, SIGTERM);
        tree_signal_all(&run->tree, SIGCONT);
    }
    if (phase == KILLING)
        tree_signal_all(&run->tree, SIGKILL);
}

/* Kills the tree at once; nobody waits for its output any more. */
static void abandon(struct run *run)
{
    run->meddled = true;
    hold_release(&run->hold);
    output_close(&run->streams.out[1]);
    output_close(&run->streams.out[2]);
    input_close(&run->streams.in);
    if (run->phase != EMPTY)
        enter(run, KILLING);
}

static void lose_agent(struct run *run)
{
    run->orphaned = true;
    abandon(run);
}

static void close_stream(struct run *run, uint32_t stream)
{
    run->meddled = true;
    if (stream == 0)
        input_close(&run->streams.in);
    else
        output_close(&run->streams.out[stream]);
}

static void pass_signal(struct run *run, int number)
{
    run->meddled = true;
    tree_signal(&run->tree, number);
}

static void take_packet(struct run *run, const struct packet *packet, const char *payload, size_t size)
{
    struct output *out = packet->stream == 1 || packet->stream == 2 ? &run->streams.out[packet->stream] : NULL;
    if (packet->kind == PACKET_INPUT)
        input_add(&run->streams.in, packet->number, payload, size);
    else if (packet->kind == PACKET_CREDIT && out && packet->number > out->limit)
        out->limit = packet->number;
    else if (packet->kind == PACKET_CLOSE && packet->stream <= 2)
        close_stream(run, packet->stream);
    else if (packet->kind == PACKET_SIGNAL && packet->number >= 1 && packet->number <= 64)
        pass_signal(run, (int)packet->number);
    else if (packet->kind == PACKET_KILL)
        abandon(run);
}

static void take_packets(struct run *run)
{
    static char buffer[MAX_PACKET_BYTES] __attribute__((aligned(8)));
    ssize_t size;
    while ((size = control_receive(&run->control, buffer, sizeof buffer)) > 0) {
        struct packet packet;
        memcpy(&packet, buffer, sizeof packet);
        take_packet(run, &packet, buffer + sizeof packet, (size_t)size - sizeof packet);
    }
    if (size < 0)
        lose_agent(run);
}

static void take_news(struct run *run)
{
    for (struct news news = tree_news(&run->tree); run->phase != EMPTY && news.what != TREE_NOTHING; news = tree_news(&run->tree)) {
        if (news.what == TREE_MAIN_ENDED) {
            run->main_ended = true;
            run->status = news.status;
            run->ended_ms = now_ms();
            if (run->status == 0)
                hold_release(&run->hold);
            if (run->phase == RUNNING)
                enter(run, GRACE);
        } else {
            if (news.what == TREE_EMPTY)
                run->usage = news.usage;
            enter(run, EMPTY);
        }
    }
}

static void send_credit(struct run *run)
{
    struct input *in = &run->streams.in;
    uint64_t limit = input_credit(in);
    if (limit == in->limit || run->control.stashed)
        return;
    in->limit = limit;
    if (!control_send(&run->control, (struct packet){PACKET_CREDIT, 0, limit}, NULL, 0))
        lose_agent(run);
}

/* Nobody has seen anything of the command, and it has taken nothing: it can be started again. */
static bool is_untouched(const struct run *run)
{
    const struct output *out = run->streams.out;
    return !run->meddled && !run->orphaned && (run->hold.open || (out[1].sent == 0 && out[2].sent == 0)) && input_taken(&run->streams.in) == 0;
}

/* Sends what was held back, once it is no longer. */
static void send_held(struct run *run)
{
    for (uint32_t stream = 1; stream <= 2 && !run->hold.open; stream++) {
        size_t size = run->hold.size[stream];
        if (size == 0 || run->control.stashed)
            continue;
        run->hold.size[stream] = 0;
        if (!control_send(&run->control, (struct packet){PACKET_OUTPUT, stream, 0}, run->hold.data[stream], size))
            lose_agent(run);
    }
}

static bool may_read_output(const struct run *run, uint32_t stream)
{
    if (!output_ready_to_read(&run->streams.out[stream]))
        return false;
    return run->hold.open || (!run->control.stashed && run->hold.size[stream] == 0);
}

static ssize_t relay_piece(struct run *run, uint32_t stream)
{
    static char piece[MAX_PACKET_BYTES - sizeof(struct packet)];
    struct output *out = &run->streams.out[stream];
    uint64_t offset = out->sent;
    ssize_t size = output_read(out, piece, sizeof piece);
    if (size > 0 && !control_send(&run->control, (struct packet){PACKET_OUTPUT, stream, offset}, piece, (size_t)size))
        lose_agent(run);
    return size;
}

/* Passes on, or holds back, one piece. False when there is nothing to read, or no room to send. */
static bool relay_output(struct run *run, uint32_t stream)
{
    struct output *out = &run->streams.out[stream];
    if (!may_read_output(run, stream))
        return false;
    ssize_t size = run->hold.open ? hold_read(&run->hold, out, (int)stream, now_ms()) : relay_piece(run, stream);
    if (size == 0 && run->phase == EMPTY)
        output_close(out); /* whoever else holds the other end is no part of this job */
    return size > 0;
}

/* When held output is let go; 0: not by time. A command that has failed already may yet be run again. */
static int64_t hold_deadline(const struct run *run) { return run->hold.open && !run->main_ended ? run->hold.until_ms : 0; }

static void keep_time(struct run *run)
{
    int64_t hold = hold_deadline(run), now = now_ms();
    if (hold != 0 && now >= hold)
        hold_release(&run->hold);
    if (run->deadline_ms != 0 && now >= run->deadline_ms)
        enter(run, run->phase == GRACE ? TERMINATING : KILLING);
}

/* The command's own word while it starts: how it failed, or how it is heard. */
static void take_reports(struct run *run)
{
    struct failure word;
    int listener;
    while (run->report_fd >= 0 && command_report(run->report_fd, &word, &listener)) {
        if (word.stage != STAGE_HEARD)
            run->failure = word;
        else if (listener >= 0)
            trace_start(&run->trace, listener);
        else
            trace_doubt(&run->trace, "this kernel, or what this agent runs in, refuses seccomp listeners");
    }
}

static void stop_reports(struct run *run)
{
    take_reports(run);
    if (run->report_fd >= 0)
        close(run->report_fd);
    run->report_fd = -1;
}

/* One call of the tree waits. A command that asks for a listener, of which there can be one, gets it in a second start without
 * ours; when it is too late for that the kernel refuses it. */
static void hear(struct run *run)
{
    struct trace *trace = &run->trace;
    trace->may_start_over = is_untouched(run) && trace->record.count == 0 && run->phase == RUNNING;
    if (!trace_hear(trace, &run->spec))
        trace_end(trace);
    if (!trace->wants_listener || run->spec.unheard)
        return;
    run->note = "it installs a seccomp listener of its own";
    trace->wants_listener = false;
    if (trace->may_start_over) {
        run->start_over = true;
        run->spec.unheard = true;
        trace_doubt(trace, run->note);
        enter(run, KILLING);
    } else {
        run->note = "it asked for a seccomp listener of its own, and was refused one";
    }
}

static int until_deadline(const struct run *run)
{
    int64_t hold = hold_deadline(run), deadline = run->deadline_ms;
    if (hold != 0 && (deadline == 0 || hold < deadline))
        deadline = hold;
    int64_t left = deadline - now_ms();
    return deadline == 0 ? -1 : left < 0 ? 0 : (int)left;
}

static void wait_for_events(struct run *run)
{
    struct streams *s = &run->streams;
    struct pollfd fds[7] = {
        {run->orphaned ? -1 : run->control.fd, (short)(POLLIN | (run->control.stashed ? POLLOUT : 0)), 0},
        {run->phase == EMPTY ? -1 : run->tree.channel, POLLIN, 0},
        {may_read_output(run, 1) ? s->out[1].fd : -1, POLLIN, 0},
        {may_read_output(run, 2) ? s->out[2].fd : -1, POLLIN, 0},
        {(!run->control.stashed || s->in.pending) && input_wants_room(&s->in) ? s->in.write_fd : -1, POLLOUT, 0},
        {run->trace.listener, POLLIN, 0},
        {run->spec.views ? run->report_fd : -1, POLLIN, 0}};
    poll(fds, 7, until_deadline(run));
    if (fds[5].revents & POLLIN)
        hear(run);
    else if (fds[5].revents)
        trace_end(&run->trace);
    if (fds[6].revents & ~POLLIN) /* whoever could say more is gone; what has been said is still taken */
        stop_reports(run);
    else if (fds[6].revents)
        take_reports(run);
    if (fds[0].revents & POLLOUT && !control_flush(&run->control))
        lose_agent(run);
    if (fds[0].revents & ~POLLOUT)
        take_packets(run);
    for (uint32_t stream = 1; stream <= 2; stream++)
        if (fds[1 + stream].revents)
            relay_output(run, stream);
    if (fds[1].revents)
        take_news(run);
}

/* From the start of the command until its tree is empty and its output is delivered, or held back. */
static void relay(struct run *run)
{
    struct output *out = run->streams.out;
    send_credit(run);
    while (run->phase != EMPTY || out[1].fd >= 0 || out[2].fd >= 0) {
        wait_for_events(run);
        keep_time(run);
        input_push(&run->streams.in);
        send_credit(run);
        send_held(run);
        for (uint32_t stream = 1; stream <= 2; stream++)
            while (run->phase == EMPTY && relay_output(run, stream))
                continue;
        send_held(run); /* what has just been let go: nothing else may come that wakes us */
    }
    tree_wait(&run->tree);
    trace_end(&run->trace);
    stop_reports(run);
}

static void send_stashed(struct control *control)
{
    while (control->stashed && control_flush(control)) {
        struct pollfd room = {control->fd, POLLOUT, 0};
        if (control->stashed)
            poll(&room, 1, -1);
    }
}

_Noreturn static void send_last(struct run *run, enum packet_kind kind, const char *payload, size_t size)
{
    send_stashed(&run->control);
    control_send(&run->control, (struct packet){kind, 0, 0}, payload, size);
    send_stashed(&run->control);
    exit(0);
}

/* Nothing was started: the assignment may go to another agent. */
_Noreturn static void reject(struct run *run, const char *what, const char *why)
{
    char reason[MAX_REASON];
    snprintf(reason, sizeof reason, "the agent could not start the command: %s: %s", what, why);
    scratch_remove(&run->spec, run->scratch);
    send_last(run, PACKET_REJECTED, reason, strlen(reason));
}

static bool is_shortage(int error)
{
    return error == EAGAIN || error == ENOMEM || error == EMFILE || error == ENFILE || error == EIO || error == ESTALE;
}

/* The command, in a tree of its own. */
static void start_command(struct run *run, int command_ends[3])
{
    int report[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, report) != 0)
        reject(run, "socketpair", strerror(errno));
    run->report_fd = report[0];
    hold_start(&run->hold, &run->spec);
    if (!tree_start(&run->tree, &run->spec, command_ends, report[1]))
        reject(run, "starting its process tree", strerror(errno));
    close(report[1]);
    streams_close_command_ends(command_ends);
}

static void start(struct run *run)
{
    int command_ends[3];
    run->scratch = scratch_make(&run->spec);
    if (!run->scratch) {
        run->scratch = "";
        reject(run, "making a temporary directory", strerror(errno));
    }
    run->trace.scratch = run->scratch;
    if (!streams_open(&run->streams, &run->spec, command_ends))
        reject(run, "opening its streams", strerror(errno));
    clock_gettime(CLOCK_REALTIME, &run->started);
    run->started_ms = now_ms();
    start_command(run, command_ends);
}

/* The second start: what the first one left is overwritten, and stays in the record. */
static void start_again(struct run *run)
{
    int command_ends[3];
    close(run->tree.channel);
    run->main_ended = run->start_over = false;
    run->phase = RUNNING;
    run->deadline_ms = 0;
    run->failure = (struct failure){0};
    if (!scratch_renew(&run->spec, run->scratch))
        reject(run, "emptying its temporary directory", strerror(errno));
    if (!streams_open_again(&run->streams, &run->spec, command_ends))
        reject(run, "opening its streams", strerror(errno));
    start_command(run, command_ends);
    relay(run);
}

/* A failure that a stale view may have caused is not the command's own: it is run again, once. */
static void look_again(struct run *run)
{
    if (!run->spec.views || !run->main_ended || run->status == 0 || run->failure.stage || run->meddled || run->orphaned)
        return;
    struct doubt doubt = revalidate_after_failure(&run->spec, run->started, &run->hold);
    run->stale += doubt.stale;
    if (doubt.stale == 0)
        return;
    run->reran = is_untouched(run) && !run->trace.why && record_may_repeat(&run->trace.record);
    run->wrong = !run->reran && doubt.certain;
    if (run->reran)
        start_again(run);
}

/* What was held back goes out before anything else is told. */
static void deliver_held(struct run *run)
{
    hold_release(&run->hold);
    for (int stream = 1; stream <= 2; stream++) {
        send_stashed(&run->control);
        send_held(run);
    }
    send_stashed(&run->control);
}

static void send_manifest(struct run *run, const struct outputs *outputs)
{
    for (size_t at = 0, size; at < outputs->manifest_size; at += size) {
        size = outputs_piece(outputs->manifest + at, outputs->manifest_size - at);
        send_stashed(&run->control);
        if (!control_send(&run->control, (struct packet){PACKET_MANIFEST, 0, 0}, outputs->manifest + at, size))
            exit(0);
    }
}

static void finish(struct run *run)
{
    struct outputs outputs = {.word = "coherent"};
    const struct failure *failure = &run->failure;
    if (failure->stage == STAGE_SETUP || (failure->stage && is_shortage(failure->error)))
        reject(run, failure->what, strerror(failure->error));
    deliver_held(run);
    int64_t before_ms = now_ms();
    if (!run->main_ended)
        run->ended_ms = before_ms;
    if (run->spec.views && !failure->stage)
        outputs = outputs_flush(&run->spec, &run->trace, run->started);
    int64_t flush_ms = now_ms() - before_ms;
    send_manifest(run, &outputs);
    scratch_remove(&run->spec, run->scratch);
    struct report report;
    report_write(&report, run, &outputs, flush_ms);
    send_last(run, PACKET_ENDED, report.text, report.size);
}

/* Before the start: what others have changed is seen here too. */
static void revalidate(struct run *run)
{
    char reason[MAX_REASON];
    int64_t before_ms = now_ms();
    if (!run->spec.views)
        return;
    if (!revalidate_before(&run->spec, &run->stale, reason))
        send_last(run, PACKET_REJECTED, reason, strlen(reason));
    ccache_settle(&run->spec);
    run->revalidate_ms = now_ms() - before_ms;
    control_send(&run->control, (struct packet){PACKET_APPLIED, 0, 0}, NULL, 0);
}

/* In the starter already, so that no runner does it again: the agent alone decides when a job ends. */
static void ignore_signals(void)
{
    static const int not_mine[] = {SIGPIPE, SIGTERM, SIGINT, SIGHUP, SIGQUIT};
    for (size_t i = 0; i < sizeof not_mine / sizeof *not_mine; i++)
        signal(not_mine[i], SIG_IGN);
}

int main(int argc, char **argv)
{
    static struct run run = {.control = {.fd = CONTROL_FD}, .trace = {.listener = -1}, .report_fd = -1, .scratch = ""};
    if (argc == 2 && strcmp(argv[1], "--probe-tree") == 0)
        return tree_probe();
    ignore_signals();
    setsid();
    syscall(SYS_close_range, CONTROL_FD + 1, ~0u, 0); /* whatever the agent's own parents left open */
    if (fcntl(CONTROL_FD, F_SETFD, FD_CLOEXEC) != 0) {
        fprintf(stderr, "dwrap-runner: no control socket: this program is started by dwrap-agent\n");
        return 2;
    }
    if (!starter_serve(CONTROL_FD))
        return 0;
    setsid();
    syscall(SYS_close_range, SPEC_FD + 1, ~0u, 0);
    fcntl(CONTROL_FD, F_SETFD, FD_CLOEXEC);
    const char *wrong = spec_read(&run.spec, SPEC_FD);
    close(SPEC_FD);
    if (wrong)
        reject(&run, "reading its specification", wrong);
    revalidate(&run);
    start(&run);
    relay(&run);
    if (run.start_over)
        start_again(&run);
    look_again(&run);
    finish(&run);
}
