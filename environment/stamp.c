/* See stamp.h. */
#include "environment/stamp.h"

#include <limits.h>
#include <stdio.h>
#include <sys/stat.h>

#include "protocol/hash.h"

void stamp_start(struct stamp *stamp)
{
    stamp->hash = HASH_START;
}

void stamp_add(struct stamp *stamp, const char *root, const char *path)
{
    char full[PATH_MAX];
    struct stat st = { 0 };
    snprintf(full, sizeof full, "%s%s", root, path);
    if (stat(full, &st) < 0)
        st = (struct stat){ 0 };
    /* Not ctime: rpm changes that of its log when root only reads. */
    uint64_t said[] = { st.st_dev, st.st_ino, st.st_mode, (uint64_t)st.st_size, (uint64_t)st.st_mtim.tv_sec, (uint64_t)st.st_mtim.tv_nsec };
    stamp->hash = hash_on(stamp->hash, said, sizeof said);
}
