/* See reads.h. The file of a build holds R entries (protocol/manifest.h) whose numbers are those of the directory when it was told
 * last, or 0: it was not told yet. Does not know what a compiler is, or who reads the entries. */
#include "wrapper/reads.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "coherence/look.h"
#include "wrapper/memory.h"

enum { MOST = 512, FILE_BYTES = 64 * 1024, MOST_FILES = 64, MOST_NAMES = 1024 };

static const int64_t RECENT = 2000000000; /* nanoseconds */

struct known {
    const char *path;
    uint64_t hash, ino;
    int64_t mtime, ctime;
    bool changed; /* here, since the file was read */
};

static struct known all[MOST];
static unsigned count;
static char paths[FILE_BYTES]; /* where `all` points to */
static size_t paths_used;

static uint64_t hash_of(const char *path)
{
    uint64_t hash = 0xCBF29CE484222325u;
    for (; *path; path++)
        hash = (hash ^ (unsigned char)*path) * 0x100000001B3u;
    return hash;
}

static struct known *find(const char *path)
{
    uint64_t hash = hash_of(path);
    for (unsigned i = 0; i < count; i++)
        if (all[i].hash == hash && strcmp(all[i].path, path) == 0)
            return &all[i];
    return NULL;
}

static struct known *find_or_add(const char *path)
{
    struct known *found = find(path);
    size_t length = strlen(path) + 1;
    if (found || count == MOST || length > sizeof paths - paths_used)
        return found;
    memcpy(paths + paths_used, path, length);
    all[count] = (struct known){ .path = paths + paths_used, .hash = hash_of(path) };
    paths_used += length;
    return &all[count++];
}

static void stamp(struct known *known, const struct entry *entry)
{
    known->ino = entry->ino;
    known->mtime = entry->mtime;
    known->ctime = entry->ctime;
    known->changed = true;
}

/* Takes what the file holds now. Where others and we know different things, the newer counts. */
static void recall(const char *build)
{
    static char bytes[FILE_BYTES];
    struct entries rest = entries_of(bytes, memory_recall_reads(build, bytes, sizeof bytes));
    struct entry entry;
    while (entries_next(&rest, &entry)) {
        struct known *known = find_or_add(entry.path);
        if (!known || (known->changed && known->ctime >= entry.ctime))
            continue;
        stamp(known, &entry);
        known->changed = false;
    }
}

struct told {
    char *out;
    size_t room, used;
    bool numbered;
};

static bool put(struct told *told, struct entry entry)
{
    if (!told->numbered)
        entry.ino = 0;
    size_t written = entry_write(told->out + told->used, told->room - told->used, &entry);
    told->used += written;
    return written > 0;
}

/* The files in a directory that changed since `since`, of those that are cached here: what was changed here is. */
static void put_files(struct told *told, const char *directory, int64_t since)
{
    char path[MANIFEST_PATH_BYTES];
    struct entry entry;
    DIR *names = opendir(directory);
    unsigned files = 0, seen = 0;
    for (struct dirent *one; names && files < MOST_FILES && seen < MOST_NAMES && (one = readdir(names)); seen++) {
        int length = snprintf(path, sizeof path, "%s/%s", directory, one->d_name);
        int fd = one->d_type == DT_DIR || length >= (int)sizeof path ? -1 : look_believed(dirfd(names), one->d_name);
        if (fd < 0)
            continue;
        close(fd);
        if (look_entry(&entry, path, false) && entry.kind == MANIFEST_FILE && entry.ctime >= since)
            files += put(told, entry);
    }
    if (names)
        closedir(names);
}

size_t reads_changed(const char *build, bool numbered, char *out, size_t room)
{
    struct told told = { .out = out, .room = room, .numbered = numbered };
    struct timespec now;
    struct entry entry;
    count = 0;
    paths_used = 0;
    recall(build);
    clock_gettime(CLOCK_REALTIME, &now);
    for (unsigned i = 0; i < count; i++) {
        struct known *known = &all[i];
        if (!look_entry_as_stat(&entry, known->path) || entry.kind != MANIFEST_DIRECTORY)
            continue;
        if (entry.ino == known->ino && entry.mtime == known->mtime && entry.ctime == known->ctime)
            continue;
        int64_t since = known->ctime ? known->ctime : (int64_t)now.tv_sec * 1000000000 - RECENT;
        if (!put(&told, entry))
            break;
        put_files(&told, known->path, since);
        stamp(known, &entry);
    }
    return told.used;
}

void reads_take(const void *piece, size_t length)
{
    struct entries rest = entries_of(piece, length);
    struct entry entry;
    while (entries_next(&rest, &entry)) {
        struct known *known = entry.kind == MANIFEST_READ ? find(entry.path) : NULL;
        if (entry.kind == MANIFEST_READ && !known && (known = find_or_add(entry.path)))
            known->changed = true;
        if (entry.kind == MANIFEST_DIRECTORY && (known = find(entry.path)) && known->ctime > 0 && entry.ctime > known->ctime)
            stamp(known, &entry);
    }
}

void reads_keep(const char *build)
{
    static char bytes[FILE_BYTES];
    struct told out = { .out = bytes, .room = sizeof bytes, .numbered = true };
    bool changed = false;
    for (unsigned i = 0; i < count; i++)
        changed = changed || all[i].changed;
    int lock = changed ? memory_lock() : -1;
    if (lock < 0)
        return;
    recall(build);
    for (unsigned i = 0; i < count; i++) {
        struct entry entry = { .kind = MANIFEST_READ, .ino = all[i].ino, .mtime = all[i].mtime, .ctime = all[i].ctime, .path = all[i].path };
        if (!put(&out, entry))
            break;
    }
    memory_keep_reads(build, bytes, out.used);
    close(lock);
}
