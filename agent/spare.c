/* A job that comes when others have filled the agent's disk: its place for temporary files, and that for its result, were set aside while
 * there was room. Knows where they wait (spares.py makes them); does not know what they are for. */
#include "agent/runner.h"

#include <errno.h>
#include <stdio.h>

bool spare_take(const struct spec *spec, const char *kind, const char *to)
{
    char from[PATH_ROOM];
    bool taken = false;
    if (errno != ENOSPC && errno != EDQUOT)
        return false;
    for (uint64_t number = 0; number < spec->spares && !taken; number++) { /* other runners look for one, too */
        int size = snprintf(from, sizeof from, "%s/spare/%s-%llu", spec->work, kind, (unsigned long long)number);
        taken = size > 0 && (size_t)size < sizeof from && rename(from, to) == 0;
    }
    if (!taken)
        errno = ENOSPC;
    return taken;
}
