/* What the command's tree writes and runs, heard from the kernel: a seccomp filter (filter.c) stops calls until the runner, which
 * holds the filter's listener, has read their paths; then they go on as if nothing had been, those that are news to repeat.c once
 * that has been told. Whatever runs is heard: children, static programs, threads. It records and forbids nothing: a command that
 * means to hide can. What cannot be heard is said in `why`. Does not know what the record is for.
 *
 * Not heard: i386's socketcall; 32-bit programs on aarch64; the attributes that ioctl sets (chattr), since to hear each ioctl would
 * stop every question to a terminal; what a server outside of the tree writes on the command's behalf, save that a container engine
 * is noticed by the name of its socket. */
#include "agent/runner.h"
#include "agent/calls.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

/* An answer takes some 6 us; SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP was tried and gains nothing that could be measured. */
void trace_start(struct trace *trace, int listener)
{
    static char real[PATH_ROOM]; /* what leads into the private TMPDIR is compared with this */
    trace->listener = listener;
    if (trace->scratch[0] && path_real(trace->scratch, real))
        trace->scratch = real;
}

void trace_doubt(struct trace *trace, const char *why)
{
    if (!trace->why)
        trace->why = why;
    repeat_rule_out(&trace->repeat, why);
}

void trace_end(struct trace *trace)
{
    if (trace->listener >= 0)
        close(trace->listener);
    trace->listener = -1;
    trace->waiting_count = 0;
}

struct stop { /* a call that waits for our answer */
    struct trace *trace;
    const struct spec *spec;
    const struct seccomp_notif *notice;
    const struct call *call;
};

static uint64_t argument(const struct stop *stop, int number) { return stop->notice->data.args[number]; }

/* The kernel asks for the same rights as process_vm_readv does, which the filters of many containers keep from whoever is not root. */
static ssize_t peek_through_file(uint32_t pid, uint64_t address, void *to, size_t size)
{
    char name[32];
    snprintf(name, sizeof name, "/proc/%u/mem", pid);
    int fd = open(name, O_RDONLY | O_CLOEXEC);
    ssize_t got = fd < 0 ? -1 : pread(fd, to, size, (off_t)address);
    int error = errno;
    if (fd >= 0)
        close(fd);
    errno = error;
    return got;
}

/* Reads the memory of the process that waits: at most `size` bytes, as far as they can be read. */
static size_t peek(const struct stop *stop, uint64_t address, void *to, size_t size)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), first = page - address % page;
    if (first > size)
        first = size;
    struct iovec local = {to, size}, remote[2] = {{(void *)(uintptr_t)address, first}, {(void *)(uintptr_t)(address + first), size - first}};
    ssize_t got = process_vm_readv((pid_t)stop->notice->pid, &local, 1, remote, size > first ? 2 : 1, 0);
    bool forbidden = got < 0 && (errno == EPERM || errno == ENOSYS);
    if (forbidden)
        got = peek_through_file(stop->notice->pid, address, to, size);
    bool is_plain = errno == EFAULT || errno == EIO || errno == ESRCH; /* nothing is there; the process has gone */
    if (got < 0 && forbidden && !is_plain)
        trace_doubt(stop->trace, "the agent is not allowed to look at the command's memory");
    return got < 0 ? 0 : (size_t)got;
}

/* Where a descriptor, or the working directory, of the process that waits leads. */
static enum leads follow(const struct stop *stop, int fd, char to[PATH_ROOM])
{
    char link[64];
    if (fd == AT_FDCWD)
        snprintf(link, sizeof link, "/proc/%u/cwd", stop->notice->pid);
    else
        snprintf(link, sizeof link, "/proc/%u/fd/%d", stop->notice->pid, fd);
    enum leads leads = lead_of_process(link, to);
    if (leads == LEADS_UNCLEAR && (errno == EACCES || errno == EPERM))
        trace_doubt(stop->trace, "the agent is not allowed to look at the command's descriptors");
    return leads;
}

