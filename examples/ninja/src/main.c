/* Prints the way that the lights go through a day. */
#include "door.h"
#include "lights.h"

#include <stdio.h>

int main(void)
{
    int state = LIGHTS_STATE_RED;
    const enum lights_event day[] = {LIGHTS_EVENT_TIMER, LIGHTS_EVENT_TIMER, LIGHTS_EVENT_FAULT, LIGHTS_EVENT_REPAIR};
    for (unsigned i = 0; i < sizeof day / sizeof *day && state >= 0; i++) {
        state = lights_next(state, day[i]);
        puts(lights_names[state]);
    }
    return door_next(DOOR_STATE_LOCKED, DOOR_EVENT_PUSH) != -1;
}
