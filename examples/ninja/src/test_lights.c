#include "lights.h"

int main(void)
{
    int state = LIGHTS_STATE_RED;
    for (int i = 0; i < 3; i++)
        state = lights_next(state, LIGHTS_EVENT_TIMER);
    return !(state == LIGHTS_STATE_RED && lights_next(LIGHTS_STATE_DARK, LIGHTS_EVENT_TIMER) == -1);
}
