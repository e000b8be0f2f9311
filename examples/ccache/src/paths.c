#include "paths.h"

#include "heap.h"

#include <limits.h>
#include <stdlib.h>

unsigned cheapest(const char *const *grid, unsigned rows, unsigned columns)
{
    static const int steps[4][2] = {{0, 1}, {1, 0}, {0, -1}, {-1, 0}};
    unsigned *best = malloc(rows * columns * sizeof *best);
    struct heap heap = {NULL, 0, 0};
    if (!best)
        abort();
    for (unsigned i = 0; i < rows * columns; i++)
        best[i] = UINT_MAX;
    best[0] = 0;
    heap_push(&heap, (struct entry){0, 0});
    while (heap.count) {
        struct entry here = heap_pop(&heap);
        for (int i = 0; i < 4; i++) {
            unsigned row = here.value / columns + (unsigned)steps[i][0], column = here.value % columns + (unsigned)steps[i][1];
            if (row >= rows || column >= columns)
                continue;
            unsigned price = here.key + (unsigned)(grid[row][column] - '0');
            if (price < best[row * columns + column]) {
                best[row * columns + column] = price;
                heap_push(&heap, (struct entry){price, row * columns + column});
            }
        }
    }
    unsigned result = best[rows * columns - 1];
    free(best);
    free(heap.all);
    return result;
}
