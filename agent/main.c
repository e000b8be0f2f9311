/* The runner's steps: start the command, relay its streams and end its tree, flush, report (runner.h). Knows the order of things;
 * each step's how is in the file of its name.
 *
 * The command may be started a second time: when it failed while the view was stale, or when it turns out to need the recorder's
 * listener for itself. */
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
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "environment/environment.h"

_Noreturn static void send_last(struct run *run, struct packet head, const char *payload, size_t size)
{
    send_stashed(&run->control);
    control_send(&run->control, head, payload, size);
    send_stashed(&run->control);
    exit(0);
}

enum { TERMINATION_MS = 50, SIGNALLED = 128 }; /* a shell's status for a command that a signal ended lies above this */

enum fault { OF_THE_JOB, OF_THE_AGENT };

/* Nothing was started: the assignment may go to another agent. */
_Noreturn static void reject(struct run *run, enum fault fault, const char *reason)
{
    scratch_remove(&run->spec, run->scratch);
    runfile_remove(&run->spec);
    send_last(run, (struct packet){PACKET_REJECTED, 0, fault}, reason, strlen(reason));
}

_Noreturn static void reject_for(struct run *run, enum fault fault, const char *what, const char *why)
{
    char reason[MAX_REASON];
    snprintf(reason, sizeof reason, "the agent could not start the command: %s: %s", what, why);
    reject(run, fault, reason);
}

static bool is_shortage(int error)
{
    return error == EAGAIN || error == ENOMEM || error == EMFILE || error == ENFILE || error == EIO || error == ESTALE;
}

/* The job's identity, limits and directory may be to blame where the command itself could not be entered. */
static enum fault fault_of(const struct failure *failure)
{
    bool own = failure->stage == STAGE_SETUP ? strcmp(failure->what, "setuid") != 0 : failure->error == ENOMEM || failure->error == ENFILE;
    return own ? OF_THE_AGENT : OF_THE_JOB;
}

/* The command, in a tree of its own. NULL, or what could not be done, with errno. */
static const char *start_command(struct run *run, int command_ends[3])
{
    int report[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, report) != 0)
        return "socketpair";
    run->report_fd = report[0];
    hold_start(&run->hold, &run->spec);
    bool done = tree_start(&run->tree, &run->spec, command_ends, report[1]);
    int error = errno;
    close(report[1]);
    streams_close_command_ends(command_ends);
    run->guard = done ? guard_start(&run->tree) : 0;
    errno = error;
    return done ? NULL : "starting its process tree";
}

static void start(struct run *run)
{
    int command_ends[3];
    run->scratch = scratch_make(&run->spec);
    if (!run->scratch) {
        run->scratch = "";
        reject_for(run, OF_THE_AGENT, "making a temporary directory", strerror(errno));
    }
    run->trace.scratch = run->scratch;
    if (!streams_open(&run->streams, &run->spec, command_ends))
        reject_for(run, OF_THE_AGENT, "opening its streams", strerror(errno));
    clock_gettime(CLOCK_REALTIME, &run->started);
    run->started_ms = now_ms();
    run->lease_timer = lease_timer();
    const char *what = start_command(run, command_ends);
    if (what)
        reject_for(run, OF_THE_AGENT, what, strerror(errno));
}

static bool can_start_again(struct run *run)
{
    int command_ends[3];
    return scratch_renew(&run->spec, run->scratch) && streams_open_again(&run->streams, &run->spec, command_ends) &&
           !start_command(run, command_ends);
}

