/* Removes what a lost attempt of this job made, before the command starts anew. Knows the order, the shared roots and who is told; what
 * may be removed is coherence/remove.c's to say. Before each name it looks whether this attempt still counts: one that was frozen must
 * not remove what a later one has made. */
#include "agent/runner.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>

#include "coherence/remove.h"

const char *undo_why_not(const struct control *control)
{
    struct pollfd end = {control->fd, 0, 0};
    if (lease_is_over())
        return "the agent's lease was over before it could begin";
    return poll(&end, 1, 0) > 0 ? "the agent that was to run it has died" : NULL;
}

/* The root that a name lies on. */
static const char *root_of(const struct spec *spec, const char *path)
{
    const char *found = NULL;
    for (size_t i = 0; i < spec->root_count; i++)
        if (path_is_below(path, spec->roots[i]) && (!found || strlen(spec->roots[i]) > strlen(found)))
            found = spec->roots[i];
    return found;
}

/* NULL, or why it is still there. */
static const char *remove_one(const struct spec *spec, const char *path)
{
    const struct removal limits = {.root = root_of(spec, path)};
    const char *why;
    if (!limits.root)
        return "it is not on a shared root";
    why = identity_assume(spec) ? remove_made(path, &limits) : strerror(errno);
    identity_drop(spec);
    return why;
}

bool undo_all(const struct spec *spec, const struct control *control, struct record *record, char reason[MAX_REASON])
{
    for (size_t i = spec->undo_count; i > 0; i--) {
        const char *path = spec->undo[i - 1], *end = undo_why_not(control), *why = end ? end : remove_one(spec, path);
        struct recorded *one = !why && spec->views ? record_add(record, path) : NULL;
        if (one)
            one->flags = REC_NAME | REC_LOST; /* the other hosts are told */
        if (end)
            snprintf(reason, MAX_REASON, "%s", end);
        else if (why)
            snprintf(reason, MAX_REASON, "what a lost attempt made could not be removed: %.255s: %s", path, why);
        if (why)
            return false;
    }
    return true;
}
