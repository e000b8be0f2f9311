/* The runner's steps and its loop: start the command, relay its streams, end its tree, flush, report (runner.h).
 * Knows the order of things and the time limits after the command's end; each step's how is in the file of its name. */
#include "agent/runner.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define GRACE_MS 1000     /* for what the command left running, before SIGTERM */
#define TERMINATE_MS 500  /* and from there to SIGKILL */

enum phase { RUNNING, GRACE, TERMINATING, KILLING, EMPTY };

struct run {
    struct spec spec;
    struct control control;
    struct streams streams;
    struct tree tree;
    const char *scratch;
    int report_fd;
    enum phase phase;
    int64_t deadline_ms; /* of the phase; 0: none */
    bool main_ended, orphaned;
    int status;
    struct rusage usage;
    struct timespec started;
    int64_t started_ms, ended_ms;
};

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
    if (stream == 0)
        input_close(&run->streams.in);
    else
        output_close(&run->streams.out[stream]);
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
        tree_signal(&run->tree, (int)packet->number);
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

/* Passes on one piece. False when there is nothing to read, or no room to send. */
static bool relay_output(struct run *run, uint32_t stream)
{
    static char piece[MAX_PACKET_BYTES - sizeof(struct packet)];
    struct output *out = &run->streams.out[stream];
    if (run->control.stashed || !output_ready_to_read(out))
        return false;
    uint64_t offset = out->sent;
    ssize_t size = output_read(out, piece, sizeof piece);
    if (size > 0 && !control_send(&run->control, (struct packet){PACKET_OUTPUT, stream, offset}, piece, (size_t)size))
        lose_agent(run);
    if (size == 0 && run->phase == EMPTY)
        output_close(out); /* whoever else holds the other end is no part of this job */
    return size > 0;
}

static void keep_time(struct run *run)
{
    if (run->deadline_ms != 0 && now_ms() >= run->deadline_ms)
        enter(run, run->phase == GRACE ? TERMINATING : KILLING);
}

