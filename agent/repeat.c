/* May the attempt be run again? As long as it only made names that were not there before, it may: they are removed first. What
 * changes, replaces or removes anything that was there, or runs a program of the tree, rules it out for good.
 *
 * Knows what each kind of call does to names, and looks, as the user, how those stand before the call goes on; does not know how
 * calls are heard (trace.c), nor who is told (relay.c). Where it cannot be sure it says no: that costs a rerun, never a file.
 * Names are those on the shared roots, told as they lie in their real directories: a link on the way may lead elsewhere by the time
 * they are removed. A name that was made stays this attempt's, whatever becomes of it. One that is there before any call that makes
 * it was let go on is somebody else's. */
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

enum { LET_GO = 1 }; /* of a name that is made: a call that makes it was let go on */

static bool is_made(const struct repeat *repeat, const char *path) { return record_find(&repeat->made, path) != NULL; }

static void note_made(struct repeat *repeat, const char *path)
{
    struct recorded *known = record_find(&repeat->made, path);
    if (known && repeat_facts(repeat) <= repeat->cleared) /* nothing keeps the call any more */
        known->flags |= LET_GO;
    if (repeat->beyond[0] || known)
        return;
    if (repeat->made.count == MOST_MADE || repeat->made.text + strlen(path) > MOST_MADE_TEXT || !record_add(&repeat->made, path))
        repeat_rule_out(repeat, "it made more names than the agent keeps");
}

/* ---- how names stand ---- */

enum standing { ABSENT, THERE, LINK, UNREACHABLE, UNKNOWN };

static enum standing standing_of(const char *path, mode_t *kind)
{
    struct stat st;
    *kind = 0;
    errno = 0;
    if (lstat(path, &st) != 0 && (errno == ENOENT || errno == ENOTDIR))
        return ABSENT;
    if (errno == EACCES || errno == ELOOP || errno == ENAMETOOLONG)
        return UNREACHABLE;
    if (errno != 0)
        return UNKNOWN;
    *kind = st.st_mode & S_IFMT;
    return S_ISLNK(st.st_mode) ? LINK : THERE;
}

/* A network file system may believe that a name is absent; to open its directory asks the server. */
static void ask_about(const char *path)
{
    char above[PATH_ROOM];
    int fd = path_split(path, above) ? open(above, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (fd >= 0)
        close(fd);
}

struct name {
    enum standing standing;
    mode_t kind;
    char path[PATH_ROOM]; /* as the shared roots have it */
};

/* The name as it lies in its real directory, written with the name of its root. As the user. False when it is on none. A directory that
 * is not there may be on its way: then the path stays as it is. */
static bool settle(const struct spec *spec, const char *path, char out[PATH_ROOM])
{
    if (!path_settle_here(path, out))
        strcpy(out, path);
    return spec_name_by_root(spec, out);
}

/* Asks, too, whether the directory has changed at the server. When it is looked at again that is worth it only where the call fails if
 * somebody was faster: then the name would be taken for ours. */
static void look_at(const struct repeat *repeat, const struct spec *spec, struct name *name, bool exclusive)
{
    name->standing = standing_of(name->path, &name->kind);
    if (name->standing != ABSENT || !spec->views || (repeat->again && !exclusive))
        return;
    ask_about(name->path);
    name->standing = standing_of(name->path, &name->kind);
}

/* Looks at a name of a shared root, as the user. False when it is of no concern, or nothing more is. */
static bool find(struct repeat *repeat, const struct spec *spec, const char *path, const char *scratch, bool exclusive, struct name *out)
{
    out->standing = UNREACHABLE;
    bool user = !repeat->beyond[0] && identity_assume(spec), shared = user && settle(spec, path, out->path);
    if (user && (shared || spec_is_shared(spec, path)) && !path_is_private(out->path, scratch))
        look_at(repeat, spec, out, exclusive);
    identity_drop(spec);
    if (out->standing == UNREACHABLE) /* by the user: the call fails; or not looked at */
        return false;
    const struct recorded *made = record_find(&repeat->made, out->path);
    if (!shared)
        rule_out_for(repeat, "a link led it out of the shared tree at", path, "");
    else if (made && (out->standing == THERE || out->standing == LINK) && !(made->flags & LET_GO))
        rule_out_for(repeat, "somebody else made", out->path, " when it was about to");
    return !repeat->beyond[0];
}

/* What the link at this name leads to takes its place; ABSENT when that is nothing. False when it is of no concern. */
static bool follow(const struct spec *spec, const char *scratch, struct name *name)
{
    char real[PATH_ROOM];
    struct stat st = {0};
    bool user = identity_assume(spec);
    bool there = user && path_real(name->path, real) && stat(real, &st) == 0;
    bool shared = there && !path_is_private(real, scratch) && spec_name_by_root(spec, real);
    identity_drop(spec);
    name->standing = there ? THERE : ABSENT;
    name->kind = st.st_mode & S_IFMT;
    if (shared)
        strcpy(name->path, real);
    return shared || !there;
}

/* ---- what calls do ---- */

void repeat_opens(struct repeat *repeat, const struct spec *spec, const char *path, const char *scratch, uint64_t how)
{
    static struct name name;
    bool creates = how & O_CREAT, afresh = creates && how & O_EXCL;
    if (!find(repeat, spec, path, scratch, afresh, &name) || (afresh && name.standing != ABSENT))
        return;
    bool linked = name.standing == LINK;
    if (linked && (how & O_NOFOLLOW || !follow(spec, scratch, &name)))
        return;
    if (linked && name.standing == ABSENT && creates)
        rule_out_for(repeat, "it made what the link", name.path, " led to");
    else if (name.standing == ABSENT && creates)
        note_made(repeat, name.path);
    else if (name.standing == UNKNOWN ||
             (name.standing == THERE && how & (O_ACCMODE | O_TRUNC) && S_ISREG(name.kind) && !is_made(repeat, name.path)))
        rule_out_for(repeat, "it changed", name.path, "");
}

void repeat_makes(struct repeat *repeat, const struct spec *spec, const char *path, const char *scratch)
{
    static struct name name;
    if (!find(repeat, spec, path, scratch, true, &name))
        return;
    if (name.standing == UNKNOWN)
        rule_out_for(repeat, "it made", name.path, ", of which the agent cannot tell what was there");
    else if (name.standing == ABSENT)
        note_made(repeat, name.path);
}

void repeat_changes(struct repeat *repeat, const struct spec *spec, const char *path, const char *scratch, bool follows)
{
    static struct name name;
    if (!find(repeat, spec, path, scratch, false, &name) || name.standing == ABSENT)
        return;
    bool ours = is_made(repeat, name.path);
    if (ours && follows && name.standing == LINK && follow(spec, scratch, &name))
        ours = name.standing == ABSENT || is_made(repeat, name.path);
    if (!ours)
        rule_out_for(repeat, "it changed", name.path, "");
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
            note_made(repeat, moved);
        else
            repeat_rule_out(repeat, "it made a name that is too long");
    }
}

