#include "door.h"

int main(void)
{
    return !(door_next(DOOR_STATE_CLOSED, DOOR_EVENT_LOCK) == DOOR_STATE_LOCKED && door_next(DOOR_STATE_OPEN, DOOR_EVENT_LOCK) == -1);
}
