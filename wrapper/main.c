/* dwrap, the wrapper: parse, decide, ask for a place, relay, end as the command ended. This file knows the order of the
 * steps and the exit statuses, and nothing of how a step is done. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "wrapper/decide.h"
#include "wrapper/local.h"
#include "wrapper/remote.h"

static struct job job; /* large: not on the stack */
static struct answer answer;

/* Why it runs here, as far as that can be known without asking anyone; NULL when it does not. */
static const char *must_run_here(const struct settings *s, const char *cwd)
{
    static char inside[128];
    if (s->inside) {
        snprintf(inside, sizeof inside, "inside of the job %s", s->inside);
        return inside;
    }
    if (s->local)
        return s->local;
    if (!cwd)
        return errno == ENOENT ? "the working directory is gone" : "the working directory has no path";
    if (s->remote)
        return NULL;
    return rule_for_here(s->command, s->count, cwd);
}

/* Dies as the command died, without a core file of our own. */
__attribute__((noreturn)) static void die_by(int number)
{
    struct rlimit none = { 0, 0 };
    sigset_t only;
    setrlimit(RLIMIT_CORE, &none);
    prctl(PR_SET_DUMPABLE, 0);
    signal(number, SIG_DFL);
    sigemptyset(&only);
    sigaddset(&only, number);
    sigprocmask(SIG_UNBLOCK, &only, NULL);
    kill(getpid(), number);
    _exit(128 + number); /* a signal that does not end a process */
}

__attribute__((noreturn)) static void end_as(const struct ending *e)
{
    const char *name = job.name;
    switch (e->kind) {
    case ENDED_STATUS:
        if (job.settings->verbose)
            say("%s ran on %s: queued %llu ms, ran %llu ms, flushed %llu ms", name, e->agent, (unsigned long long)e->queued_ms,
                (unsigned long long)e->run_ms, (unsigned long long)e->flush_ms);
        if (WIFSIGNALED(e->status))
            die_by(WTERMSIG(e->status));
        _exit(WEXITSTATUS(e->status));
    case ENDED_BY_SIGNAL:
        die_by(e->status);
    case ENDED_NOT_FOUND:
        say("%s on %s: %s; check its spelling and PATH, and that the agent runs the same image", name, e->agent, e->reason);
        _exit(EXIT_NOT_FOUND);
    case ENDED_NOT_EXECUTABLE:
        say("%s on %s: %s; check its permissions and format", name, e->agent, e->reason);
        _exit(EXIT_NOT_EXECUTABLE);
    case ENDED_NEVER_RAN:
    case ENDED_UNKNOWN:
        break;
    }
    say_and_leave("%s failed on the way, not by itself: %s (job %s)", name, e->reason, job.id);
}

__attribute__((noreturn)) static void print_explanation(const char *where, const char *reason)
{
    char line[REASON_BYTES + 64];
    snprintf(line, sizeof line - 1, "%s%s", where, reason);
    make_printable(line); /* parts of it come from others */
    strcat(line, "\n");
    print_and_leave(line);
}

__attribute__((noreturn)) static void finish(const struct settings *s, const char *cwd)
{
    switch (answer.kind) {
    case ANSWER_RAN:
        end_as(&answer.ending);
    case ANSWER_EXPLAINED:
        print_explanation("", answer.reason);
    case ANSWER_REFUSED:
        say_and_leave("cannot run %s: %s", job.name, answer.reason);
    case ANSWER_HERE:
        break;
    case ANSWER_UNAVAILABLE:
        if (s->labels && !s->explain) /* it asked for an agent of a kind, and this machine may be none */
            say_and_leave("cannot run %s on an agent with %s: %s; start one, or unset DWRAP_LABELS to run it here", job.name, s->labels,
                          answer.reason);
        if (s->fallback_fail && !s->explain)
            say_and_leave("cannot run %s elsewhere: %s; see `dwrapctl doctor`, or unset DWRAP_FALLBACK to run it here", job.name, answer.reason);
        break;
    }
    if (s->explain)
        print_explanation(answer.kind == ANSWER_UNAVAILABLE && (s->fallback_fail || s->labels) ? "nowhere: " : "here: ", answer.reason);
    run_here(s, answer.reason, cwd);
}

int main(int argc, char **argv)
{
    static char cwd_bytes[PATH_MAX];
    struct stream streams[3];
    struct settings settings;
    struct signals signals;

    streams_look(streams);
    settings_read(&settings, argc, argv);
    if (settings.inside && !settings.explain)
        run_in_place(&settings);

    const char *cwd = getcwd(cwd_bytes, sizeof cwd_bytes);
    const char *why_here = must_run_here(&settings, cwd);
    if (why_here && settings.explain)
        print_explanation("here: ", why_here);
    if (why_here)
        run_here(&settings, why_here, cwd ? cwd : "?");

    job_start(&job, &settings, streams, cwd);
    remote_run(&job, &signals, &answer);
    finish(&settings, cwd);
}
