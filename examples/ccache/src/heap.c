#include "heap.h"

#include <stdlib.h>

static void swap(struct entry *a, struct entry *b)
{
    struct entry kept = *a;
    *a = *b;
    *b = kept;
}

void heap_push(struct heap *heap, struct entry entry)
{
    if (heap->count == heap->room) {
        heap->room = heap->room ? 2 * heap->room : 16;
        heap->all = realloc(heap->all, heap->room * sizeof *heap->all);
        if (!heap->all)
            abort();
    }
    size_t at = heap->count++;
    heap->all[at] = entry;
    for (; at && heap->all[at].key < heap->all[(at - 1) / 2].key; at = (at - 1) / 2)
        swap(&heap->all[at], &heap->all[(at - 1) / 2]);
}

struct entry heap_pop(struct heap *heap)
{
    struct entry first = heap->all[0];
    heap->all[0] = heap->all[--heap->count];
    for (size_t at = 0;;) {
        size_t least = at;
        for (size_t child = 2 * at + 1; child <= 2 * at + 2 && child < heap->count; child++)
            if (heap->all[child].key < heap->all[least].key)
                least = child;
        if (least == at)
            return first;
        swap(&heap->all[at], &heap->all[least]);
        at = least;
    }
}
