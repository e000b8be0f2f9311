/* Whether the kernel has killed for want of memory. It counts for the whole machine: a kill says that memory was short here, not whose
 * process it took. Knows the counter; does not know what follows. */
#include "agent/runner.h"

#include <stdio.h>

bool starved_since(uint64_t count)
{
    char line[128];
    unsigned long long now = 0;
    FILE *counters = fopen("/proc/vmstat", "re");
    while (counters && now == 0 && fgets(line, sizeof line, counters))
        if (sscanf(line, "oom_kill %llu", &now) != 1)
            now = 0;
    if (counters)
        fclose(counters);
    return now > count;
}
