/* What view.h promises, on Linux. Three facts carry it, each measured on NFS v3, v4.2 and ganesha (docs/coherence.md):
 *
 *  - openat2(RESOLVE_CACHED) of one name in an open directory sends nothing. It answers with what this host believes without
 *    asking (a descriptor, or ENOENT), or with EAGAIN: it believes nothing, and will ask when somebody looks.
 *  - statx(FORCE_SYNC) of a directory makes the host forget what it believed of names in it, if the directory has changed.
 *  - Two changes inside one tick of the server's clock can look like none. Then a name that is believed to be missing is
 *    cured by mkdir (it fails with EEXIST, and the belief is dropped), one that is believed to be another file by link from
 *    another file system (it cannot succeed, but has to look first).
 *
 * A belief was formed at or after the directory's present ctime. So when that is later than the entry's, the name has changed
 * again since, and nothing is wrong: mkdir is not tried on names that somebody removed. */
#include "coherence/view.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "coherence/look.h"

enum { MAX_MISSING = 8, RECENT_SECONDS = 10 };

/* ---- one directory ---- */

void view_start(struct view *view)
{
    memset(view, 0, offsetof(struct view, directory_path));
    view->directory = -1;
    view->directory_path[0] = 0;
}

void view_end(struct view *view)
{
    if (view->directory >= 0)
        close(view->directory);
    view->directory = -1;
}

/* Asks the server about the open directory, once in a view. True: what was known of it was old. */
static bool ask_directory(struct view *view)
{
    struct entry before, after;
    if (view->asked)
        return false;
    view->asked = true;
    view->known[view->known_count++ % VIEW_KNOWN] = view->identity;
    bool known = look(&before, view->directory, "", CACHED);
    view->synced++;
    if (!look(&after, view->directory, "", ASK))
        return false;
    view->changed = after.ctime;
    return known && (before.ctime != after.ctime || before.mtime != after.mtime);
}

/* ---- cached pages ---- */

/* Drops those of a file's bytes or a directory's listing, without a question about them: what they were read from may have changed
 * within a tick, and then no number tells. False when they may still be there. */
static bool drop_pages(int directory, const char *name, int flags)
{
    int fd = openat(directory, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC | flags);
    if (fd < 0)
        return false;
    bool done = posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) == 0;
    close(fd);
    return done;
}

/* Which listings, as of which change of their directory, need no more be dropped: a word for each, shared by the processes of this
 * host that look. One that was read within the tick of a change may lack names of that tick. Dropped more than a second after
 * somebody first told of the change it is dropped for good: whatever is read later was read after that tick. A word that is lost
 * costs a question. */
enum { LISTINGS = 4096, SECONDS_BITS = 20, PERIOD = (1 << SECONDS_BITS) - 1, SETTLED_SECONDS = 1 };

static _Atomic uint64_t *listings; /* a hash above SECONDS_BITS; below, when it was first dropped, or 0: for good */

void view_share(void)
{
    void *room = mmap(NULL, LISTINGS * sizeof *listings, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (room != MAP_FAILED)
        listings = room;
}

/* What a word becomes when the listing is dropped now. Several processes look at once, and their clocks are read in any order. */
static uint64_t after_drop(uint64_t before, uint64_t key)
{
    struct timespec clock;
    clock_gettime(CLOCK_MONOTONIC, &clock);
    uint64_t now = (uint64_t)clock.tv_sec % PERIOD + 1, first = before & PERIOD;
    if ((before & ~(uint64_t)PERIOD) != key)
        return key | now;
    uint64_t elapsed = (now + PERIOD - first) % PERIOD;
    return elapsed > SETTLED_SECONDS && elapsed < PERIOD / 2 ? key : before;
}

/* A directory in which a name may have come within the tick of its last change, after its listing was read. Noted is only what has
 * been dropped, and what was known before that. */
static void relist(struct view *view, int64_t changed)
{
    uint64_t hash = (view->identity ^ (uint64_t)changed) * 0x9E3779B97F4A7C15u, key = hash & ~(uint64_t)PERIOD;
    _Atomic uint64_t *word = listings ? &listings[(hash >> SECONDS_BITS) % LISTINGS] : NULL;
    uint64_t before = word ? atomic_load(word) : 0, after = after_drop(before, key);
    if (view->relisted || (word && before == key))
        return;
    view->relisted = drop_pages(view->directory, ".", O_DIRECTORY);
    if (word && view->relisted)
        atomic_store(word, after);
}

static void unseen(struct view *view, const struct entry *entry, bool count)
{
    if (count && view->unseen++ == 0)
        snprintf(view->path, sizeof view->path, "%s", entry->path);
}

/* Drops the belief that a name is missing. True: it is there. If it is not, who is killed within the next line leaves a directory: what
 * wants to write there fails for it. An empty file would be taken for an output. */
static bool cure_missing(struct view *view, const char *name)
{
    view->synced++;
    if (mkdirat(view->directory, name, 0700) == 0)
        unlinkat(view->directory, name, AT_REMOVEDIR);
    else if (errno == EEXIST)
        return true;
    return false;
}

/* Has the server look whether a name still is the file that it is believed to be. Nothing is made: no link leads from /proc
 * to another file system. */
static void cure_present(struct view *view, const char *name)
{
    view->synced++;
    (void)!linkat(AT_FDCWD, "/proc/self/status", view->directory, name, 0);
}

/* ---- one name in the open directory ---- */

enum belief { NOTHING, MISSING, OTHER, SAME };

/* What is believed of a name, beside what the entry says of it. Directories are compared by identity alone: what is in them has
 * entries of its own. */
static enum belief belief_about(struct view *view, const char *name, const struct entry *entry, int how, struct entry *here)
{
    int fd = look_believed(view->directory, name);
    if (fd < 0)
        return look_is_missing(errno) ? MISSING : NOTHING;
    bool known = look_closely(here, fd, "", how, &view->regular);
    int error = errno;
    close(fd);
    if (!known)
        return error == ESTALE ? OTHER : NOTHING;
    if ((here->kind == MANIFEST_DIRECTORY) != (entry->kind == MANIFEST_DIRECTORY))
        return OTHER;
    if (entry->ino && here->ino != entry->ino && look_numbers_agree(view->directory))
        return OTHER;
    return SAME;
}

/* A belief that names another file, or none, after the server was asked about the directory. */
static void cure(struct view *view, const char *name, const struct entry *entry, enum belief belief, bool strict)
{
    struct entry here;
    if (view->changed > entry->ctime)
        return;
    if (belief == OTHER)
        cure_present(view, name);
    else if (!cure_missing(view, name)) {
        unseen(view, entry, strict && view->changed < entry->ctime);
        return;
    }
    view->healed++;
    view->stale++;
    belief = belief_about(view, name, entry, ASK, &here);
    if (belief == MISSING || (belief == OTHER && here.ctime <= entry->ctime))
        unseen(view, entry, strict);
}

/* What somebody merely saw is not worth opening a file on the server, unless it is new. */
static bool is_recent(int64_t time)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return llabs((int64_t)now.tv_sec - time / 1000000000) <= RECENT_SECONDS;
}

