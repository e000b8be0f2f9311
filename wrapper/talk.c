/* SUBMIT and GO. argv and env are sent from where the kernel put them, without copies unless they are encrypted. Does not know what is answered. */
#include "wrapper/talk.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "coherence/look.h"
#include "wrapper/ancestry.h"
#include "wrapper/decide.h"
#include "wrapper/likeness.h"
#include "wrapper/reads.h"
#include "wrapper/seen.h"

enum { GO_PATIENCE_MS = 10000, GO_FRAMES = 5, PIECES = 128, MOST_GROUPS = 4096 };

void job_start(struct job *job, const struct settings *settings, const struct stream streams[3], const char *cwd)
{
    const char *slash = strrchr(settings->command[0], '/');
    job->settings = settings;
    job->streams = streams;
    job->cwd = cwd;
    job->name = slash && slash[1] ? slash + 1 : settings->command[0];
    job->stdin_seekable = streams[0].kind == STREAM_FILE && lseek(0, 0, SEEK_CUR) >= 0;
}

void job_name(struct job *job)
{
    unsigned char raw[16];
    if (getrandom(raw, sizeof raw, 0) != sizeof raw)
        say_and_leave("cannot name the job: no random bytes: %s; update the kernel", strerror(errno));
    for (size_t i = 0; i < sizeof raw; i++)
        snprintf(job->id + 2 * i, 3, "%02x", raw[i]);
}

static void add_labels(struct fields_out *out, const char *labels)
{
    for (const char *at = labels; at;) {
        size_t length = strcspn(at, ",");
        fields_add_bytes(out, "label", at, length);
        at = at[length] ? at + length + 1 : NULL;
    }
}

/* One question to a server, and only on such a file system. */
static void look_at_cwd(struct job *job)
{
    int fd = job->settings->views ? open(job->cwd, O_PATH | O_DIRECTORY | O_CLOEXEC) : -1;
    job->traits = fd < 0 ? LOOK_COHERENT : look_traits(fd);
    if (fd >= 0)
        close(fd);
}

const char *submit_prepare(struct job *job)
{
    const struct settings *s = job->settings;
    struct fields_out out = fields_into(job->submit, sizeof job->submit - JOB_ID_BYTES - ATTACH_BYTES);
    struct utsname host;
    uname(&host);
    if (s->build)
        snprintf(job->build, sizeof job->build, "%s", s->build);
    else
        build_from_ancestors(job->build, sizeof job->build, host.nodename);
    look_at_cwd(job);
    fields_addf(&out, "version", "%d", DWRAP_VERSION_NUMBER);
    fields_add(&out, "cwd", job->cwd);
    fields_add(&out, "command", job->name);
    fields_add(&out, "build", s->build ? s->build : job->build);
    fields_add(&out, "host", host.nodename);
    fields_addf(&out, "pid", "%d", (int)getpid());
    fields_addf(&out, "uid", "%u", (unsigned)geteuid());
    fields_add(&out, "inputs", "tree");
    fields_add(&out, "width", "1");
    fields_addf(&out, "priority", "%ld", s->priority);
    if (s->remote)
        fields_add(&out, "remote", "1");
    if (s->explain)
        fields_add(&out, "explain", "1");
    if (s->views && !(job->traits & LOOK_COHERENT))
        fields_add(&out, "views", "1");
    add_labels(&out, s->labels);
    likeness_add(&out, s);
    const char *here = s->count > DWRAP_MAX_STRINGS ? "it has too many arguments" : add_paths(&out, s->command, s->count, job->cwd);
    if (!here && out.overflow)
        here = "what the distributor must know of it is too long";
    job->submit_length = out.length;
    return here;
}

struct fields_out submit_fields(struct job *job)
{
    struct fields_out out = fields_into(job->submit, sizeof job->submit);
    out.length = job->submit_length;
    fields_add(&out, "job", job->id);
    return out;
}