/* The same of a name below it. */
static enum leads join(const struct stop *stop, int fd, const char *text, char out[PATH_ROOM])
{
    static char directory[PATH_ROOM];
    enum leads leads = text[0] == '/' ? LEADS_TO : follow(stop, fd, directory);
    if (leads == LEADS_NAMELESS && text[0]) /* in a directory that is gone nothing can be made; above it, it can */
        return path_climbs(text) ? LEADS_UNCLEAR : LEADS_NOWHERE;
    return leads == LEADS_NOWHERE || leads == LEADS_UNCLEAR || path_join(out, PATH_ROOM, directory, text) ? leads : LEADS_UNCLEAR;
}

static bool ends_inside(const char *text)
{
    size_t size = strlen(text);
    return size > 1 && (text[size - 1] == '/' || strcmp(text + size - 2, "/.") == 0);
}

/* The path that a call names, as this process would write it. */
static enum leads path_of(const struct stop *stop, const struct naming *name, struct place *place)
{
    static char text[PATH_ROOM];
    int fd = name->directory < 0 ? AT_FDCWD : (int)argument(stop, name->directory);
    uint64_t address = name->path < 0 ? 0 : argument(stop, name->path);
    text[0] = '\0';
    size_t got = address ? peek(stop, address, text, sizeof text) : 1;
    if (!memchr(text, '\0', got))
        return got == sizeof text ? LEADS_NOWHERE : LEADS_UNCLEAR; /* so long a name the kernel does not take */
    place->into = ends_inside(text);
    return join(stop, fd, text, place->written);
}

/* The path in a Unix socket's address. */
static enum leads socket_path(const struct stop *stop, struct place *place)
{
    struct sockaddr_un address = {0};
    size_t size = argument(stop, 2) < sizeof address ? (size_t)argument(stop, 2) : sizeof address;
    if (peek(stop, argument(stop, 1), &address, size) < size || address.sun_family != AF_UNIX || size <= sizeof address.sun_family)
        return LEADS_NOWHERE;
    char text[sizeof address.sun_path + 1] = "";
    memcpy(text, address.sun_path, size - offsetof(struct sockaddr_un, sun_path));
    place->into = false;
    return text[0] ? join(stop, AT_FDCWD, text, place->written) : LEADS_NOWHERE;
}

/* Is it still the same call of the same process that waits? If not, what was read was somebody else's. */
static bool still_waits(const struct stop *stop)
{
    uint64_t id = stop->notice->id;
    return ioctl(stop->trace->listener, SECCOMP_IOCTL_NOTIF_ID_VALID, &id) == 0;
}

/* What is there before the command's first touch, asked as the user. */
static mode_t look_before(const struct spec *spec, const char *path, unsigned *flags)
{
    struct stat st = {0};
    if (identity_assume(spec) && lstat(path, &st) != 0 && errno == ENOENT)
        *flags |= REC_ABSENT;
    identity_drop(spec);
    return st.st_mode;
}

static void add_flags(const struct stop *stop, const char *path, unsigned flags)
{
    struct record *record = &stop->trace->record;
    struct recorded *one = record_find(record, path);
    if (!one)
        one = record_add(record, path);
    else
        flags &= ~(unsigned)REC_ABSENT;
    if (one)
        one->flags |= flags;
    else
        trace_doubt(stop->trace, "it wrote more files than the agent keeps a record of");
}

/* Where what was written through a link is, as the user. */
static bool is_through(const struct spec *spec, const struct recorded *one, const char *link, char real[PATH_ROOM])
{
    if (!path_is_below(one->path, link))
        return false;
    bool itself = strcmp(one->path, link) == 0, user = identity_assume(spec);
    bool found = user && (itself ? one->flags & (REC_DATA | REC_TOUCHED) && path_real(link, real) : path_settle(one->path, real));
    identity_drop(spec);
    return found;
}

/* A link is about to go or to lead elsewhere: what was written through it is noted where it leads now. */
static void settle_through(const struct stop *stop, const char *link)
{
    char real[PATH_ROOM];
    const struct record *record = &stop->trace->record;
    for (size_t i = 0, count = record->count; i < count; i++) {
        unsigned flags = record->paths[i].flags;
        if (is_through(stop->spec, &record->paths[i], link, real))
            add_flags(stop, real, strcmp(record->paths[i].path, link) == 0 ? flags & (REC_DATA | REC_IN_PLACE | REC_TOUCHED) : flags);
    }
}

enum { LOOK = 1, NAME_CHANGES = 2 }; /* it matters whether it was there; a link here would be one no more */

