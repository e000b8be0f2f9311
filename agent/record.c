/* What a command did to names: a set of paths with flags, bounded. Knows strings; does not know how they were learned (trace.c),
 * nor what is done about them (outputs.c). Paths are absolute, without "." and doubled slashes; ".." and links stay until the
 * kernel is asked where they lead. */
#include "agent/runner.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { FIRST_SLOTS = 256, MAX_PATHS = 65536, MAX_TEXT = 16 * 1024 * 1024 };

static uint32_t hash_of(const char *text)
{
    uint32_t hash = 2166136261u;
    for (; *text; text++)
        hash = (hash ^ (unsigned char)*text) * 16777619u;
    return hash;
}

static uint32_t *slot_of(const struct record *record, const char *path, uint32_t hash)
{
    uint32_t at = hash & (record->slot_count - 1);
    while (record->slots[at]) {
        const struct recorded *one = &record->paths[record->slots[at] - 1];
        if (one->hash == hash && strcmp(one->path, path) == 0)
            break;
        at = (at + 1) & (record->slot_count - 1);
    }
    return &record->slots[at];
}

/* The table is at most half full, the list as long as half the table. */
static bool grow(struct record *record)
{
    size_t slots = record->slot_count ? record->slot_count * 2 : FIRST_SLOTS;
    uint32_t *table = calloc(slots, sizeof *table);
    struct recorded *paths = table ? realloc(record->paths, slots / 2 * sizeof *paths) : NULL;
    if (!paths) {
        free(table);
        return false;
    }
    free(record->slots);
    record->slots = table;
    record->slot_count = slots;
    record->paths = paths;
    for (size_t i = 0; i < record->count; i++)
        *slot_of(record, paths[i].path, paths[i].hash) = (uint32_t)i + 1;
    return true;
}

struct recorded *record_find(const struct record *record, const char *path)
{
    uint32_t found = record->slot_count ? *slot_of(record, path, hash_of(path)) : 0;
    return found ? &record->paths[found - 1] : NULL;
}

/* gcc 12 -fanalyzer does not see that what is stored in an element of the list, at an index that it does not know, is kept there. */
#if defined __GNUC__ && !defined __clang__
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wanalyzer-malloc-leak"
#endif
struct recorded *record_add(struct record *record, const char *path)
{
    size_t size = strlen(path) + 1;
    if (record->count == MAX_PATHS || record->text + size > MAX_TEXT)
        return NULL;
    if (record->count * 2 >= record->slot_count && !grow(record))
        return NULL;
    char *copy = strdup(path);
    if (!copy)
        return NULL;
    record->text += size;
    uint32_t hash = hash_of(path);
    record->paths[record->count] = (struct recorded){.path = copy, .hash = hash};
    *slot_of(record, copy, hash) = (uint32_t)++record->count;
    return &record->paths[record->count - 1];
}
#if defined __GNUC__ && !defined __clang__
#pragma GCC diagnostic pop
#endif

bool path_join(char *out, size_t room, const char *directory, const char *path)
{
    size_t used = 0;
    const char *parts[2] = {path[0] == '/' ? "" : directory, path};
    for (int i = 0; i < 2; i++)
        for (const char *at = parts[i]; *at;) {
            size_t length = strcspn(at, "/");
            if (length > 0 && !(length == 1 && at[0] == '.')) {
                if (used + length + 2 > room)
                    return false;
                out[used++] = '/';
                memmove(out + used, at, length); /* both may be the same place */
                used += length;
            }
            at += length + (at[length] == '/');
        }
    if (used == 0)
        out[used++] = '/';
    out[used] = '\0';
    return true;
}

bool path_is_below(const char *path, const char *root)
{
    size_t length = strlen(root);
    while (length > 0 && root[length - 1] == '/')
        length--;
    return strncmp(path, root, length) == 0 && (path[length] == '/' || path[length] == '\0');
}

const char *path_split(const char *path, char above[PATH_ROOM])
{
    const char *name = strrchr(path, '/') + 1;
    size_t size = (size_t)(name - path);
    if (*name == '\0' || strcmp(name, "..") == 0)
        return NULL;
    memcpy(above, path, size);
    above[size > 1 ? size - 1 : 1] = '\0';
    return name;
}

bool path_real(const char *path, char out[PATH_ROOM])
{
    char link[64];
    int fd = open(path, O_PATH | O_CLOEXEC);
    if (fd < 0)
        return false;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, out, PATH_ROOM - 1);
    close(fd);
    if (size > 0)
        out[size] = '\0';
    return size > 0 && out[0] == '/';
}

bool path_settle(const char *path, char out[PATH_ROOM])
{
    char above[PATH_ROOM], real[PATH_ROOM];
    const char *name = path_split(path, above);
    return name && path_real(above, real) && path_join(out, PATH_ROOM, real, name);
}
