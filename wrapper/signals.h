/* Signals that come to the wrapper: read, and passed on, instead of suffered. Does not know what they are passed on to. */
#ifndef DWRAP_SIGNALS_H
#define DWRAP_SIGNALS_H

#include <signal.h>
#include <stdbool.h>

/* The signal mask as it was inherited, and the descriptor on which signals arrive instead. */
struct signals {
    int fd;
    sigset_t inherited;
};

/* From here on signals are read, not suffered. Those that were ignored or blocked on entry stay so. */
void signals_take(struct signals *signals);

/* As they were on entry: before anything else is executed here. */
void signals_restore(const struct signals *signals);

/* Should it end the command, for all that a user means by it? */
bool signal_is_deadly(int number);

/* Stops as the command was told to, by the signal itself: shells tell it from SIGSTOP, and the kernel drops it where nobody
 * could continue us. True when no SIGCONT tells that we go on. */
bool signals_stop_here(void);

#endif
