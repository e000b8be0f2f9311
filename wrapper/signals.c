/* Signals as bytes on a descriptor; see signals.h. Does not know messages. */
#include "wrapper/signals.h"

#include <stddef.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

static const int forwarded[] = { SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGCONT, SIGWINCH, SIGTSTP };

void signals_take(struct signals *signals)
{
    sigset_t taken, blocked;
    sigemptyset(&taken);
    sigprocmask(SIG_BLOCK, NULL, &signals->inherited);
    for (size_t i = 0; i < sizeof forwarded / sizeof forwarded[0]; i++) {
        struct sigaction action;
        sigaction(forwarded[i], NULL, &action);
        if (action.sa_handler != SIG_IGN && !sigismember(&signals->inherited, forwarded[i]))
            sigaddset(&taken, forwarded[i]);
    }
    blocked = taken;
    sigaddset(&blocked, SIGPIPE); /* a reader that left is an error to us, and a CLOSE to the command */
    sigprocmask(SIG_BLOCK, &blocked, NULL);
    signals->fd = signalfd(-1, &taken, SFD_CLOEXEC | SFD_NONBLOCK);
}

void signals_restore(const struct signals *signals)
{
    struct timespec now = { 0 };
    sigset_t pipe_only;
    sigemptyset(&pipe_only);
    sigaddset(&pipe_only, SIGPIPE);
    if (!sigismember(&signals->inherited, SIGPIPE))
        while (sigtimedwait(&pipe_only, NULL, &now) > 0)
            continue; /* ours, not the command's */
    close(signals->fd);
    sigprocmask(SIG_SETMASK, &signals->inherited, NULL);
}

bool signal_is_deadly(int number)
{
    return number == SIGINT || number == SIGTERM || number == SIGHUP || number == SIGQUIT;
}

bool signals_stop_here(void)
{
    sigset_t stop, pending;
    sigemptyset(&stop);
    sigaddset(&stop, SIGTSTP);
    kill(getpid(), SIGTSTP);
    sigprocmask(SIG_UNBLOCK, &stop, NULL);
    sigprocmask(SIG_BLOCK, &stop, NULL);
    return sigpending(&pending) == 0 && !sigismember(&pending, SIGCONT);
}