/* The second start: what the first one left is overwritten, and stays in the record. */
static void start_again(struct run *run)
{
    close(run->tree.channel);
    run->main_ended = run->start_over = false;
    run->failure = (struct failure){0};
    if (!can_start_again(run)) {
        run->lost = "it could not be started a second time";
        return;
    }
    run->emptied = false;
    run->phase = RUNNING;
    run->deadline_ms = 0;
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
    run->reran = is_untouched(run) && repeat_is_possible(&run->trace.repeat); /* else not even elsewhere */
    run->wrong = !run->reran && doubt.certain;
    if (run->reran)
        start_again(run);
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

/* It could not be started: the first time that is a rejection, and a second time an attempt that was lost. */
static void give_up_failed_start(struct run *run)
{
    const struct failure *failure = &run->failure;
    if (failure->stage != STAGE_SETUP && !(failure->stage && is_shortage(failure->error)))
        return;
    if (!run->spec.unheard && !run->reran)
        reject_for(run, fault_of(failure), failure->what, strerror(failure->error));
    run->lost = "it could not be started a second time";
    run->failure = (struct failure){0};
}

/* Was it killed for want of memory, as far as can be told, and may it be run where there is more? Only if nobody has heard it say so. */
static bool is_starved(const struct run *run)
{
    bool quiet = run->hold.open || !run->starved;
    return run->spec.memory_retry && !run->lost && run->main_ended && run->status != 0 && quiet && repeat_is_possible(&run->trace.repeat) &&
           starved_since(run->spec.oom);
}

/* From here on, SIGTERM waits: who sends it ends everything here, as Slurm does an allocation, and a service manager or a shutdown a control
 * group. It is looked at only when the command has died of one itself. */
static void note_termination(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signal(SIGTERM, SIG_DFL); /* an ignored one would not wait */
}

/* Is the command's end not its own doing, because everything here was told to end? Who died of it may have heard it before us. */
static bool was_terminated(const struct run *run)
{
    sigset_t set;
    bool by_it = (WIFSIGNALED(run->status) && WTERMSIG(run->status) == SIGTERM) ||
                 (WIFEXITED(run->status) && WEXITSTATUS(run->status) == SIGNALLED + SIGTERM);
    struct timespec wait = {0, TERMINATION_MS * 1000000L};
    if (run->lost || !run->main_ended || !by_it) /* another status is its own word, whatever else was told to end meanwhile */
        return false;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    return sigtimedwait(&set, NULL, &wait) == SIGTERM;
}

static void finish(struct run *run)
{
    struct outputs outputs = {.word = "coherent"};
    static struct report report;
    give_up_failed_start(run);
    if (was_terminated(run)) {
        run->lost = "everything there was told to end (SIGTERM)";
        if (repeat_is_possible(&run->trace.repeat))
            drop_held(run);
    }
    if (is_starved(run)) {
        run->lost = starved_why();
        drop_held(run);
    }
    deliver_held(run);
    int64_t before_ms = now_ms();
    if (!run->main_ended)
        run->ended_ms = before_ms;
    if (run->spec.views && !run->failure.stage)
        outputs = outputs_flush(&run->spec, &run->trace, run->started);
    int64_t flush_ms = now_ms() - before_ms;
    scratch_remove(&run->spec, run->scratch);
    report_write(&report, run, &outputs, flush_ms);
    runfile_write(&run->spec, &report, &outputs);
    send_manifest(run, &outputs);
    send_last(run, (struct packet){PACKET_ENDED, 0, 0}, report.text, report.size);
}

/* Before the start: what others have changed is seen here too. */
static void revalidate(struct run *run)
{
    char reason[MAX_REASON];
    int64_t before_ms = now_ms();
    if (!run->spec.views)
        return;
    if (!revalidate_before(&run->spec, &run->stale, reason))
        reject(run, OF_THE_JOB, reason);
    ccache_settle(&run->spec);
    run->revalidate_ms = now_ms() - before_ms;
    control_send(&run->control, (struct packet){PACKET_APPLIED, 0, 0}, NULL, 0);
}

/* What a lost attempt made is made anew, or not at all. */
static void undo(struct run *run)
{
    char reason[MAX_REASON];
    if (!undo_all(&run->spec, &run->control, &run->trace.record, reason))
        reject(run, OF_THE_JOB, reason);
    const char *why = undo_why_not(&run->control); /* another attempt may run meanwhile, and even be done */
    if (why)
        reject(run, OF_THE_JOB, why);
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
    static struct run run = {.control = {.fd = CONTROL_FD}, .trace = {.listener = -1}, .report_fd = -1, .lease_timer = -1, .scratch = ""};
    if (argc == 2 && strcmp(argv[1], "--probe-tree") == 0)
        return tree_probe();
    if (argc >= 2 && argc <= 4 && strcmp(argv[1], "--environment") == 0) {
        if (!environment_print(argc > 2 ? argv[2] : "", argc > 3 ? argv[3] : NULL, NULL)) {
            fprintf(stderr, "a package database cannot be read to its end; if it is one of rpm's, install rpm, or remove it\n");
            return 1;
        }
        return 0;
    }
    ignore_signals();
    setsid();
    syscall(SYS_close_range, SPEC_FD, SPEC_FD, 0); /* whatever the agent's own parents left open */
    syscall(SYS_close_range, RUNS_FD + 1, ~0u, 0);
    fcntl(RUNS_FD, F_SETFD, FD_CLOEXEC);
    if (fcntl(CONTROL_FD, F_SETFD, FD_CLOEXEC) != 0) {
        fprintf(stderr, "dwrap-runner: no control socket: this program is started by dwrap-agent\n");
        return 2;
    }
    if (!starter_serve(CONTROL_FD))
        return 0;
    note_termination();
    setsid();
    syscall(SYS_close_range, LEASE_FD, LEASE_FD, 0);
    syscall(SYS_close_range, RUNS_FD + 1, ~0u, 0);
    fcntl(CONTROL_FD, F_SETFD, FD_CLOEXEC);
    const char *wrong = spec_read(&run.spec, SPEC_FD);
    close(SPEC_FD);
    if (wrong)
        reject_for(&run, OF_THE_AGENT, "reading its specification", wrong);
    revalidate(&run);
    if (!control_await_begin(&run.control))
        return 0;
    undo(&run);
    starved_begin();
    if (!runfile_begin(&run.spec))
        reject_for(&run, OF_THE_AGENT, "recording it", strerror(errno));
    start(&run);
    relay(&run);
    if (run.start_over)
        start_again(&run);
    look_again(&run);
    finish(&run);
}
