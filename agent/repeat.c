/* May the attempt be run again? As long as it only made names that were not there before, it may: they are removed first. What
 * changes, replaces or removes anything that was there, or runs a program of the tree, rules it out for good.
 *
 * Knows what each kind of call does to names, and looks, as the user, how those stand before the call goes on; does not know how
 * calls are heard (trace.c), nor who is told (relay.c). Where it cannot be sure it says no: that costs a rerun, never a file.
 * Names are those on the shared roots, told as they lie in their real directories: a link on the way may lead elsewhere by the time
 * they are removed. A name that was made stays this attempt's until it takes it away itself, or is seen not to be there. One that is
 * there before a call that makes it was let go on is somebody else's. */
#include "agent/runner.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MOST_MADE = 256, MOST_MADE_TEXT = 24 * 1024 }; /* all of it fits in the packet ENDED */

static const struct {
    const char *kind, *prefix, *why;
} rules[] = {
#define RULE(kind, pattern, why) {#kind, pattern, why},
#include "protocol/rules.def"
#undef RULE
};

/* The same on every host of one image. */
static bool is_in_image(const char *path)
{
    bool found = false;
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++)
        found |= strcmp(rules[i].kind, "IMAGE") == 0 && path_is_below(path, rules[i].prefix);
    return found;
}

bool path_is_private(const char *path, const char *scratch)
{
    return path_is_below(path, "/dev") || path_is_below(path, "/proc") || path_is_below(path, "/sys") ||
           (scratch[0] && path_is_below(path, scratch));
}

/* ---- facts ---- */

uint64_t repeat_facts(const struct repeat *repeat) { return repeat->made.count + (repeat->beyond[0] != '\0'); }

size_t repeat_fact(const struct repeat *repeat, uint64_t number, char out[PATH_ROOM + 8])
{
    bool name = number <= repeat->made.count;
    const char *value = name ? repeat->made.paths[number - 1].path : repeat->beyond;
    return (size_t)snprintf(out, PATH_ROOM + 8, "%s=%s", name ? "path" : "beyond", value) + 1;
}

bool repeat_is_possible(const struct repeat *repeat) { return !repeat->beyond[0] || repeat->cleared <= repeat->made.count; }

void repeat_rule_out(struct repeat *repeat, const char *why)
{
    if (repeat->beyond[0])
        return;
    snprintf(repeat->beyond, sizeof repeat->beyond, "%s", why);
    make_printable(repeat->beyond, strlen(repeat->beyond));
}

static void rule_out_for(struct repeat *repeat, const char *what, const char *path, const char *rest)
{
    char why[MAX_REASON];
    snprintf(why, sizeof why, "%s %.*s%s", what, MAX_REASON - 80, path, rest);
    repeat_rule_out(repeat, why);
}

enum { /* of a name that is made: */
    LET_GO = 1,  /* a call that makes it was let go on, and may have done so */
    LEAVING = 2, /* and so was one that takes it away: it is ours no more, unless that has failed */
};

static bool is_made(const struct repeat *repeat, const char *path) { return record_find(&repeat->made, path) != NULL; }

/* Does nothing keep the call any more? */
static bool is_let_go(const struct repeat *repeat) { return repeat_facts(repeat) <= repeat->cleared; }

/* `certain`: unless the call fails it makes this one. */
static void note_made(struct repeat *repeat, const char *path, bool certain)
{
    struct recorded *known = record_find(&repeat->made, path);
    if (known && certain && is_let_go(repeat))
        known->flags = LET_GO;
    if (repeat->beyond[0] || known)
        return;
    if (repeat->made.count == MOST_MADE || repeat->made.text + strlen(path) > MOST_MADE_TEXT || !record_add(&repeat->made, path))
        repeat_rule_out(repeat, "it made more names than the agent keeps");
}

/* ---- how names stand ---- */

enum standing { ABSENT, THERE, LINK, UNREACHABLE, UNKNOWN };

struct name {
    enum standing standing;
    mode_t kind;
    bool homeless;        /* absent, and so is its directory: the call fails, unless that is on its way */
    struct stamp stamp;   /* without its birth */
    char path[PATH_ROOM]; /* as the shared roots have it */
};

static int64_t nanoseconds(int64_t seconds, int64_t rest) { return seconds * 1000000000 + rest; }

