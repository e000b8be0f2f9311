/* Output that is held back for a moment: a command that fails at once may be run again as long as nobody has seen a word of it.
 * Knows bytes and a time; does not know why a command is run again. */
#include "agent/runner.h"

#include <stdlib.h>

#define HOLD_MS 250

void hold_start(struct hold *hold, const struct spec *spec)
{
    hold->open = spec->views && spec->stdio[1] != STDIO_TTY && spec->stdio[2] != STDIO_TTY;
    hold->until_ms = 0;
    for (int stream = 1; stream <= 2; stream++) {
        hold->size[stream] = 0;
        if (hold->open && !hold->data[stream])
            hold->data[stream] = malloc(HOLD_BYTES);
        hold->open &= hold->data[stream] != NULL;
    }
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