static void note(const struct stop *stop, const char *path, unsigned flags, unsigned how)
{
    bool known = record_find(&stop->trace->record, path) != NULL;
    if ((how & LOOK && !known) || how & NAME_CHANGES)
        if (S_ISLNK(look_before(stop->spec, path, &flags)) && how & NAME_CHANGES)
            settle_through(stop, path);
    add_flags(stop, path, flags);
}

static void note_open(const struct stop *stop, const char *path, uint64_t how)
{
    if (!(how & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC)))
        return;
    unsigned flags = REC_DATA | (how & O_CREAT ? REC_NAME : 0) | (how & O_TRUNC ? REC_WHOLE : 0);
    bool sure = how & O_TRUNC; /* it does not matter whether it was there */
    if (!sure && !(how & O_EXCL))
        flags |= REC_IN_PLACE;
    note(stop, path, flags, !sure && how & O_CREAT ? LOOK : 0);
}

/* With which flags a path is opened; 0 also where no name is opened, or nothing can be written by it. */
static uint64_t open_flags(const struct stop *stop, enum effect effect)
{
    struct open_how how = {0};
    size_t size = argument(stop, 3) < sizeof how ? (size_t)argument(stop, 3) : sizeof how;
    if (effect == EFFECT_CREATE)
        return O_WRONLY | O_CREAT | O_TRUNC;
    if (effect == EFFECT_OPEN)
        how.flags = argument(stop, stop->call->flags);
    else if (peek(stop, argument(stop, 2), &how, size) != size)
        return 0;
    if (how.flags & OPENS_TO_WRITE && how.resolve & RESOLVE_IN_ROOT)
        trace_doubt(stop->trace, "it opened a name below a root of its own");
    return (how.flags & O_TMPFILE) == O_TMPFILE || how.flags & O_PATH ? 0 : how.flags;
}

static bool is_open(enum effect effect) { return effect == EFFECT_OPEN || effect == EFFECT_OPEN_HOW || effect == EFFECT_CREATE; }

static uint64_t other_flags(const struct stop *stop) { return stop->call->flags >= 0 ? argument(stop, stop->call->flags) : 0; }

static void note_connect(const struct stop *stop, const char *path)
{
    static const char *const engines[] = {"docker.sock", "podman.sock", "containerd.sock", "buildkitd.sock", "crio.sock"};
    const char *name = strrchr(path, '/') + 1;
    for (size_t i = 0; i < sizeof engines / sizeof *engines; i++)
        if (strcmp(name, engines[i]) == 0)
            trace_doubt(stop->trace, "a container may have written files");
}

/* Does the call go by a link at this name? One that does so only sometimes is taken to do so. */
static bool goes_by_link(const struct place *place, enum effect effect, uint64_t how)
{
    switch (effect) {
    case EFFECT_OPEN:
    case EFFECT_OPEN_HOW: return !(how & O_NOFOLLOW) && (how & (O_CREAT | O_EXCL)) != (O_CREAT | O_EXCL);
    case EFFECT_CREATE:
    case EFFECT_CUT: return true;
    case EFFECT_TOUCH: return place->into || !(how & AT_SYMLINK_NOFOLLOW);
    case EFFECT_TOUCH_LINK: return place->into;
    default: return false;
    }
}

/* What it means for another run of the command. */
static void judge(const struct stop *stop, const struct place *place, const struct place *from, enum effect effect, uint64_t how)
{
    struct repeat *repeat = &stop->trace->repeat;
    const struct spec *spec = stop->spec;
    switch (effect) {
    case EFFECT_OPEN:
    case EFFECT_OPEN_HOW:
    case EFFECT_CREATE: repeat_opens(repeat, spec, place, how); break;
    case EFFECT_PLACE: repeat_places(repeat, spec, place, from, how & RENAME_EXCHANGE); break;
    case EFFECT_LEAVE:
    case EFFECT_REMOVE: repeat_takes(repeat, spec, place); break;
    case EFFECT_CUT: repeat_changes(repeat, spec, place, true); break;
    case EFFECT_TOUCH:
    case EFFECT_TOUCH_LINK: repeat_changes(repeat, spec, place, goes_by_link(place, effect, how)); break;
    default: repeat_makes(repeat, spec, place); break; /* EFFECT_MAKE, EFFECT_BIND */
    }
}

