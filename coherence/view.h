/* This host's view of the shared tree, made to agree with what others say of it.
 *
 * A network file system shows each host its own cache. An entry (protocol/manifest.h) says how a name stood where it was
 * written or looked at; these functions compare it with what is cached here, without asking the server where nothing is
 * cached, ask it where the two differ, and heal what asking alone does not (changes inside one tick of the server's clock).
 * Everything happens with the caller's rights. Knows the file system; does not know jobs, messages, or who wrote what.
 * The algorithm and its measured facts: docs/coherence.md. */
#ifndef DWRAP_VIEW_H
#define DWRAP_VIEW_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "protocol/manifest.h"

enum { VIEW_KNOWN = 256 };

/* One look: nothing that was asked in it is asked again. Whoever looks later (a command has run meanwhile) starts a new one. */
struct view {
    unsigned checked; /* entries looked at */
    unsigned synced;  /* questions asked of the server */
    unsigned stale;   /* of what was cached here, what had to be corrected */
    int64_t stale_at; /* of what a refresh found stale, the earliest time of its change (ctime on the server); 0: none is known */
    unsigned healed;  /* of these, how many needed more than a question */
    unsigned unseen;  /* entries that still do not show here as they were written: never silently ignored */
    char path[256];   /* the first of the unseen, cut at the end */

    /* The directory of the last entry, kept open: entries of one directory come in rows. */
    int directory;
    bool asked;        /* the server was asked about it in this view */
    int64_t changed;   /* its ctime as far as known */
    uint64_t identity; /* of path and inode */
    bool relisted;     /* no listing of it that this host keeps is from before this view */
    bool regular;      /* the name looked at last is a regular file */
    uint64_t known[VIEW_KNOWN]; /* identities of the directories that were asked about, the newest of them */
    unsigned known_count;
    char directory_path[MANIFEST_PATH_BYTES];
};

/* Before processes are forked that look one after the other: what one of them need not do again is known to those that follow. */
void view_share(void);

void view_start(struct view *view);
void view_end(struct view *view);

/* Makes the view agree with entries that were written after a command had ended: what is there must be seen as it was written,
 * unless it has changed since. False when the piece is malformed. R entries are passed over. */
bool view_apply(struct view *view, const void *piece, size_t length);

/* The same for entries that somebody merely saw: what he saw may be older than what is here, so nothing counts as unseen. */
bool view_compare(struct view *view, const void *piece, size_t length);

/* Asks the server about whatever is cached here below a directory, directories before what is in them, at most `most` names.
 * Counts what was stale. */
void view_refresh(struct view *view, const char *directory, unsigned most);

/* Looks again for a name that somebody has just looked for in vain here. When that was for a wrong belief, of the name or of a
 * directory on the way, it counts as stale and is corrected. */
void view_doubt(struct view *view, const char *path);

/* The entry of a path as it is here now, asking the server when `ask`. False with errno when it cannot be told; a path that is
 * not there gives a G entry. Its `path` is the argument. */
bool view_entry(struct entry *entry, const char *path, bool ask);

/* The entry of a file that is open here: what the server has of it once all that was written is stored there. */
bool view_entry_open(struct entry *entry, int fd, const char *path);

/* The same of a path, as stat sees it: what is cached here, as long as it counts. Of a directory: never its old
 * times, which this host's own changes leave behind. */
bool view_entry_as_stat(struct entry *entry, const char *path);

/* What this host believes of a name in a directory, without asking: a descriptor (O_PATH), -1 with ENOENT, or -1 with EAGAIN. */
int view_believed(int directory, const char *name);

enum { VIEW_COHERENT = 1, VIEW_NUMBERED = 2 };

/* The next two in one question: fstatfs asks a server, so a process asks once for one file system after another. */
unsigned view_traits(int fd);

/* Does every host see one truth of the file system that this descriptor lies on? True for disks and memory of this machine. */
bool view_is_coherent(int fd);

/* Are inode numbers of its file system the same on every host that mounts it? */
bool view_numbers_agree(int fd);

#endif
