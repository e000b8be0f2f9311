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
    bool relisted;     /* the listing of it that this host kept was dropped in this view */
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

/* Something was found stale; `now` is its entry as the server has it, NULL: gone. */
void view_count_stale(struct view *view, const struct entry *now);

/* Looks again for a name that somebody has just looked for in vain here. When that was for a wrong belief, of the name or of a
 * directory on the way, it counts as stale and is corrected. */
void view_doubt(struct view *view, const char *path);

#endif