static void add_limits(struct fields_out *out)
{
    static const struct {
        int number;
        const char *name;
    } limits[] = {
        { RLIMIT_AS, "as" },         { RLIMIT_CORE, "core" },         { RLIMIT_CPU, "cpu" },
        { RLIMIT_DATA, "data" },     { RLIMIT_FSIZE, "fsize" },       { RLIMIT_LOCKS, "locks" },
        { RLIMIT_MEMLOCK, "memlock" }, { RLIMIT_MSGQUEUE, "msgqueue" }, { RLIMIT_NICE, "nice" },
        { RLIMIT_NOFILE, "nofile" }, { RLIMIT_NPROC, "nproc" },       { RLIMIT_RSS, "rss" },
        { RLIMIT_RTPRIO, "rtprio" }, { RLIMIT_RTTIME, "rttime" },     { RLIMIT_SIGPENDING, "sigpending" },
        { RLIMIT_STACK, "stack" },
    };
    for (size_t i = 0; i < sizeof limits / sizeof limits[0]; i++) {
        struct rlimit limit;
        char soft[24] = "unlimited", hard[24] = "unlimited";
        if (getrlimit((__rlimit_resource_t)limits[i].number, &limit) < 0)
            continue;
        if (limit.rlim_cur != RLIM_INFINITY)
            snprintf(soft, sizeof soft, "%llu", (unsigned long long)limit.rlim_cur);
        if (limit.rlim_max != RLIM_INFINITY)
            snprintf(hard, sizeof hard, "%llu", (unsigned long long)limit.rlim_max);
        fields_addf(out, "limit", "%s:%s:%s", limits[i].name, soft, hard);
    }
}

static void add_ignored(struct fields_out *out)
{
    for (int number = 1; number < NSIG; number++) { /* libc hides its own two, 32 and 33, and so do we */
        struct sigaction action;
        if (sigaction(number, NULL, &action) == 0 && action.sa_handler == SIG_IGN)
            fields_addf(out, "ignore", "%d", number);
    }
}

static bool add_groups(struct fields_out *out)
{
    static gid_t groups[MOST_GROUPS];
    int count = getgroups(MOST_GROUPS, groups);
    for (int i = 0; i < count; i++)
        fields_addf(out, "group", "%u", (unsigned)groups[i]);
    return count >= 0;
}

static const char *output_word(const struct stream *stream)
{
    switch (stream->kind) {
    case STREAM_CLOSED:
        return "closed";
    case STREAM_NULL:
        return "null";
    case STREAM_TTY:
        return "tty";
    default:
        return "stream";
    }
}

static void add_streams(struct fields_out *out, const struct job *job)
{
    const struct stream *in = &job->streams[0], *stdout_ = &job->streams[1], *stderr_ = &job->streams[2];
    struct winsize size;
    fields_add(out, "stdin", in->kind == STREAM_CLOSED ? "closed" : in->kind == STREAM_NULL ? "null" : "stream");
    if (job->stdin_seekable)
        fields_add(out, "seekable", "1");
    fields_add(out, "stdout", output_word(stdout_));
    fields_add(out, "stderr", streams_same(stdout_, stderr_) && stderr_->kind != STREAM_NULL ? "stdout" : output_word(stderr_));
    const struct stream *tty = stdout_->kind == STREAM_TTY ? stdout_ : stderr_->kind == STREAM_TTY ? stderr_ : NULL;
    if (tty && ioctl(tty->fd, TIOCGWINSZ, &size) == 0) {
        fields_addf(out, "rows", "%u", size.ws_row);
        fields_addf(out, "columns", "%u", size.ws_col);
    }
}

const char *go_prepare(struct job *job)
{
    struct fields_out out = fields_into(job->go, sizeof job->go - STAMP_BYTES - JOB_ID_BYTES - 96);
    mode_t mask = umask(0);
    umask(mask);
    errno = 0;
    int nice_value = getpriority(PRIO_PROCESS, 0);
    fields_addf(&out, "umask", "%03o", (unsigned)mask);
    fields_addf(&out, "nice", "%d", nice_value);
    fields_addf(&out, "gid", "%u", (unsigned)getegid());
    bool groups = add_groups(&out);
    add_limits(&out);
    add_ignored(&out);
    add_streams(&out, job);
    job->go_length = out.length;
    return groups && !out.overflow ? NULL : "its user is in too many groups";
}

/* Whole entries in messages of the size that the protocol allows. */
static void queue_entries(struct link *l, const struct job *job, const char *at, size_t length)
{
    char buffer[160];
    while (length > 0) {
        struct fields_out fields = fields_into(buffer, sizeof buffer);
        size_t piece = length < MANIFEST_PIECE_BYTES ? length : MANIFEST_PIECE_BYTES;
        while (piece > 0 && at[piece - 1] != 0)
            piece--;
        fields_add(&fields, "job", job->id);
        if (!link_queue(l, "MANIFEST", &fields, at, piece))
            return;
        at += piece;
        length -= piece;
    }
}