void repeat_places(struct repeat *repeat, const struct spec *spec, const char *path, const char *from, const char *scratch)
{
    static struct name name, source;
    struct stat st = {0};
    bool user = identity_assume(spec);
    bool there = user && lstat(from, &st) == 0;
    identity_drop(spec);
    if (!there) /* what is not there cannot be moved */
        return;
    bool ours = find(repeat, spec, from, scratch, false, &source) && is_made(repeat, source.path);
    if (!find(repeat, spec, path, scratch, false, &name))
        return;
    if (name.standing != ABSENT && !is_made(repeat, name.path))
        rule_out_for(repeat, "it replaced", name.path, "");
    else if (S_ISDIR(st.st_mode) && !ours)
        rule_out_for(repeat, "it moved a whole directory to", name.path, "");
    note_made(repeat, name.path);
    if (!ours)
        return;
    move_below(repeat, source.path, name.path);
    if (name.standing != ABSENT) /* they may change places */
        move_below(repeat, name.path, source.path);
}

/* A program goes by its path as the user sees it, since one of the image may be a link to anywhere; but not by "..". As the user. False
 * when it is of the image, or on no root. What lies in the private TMPDIR the command has made itself: a test, perhaps. */
static bool find_program(const struct spec *spec, const char *path, const char *scratch, char out[PATH_ROOM])
{
    if (!strstr(path, "/../") || !path_settle_here(path, out))
        strcpy(out, path);
    if (is_in_image(out))
        return false;
    if ((scratch[0] && path_is_below(out, scratch)) || (spec_is_shared(spec, out) && !path_is_private(out, scratch)))
        return true;
    return !path_is_private(out, scratch) && path_settle_here(path, out) && spec_name_by_root(spec, out);
}

void repeat_runs(struct repeat *repeat, const struct spec *spec, const char *path, const char *scratch)
{
    char program[PATH_ROOM];
    struct stat st;
    bool user = !repeat->beyond[0] && identity_assume(spec);
    bool runs = user && find_program(spec, path, scratch, program) && stat(program, &st) == 0 && S_ISREG(st.st_mode) &&
                faccessat(AT_FDCWD, program, X_OK, AT_EACCESS) == 0;
    identity_drop(spec);
    bool own = runs && path_is_private(program, scratch);
    if (runs)
        rule_out_for(repeat, "it ran", program, own ? ", a program that it had made" : ", a program of the tree");
}
