/* Linked into a runner (--wrap): what a command that failed had looked at turns out to have been stale, whatever it was. */
#include "agent/runner.h"

struct doubt __wrap_revalidate_after_failure(const struct spec *spec, struct timespec started, const struct hold *hold);

struct doubt __wrap_revalidate_after_failure(const struct spec *spec, struct timespec started, const struct hold *hold)
{
    (void)spec, (void)started, (void)hold;
    return (struct doubt){.stale = 1, .certain = true};
}
