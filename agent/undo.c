/* Removes what a lost attempt of this job made, before the command starts anew. Knows names, and that they were not there before that
 * attempt; acts as the user, and leaves a directory in which others have put something. */
#include "agent/runner.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static bool is_gone(int error) { return error == ENOENT || error == ENOTDIR; }

/* False with errno. */
static bool remove_name(const char *path)
{
    if (unlink(path) == 0 || is_gone(errno))
        return true;
    int error = errno;
    if ((error == EISDIR || error == EPERM) && rmdir(path) == 0) /* POSIX says EPERM of a directory */
        return true;
    if (errno == ENOTEMPTY || errno == EEXIST || is_gone(errno))
        return true;
    if (errno == ENOTDIR)
        errno = error;
    return false;
}

bool undo_all(const struct spec *spec, struct record *record, char reason[MAX_REASON])
{
    bool done = identity_assume(spec);
    int error = errno;
    size_t i = spec->undo_count;
    for (; done && i > 0; i--) {
        const char *path = spec->undo[i - 1];
        done = spec_is_shared(spec, path) && remove_name(path);
        error = spec_is_shared(spec, path) ? errno : EXDEV;
        struct recorded *one = done && spec->views ? record_add(record, path) : NULL;
        if (one)
            one->flags = REC_NAME | REC_LOST; /* the other hosts are told */
    }
    identity_drop(spec);
    if (!done)
        snprintf(reason, MAX_REASON, "what a lost attempt made could not be removed: %.255s: %s", i < spec->undo_count ? spec->undo[i] : "",
                 strerror(error));
    return done;
}
