/* What the runner says at the end: the fields of RESULT. Knows them and what each is made of; does not know when, or to whom. */
#include "agent/run.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

void make_printable(char *text, size_t size)
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

static const char *exec_error_word(int error)
{
    return error == ENOENT || error == ENOTDIR ? "not_found" : "not_executable";
}

/* No room is no trouble of this agent's own. */
static bool is_full(int error) { return error == ENOSPC || error == EDQUOT || error == EFBIG; }

static void add_outcome(struct run *run, struct report *report, const struct outputs *outputs)
{
    const struct failure *failure = &run->failure;
    if (run->lost && run->emptied)
        add(report, "error=lost%creason=%s", 0, run->lost);
    else if (failure->stage == STAGE_CWD)
        add(report, "error=cwd%creason=cannot enter %.400s on this agent: %s", 0, run->spec.cwd, strerror(failure->error));
    else if (failure->stage == STAGE_EXEC)
        add(report, "error=%s%creason=cannot run %.400s: %s", exec_error_word(failure->error), 0, run->spec.argv[0],
            strerror(failure->error));
    else if (outputs->error)
        add(report, "error=infrastructure%cfault=%d%creason=an output could not be stored: %s: %s", 0, !is_full(outputs->error), 0,
            outputs->path, strerror(outputs->error));
    else if (run->wrong)
        add(report, "error=infrastructure%creason=it failed while this agent's view of %.400s was stale; run it again", 0, run->spec.cwd);
    else if (!run->main_ended || run->lost) /* then its status is our own doing */
        add(report, "error=infrastructure%cfault=1%creason=the job's process tree was lost", 0, 0);
    else
        add(report, "status=%d", run->status);
}

/* A name as it is, whatever bytes are in it. */
static void add_made(struct report *report, const char *path)
{
    int size = snprintf(report->text + report->size, sizeof report->text - report->size, "made=%s", path);
    if (size > 0 && report->size + (size_t)size < sizeof report->text)
        report->size += (size_t)size + 1;
}

/* Names whose calls were never let go on were not made. */
static void add_repeat(struct run *run, struct report *report)
{
    struct repeat *repeat = &run->trace.repeat;
    repeat_end(repeat, &run->spec);
    if (run->emptied && repeat_is_possible(repeat))
        add(report, "repeat=1");
    if (run->main_ended && run->status != 0 && starved_since(run->spec.oom))
        add(report, "memory=1");
    for (size_t i = 0; i < repeat->made.count && i < repeat->cleared; i++)
        if (repeat_has_made(repeat, i))
            add_made(report, repeat->made.paths[i].path);
}

static long milliseconds(struct timeval time) { return time.tv_sec * 1000 + time.tv_usec / 1000; }

static void add_coherence(struct run *run, struct report *report, const struct outputs *outputs)
{
    const char *why = run->trace.why ? run->trace.why : run->note;
    add(report, "outputs=%s", outputs->word);
    add(report, "outputs_count=%u", outputs->count);
    if (why)
        add(report, "outputs_why=%s", why);
    if (outputs->escaped)
        add(report, "escaped=%u%cescaped_path=%s", outputs->escaped, 0, outputs->escaped_path);
    if (!run->spec.views)
        return;
    add(report, "revalidate_ms=%lld", (long long)run->revalidate_ms);
    add(report, "stale=%u", run->stale);
    if (run->reran)
        add(report, "reran=1");
}

void report_write(struct report *report, struct run *run, const struct outputs *outputs, int64_t flush_ms)
{
    *report = (struct report){0};
    add_outcome(run, report, outputs);
    add(report, "stdin_taken=%llu", (unsigned long long)input_taken(&run->streams.in));
    add(report, "stdout_bytes=%llu", (unsigned long long)run->streams.out[1].sent);
    add(report, "stderr_bytes=%llu", (unsigned long long)run->streams.out[2].sent);
    add(report, "run_ms=%lld", (long long)(run->ended_ms - run->started_ms));
    add(report, "flush_ms=%lld", (long long)flush_ms);
    add(report, "user_ms=%ld", milliseconds(run->usage.ru_utime));
    add(report, "system_ms=%ld", milliseconds(run->usage.ru_stime));
    add(report, "max_rss_bytes=%lld", (long long)run->usage.ru_maxrss * 1024);
    add(report, "tree=%s", run->spec.namespaces ? "pidns" : "subreaper");
    if (run->spec.groups_dropped)
        add(report, "groups_dropped=%s", run->spec.groups_dropped);
    add_coherence(run, report, outputs);
    add_repeat(run, report);
}
