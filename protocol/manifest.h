/* Entries of a manifest, `*( kind SP ino SP size SP mtime SP ctime SP path NUL )`: walk them and write them (PROTOCOL.md).
 *
 * An entry says how a name on the shared tree stood when its writer looked. Header-only and without allocation, like
 * fields.h. Does not know why it was written down, or what its reader does about it. */
#ifndef DWRAP_MANIFEST_H
#define DWRAP_MANIFEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

enum {
    MANIFEST_DIRECTORY = 'D', /* names in it may have changed */
    MANIFEST_FILE = 'F',      /* anything else that is there now: regular files, links, pipes */
    MANIFEST_GONE = 'G',      /* nothing is there any more; all numbers are 0 */
    MANIFEST_READ = 'R',      /* a directory that was read from; all numbers are 0 */
};

enum { MANIFEST_PATH_BYTES = 4096, MANIFEST_PIECE_BYTES = 32 * 1024 };

struct entry {
    char kind;
    bool seen; /* written in lower case: what somebody merely saw; another's view need not come to agree with it */
    uint64_t ino, size;
    int64_t mtime, ctime; /* nanoseconds since 1970, never negative */
    const char *path;     /* absolute, NUL-terminated, in the piece */
};

/* What is left of a piece. */
struct entries {
    const char *at, *end;
};

static inline struct entries entries_of(const void *piece, size_t length)
{
    const char *start = piece;
    return (struct entries){ start, length ? start + length : start };
}

static inline bool entry_number(const char **at, uint64_t *out)
{
    uint64_t value = 0;
    int digits = 0;
    for (; **at >= '0' && **at <= '9' && digits <= 20; (*at)++, digits++) {
        uint64_t next = value * 10 + (uint64_t)(**at - '0');
        if (next / 10 != value)
            return false;
        value = next;
    }
    *out = value;
    return digits > 0 && digits <= 20 && *(*at)++ == ' ';
}

/* Takes the next entry. False at the end and at the first malformed one: rest->at == rest->end tells which. */
static inline bool entries_next(struct entries *rest, struct entry *out)
{
    size_t left = (size_t)(rest->end - rest->at);
    const char *nul = left > 2 ? memchr(rest->at, 0, left) : NULL;
    if (!nul || rest->at[1] != ' ' || !memchr("DFGRdfg", rest->at[0], 7))
        return false;
    uint64_t mtime, ctime;
    const char *at = rest->at + 2;
    struct entry entry = { .kind = (char)(rest->at[0] & ~32), .seen = rest->at[0] >= 'a' };
    if (!entry_number(&at, &entry.ino) || !entry_number(&at, &entry.size) || !entry_number(&at, &mtime) || !entry_number(&at, &ctime))
        return false;
    if (mtime > INT64_MAX || ctime > INT64_MAX || *at != '/' || nul - at >= MANIFEST_PATH_BYTES)
        return false;
    entry.mtime = (int64_t)mtime;
    entry.ctime = (int64_t)ctime;
    entry.path = at;
    *out = entry;
    rest->at = nul + 1;
    return true;
}

/* Writes an entry. The bytes used, or 0 when there is no room. */
static inline size_t entry_write(char *to, size_t room, const struct entry *entry)
{
    int length = snprintf(to, room, "%c %llu %llu %lld %lld %s", entry->seen ? entry->kind | 32 : entry->kind, (unsigned long long)entry->ino,
                          (unsigned long long)entry->size, (long long)entry->mtime, (long long)entry->ctime, entry->path);
    return length > 0 && (size_t)length < room ? (size_t)length + 1 : 0;
}

#endif
