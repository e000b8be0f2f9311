/* Whether the kernel has killed for want of memory. Its control group counts that for the agent's jobs; where there is none it is counted
 * for the whole machine, and then it may as well have been somebody else's process. Neither says whose of the jobs it was. Knows the
 * counters; does not know what follows. */
#include "agent/runner.h"

#include <stdio.h>
#include <string.h>

static char group[PATH_ROOM]; /* the group's own counters; "": none */
static uint64_t before;

/* False where it is not told. */
static bool read_count(const char *path, uint64_t *count)
{
    char line[128];
    unsigned long long number;
    bool found = false;
    FILE *counters = fopen(path, "re");
    while (counters && !found && fgets(line, sizeof line, counters))
        found = sscanf(line, "oom_kill %llu", &number) == 1;
    if (counters)
        fclose(counters);
    if (found)
        *count = number;
    return found;
}

void starved_map(void)
{
    char line[PATH_ROOM - 64];
    uint64_t count;
    FILE *groups = fopen("/proc/self/cgroup", "re");
    while (groups && !group[0] && fgets(line, sizeof line, groups)) {
        line[strcspn(line, "\n")] = '\0';
        if (strncmp(line, "0::/", 4) == 0)
            snprintf(group, sizeof group, "/sys/fs/cgroup%s/memory.events", line + 3);
    }
    if (groups)
        fclose(groups);
    if (!read_count(group, &count))
        group[0] = '\0';
}

void starved_begin(void)
{
    if (group[0] && !read_count(group, &before))
        group[0] = '\0';
}

bool starved_since(uint64_t count)
{
    uint64_t now;
    if (group[0])
        return read_count(group, &now) && now > before;
    return read_count("/proc/vmstat", &now) && now > count;
}

const char *starved_why(void)
{
    return group[0] ? "the kernel killed for want of memory while it ran" : "the kernel killed for want of memory while it ran, perhaps not it";
}