static void wait_for_events(struct run *run)
{
    struct streams *s = &run->streams;
    bool may_send = !run->control.stashed;
    struct pollfd fds[5] = {
        {run->orphaned ? -1 : run->control.fd, (short)(POLLIN | (run->control.stashed ? POLLOUT : 0)), 0},
        {run->phase == EMPTY ? -1 : run->tree.channel, POLLIN, 0},
        {may_send && output_ready_to_read(&s->out[1]) ? s->out[1].fd : -1, POLLIN, 0},
        {may_send && output_ready_to_read(&s->out[2]) ? s->out[2].fd : -1, POLLIN, 0},
        {(may_send || s->in.pending) && input_wants_room(&s->in) ? s->in.write_fd : -1, POLLOUT, 0}};
    int64_t left = run->deadline_ms ? run->deadline_ms - now_ms() : -1;
    poll(fds, 5, run->deadline_ms && left < 0 ? 0 : (int)left);
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

/* From the start of the command until its tree is empty and its output is delivered. */
static void relay(struct run *run)
{
    struct output *out = run->streams.out;
    send_credit(run);
    while (run->phase != EMPTY || out[1].fd >= 0 || out[2].fd >= 0) {
        wait_for_events(run);
        input_push(&run->streams.in);
        send_credit(run);
        for (uint32_t stream = 1; stream <= 2; stream++)
            while (run->phase == EMPTY && relay_output(run, stream))
                continue;
        keep_time(run);
    }
    tree_wait(&run->tree);
}

struct report {
    size_t size;
    char text[4096];
};

/* A reason is one line, whatever the names in it hold. */
static void make_printable(char *text, size_t size)
{
    for (size_t i = 0; i < size; i++)
        if (((unsigned char)text[i] < ' ' && text[i] != '\0') || text[i] == 127)
            text[i] = '?';
}

__attribute__((format(printf, 2, 3))) static void add(struct report *report, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int size = vsnprintf(report->text + report->size, sizeof report->text - report->size, format, arguments);
    va_end(arguments);
    if (size > 0 && report->size + (size_t)size < sizeof report->text) {
        make_printable(report->text + report->size, (size_t)size);
        report->size += (size_t)size + 1; /* with its NUL: the protocol's fields frame */
    }
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

static bool read_failure(const struct run *run, struct failure *failure)
{
    return read(run->report_fd, failure, sizeof *failure) == (ssize_t)sizeof *failure;
}

static const char *exec_error_word(int error)
{
    return error == ENOENT || error == ENOTDIR ? "not_found" : "not_executable";
}

static bool is_shortage(int error)
{
    return error == EAGAIN || error == ENOMEM || error == EMFILE || error == ENFILE || error == EIO || error == ESTALE;
}

static void add_outcome(struct run *run, struct report *report, const struct failure *failure, const struct outputs *outputs)
{
    if (failure->stage == STAGE_CWD)
        add(report, "error=cwd%creason=cannot enter %.400s on this agent: %s", 0, run->spec.cwd, strerror(failure->error));
    else if (failure->stage == STAGE_EXEC)
        add(report, "error=%s%creason=cannot run %.400s: %s", exec_error_word(failure->error), 0, run->spec.argv[0],
            strerror(failure->error));
    else if (outputs->error)
        add(report, "error=infrastructure%creason=an output could not be stored: %s: %s", 0, outputs->path, strerror(outputs->error));
    else if (!run->main_ended)
        add(report, "error=infrastructure%creason=the job's process tree was lost", 0);
    else
        add(report, "status=%d", run->status);
}

static long milliseconds(struct timeval time) { return time.tv_sec * 1000 + time.tv_usec / 1000; }

static void report_end(struct run *run, const struct failure *failure, const struct outputs *outputs, int64_t flush_ms)
{
    struct report report = {0};
    add_outcome(run, &report, failure, outputs);
    add(&report, "stdin_taken=%llu", (unsigned long long)input_taken(&run->streams.in));
    add(&report, "stdout_bytes=%llu", (unsigned long long)run->streams.out[1].sent);
    add(&report, "stderr_bytes=%llu", (unsigned long long)run->streams.out[2].sent);
    add(&report, "run_ms=%lld", (long long)((run->main_ended ? run->ended_ms : now_ms()) - run->started_ms));
    add(&report, "flush_ms=%lld", (long long)flush_ms);
    add(&report, "user_ms=%ld", milliseconds(run->usage.ru_utime));
    add(&report, "system_ms=%ld", milliseconds(run->usage.ru_stime));
    add(&report, "max_rss_bytes=%lld", (long long)run->usage.ru_maxrss * 1024);
    add(&report, "tree=%s", run->spec.namespaces ? "pidns" : "subreaper");
    add(&report, "outputs=%s", outputs->word);
    add(&report, "outputs_count=%u", outputs->count);
    send_last(run, PACKET_ENDED, report.text, report.size);
}

static void start(struct run *run)
{
    int command_ends[3], report[2];
    run->scratch = scratch_make(&run->spec);
    if (!run->scratch) {
        run->scratch = "";
        reject(run, "making a temporary directory", strerror(errno));
    }
    if (!streams_open(&run->streams, &run->spec, command_ends))
        reject(run, "opening its streams", strerror(errno));
    if (pipe2(report, O_CLOEXEC | O_NONBLOCK) != 0)
        reject(run, "pipe", strerror(errno));
    run->report_fd = report[0];
    clock_gettime(CLOCK_REALTIME, &run->started);
    run->started_ms = now_ms();
    if (!tree_start(&run->tree, &run->spec, command_ends, report[1]))
        reject(run, "starting its process tree", strerror(errno));
    close(report[1]);
    streams_close_command_ends(command_ends);
}

static void finish(struct run *run)
{
    struct failure failure = {0};
    struct outputs outputs = {.word = "coherent"};
    bool failed = read_failure(run, &failure);
    if (failed && (failure.stage == STAGE_SETUP || is_shortage(failure.error)))
        reject(run, failure.what, strerror(failure.error));
    int64_t before_ms = now_ms();
    if (!failed)
        outputs = outputs_flush(&run->spec, run->started);
    int64_t flush_ms = now_ms() - before_ms;
    scratch_remove(&run->spec, run->scratch);
    report_end(run, &failure, &outputs, flush_ms);
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
    static struct run run = {.control = {.fd = CONTROL_FD}, .scratch = ""};
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
    start(&run);
    relay(&run);
    finish(&run);
}
