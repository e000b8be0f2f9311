/* Where a name leads that a call gives. What is written may go by links, among them those of /proc, which are another thing for each
 * process that looks (/proc/self, /dev/fd) or tell where a descriptor leads. A way without links is found at a glance, by the kernel;
 * only another is gone step by step. Asks as whoever this process is. Does not know what the call does to the name. */
#include "agent/runner.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MOST_LINKS = 40 }; /* the kernel goes by no more */

enum last { LAST_STAYS, LAST_STAYS_IN_TREE, LAST_FOLLOWED }; /* a link at the last name of a path */

/* ---- what /proc says ---- */

/* "(deleted)" is what the kernel says where a name is gone; it may be a name's own end, too. */
static enum leads lead_of_deleted(const char *link, const char *text)
{
    struct stat st, named;
    if (stat(link, &st) != 0)
        return LEADS_UNCLEAR;
    if (lstat(text, &named) == 0 && named.st_dev == st.st_dev && named.st_ino == st.st_ino)
        return LEADS_TO;
    return S_ISDIR(st.st_mode) || st.st_nlink == 0 ? LEADS_NAMELESS : LEADS_UNCLEAR; /* it may have another name */
}

enum leads lead_of_process(const char *link, char to[PATH_ROOM])
{
    static const char deleted[] = " (deleted)";
    ssize_t size = readlink(link, to, PATH_ROOM - 1);
    if (size < 0)
        return errno == ENOENT || errno == ENOTDIR || errno == ESRCH ? LEADS_NOWHERE : LEADS_UNCLEAR;
    to[size] = '\0';
    if (to[0] != '/') /* a pipe; or a directory that cannot be reached from the root */
        return to[0] == '(' ? LEADS_UNCLEAR : LEADS_NOWHERE;
    const char *end = to + strlen(to) - strlen(deleted);
    return end > to && strcmp(end, deleted) == 0 ? lead_of_deleted(link, to) : LEADS_TO;
}

bool path_climbs(const char *path)
{
    for (; *path; path += strspn(path, "/")) {
        size_t length = strcspn(path, "/");
        if (length == 2 && path[0] == '.' && path[1] == '.')
            return true;
        path += length;
    }
    return false;
}

/* ---- step by step ---- */

struct way {
    const struct spec *spec; /* LAST_STAYS_IN_TREE */
    const struct place *place;
    pid_t pid;
    enum last last;
    unsigned links;
    char rest[PATH_ROOM]; /* of the way */
    char *out;            /* as far as it is known */
};

static void leave_name(char *out)
{
    char *slash = strrchr(out, '/');
    if (slash)
        *slash = '\0';
}

/* What is known so far is a link that says this. */
static enum leads go_by(struct way *way, const char *text)
{
    char longer[2 * PATH_ROOM];
    int size = snprintf(longer, sizeof longer, "%s/%s", text, way->rest);
    if (++way->links > MOST_LINKS)
        return LEADS_NOWHERE;
    if (size >= PATH_ROOM)
        return LEADS_UNCLEAR;
    strcpy(way->rest, longer);
    if (text[0] == '/')
        way->out[0] = '\0';
    else
        leave_name(way->out);
    return LEADS_TO;
}

/* A link that a process's directory in /proc holds: the kernel says where it is, no link leads on from there. */
static enum leads go_by_process(struct way *way)
{
    char text[PATH_ROOM];
    errno = 0;
    enum leads leads = lead_of_process(way->out, text);
    if (leads == LEADS_UNCLEAR && errno == EINVAL) /* no link */
        return LEADS_TO;
    if (leads == LEADS_NAMELESS && way->rest[0])
        return path_climbs(way->rest) ? LEADS_UNCLEAR : LEADS_NOWHERE;
    if (leads == LEADS_TO || leads == LEADS_NAMELESS)
        strcpy(way->out, strcmp(text, "/") == 0 ? "" : text);
    return leads;
}

/* Or is the call that names it going to fail as well? */
static bool is_no_link(int error)
{
    return error == EINVAL || error == ENOENT || error == ENOTDIR || error == EACCES || error == ENAMETOOLONG;
}

