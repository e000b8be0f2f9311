/* Output that is held back: for a moment, as long as nobody has seen a word of a command that may be run again because it fails at
 * once; or late, what a command says that may have been killed. Knows bytes and a time; does not know why a command is run again. */
#include "agent/runner.h"

#include <stdlib.h>
#include <string.h>

#define HOLD_MS 250
#define LATE_MS 2000

static bool make_room(struct hold *hold)
{
    for (int stream = 1; stream <= 2; stream++)
        if (!hold->data[stream] && !(hold->data[stream] = malloc(HOLD_BYTES)))
            return false;
    return true;
}

void hold_start(struct hold *hold, const struct spec *spec)
{
    hold->late = false;
    hold->open = spec->views && spec->stdio[1] != STDIO_TTY && spec->stdio[2] != STDIO_TTY;
    hold->until_ms = 0;
    hold->size[1] = hold->size[2] = 0;
    hold->open = hold->open && make_room(hold);
}

bool hold_late(struct hold *hold, int64_t now_ms)
{
    hold->late = hold->open = make_room(hold);
    hold->until_ms = now_ms + LATE_MS;
    return hold->open;
}

void hold_add(struct hold *hold, int stream, const char *piece, size_t size)
{
    memcpy(hold->data[stream], piece, size); /* nothing was held, and a packet holds no more */
    hold->size[stream] = size;
    hold->open = size < HOLD_BYTES; /* there is no room to read more into */
}

void hold_release(struct hold *hold) { hold->open = false; }

ssize_t hold_read(struct hold *hold, struct output *out, int stream, int64_t now_ms)
{
    size_t *size = &hold->size[stream];
    ssize_t got = output_read(out, hold->data[stream] + *size, HOLD_BYTES - *size);
    if (got > 0) {
        *size += (size_t)got;
        if (hold->until_ms == 0)
            hold->until_ms = now_ms + HOLD_MS;
        hold->open = *size < HOLD_BYTES;
    }
    return got;
}