/* What it means for the manifest. */
static void note_effect(const struct stop *stop, const char *path, enum effect effect, uint64_t how)
{
    switch (effect) {
    case EFFECT_OPEN:
    case EFFECT_OPEN_HOW:
    case EFFECT_CREATE: note_open(stop, path, how); break;
    case EFFECT_PLACE: note(stop, path, REC_NAME | REC_DATA | REC_WHOLE | REC_PLACED, NAME_CHANGES); break;
    case EFFECT_LEAVE:
    case EFFECT_REMOVE: note(stop, path, REC_NAME | REC_LOST, LOOK | NAME_CHANGES); break;
    case EFFECT_CUT: note(stop, path, REC_DATA | REC_IN_PLACE, 0); break;
    case EFFECT_TOUCH:
    case EFFECT_TOUCH_LINK: note(stop, path, REC_TOUCHED, 0); break;
    default: note(stop, path, REC_NAME | REC_MADE, LOOK); break; /* EFFECT_MAKE, EFFECT_BIND */
    }
}

/* What a call does to a name that leads somewhere. */
static void hear_effect(const struct stop *stop, const struct place *place, const struct place *from, enum effect effect, uint64_t how)
{
    if (place->private)
        return;
    stop->trace->acted = true;
    judge(stop, place, from, effect, how);
    if (stop->spec->views && !stop->trace->repeat.again)
        note_effect(stop, place->path, effect, how);
}

/* Once there can be no other attempt the record is all that is kept, and that asks later where a name of the tree leads. */
static bool may_stay_as_written(const struct stop *stop, const struct place *place)
{
    return stop->trace->repeat.beyond[0] && spec_is_shared(stop->spec, place->written) && !path_climbs(place->written) &&
           !path_is_private(place->written, place->scratch);
}

static enum leads settle(const struct stop *stop, struct place *place, enum effect effect, uint64_t how)
{
    if (may_stay_as_written(stop, place)) {
        strcpy(place->path, place->written);
        place->private = false;
        return LEADS_TO;
    }
    bool user = identity_assume(stop->spec);
    enum leads leads = user ? place_find(stop->spec, goes_by_link(place, effect, how), place) : LEADS_UNCLEAR;
    identity_drop(stop->spec);
    return leads;
}

/* What has no name nobody but the command can have made. */
static void hear_program(const struct stop *stop, struct place *place, enum leads leads)
{
    if (leads == LEADS_NAMELESS)
        repeat_rule_out(&stop->trace->repeat, "it ran a program that has no name");
    else if (leads == LEADS_TO)
        repeat_runs(&stop->trace->repeat, stop->spec, place);
}

/* What a call does to one name. `from`: the name before it in the same call; this one takes its place. */
static void hear_name(const struct stop *stop, const struct naming *name, struct place *place, const struct place *from)
{
    enum effect effect = name->effect;
    bool in_address = effect == EFFECT_BIND || effect == EFFECT_CONNECT;
    place->pid = (pid_t)stop->notice->pid;
    place->scratch = stop->trace->scratch;
    enum leads leads = in_address ? socket_path(stop, place) : path_of(stop, name, place);
    uint64_t how = is_open(effect) ? open_flags(stop, effect) : other_flags(stop);
    if (!still_waits(stop) || (is_open(effect) && !how))
        return;
    if (effect == EFFECT_CONNECT) {
        if (leads == LEADS_TO)
            note_connect(stop, place->written);
        return;
    }
    if (leads == LEADS_TO && effect != EFFECT_RUN)
        leads = settle(stop, place, effect, how);
    if (leads == LEADS_UNCLEAR)
        trace_doubt(stop->trace, "it used a name that the agent cannot read");
    else if (effect == EFFECT_RUN)
        hear_program(stop, place, leads);
    else if (leads == LEADS_TO)
        hear_effect(stop, place, from, effect, how);
    stop->trace->acted |= leads == LEADS_UNCLEAR;
}

