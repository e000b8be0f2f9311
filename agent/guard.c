/* The guard: a child of the runner that does nothing but watch the lease, and ends the tree and the runner where the runner does not.
 *
 * A runner looks at what its job names: memory of the job's processes, files on mounts of anybody's. Such a look may never come back (a
 * page that nobody serves, a file server that is away), and a runner that hangs in one hears neither its timer nor its agent; no signal
 * that it handles would reach it either. Nor can a deadline be set beforehand: a mount that comes back after minutes harms nobody as long
 * as the agent renews its lease. So somebody else reads that. Knows the lease, a tree and a runner; touches nothing that could block. */
#include "agent/runner.h"

#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define GRACE_SECONDS 5 /* in which a runner that does not hang has begun to end its tree; also one that was suspended until just now */

static _Atomic bool *lingers; /* shared with the guard */

/* Of all descriptors only the runner's end of the channel to the holder. */
static void keep_only(int channel)
{
    if (channel > 0)
        syscall(SYS_close_range, 0, channel - 1, 0);
    syscall(SYS_close_range, channel + 1, ~0u, 0);
}

_Noreturn static void watch(const struct tree *tree, pid_t runner)
{
    const struct timespec grace = {.tv_sec = GRACE_SECONDS};
    prctl(PR_SET_NAME, "dwrap-guard");
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    keep_only(tree->channel);
    do {
        lease_sleep(atomic_load(lingers));
        if (lease_is_over_for(atomic_load(lingers)))
            nanosleep(&grace, NULL); /* this clock stands still while the machine sleeps */
    } while (!lease_is_over_for(atomic_load(lingers)));
    tree_signal_all(tree, SIGKILL); /* first: a runner that waits for a server may not die before that answers */
    if (getppid() == runner)
        kill(runner, SIGKILL);
    for (;;)
        pause();
}

pid_t guard_start(const struct tree *tree)
{
    pid_t runner = getpid();
    if (!lease_is_kept())
        return 0;
    if (!lingers) {
        void *shared = mmap(NULL, sizeof *lingers, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        lingers = shared == MAP_FAILED ? NULL : shared;
    }
    pid_t guard = lingers ? fork() : -1;
    if (guard == 0)
        watch(tree, runner);
    return guard > 0 ? guard : 0;
}

void guard_let_linger(void)
{
    if (lingers)
        atomic_store(lingers, true);
}

void guard_stop(pid_t guard)
{
    if (guard <= 0)
        return;
    kill(guard, SIGKILL);
    waitpid(guard, NULL, 0);
}
