/* FNV-1a with 64 bits (Fowler, Noll, Vo; IETF draft-eastlake-fnv): to notice that bytes are not the same. It resists nobody who
 * wants it to be: nothing that matters against an attacker may rest on it. */
#ifndef DWRAP_HASH_H
#define DWRAP_HASH_H

#include <stddef.h>
#include <stdint.h>

#define HASH_START 0xcbf29ce484222325u
#define HASH_PRIME 0x100000001b3u

static inline uint64_t hash_on(uint64_t hash, const void *data, size_t length)
{
    const unsigned char *at = data;
    for (size_t i = 0; i < length; i++)
        hash = (hash ^ at[i]) * HASH_PRIME;
    return hash;
}

#endif
