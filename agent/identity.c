/* Acting as the submitter inside the runner, for the files it makes, removes and flushes on the user's behalf.
 * Knows effective ids only: the real uid stays the agent's, so the user can neither signal nor trace the runner. */
#include "agent/runner.h"

#include <grp.h>
#include <stdlib.h>
#include <unistd.h>

bool identity_assume(const struct spec *spec)
{
    return !spec->become || (setgroups(spec->group_count, spec->groups) == 0 && setegid(spec->gid) == 0 && seteuid(spec->uid) == 0);
}

void identity_drop(const struct spec *spec)
{
    /* The groups need not come back: root needs none. A runner that cannot be itself again must not go on. */
    if (spec->become && (seteuid(0) != 0 || setegid(getgid()) != 0))
        abort();
}