/* The believed file is the entry's; is what is known of it as new? */
static void freshen(struct view *view, const char *name, const struct entry *entry, struct entry *here, bool strict)
{
    if (entry->kind == MANIFEST_DIRECTORY || here->ctime > entry->ctime)
        return;
    if (look_same(here, entry)) {
        if (view->regular && entry->size > 0 && (strict || is_recent(entry->mtime)))
            drop_pages(view->directory, name, 0);
        return;
    }
    struct entry before = *here;
    view->synced++;
    enum belief belief = belief_about(view, name, entry, ASK, here);
    view->stale += belief == SAME && !look_same(&before, here);
    if (belief == SAME && here->ctime <= entry->ctime && !look_same(here, entry))
        unseen(view, entry, strict);
    if (belief == OTHER) {
        ask_directory(view);
        cure(view, name, entry, belief, strict);
    }
}

/* Makes what is believed of a name agree with its entry. */
static void agree_present(struct view *view, const char *name, const struct entry *entry, bool strict)
{
    struct entry here = {.ctime = 0};
    enum belief belief = belief_about(view, name, entry, CACHED, &here);
    /* A directory whose time is up answers EAGAIN too, and would keep its beliefs when nothing seems to have changed. */
    if (belief != SAME && !view->asked && view->changed <= entry->ctime) {
        enum belief before = belief;
        ask_directory(view);
        belief = belief_about(view, name, entry, CACHED, &here);
        view->stale += before != NOTHING && before != belief;
    }
    if (belief == SAME)
        freshen(view, name, entry, &here, strict);
    else if (belief != NOTHING)
        cure(view, name, entry, belief, strict);
}

static bool believed_present(struct view *view, const char *name)
{
    int fd = look_believed(view->directory, name);
    if (fd >= 0)
        close(fd);
    return fd >= 0;
}

/* The same for a name that is gone. If the server still has it, it came back since. */
static void agree_gone(struct view *view, const char *name)
{
    bool before = believed_present(view, name);
    ask_directory(view);
    bool present = believed_present(view, name);
    if (present) {
        cure_present(view, name);
        present = believed_present(view, name);
        view->healed += !present;
    }
    view->stale += before && !present;
}

/* ---- from paths to directories ---- */

/* Copies a path's directory to `parent`, of MANIFEST_PATH_BYTES. Its last name, or NULL when it has none. */
static const char *split(char *parent, const char *path)
{
    const char *slash = strrchr(path, '/');
    if (!slash || !slash[1] || slash - path >= MANIFEST_PATH_BYTES)
        return NULL;
    size_t size = slash == path ? 1 : (size_t)(slash - path);
    memcpy(parent, path, size);
    parent[size] = 0;
    return slash + 1;
}

/* A directory that took another's place under the same path is another one. */
static uint64_t identity_of(const char *path, uint64_t ino)
{
    uint64_t hash = 0xCBF29CE484222325u ^ ino;
    for (; *path; path++)
        hash = (hash ^ (unsigned char)*path) * 0x100000001B3u;
    return hash;
}