static void hear_call(const struct stop *stop)
{
    static struct place places[NAMES_PER_CALL + 1];
    struct trace *trace = stop->trace;
    for (int i = 0; i < NAMES_PER_CALL; i++) {
        const struct naming *name = &stop->call->names[i];
        struct place *place = &places[i + 1];
        place->path[0] = '\0';
        if (name->effect == EFFECT_NEW_ROOT)
            trace_doubt(trace, "a container may have written files");
        else if (name->effect == EFFECT_HANDLE)
            trace_doubt(trace, "it opened a file by its number");
        else if (name->effect == EFFECT_LISTENER)
            trace->wants_listener |= !trace->repeat.again;
        else if (name->effect != EFFECT_NONE && (stop->spec->views || !trace->repeat.beyond[0])) /* else nobody wants to know more */
            hear_name(stop, name, place, place - 1);
        else if (name->effect != EFFECT_NONE && name->effect != EFFECT_RUN)
            trace->acted = true; /* perhaps */
    }
}

/* The kernel's structures may be longer than those this was compiled with. */
union notice {
    struct seccomp_notif notice;
    char room[512];
};

union answer {
    struct seccomp_notif_resp answer;
    char room[512];
};

struct waiting {
    struct seccomp_notif notice;
    uint64_t facts;
};

/* Looked at before each answer: a runner that was frozen may find many calls that wait, and another attempt at work. */
static void let_go_on(struct trace *trace, uint64_t id)
{
    static union answer out;
    trace->late |= repeat_is_possible(&trace->repeat) && lease_is_over();
    if (trace->late)
        return;
    memset(&out, 0, sizeof out);
    out.answer.id = id;
    out.answer.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
    ioctl(trace->listener, SECCOMP_IOCTL_NOTIF_SEND, &out); /* an error: it has gone */
}

static void let_wait(struct trace *trace, const struct seccomp_notif *notice, uint64_t facts)
{
    if (trace->waiting_count == trace->waiting_room) {
        size_t room = trace->waiting_room ? trace->waiting_room * 2 : 16;
        struct waiting *more = realloc(trace->waiting, room * sizeof *more);
        if (!more)
            return; /* it waits for ever, and ends with its tree */
        trace->waiting = more;
        trace->waiting_room = room;
    }
    trace->waiting[trace->waiting_count++] = (struct waiting){*notice, facts};
}

/* How many facts must be cleared before it goes on, now that those that it waited for are: names may stand otherwise by now, made by
 * somebody else, or by a process of the same tree. */
static uint64_t look_again(struct trace *trace, const struct spec *spec, const struct waiting *waiting)
{
    const struct stop stop = {trace, spec, &waiting->notice, filter_call_of(&waiting->notice.data)};
    trace->repeat.again = true;
    if (stop.call && !trace->repeat.beyond[0])
        hear_call(&stop);
    trace->repeat.again = false;
    return repeat_facts(&trace->repeat);
}

void trace_clear(struct trace *trace, const struct spec *spec, uint64_t facts)
{
    size_t kept = 0;
    if (facts > trace->repeat.cleared)
        trace->repeat.cleared = facts;
    for (size_t i = 0; i < trace->waiting_count; i++) {
        struct waiting one = trace->waiting[i];
        if (one.facts <= trace->repeat.cleared)
            one.facts = look_again(trace, spec, &one);
        if (one.facts <= trace->repeat.cleared)
            let_go_on(trace, one.notice.id);
        else
            trace->waiting[kept++] = one;
    }
    trace->waiting_count = kept;
}

bool trace_hear(struct trace *trace, const struct spec *spec)
{
    static union notice in;
    memset(&in, 0, sizeof in);
    if (ioctl(trace->listener, SECCOMP_IOCTL_NOTIF_RECV, &in) != 0)
        return errno == ENOENT || errno == EINTR; /* it was killed, or a signal has made it start over */
    struct stop stop = {trace, spec, &in.notice, filter_call_of(&in.notice.data)};
    if (in.notice.pid == 0)
        trace_doubt(trace, "a process that the agent cannot see wrote files");
    if (stop.call)
        hear_call(&stop);
    if (trace->wants_listener && trace->may_start_over)
        return true; /* it is about to be killed, and its call is never answered */
    if (repeat_facts(&trace->repeat) > trace->repeat.cleared) /* also of others: this name may be among them */
        let_wait(trace, &in.notice, repeat_facts(&trace->repeat));
    else
        let_go_on(trace, in.notice.id);
    return true;
}