static enum leads go_on(struct way *way)
{
    char text[PATH_ROOM];
    if (strncmp(way->out, "/proc/", 6) == 0 && isdigit((unsigned char)way->out[6]))
        return go_by_process(way);
    if (strcmp(way->out, "/proc/self") == 0 || strcmp(way->out, "/proc/thread-self") == 0) {
        snprintf(text, sizeof text, "%d", (int)way->pid);
        return go_by(way, text);
    }
    ssize_t size = readlink(way->out, text, sizeof text - 1);
    if (size < 0)
        return is_no_link(errno) ? LEADS_TO : LEADS_UNCLEAR;
    text[size] = '\0';
    return go_by(way, text);
}

static bool is_of_tree(const struct spec *spec, const struct place *place, const char *path)
{
    char named[PATH_ROOM];
    strcpy(named, path);
    return !path_is_private(path, place->scratch) && spec_name_by_root(spec, named);
}

/* Takes the next name off the rest. */
static enum leads step(struct way *way)
{
    char name[PATH_ROOM];
    size_t start = strspn(way->rest, "/"), length = strcspn(way->rest + start, "/"), used = strlen(way->out);
    snprintf(name, sizeof name, "%.*s", (int)length, way->rest + start);
    start += length;
    start += strspn(way->rest + start, "/");
    memmove(way->rest, way->rest + start, strlen(way->rest + start) + 1);
    if (name[0] == '\0' || strcmp(name, ".") == 0)
        return LEADS_TO;
    if (strcmp(name, "..") == 0) {
        leave_name(way->out);
        return LEADS_TO;
    }
    if (used + length + 2 > PATH_ROOM)
        return LEADS_UNCLEAR;
    snprintf(way->out + used, PATH_ROOM - used, "/%s", name);
    bool stays = way->last == LAST_STAYS || (way->last == LAST_STAYS_IN_TREE && is_of_tree(way->spec, way->place, way->out));
    return stays && way->rest[0] == '\0' ? LEADS_TO : go_on(way);
}

static enum leads go(struct way *way, const char *path)
{
    enum leads leads = LEADS_TO;
    strcpy(way->rest, path);
    way->out[0] = '\0';
    while (leads == LEADS_TO && way->rest[0])
        leads = step(way);
    if (way->out[0] == '\0')
        strcpy(way->out, "/");
    return leads;
}

enum leads path_lead(pid_t pid, const char *path, bool follows, char out[PATH_ROOM])
{
    struct way way = {.pid = pid, .last = follows ? LAST_FOLLOWED : LAST_STAYS, .out = out};
    return go(&way, path);
}

/* ---- a place ---- */

static bool has_link(const char *path)
{
    char text[2];
    return readlink(path, text, sizeof text) >= 0;
}

/* Is it written as it is? */
static bool is_straight(const struct spec *spec, const struct place *place, bool follows)
{
    char above[PATH_ROOM], real[PATH_ROOM];
    const char *path = place->written;
    if (path_is_below(path, "/proc") || path_is_below(path, "/dev") || !path_split(path, above))
        return false;
    return path_real(above, real) && strcmp(above, real) == 0 && (!follows || is_of_tree(spec, place, path) || !has_link(path));
}

static bool is_homeless(const char *path)
{
    char above[PATH_ROOM], real[PATH_ROOM];
    return path_split(path, above) && !path_real(above, real) && (errno == ENOENT || errno == ENOTDIR);
}

enum leads place_find(const struct spec *spec, bool follows, struct place *place)
{
    enum leads leads = LEADS_TO;
    struct way way = {spec, place, place->pid, follows ? LAST_STAYS_IN_TREE : LAST_STAYS, 0, "", place->path};
    bool straight = is_straight(spec, place, follows);
    if (straight)
        strcpy(place->path, place->written);
    else
        leads = go(&way, place->written);
    place->private = path_is_private(place->path, place->scratch);
    place->shared = !place->private && spec_name_by_root(spec, place->path);
    place->strayed = !place->private && !place->shared && spec_is_shared(spec, place->written) && !path_climbs(place->written);
    place->homeless = !straight && place->shared && is_homeless(place->path);
    return leads;
}
