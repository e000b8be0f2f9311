/* libFuzzer target: the parser of manifests' entries on whatever a peer may send, and the writer on what it reads.
 *
 * With -DPLANTED_BUG the last name of a path is copied into a buffer that is large enough for each of the seeds: the run must
 * find it, which shows that the fuzzer gets through the numbers to the path by itself. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "protocol/manifest.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static volatile size_t sink;

static void take_name(const char *path)
{
    const char *name = strrchr(path, '/') + 1;
#ifdef PLANTED_BUG
    char *small = calloc(1, 32);
    strcpy(small, name);
    sink += (unsigned char)small[0];
    free(small);
#else
    sink += strlen(name);
#endif
}

/* An entry that was read is written to the same bytes, but for zeros in front of its numbers. */
static void write_again(const struct entry *entry)
{
    static char first[MANIFEST_PATH_BYTES + 100], second[MANIFEST_PATH_BYTES + 100];
    struct entry again;
    size_t length = entry_write(first, sizeof first, entry);
    struct entries rest = entries_of(first, length);
    if (length == 0 || !entries_next(&rest, &again) || rest.at != rest.end)
        abort();
    if (entry_write(second, sizeof second, &again) != length || memcmp(first, second, length) != 0)
        abort();
    if (entry_write(second, length - 1, entry) != 0)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *copy = malloc(size ? size : 1); /* its end is where the sanitizer looks */
    memcpy(copy, data, size);
    struct entries rest = entries_of(copy, size);
    struct entry entry;
    while (entries_next(&rest, &entry)) {
        if (entry.path[0] != '/' || entry.path + strlen(entry.path) >= rest.at || entry.mtime < 0 || entry.ctime < 0)
            abort();
        take_name(entry.path);
        write_again(&entry);
    }
    free(copy);
    return 0;
}
