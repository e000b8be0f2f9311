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

/* Where a stream of the command goes. Offsets count from the command's first byte. */
struct sink {
    struct stream stream;
    uint64_t received, written;
    bool broken; /* nobody reads it any more: the rest is dropped */
    int error;   /* why, when it was not a reader that left */
    char ring[DWRAP_INITIAL_OUTPUT_CREDIT];
};

/* Takes a piece and writes what can be written now; the rest waits in the ring. False when it goes beyond the ring,
 * which no peer that heeds its credit does. */
bool sink_take(struct sink *s, uint64_t offset, const char *data, size_t length);

/* Writes more of what waits. */
void sink_write(struct sink *s);

static inline bool sink_is_empty(const struct sink *s)
{
    return s->written == s->received;
}

/* Where the command's stdin comes from. */
struct source {
    struct stream stream;
    bool seekable;
    bool ended; /* nothing more will come */
    off_t start; /* of a seekable one: where it stood */
    uint64_t sent, limit;
};

void source_start(struct source *s, const struct stream *stream);

/* May it be waited for now? Not without credit, nor our own terminal while we are in the background. */
bool source_is_wanted(const struct source *s);

/* Reads at most `size` bytes and not beyond the limit. 0: nothing now, or ended. */
size_t source_read(struct source *s, char *data, size_t size);

/* Leaves a seekable one where the command stopped reading. */
void source_give_back(const struct source *s, uint64_t taken);

#endif
