/* May the attempt be run again? As long as it only made names that were not there before, it may: they are removed first. What
 * changes, replaces or removes anything that was there, or runs a program of the tree, rules it out for good.
 *
 * Knows what each kind of call does to names, and looks, as the user, how those stand before the call goes on; does not know how
 * calls are heard (trace.c), nor who is told (relay.c). Where it cannot be sure it says no: that costs a rerun, never a file.
 * Names are those on the shared roots; a name that was made stays this attempt's, whatever becomes of it. */
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

static bool is_made(const struct repeat *repeat, const char *path) { return record_find(&repeat->made, path) != NULL; }

static void note_made(struct repeat *repeat, const char *path)
{
    if (repeat->beyond[0] || is_made(repeat, path))
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

/* Looks at a name of a shared root, as the user. False when it is of no concern, or nothing more is. */
static bool find(const struct repeat *repeat, const struct spec *spec, const char *path, struct name *out)
{
    bool shared = spec_is_shared(spec, path);
    if (repeat->beyond[0] || (!shared && !path_settle(spec, path, out->path)))
        return false;
    if (shared)
        strcpy(out->path, path);
    bool user = identity_assume(spec);
    shared = user && spec_name_by_root(spec, out->path);
    if (shared)
        out->standing = standing_of(out->path, &out->kind);
    if (shared && out->standing == ABSENT && spec->views) {
        ask_about(out->path);
        out->standing = standing_of(out->path, &out->kind);
    }
    identity_drop(spec);
    return shared && out->standing != UNREACHABLE; /* the user cannot reach it: the call fails */
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
    if (!find(repeat, spec, path, &name) || (afresh && name.standing != ABSENT))
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

void repeat_makes(struct repeat *repeat, const struct spec *spec, const char *path)
{
    static struct name name;
    if (!find(repeat, spec, path, &name))
        return;
    if (name.standing == UNKNOWN)
        rule_out_for(repeat, "it made", name.path, ", of which the agent cannot tell what was there");
    else if (name.standing == ABSENT)
        note_made(repeat, name.path);
}

void repeat_changes(struct repeat *repeat, const struct spec *spec, const char *path, const char *scratch, bool follows)
{
    static struct name name;
    if (!find(repeat, spec, path, &name) || name.standing == ABSENT)
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

void repeat_places(struct repeat *repeat, const struct spec *spec, const char *path, const char *from)
{
    static struct name name;
    struct stat st = {0};
    bool user = identity_assume(spec);
    bool there = user && lstat(from, &st) == 0;
    identity_drop(spec);
    if (!there || !find(repeat, spec, path, &name)) /* what is not there cannot be moved */
        return;
    if (name.standing != ABSENT && !is_made(repeat, name.path))
        rule_out_for(repeat, "it replaced", name.path, "");
    else if (S_ISDIR(st.st_mode) && !is_made(repeat, from))
        rule_out_for(repeat, "it moved a whole directory to", name.path, "");
    note_made(repeat, name.path);
    move_below(repeat, from, name.path);
    if (name.standing != ABSENT) /* they may change places */
        move_below(repeat, name.path, from);
}

/* As the user sees its path: a program of the image may be a link to anywhere. */
void repeat_runs(struct repeat *repeat, const struct spec *spec, const char *path, const char *scratch)
{
    static struct name name;
    struct stat st;
    if (is_in_image(path) || path_is_private(path, scratch) || !find(repeat, spec, path, &name) || name.standing == ABSENT)
        return;
    bool user = identity_assume(spec);
    bool runs = user && stat(path, &st) == 0 && S_ISREG(st.st_mode) && faccessat(AT_FDCWD, path, X_OK, AT_EACCESS) == 0;
    identity_drop(spec);
    if (runs)
        rule_out_for(repeat, "it ran", name.path, ", a program of the tree");
}