void views_prepare(struct job *job, struct link *l)
{
    static char told[READS_TOLD_BYTES];
    if (!job->settings->views)
        return;
    bool numbered = job->traits & LOOK_NUMBERED;
    if (!job->seen_known)
        job->seen_length = seen_write(job->seen, sizeof job->seen, job->settings->command, job->settings->count, job->cwd, numbered);
    job->seen_known = true;
    queue_entries(l, job, told, reads_changed(job->build, numbered, told, sizeof told));
}

/* Memory that is sent from where it lies; neighbours become one piece. */
struct gather {
    struct link *link;
    const sigset_t *mask;
    enum link_status status;
    int count;
    struct iovec pieces[PIECES];
};

static void gather_flush(struct gather *g)
{
    struct iovec *at = g->pieces;
    int left = g->count;
    while (left > 0 && g->status == LINK_FINE) {
        struct msghdr message = { .msg_iov = at, .msg_iovlen = (size_t)left };
        ssize_t sent = sendmsg(g->link->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && errno == EAGAIN) {
            struct pollfd waiting = { .fd = g->link->fd, .events = POLLOUT };
            struct timespec patience = { .tv_sec = GO_PATIENCE_MS / 1000 };
            sent = ppoll(&waiting, 1, &patience, g->mask) > 0 ? 0 : -1;
        }
        if (sent < 0)
            g->status = LINK_LOST;
        for (size_t gone = sent > 0 ? (size_t)sent : 0; left > 0 && (gone > 0 || at->iov_len == 0);) {
            size_t step = gone < at->iov_len ? gone : at->iov_len;
            at->iov_base = (char *)at->iov_base + step;
            at->iov_len -= step;
            gone -= step;
            if (at->iov_len == 0) {
                at++;
                left--;
            }
        }
    }
    g->count = 0;
}

static void gather_add(struct gather *g, const void *bytes, size_t length)
{
    if (g->count > 0) {
        struct iovec *last = &g->pieces[g->count - 1];
        if ((const char *)last->iov_base + last->iov_len == (const char *)bytes) {
            last->iov_len += length;
            return;
        }
    }
    if (g->count == PIECES)
        gather_flush(g);
    g->pieces[g->count++] = (struct iovec){ (void *)(uintptr_t)bytes, length };
}

/* A MAKEFLAGS-like value without what names the desktop's jobserver: `--jobserver-*` and, beside it, `-jN`. Words after
 * `--` are variables, and a space after a backslash belongs to its word. */
static void strip_jobserver(const char *value, char *out)
{
    bool options = strstr(value, "--jobserver-") != NULL;
    for (const char *at = value; *at;) {
        size_t gap = strspn(at, " "), length = gap;
        while (at[length] && (at[length] != ' ' || at[length - 1] == '\\'))
            length++;
        const char *word = at + gap;
        size_t word_length = length - gap;
        if (word_length == 2 && memcmp(word, "--", 2) == 0)
            options = false;
        bool number = strspn(word + (word_length > 2 ? 2 : 0), "0123456789") >= (word_length > 2 ? word_length - 2 : 0);
        bool drop = options && (strncmp(word, "--jobserver-", 12) == 0 || (strncmp(word, "-j", 2) == 0 && number));
        if (!drop) {
            memcpy(out, at, length);
            out += length;
        }
        at += length;
    }
    *out = 0;
}

/* Of the variables with a jobserver in them: the text to send instead. */
struct replaced {
    const char *original;
    char *text;
};

enum { REPLACED = 3 };

/* Finds the variables to replace. Their copies are the one allocation here; it is as large as they are. */
static void find_replaced(struct replaced found[REPLACED])
{
    static const char *const names[REPLACED] = { "MAKEFLAGS=", "MFLAGS=", "CARGO_MAKEFLAGS=" };
    for (int i = 0; i < REPLACED; i++) {
        const char *value = NULL;
        size_t length = strlen(names[i]);
        found[i] = (struct replaced){ 0 };
        for (char **at = environ; *at && !value; at++)
            if (strncmp(*at, names[i], length) == 0)
                value = *at;
        if (!value || !strstr(value, "--jobserver-"))
            continue;
        char *copy = malloc(strlen(value) + 1);
        if (!copy)
            say_and_leave("out of memory; run fewer jobs at once");
        memcpy(copy, names[i], length);
        strip_jobserver(value + length, copy + length);
        found[i] = (struct replaced){ value, copy };
    }
}

/* What to send for an entry of the environment; NULL: it stays here. */
static const char *entry_to_send(const char *entry, const struct replaced found[REPLACED])
{
    const char *equals = strchr(entry, '=');
    if (equals && variable_stays(entry, (size_t)(equals - entry)))
        return NULL;
    for (int i = 0; i < REPLACED; i++)
        if (found[i].original == entry)
            return found[i].text;
    return entry;
}

