/* See likeness.h. What is installed is read anew only when a package database has changed; wrappers remember it for each other.
 * Knows where it is remembered. Does not know what counts (environment/), nor who compares. */
#include "wrapper/likeness.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "environment/environment.h"
#include "wrapper/decide.h"
#include "wrapper/memory.h"

enum { DIGITS = 16, WAIT_TRIES = 200 }; /* each of memory_lock's, 50 ms: one rpm may need seconds, hundreds at once more */

/* One that was not written to its end, or by two at once, is none. */
static bool is_line(const char *text, size_t length)
{
    return length > DIGITS + 2 && memcmp(text + length - DIGITS - 2, " #", 2) == 0 && strspn(text + length - DIGITS, "0123456789abcdef") == DIGITS;
}

static bool recall(const char *stamp, char line[ENVIRONMENT_BYTES])
{
    size_t length = memory_recall_environment(stamp, line, ENVIRONMENT_BYTES - 1);
    line[length] = 0;
    return is_line(line, length);
}

const char *environment_here(void)
{
    static char line[ENVIRONMENT_BYTES];
    char stamp[DIGITS + 1];
    int lock = -1;
    snprintf(stamp, sizeof stamp, "%016llx", (unsigned long long)environment_stamp(""));
    bool known = recall(stamp, line);
    for (int i = 0; !known && lock < 0 && i < WAIT_TRIES; i++) { /* of hundreds that start at once, one asks rpm */
        lock = memory_lock();
        known = recall(stamp, line);
        if (lock < 0 && !memory_is_kept())
            break;
    }
    if (!known && environment_read("", line, NULL))
        memory_keep_environment(stamp, line, strlen(line));
    if (lock >= 0)
        close(lock);
    return line;
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
