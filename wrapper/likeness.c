/* See likeness.h. What is installed is read anew only when a package database has changed; wrappers remember it for each other.
 * Knows where it is remembered. Does not know what counts (environment/), nor who compares. */
#include "wrapper/likeness.h"

#include <stdio.h>
#include <string.h>

#include "environment/environment.h"
#include "wrapper/decide.h"
#include "wrapper/memory.h"

enum { STAMP_DIGITS = 16 };

/* `STAMP LINE`, remembered or made. */
static const char *environment_here(void)
{
    static char kept[STAMP_DIGITS + 1 + ENVIRONMENT_BYTES];
    char stamp[STAMP_DIGITS + 1];
    snprintf(stamp, sizeof stamp, "%016llx", (unsigned long long)environment_stamp(""));
    kept[memory_recall_environment(kept, sizeof kept - 1)] = 0;
    if (strncmp(kept, stamp, STAMP_DIGITS) != 0 || kept[STAMP_DIGITS] != ' ' || !kept[STAMP_DIGITS + 1]) {
        snprintf(kept, sizeof kept, "%s ", stamp);
        environment_read("", kept + STAMP_DIGITS + 1, NULL);
        memory_keep_environment(kept, strlen(kept));
    }
    return kept + STAMP_DIGITS + 1;
}

void likeness_add(struct fields_out *out, const struct settings *s)
{
    char cpu[CPU_BYTES];
    if (!s->any_environment)
        fields_add(out, "identity", environment_here());
    if (!s->native && !is_native(s->command, s->count))
        return;
    cpu_read(cpu);
    fields_add(out, "cpu", cpu);
}
