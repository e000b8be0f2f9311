/* Local slots as a SysV semaphore with SEM_UNDO: it survives exec, the kernel gives it back however the command ends, and
 * no descriptor is inherited. Works with every daemon down. Does not know what runs under it.
 *
 * A set has two semaphores: [FREE] counts free slots, [SIZE] is how many there are in all, 0 in a fresh set. Both are
 * changed in one atomic operation, so neither creation nor a change of the size can be seen half done. */
#include "wrapper/slots.h"

#include <errno.h>
#include <sched.h>
#include <sys/ipc.h>
#include <sys/sem.h>
#include <unistd.h>

enum { FREE, SIZE, SEMAPHORES, KEYS = 4, KEY_BASE = 0x64770000 };

static long processors(void)
{
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}

/* The user's set, or -1. Another user may have taken the number: then the next one is tried. */
static int find_set(void)
{
    for (int i = 0; i < KEYS; i++) {
        struct semid_ds about;
        key_t key = (key_t)(KEY_BASE ^ (geteuid() << 2) ^ (unsigned)i);
        int set = semget(key, SEMAPHORES, IPC_CREAT | 0600);
        if (set >= 0 && semctl(set, 0, IPC_STAT, &about) == 0 && about.sem_perm.uid == geteuid() && about.sem_perm.cuid == geteuid())
            return set;
        if (set < 0 && (errno == ENOSYS || errno == ENOSPC))
            return -1;
    }
    return -1;
}

/* Makes the set as large as asked for. When it cannot shrink because slots are in use, it stays as it is for now. */
static void resize(int set, long slots)
{
    int size = semctl(set, SIZE, GETVAL);
    if (size < 0 || size == slots)
        return;
    short by = (short)(slots - size), old = (short)size;
    struct sembuf change[] = {
        { SIZE, (short)-old, IPC_NOWAIT },        /* it is still `old` at least, */
        { SIZE, 0, IPC_NOWAIT },                  /* and no more; */
        { SIZE, (short)slots, 0 },
        { FREE, by, IPC_NOWAIT },
    };
    struct sembuf *first = old ? change : change + 1; /* taking 0 would mean waiting for 0 */
    (void)semop(set, first, (size_t)(change + 4 - first));
}

void slots_take(long slots)
{
    struct sembuf take = { FREE, -1, SEM_UNDO };
    int set = find_set();
    if (set < 0)
        return;
    resize(set, slots ? slots : processors());
    while (semop(set, &take, 1) < 0 && errno == EINTR)
        continue;
}
