/* The machine-wide cap, per user, on commands that run here. */
#ifndef DWRAP_SLOTS_H
#define DWRAP_SLOTS_H

/* Takes a slot, waiting for one if need be. It is held until this process ends, whatever it becomes by exec. `slots` is
 * how many there are; 0: as many as there are processors. Without semaphores there is no cap. */
void slots_take(long slots);

#endif