static void look_once(struct name *name)
{
    struct stat st = {0};
    errno = 0;
    bool there = lstat(name->path, &st) == 0;
    name->homeless |= errno == ENOTDIR;
    name->kind = st.st_mode & S_IFMT;
    name->stamp = (struct stamp){st.st_dev, st.st_ino, 0, nanoseconds(st.st_ctim.tv_sec, st.st_ctim.tv_nsec)};
    if (there)
        name->standing = S_ISLNK(st.st_mode) ? LINK : THERE;
    else if (errno == ENOENT || errno == ENOTDIR)
        name->standing = ABSENT;
    else
        name->standing = errno == EACCES || errno == ELOOP || errno == ENAMETOOLONG ? UNREACHABLE : UNKNOWN;
}

/* A network file system may believe that a name is absent; to open its directory asks the server. */
static void ask_about(const char *path)
{
    char above[PATH_ROOM];
    int fd = path_split(path, above) ? open(above, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (fd >= 0)
        close(fd);
}

/* Asks, too, whether the directory has changed at the server. When it is looked at again that is worth it only where the call fails if
 * somebody was faster: then the name would be taken for ours. */
static void look_at(const struct repeat *repeat, const struct spec *spec, struct name *name, bool exclusive)
{
    look_once(name);
    if (name->standing != ABSENT || !spec->views || (repeat->again && !exclusive))
        return;
    ask_about(name->path);
    look_once(name);
}

/* ---- whose it is ---- */

/* Without a question to a server: what its cache knows of it is of a moment ago. */
static void add_birth(struct name *name)
{
    struct statx stx;
    if (statx(AT_FDCWD, name->path, AT_SYMLINK_NOFOLLOW | AT_STATX_DONT_SYNC, STATX_BTIME, &stx) == 0 && stx.stx_mask & STATX_BTIME)
        name->stamp.born = nanoseconds(stx.stx_btime.tv_sec, stx.stx_btime.tv_nsec);
}

/* A number that was free is soon used again. */
static bool is_same(const struct stamp *was, const struct stamp *is)
{
    bool born = was->born && is->born;
    return was->device == is->device && was->inode == is->inode && (born ? was->born == is->born : was->changed == is->changed);
}

/* What stands at a name that was made: has this attempt made it? What is absent now was not made, or is gone. As the user. */
static bool is_ours(struct recorded *made, struct name *name)
{
    if (name->standing == ABSENT)
        made->flags = 0;
    if (name->standing != THERE && name->standing != LINK)
        return true;
    add_birth(name);
    return made->flags & LET_GO && (!(made->flags & LEAVING) || is_same(&made->stamp, &name->stamp));
}

/* Looks at a name of a shared root, as the user. False when it is of no concern, or nothing more is. */
static bool find(struct repeat *repeat, const struct spec *spec, const struct place *place, bool exclusive, struct name *out)
{
    out->standing = UNREACHABLE;
    out->homeless = place->homeless;
    strcpy(out->path, place->path);
    bool user = !repeat->beyond[0] && identity_assume(spec);
    if (user && (place->shared || place->strayed))
        look_at(repeat, spec, out, exclusive);
    struct recorded *made = record_find(&repeat->made, out->path);
    bool ours = !made || out->standing == UNREACHABLE || is_ours(made, out);
    identity_drop(spec);
    if (out->standing == UNREACHABLE) /* by the user: the call fails; or not looked at */
        return false;
    if (place->strayed)
        rule_out_for(repeat, "a link led it out of the shared tree at", place->written, "");
    else if (!ours)
        rule_out_for(repeat, "somebody else made", out->path, " when it was about to");
    return !repeat->beyond[0];
}

/* What the link at this name leads to takes its place; ABSENT when that is nothing. False when it is of no concern. */
static bool follow(struct repeat *repeat, const struct spec *spec, const struct place *place, struct name *name)
{
    char real[PATH_ROOM];
    struct stat st = {0};
    bool user = identity_assume(spec);
    enum leads leads = user ? path_lead(place->pid, name->path, true, real) : LEADS_UNCLEAR;
    bool there = leads == LEADS_TO && stat(real, &st) == 0;
    bool shared = there && !path_is_private(real, place->scratch) && spec_name_by_root(spec, real);
    identity_drop(spec);
    name->standing = there ? THERE : ABSENT;
    name->kind = st.st_mode & S_IFMT;
    if (leads == LEADS_UNCLEAR)
        rule_out_for(repeat, "nobody can tell where the link", name->path, " leads");
    if (shared)
        strcpy(name->path, real);
    return leads == LEADS_TO && (shared || !there);
}

/* ---- what calls do ---- */

void repeat_opens(struct repeat *repeat, const struct spec *spec, const struct place *place, uint64_t how)
{
    static struct name name;
    bool creates = how & O_CREAT, afresh = creates && how & O_EXCL;
    if (!find(repeat, spec, place, afresh, &name) || (afresh && (name.standing == THERE || name.standing == LINK)))
        return;
    bool linked = name.standing == LINK;
    if (linked && (how & O_NOFOLLOW || !follow(repeat, spec, place, &name)))
        return;
    if (linked && name.standing == ABSENT && creates)
        rule_out_for(repeat, "it made what the link", name.path, " led to");
    else if (name.standing == ABSENT && creates)
        note_made(repeat, name.path, !name.homeless);
    else if (name.standing == UNKNOWN ||
             (name.standing == THERE && how & (O_ACCMODE | O_TRUNC) && S_ISREG(name.kind) && !is_made(repeat, name.path)))
        rule_out_for(repeat, "it changed", name.path, "");
}

void repeat_makes(struct repeat *repeat, const struct spec *spec, const struct place *place)
{
    static struct name name;
    if (!find(repeat, spec, place, true, &name))
        return;
    if (name.standing == UNKNOWN)
        rule_out_for(repeat, "it made", name.path, ", of which the agent cannot tell what was there");
    else if (name.standing == ABSENT)
        note_made(repeat, name.path, !name.homeless);
}

void repeat_changes(struct repeat *repeat, const struct spec *spec, const struct place *place, bool follows)
{
    static struct name name;
    if (!find(repeat, spec, place, false, &name) || name.standing == ABSENT)
        return;
    bool ours = is_made(repeat, name.path);
    if (ours && follows && name.standing == LINK && follow(repeat, spec, place, &name))
        ours = name.standing == ABSENT || is_made(repeat, name.path);
    if (!ours)
        rule_out_for(repeat, "it changed", name.path, "");
}

void repeat_takes(struct repeat *repeat, const struct spec *spec, const struct place *place)
{
    static struct name name;
    if (!find(repeat, spec, place, false, &name) || name.standing == ABSENT)
        return;
    struct recorded *made = record_find(&repeat->made, name.path);
    if (!made) {
        rule_out_for(repeat, "it changed", name.path, "");
    } else if (is_let_go(repeat)) {
        made->flags |= LEAVING;
        made->stamp = name.stamp;
    }
}

/* It is there if it was still at the other name. */
static void move_one(struct repeat *repeat, const char *from, const char *to)
{
    note_made(repeat, to, true);
    const struct recorded *was = record_find(&repeat->made, from);
    struct recorded *is = record_find(&repeat->made, to);
    if (is && is_let_go(repeat)) {
        is->flags = was->flags;
        is->stamp = was->stamp;
    }
}

/* What was made below one directory is now below the other. */
static void move_below(struct repeat *repeat, const char *from, const char *to)
{
    char moved[PATH_ROOM];
    size_t length = strlen(from);
    for (size_t i = 0, count = repeat->made.count; i < count && !repeat->beyond[0]; i++) {
        const char *path = repeat->made.paths[i].path;
        if (!path_is_below(path, from) || !path[length])
            continue;
        if (path_join(moved, sizeof moved, to, path + length + 1))
            move_one(repeat, path, moved);
        else
            repeat_rule_out(repeat, "it made a name that is too long");
    }
}

void repeat_places(struct repeat *repeat, const struct spec *spec, const struct place *place, const struct place *from, bool exchanges)
{
    static struct name name, source;
    struct stat st = {0};
    bool user = identity_assume(spec);
    bool there = user && lstat(from->path, &st) == 0;
    identity_drop(spec);
    if (!there) /* what is not there cannot be moved */
        return;
    bool ours = find(repeat, spec, from, false, &source) && is_made(repeat, source.path);
    if (!find(repeat, spec, place, false, &name))
        return;
    if (name.standing != ABSENT && !is_made(repeat, name.path))
        rule_out_for(repeat, "it replaced", name.path, "");
    else if (S_ISDIR(st.st_mode) && !ours)
        rule_out_for(repeat, "it moved a whole directory to", name.path, "");
    note_made(repeat, name.path, !name.homeless);
    if (!ours)
        return;
    move_below(repeat, source.path, name.path);
    if (!exchanges)
        return;
    note_made(repeat, source.path, true); /* it does not leave */
    move_below(repeat, name.path, source.path);
}

/* A program goes by its path as the user sees it, since one of the image may be a link to anywhere; but not by "..", nor, where that is
 * on no root, by links there. As the user. LEADS_NOWHERE when it is of the image, or on no root. What lies in the private TMPDIR, or
 * has no name at all, the command has made itself: a test, perhaps. */
static enum leads find_program(const struct spec *spec, struct place *place, char out[PATH_ROOM])
{
    strcpy(out, place->written);
    if (strstr(out, "/../"))
        (void)path_lead(place->pid, place->written, false, out);
    if (is_in_image(out))
        return LEADS_NOWHERE;
    if ((place->scratch[0] && path_is_below(out, place->scratch)) || (spec_is_shared(spec, out) && !path_is_private(out, place->scratch)))
        return LEADS_TO;
    enum leads leads = place_find(spec, true, place);
    if (leads != LEADS_TO)
        return leads;
    strcpy(out, place->path);
    bool own = place->scratch[0] && path_is_below(out, place->scratch);
    return own || (place->shared && !is_in_image(out)) ? LEADS_TO : LEADS_NOWHERE;
}

void repeat_runs(struct repeat *repeat, const struct spec *spec, struct place *place)
{
    static char program[PATH_ROOM];
    struct stat st;
    bool user = !repeat->beyond[0] && identity_assume(spec);
    enum leads leads = user ? find_program(spec, place, program) : LEADS_NOWHERE;
    bool runs = leads == LEADS_TO && stat(program, &st) == 0 && S_ISREG(st.st_mode) &&
                faccessat(AT_FDCWD, program, X_OK, AT_EACCESS) == 0;
    identity_drop(spec);
    bool own = runs && path_is_private(program, place->scratch);
    if (leads == LEADS_NAMELESS || leads == LEADS_UNCLEAR)
        repeat_rule_out(repeat, "it ran a program that has no name");
    else if (runs)
        rule_out_for(repeat, "it ran", program, own ? ", a program that it had made" : ", a program of the tree");
}

/* ---- when all is over ---- */

/* Its directory may be another by now: then it is as good as absent. As the user. */
static void look_last(const struct spec *spec, const char *path, struct name *name)
{
    bool there = path_settle(path, name->path) && spec_name_by_root(spec, name->path) && strcmp(name->path, path) == 0;
    name->standing = ABSENT;
    if (there)
        look_once(name);
}

void repeat_end(struct repeat *repeat, const struct spec *spec)
{
    static struct name name;
    for (size_t i = 0; i < repeat->made.count && i < repeat->cleared && repeat_is_possible(repeat); i++) {
        struct recorded *one = &repeat->made.paths[i];
        bool leaving = one->flags & LEAVING;
        if (one->flags == LET_GO) /* it was made and has stayed: no look is needed */
            continue;
        name.standing = UNKNOWN;
        if (identity_assume(spec))
            look_last(spec, one->path, &name);
        bool ours = is_ours(one, &name);
        identity_drop(spec);
        one->flags = ours && name.standing != ABSENT ? LET_GO : 0;
        if (name.standing == UNKNOWN || (!ours && !leaving)) {
            rule_out_for(repeat, "nobody can tell who made", one->path, "");
            repeat->cleared = repeat_facts(repeat);
        }
    }
}

bool repeat_has_made(const struct repeat *repeat, size_t number)
{
    const struct recorded *all = repeat->made.paths;
    bool made = all[number].flags & LET_GO, exact = repeat_is_possible(repeat); /* else nobody removes them */
    for (size_t i = 0; exact && made && i < repeat->made.count && i < repeat->cleared; i++)
        made = all[i].flags & LET_GO || !path_is_below(all[number].path, all[i].path); /* what has left took along what was below it */
    return made;
}
