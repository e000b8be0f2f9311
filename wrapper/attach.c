/* Connecting again and again, within bounds; see attach.h.
 *
 * A try keeps everything else waiting, so its bound is short to begin with; it grows because thousands that come back to a distributor
 * at once would otherwise all give up in the middle of the handshake, again and again.
 * Does not know messages. */
#include "wrapper/attach.h"

enum { PAUSE_MS = 100, FIRST_BOUND_MS = 300, STEADY_MS = 1000 };

void absence_begin(struct absence *a, struct link *l, int64_t silent_ms)
{
    int64_t now = now_ms();
    /* A peer that takes us back and breaks again at once is no better than one that is not there. */
    bool was_steady = !a->away && (a->opened_ms == 0 || l->heard_ms - a->opened_ms >= STEADY_MS);
    link_close(l);
    if (was_steady)
        a->used_ms = silent_ms;
    a->away = true;
    a->looked_ms = now;
    a->next_ms = was_steady ? now : now + PAUSE_MS;
    a->bound_ms = FIRST_BOUND_MS;
}

bool absence_try(struct absence *a, struct link *l)
{
    if (now_ms() < a->next_ms)
        return false;
    bool open = link_open(l, a->address, a->insecure, now_ms() + a->bound_ms) == LINK_FINE;
    a->bound_ms = 2 * a->bound_ms < ATTACH_MOST_MS ? 2 * a->bound_ms : ATTACH_MOST_MS;
    a->opened_ms = now_ms();
    a->next_ms = a->opened_ms + PAUSE_MS;
    return open;
}

void absence_end(struct absence *a)
{
    a->away = false;
}

bool absence_is_too_long(struct absence *a, int64_t least_ms)
{
    /* We look at least this often; more has passed only while we were stopped. */
    int64_t now = now_ms(), passed = now - a->looked_ms, most = PING_AFTER_MS + 2 * ATTACH_MOST_MS;
    a->used_ms += passed < most ? passed : most;
    a->looked_ms = now;
    return a->used_ms >= (a->patience_ms > least_ms ? a->patience_ms : least_ms);
}

int64_t absence_pause_ms(const struct absence *a)
{
    int64_t left = a->next_ms - now_ms();
    return left > 0 ? left : 0;
}
