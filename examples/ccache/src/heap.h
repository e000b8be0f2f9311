/* A binary heap of (key, value), the smallest key first. */
#ifndef HEAP_H
#define HEAP_H
#include <stddef.h>

struct entry { unsigned key, value; };
struct heap { struct entry *all; size_t count, room; };

void heap_push(struct heap *heap, struct entry entry);
/* The heap must not be empty. */
struct entry heap_pop(struct heap *heap);
#endif
