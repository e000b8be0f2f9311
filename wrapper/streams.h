/* The wrapper's own stdin, stdout and stderr: what they are, and reading and writing them without ever waiting.
 *
 * The descriptors are shared with other processes, so O_NONBLOCK is never set on them. Pipes and terminals are opened
 * anew through /proc instead, which gives us a description of our own; sockets have a flag per call; where neither
 * works, a write takes no more than a pipe that is ready can hold.
 * Does not know the protocol: offsets and limits are told to it. */
#ifndef DWRAP_STREAMS_H
#define DWRAP_STREAMS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "protocol/protocol.h"

enum stream_kind { STREAM_CLOSED, STREAM_NULL, STREAM_FILE, STREAM_DEVICE, STREAM_PIPE, STREAM_SOCKET, STREAM_TTY };

struct stream {
    enum stream_kind kind;
    int fd;      /* 0, 1 or 2, or our own description of the same thing */
    bool own;    /* the latter */
    dev_t device;
    ino_t inode;
};

/* Looks at descriptors 0 to 2. Those that are closed are filled with close-on-exec ones, so that nothing that is opened
 * later takes their numbers. */
void streams_look(struct stream streams[3]);

bool streams_same(const struct stream *a, const struct stream *b);

/* Where a stream of the command goes. Offsets count from the first byte that was taken. */
struct sink {
    struct stream stream;
    uint64_t received, written;
    bool broken; /* nobody reads it any more: the rest is dropped */
    int error;   /* why, when it was not a reader that left */
    char ring[DWRAP_INITIAL_OUTPUT_CREDIT];
};

void sink_start(struct sink *s, const struct stream *stream);

/* Takes a piece and writes what can be written now; the rest waits in the ring. False when it goes beyond the ring,
 * which no peer that heeds its credit does. */
bool sink_take(struct sink *s, uint64_t offset, const char *data, size_t length);

/* Writes more of what waits. */
void sink_write(struct sink *s);

static inline bool sink_is_empty(const struct sink *s)
{
    return s->written == s->received;
}

enum { SOURCE_KEPT_BYTES = 4096 }; /* the most credit that an agent gives for stdin that cannot be read again */

/* Where the command's stdin comes from. Offsets count from where it stood at first. */
struct source {
    struct stream stream;
    bool seekable;
    bool ended; /* nothing more will come */
    bool told;  /* and that was said */
    bool held;  /* until it is known how much of it has arrived */
    off_t start; /* of a seekable one: where it stood */
    uint64_t known; /* bytes that were read so far */
    uint64_t sent, limit;
    char kept[SOURCE_KEPT_BYTES]; /* of one that cannot be read again: the last of them */
};

void source_start(struct source *s, const struct stream *stream);

/* May it be waited for now? Not without credit, nor our own terminal while we are in the background. */
bool source_is_wanted(const struct source *s);

/* Is there something to say that need not be waited for? */
bool source_is_behind(const struct source *s);

/* What comes next: at most `size` bytes, and not beyond the limit. 0: nothing now, or ended. */
size_t source_read(struct source *s, char *data, size_t size);

/* Goes on from this offset, and says the end anew. False when what follows it is not known (any more). */
bool source_rewind(struct source *s, uint64_t offset);

/* Nothing of it is used up: it is as it was found, or can be put back so. */
static inline bool source_is_whole(const struct source *s)
{
    return s->known == 0 || s->seekable;
}

/* Leaves a seekable one where the command stopped reading. */
void source_give_back(const struct source *s, uint64_t taken);

#endif