static bool was_asked(const struct view *view, uint64_t identity)
{
    unsigned count = view->known_count < VIEW_KNOWN ? view->known_count : VIEW_KNOWN;
    for (unsigned i = 0; i < count; i++)
        if (view->known[i] == identity)
            return true;
    return false;
}

static bool keep_open(struct view *view, const char *path)
{
    struct entry here = {.ctime = 0};
    int fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return false;
    view_end(view);
    view->directory = fd;
    snprintf(view->directory_path, sizeof view->directory_path, "%s", path);
    (void)look(&here, fd, "", CACHED);
    view->changed = here.ctime;
    view->identity = identity_of(path, here.ino);
    view->asked = was_asked(view, view->identity);
    view->relisted = false;
    return true;
}

/* Opens a directory. When it is not there for this host, its parents are made to agree that it is, top-down. */
static bool reach(struct view *view, const char *path, const struct entry *entry, bool strict, int missing)
{
    if (view->directory >= 0 && strcmp(path, view->directory_path) == 0)
        return true;
    if (keep_open(view, path))
        return true;
    char parent[MANIFEST_PATH_BYTES];
    if (!look_is_missing(errno) || missing >= MAX_MISSING)
        return false;
    const char *name = split(parent, path);
    if (!name || !reach(view, parent, entry, strict, missing + 1))
        return false;
    struct entry wanted = {.kind = MANIFEST_DIRECTORY, .ctime = entry->ctime, .path = entry->path};
    agree_present(view, name, &wanted, strict);
    return keep_open(view, path);
}

/* The directory itself: is it the same one, and are its names as old as the entry's? */
static void agree_directory(struct view *view, const struct entry *entry, bool strict)
{
    struct entry here;
    if (!reach(view, entry->path, entry, strict, 0) || !look(&here, view->directory, "", CACHED))
        return;
    if (entry->ino && here.ino != entry->ino && look_numbers_agree(view->directory)) {
        char parent[MANIFEST_PATH_BYTES];
        const char *name = split(parent, entry->path);
        if (name && reach(view, parent, entry, strict, 0))
            agree_present(view, name, entry, strict);
        if (!name || !keep_open(view, entry->path) || !look(&here, view->directory, "", CACHED))
            return;
    }
    int64_t changed = here.ctime;
    if (here.ctime < entry->ctime || (here.ctime == entry->ctime && here.mtime != entry->mtime)) {
        view->stale += ask_directory(view);
        changed = view->changed;
    }
    /* Also after the question: times that this host's own changes had left old do not tell what its listing was read from. */
    if (changed == entry->ctime)
        relist(view, changed);
}

static bool agree(struct view *view, const void *piece, size_t length, bool strict)
{
    struct entries rest = entries_of(piece, length);
    struct entry entry;
    char parent[MANIFEST_PATH_BYTES];
    while (entries_next(&rest, &entry)) {
        if (entry.kind == MANIFEST_READ)
            continue;
        bool must = strict && !entry.seen;
        view->checked++;
        if (entry.kind == MANIFEST_DIRECTORY) {
            agree_directory(view, &entry, must);
            continue;
        }
        const char *name = split(parent, entry.path);
        if (!name || !reach(view, parent, &entry, must && entry.kind == MANIFEST_FILE, 0))
            continue;
        if (entry.kind == MANIFEST_FILE)
            agree_present(view, name, &entry, must);
        else
            agree_gone(view, name);
    }
    return rest.at == rest.end;
}

bool view_apply(struct view *view, const void *piece, size_t length)
{
    return agree(view, piece, length, true);
}

bool view_compare(struct view *view, const void *piece, size_t length)
{
    return agree(view, piece, length, false);
}

void view_count_stale(struct view *view, const struct entry *now)
{
    view->stale++;
    if (now && (view->stale_at == 0 || now->ctime < view->stale_at))
        view->stale_at = now->ctime;
}

/* ---- a name that was looked for in vain ---- */

/* Is a name of the open directory believed to be missing, and wrongly so? A directory that was not changed lately cannot hide
 * a change within a tick: no name is tried out there. */
static void doubt_name(struct view *view, const char *name)
{
    struct entry any = {.kind = MANIFEST_FILE}, here;
    if (believed_present(view, name) || errno != ENOENT)
        return;
    ask_directory(view);
    bool missing = !believed_present(view, name) && errno == ENOENT;
    if (missing && is_recent(view->changed) && cure_missing(view, name)) {
        view->healed++;
        missing = false;
    }
    any.ctime = view->changed;
    if (!missing && look(&here, view->directory, name, ASK))
        view_count_stale(view, &any);
}

static bool doubt(struct view *view, const char *path, int depth)
{
    char parent[MANIFEST_PATH_BYTES];
    const char *name = split(parent, path);
    if (!name || depth > MAX_MISSING)
        return false;
    if (!keep_open(view, parent) && (!look_is_missing(errno) || !doubt(view, parent, depth + 1) || !keep_open(view, parent)))
        return false;
    if (look_is_coherent(view->directory))
        return false;
    doubt_name(view, name);
    return true;
}

void view_doubt(struct view *view, const char *path)
{
    (void)doubt(view, path, 0);
}

