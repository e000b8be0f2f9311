/* Until when the agent's jobs may run: a number that the agent writes into memory which it shares with its runners, nanoseconds of
 * the clock that counts suspend; 0 is no end. Knows the number and a timer; does not know what follows when it is over.
 * So a job ends in time though its agent hangs, is stopped, or has died. */
#include "agent/runner.h"

#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <unistd.h>

#define SECOND UINT64_C(1000000000)
#define LOOK_SECONDS 1 /* while there is no end yet */

static const _Atomic uint64_t *end;

void lease_map(void)
{
    struct stat st;
    if (fstat(LEASE_FD, &st) == 0 && S_ISREG(st.st_mode) && st.st_size >= (off_t)sizeof *end) {
        void *shared = mmap(NULL, sizeof *end, PROT_READ, MAP_SHARED, LEASE_FD, 0);
        end = shared == MAP_FAILED ? NULL : shared;
    }
    close(LEASE_FD);
}

static uint64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_BOOTTIME, &time);
    return (uint64_t)time.tv_sec * SECOND + (uint64_t)time.tv_nsec;
}

static bool is_over(uint64_t at) { return at != 0 && now() >= at; }

/* 0: there is none yet. */
static uint64_t end_for(bool may_linger)
{
    uint64_t at = end ? atomic_load(end) : 0;
    return at != 0 && may_linger ? at + BEYOND_SECONDS * SECOND : at;
}

static struct timespec time_to_look(uint64_t at)
{
    if (at == 0)
        at = now() + LOOK_SECONDS * SECOND;
    return (struct timespec){.tv_sec = (time_t)(at / SECOND), .tv_nsec = (long)(at % SECOND)};
}

bool lease_is_kept(void) { return end; }

bool lease_is_over_for(bool may_linger) { return is_over(end_for(may_linger)); }

bool lease_is_over(void) { return lease_is_over_for(false); }

void lease_sleep(bool may_linger)
{
    struct timespec until = time_to_look(end_for(may_linger));
    clock_nanosleep(CLOCK_BOOTTIME, TIMER_ABSTIME, &until, NULL);
}

int lease_timer(void) { return end ? timerfd_create(CLOCK_BOOTTIME, TFD_CLOEXEC | TFD_NONBLOCK) : -1; }

bool lease_look(int timer, bool may_linger)
{
    uint64_t at = end_for(may_linger);
    if (is_over(at))
        return true;
    struct itimerspec when = {.it_value = time_to_look(at)};
    timerfd_settime(timer, TFD_TIMER_ABSTIME, &when, NULL); /* which also makes it unreadable */
    return false;
}