/* A frame of GO. In clear its parts are sent from where they lie. An encrypted one is a whole, so they are put together first:
 * that copy, with the next byte's place in it, lasts until the message has gone. */
struct go_frame {
    unsigned char front[ZMTP_FRONT_BYTES];
    unsigned char *copy, *at;
};

static void frame_begin(struct gather *g, struct go_frame *f, size_t length, bool more)
{
    const struct zmtp *z = &g->link->zmtp;
    size_t before = zmtp_front(z, f->front, length, more);
    if (!z->secure) {
        gather_add(g, f->front, before);
        return;
    }
    f->copy = malloc(before + length);
    if (!f->copy)
        say_and_leave("out of memory; run fewer jobs at once");
    f->at = mempcpy(f->copy, f->front, before);
}

static void frame_add(struct gather *g, struct go_frame *f, const void *bytes, size_t length)
{
    if (f->copy)
        f->at = length ? mempcpy(f->at, bytes, length) : f->at;
    else
        gather_add(g, bytes, length);
}

/* `length` is frame_begin's: all of it was added. */
static void frame_end(struct gather *g, struct go_frame *f, size_t length)
{
    if (!f->copy)
        return;
    zmtp_seal(&g->link->zmtp, f->at - length, length);
    gather_add(g, f->copy, (size_t)(f->at - f->copy));
}

static void add_frame(struct gather *g, struct go_frame *f, const void *bytes, size_t length, bool more)
{
    frame_begin(g, f, length, more);
    frame_add(g, f, bytes, length);
    frame_end(g, f, length);
}

static size_t arguments_length(const struct settings *s)
{
    size_t length = 0;
    for (int i = 0; i < s->count; i++)
        length += strlen(s->command[i]) + 1;
    return length;
}

static size_t environment_length(const struct replaced found[REPLACED])
{
    size_t length = 0;
    for (char **at = environ; *at; at++) {
        const char *entry = entry_to_send(*at, found);
        length += entry ? strlen(entry) + 1 : 0;
    }
    return length;
}

static void add_arguments(struct gather *g, struct go_frame *f, const struct settings *s, size_t length)
{
    frame_begin(g, f, length, true);
    for (int i = 0; i < s->count; i++)
        frame_add(g, f, s->command[i], strlen(s->command[i]) + 1);
    frame_end(g, f, length);
}

static void add_environment(struct gather *g, struct go_frame *f, const struct replaced found[REPLACED], size_t length)
{
    frame_begin(g, f, length, true);
    for (char **at = environ; *at; at++) {
        const char *entry = entry_to_send(*at, found);
        if (entry)
            frame_add(g, f, entry, strlen(entry) + 1);
    }
    frame_end(g, f, length);
}

enum link_status go_send(struct link *l, const struct job *job, const char *stamp, const sigset_t *mask)
{
    static char fields_bytes[GO_FIELDS_BYTES];
    struct go_frame frames[GO_FRAMES] = { 0 };
    struct replaced found[REPLACED];
    struct gather g = { .link = l, .mask = mask };
    struct fields_out fields = fields_into(fields_bytes, sizeof fields_bytes);
    if (!link_queue_reply(l)) /* what was queued before (a PONG) goes first */
        return LINK_LOST;     /* it does not read, and sends PINGs all the same */
    memcpy(fields_bytes, job->go, job->go_length);
    fields.length = job->go_length;
    fields_add(&fields, "job", job->id);
    fields_add(&fields, "stamp", stamp);
    find_replaced(found);
    size_t arguments = arguments_length(job->settings), environment = environment_length(found);
    /* Somebody on the way can take a frame out, and libzmq does not notice: the next one would stand in its place. */
    fields_addf(&fields, "argv_bytes", "%zu", arguments);
    fields_addf(&fields, "env_bytes", "%zu", environment);

    gather_add(&g, l->out + l->out_start, l->out_end - l->out_start);
    add_frame(&g, &frames[0], "GO", 2, true);
    add_frame(&g, &frames[1], fields.at, fields.length, true);
    add_arguments(&g, &frames[2], job->settings, arguments);
    add_environment(&g, &frames[3], found, environment);
    add_frame(&g, &frames[4], job->seen, job->seen_length, false);
    gather_flush(&g);
    for (int i = 0; i < REPLACED; i++)
        free(found[i].text);
    for (int i = 0; i < GO_FRAMES; i++)
        free(frames[i].copy);
    l->out_start = l->out_end = 0;
    return g.status;
}
