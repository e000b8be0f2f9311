#include "justify.h"

#include <stdint.h>
#include <stdlib.h>

/* What a line with `free` spaces too many costs: the cube punishes one ragged line more than two half as ragged. */
static uint64_t cost(size_t free)
{
    return (uint64_t)free * free * free;
}

unsigned char *breaks_of(const struct words *words, size_t width)
{
    size_t n = words->count;
    uint64_t *best = calloc(n + 1, sizeof *best); /* best[i]: the least cost of the words from i on */
    size_t *next = calloc(n + 1, sizeof *next);
    unsigned char *ends = calloc(n + 1, 1);
    if (!best || !next || !ends)
        abort();
    for (size_t i = n; i-- > 0;) {
        size_t length = 0;
        best[i] = UINT64_MAX;
        for (size_t j = i; j < n; j++) {
            length += words->all[j].length + (j > i);
            if (length > width && j > i)
                break;
            uint64_t line = j + 1 == n || length > width ? 0 : cost(width - length);
            if (line + best[j + 1] < best[i]) {
                best[i] = line + best[j + 1];
                next[i] = j + 1;
            }
        }
    }
    for (size_t i = 0; i < n; i = next[i])
        ends[next[i] - 1] = 1;
    free(best);
    free(next);
    return ends;
}
