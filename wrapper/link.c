/* A connection to a distributor; see link.h. Does not know verbs. */
#include "wrapper/link.h"

#include <errno.h>
#include <stdarg.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "wrapper/keys.h"
#include "wrapper/peer.h"

static enum link_status fault(struct link *l, enum link_status status, const char *why)
{
    snprintf(l->why, sizeof l->why, "%s", why);
    return status;
}

__attribute__((format(printf, 3, 4))) static enum link_status faultf(struct link *l, enum link_status status, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(l->why, sizeof l->why, format, arguments);
    va_end(arguments);
    return status;
}

/* Waits until the descriptor is ready. False when the deadline passes. */
static bool wait_for(int fd, short events, int64_t deadline_ms)
{
    struct pollfd waiting = { .fd = fd, .events = events };
    for (;;) {
        int64_t left = deadline_ms - now_ms();
        int ready = poll(&waiting, 1, left > 0 ? (int)left : 0);
        if (ready > 0)
            return true;
        if (ready == 0 || errno != EINTR)
            return false;
    }
}

/* Connects one socket before the deadline. Returns 0 or an errno. */
static int connect_until(int fd, const union socket_address *address, socklen_t length, int64_t deadline_ms)
{
    int error = 0;
    socklen_t size = sizeof error;
    while (connect(fd, &address->any, length) < 0) {
        if (errno == EAGAIN && now_ms() < deadline_ms) {
            poll(NULL, 0, 2); /* a Unix socket's queue is full, and nothing tells when it is not */
            continue;
        }
        if (errno == EAGAIN)
            return ETIMEDOUT;
        if (errno != EINPROGRESS)
            return errno;
        if (!wait_for(fd, POLLOUT, deadline_ms))
            return ETIMEDOUT;
        return getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0 ? errno : error;
    }
    return 0;
}

static enum link_status connect_any(struct link *l, const struct endpoints *to, bool keyed, bool insecure, int64_t deadline_ms)
{
    int error = ENOENT;
    for (size_t i = 0; i < to->count; i++) {
        const union socket_address *address = &to->at[i].address;
        bool exposed = !keyed && !endpoint_is_here(address);
        if (!insecure && exposed)
            return fault(l, LINK_FORBIDDEN, "it is on another machine, and no key of it is known here; dwrapctl join makes it known, "
                                            "or set DWRAP_INSECURE=1 if you trust everyone on that network");
        l->fd = socket(address->any.sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (l->fd < 0) {
            error = errno;
            continue;
        }
        int64_t now = now_ms(), share = (deadline_ms - now) / (int64_t)(to->count - i);
        error = connect_until(l->fd, address, to->at[i].length, now + share);
        if (error == 0) {
            int on = 1;
            l->exposed = exposed;
            if (address->any.sa_family != AF_UNIX)
                setsockopt(l->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
            return LINK_FINE;
        }
        link_close(l);
    }
    return fault(l, error == ETIMEDOUT ? LINK_SILENT : LINK_UNREACHABLE, error == ETIMEDOUT ? "no answer" : strerror(error));
}

/* It ended the connection in the handshake. One that cannot read HELLO does so, but so does one that is being stopped. */
static enum link_status hung_up(struct link *l)
{
    bool left = l->zmtp.state == ZMTP_BROKEN && l->zmtp.fault == ZMTP_LEAVES;
    if (!l->zmtp.secure || (l->zmtp.state != ZMTP_IN_HANDSHAKE && !left))
        return fault(l, LINK_UNREACHABLE, "it closed the connection at once");
    if (l->zmtp.curve.step != CURVE_GREETED)
        return fault(l, LINK_UNREACHABLE, "it closed the connection when it had seen the key of this user; its log says why");
    return faultf(l, LINK_UNREACHABLE, "it closed the connection when it had to prove who it is: its key is probably not the one that %s has for %s; "
                                       "if its keys were changed, replace that line", keys_known_file(), l->name);
}

/* What a peer that does not get along with us means, and what to do about it. */
static enum link_status mismatch(struct link *l)
{
    const struct zmtp *z = &l->zmtp;
    char key[2 * CURVE_KEY_BYTES + 1] = "";
    switch (z->fault) {
    case ZMTP_UNPROVEN:
        return faultf(l, LINK_UNTRUSTED, "it does not prove who it is: %s; if its keys were changed, replace its line in %s", z->why, keys_known_file());
    case ZMTP_ASKS_KEYS:
        return faultf(l, LINK_DENIED, "it asks for keys, and none of it is known here; dwrapctl join, or dwrapctl key trust %s KEY", l->name);
    case ZMTP_REFUSES_KEY:
        for (int i = 0; i < CURVE_KEY_BYTES; i++)
            snprintf(key + 2 * i, 3, "%02x", z->curve.keys.public[i]);
        return faultf(l, LINK_DENIED, "it does not let this key in (%s); its operator can: dwrapctl key allow NAME %s --submit --uid %u", key, key,
                      (unsigned)geteuid());
    case ZMTP_UNABLE:
        return fault(l, LINK_UNREACHABLE, "it cannot check keys now; its log says why");
    case ZMTP_LEAVES:
        return hung_up(l);
    case ZMTP_STRANGE:
        break;
    }
    return fault(l, LINK_STRANGE, z->why);
}

/* Everything until the peer's READY: messages sent before it would be dropped. */
static enum link_status shake_hands(struct link *l, const struct curve_keys *keys, bool careful, int64_t deadline_ms)
{
    zmtp_start(&l->zmtp, keys, careful);
    for (;;) {
        enum link_status status = zmtp_next(&l->zmtp) == ZMTP_BAD ? mismatch(l) : link_flush(l);
        if (status == LINK_FINE && l->zmtp.state == ZMTP_OPEN)
            return status;
        if (status == LINK_FINE && !wait_for(l->fd, POLLIN, deadline_ms))
            status = fault(l, LINK_SILENT, "no answer");
        if (status == LINK_FINE)
            status = link_receive(l);
        if (status == LINK_LOST)
            status = hung_up(l);
        if (status != LINK_FINE)
            return status;
    }
}

/* Another user of this machine may have taken the address while the distributor was away, and would get the environment. */
static enum link_status check_owner(struct link *l, const struct known *known)
{
    uid_t uid = 0;
    switch (peer_owner(l->fd, &uid)) {
    case PEER_FAR:
        return LINK_FINE;
    case PEER_GONE:
        return fault(l, LINK_UNREACHABLE, "it closed the connection at once");
    case PEER_UNKNOWN:
        return faultf(l, LINK_DENIED, "the kernel does not tell who runs it: %s; use keys: dwrapctl join", strerror(errno));
    case PEER_KNOWN:
        break;
    }
    if (uid == 0 || uid == geteuid() || (known->owned && uid == known->owner))
        return LINK_FINE;
    return faultf(l, LINK_UNTRUSTED, "it is run by uid %u, who is neither root nor you; add '%s uid=%u' to %s if you trust them",
                  (unsigned)uid, l->name, (unsigned)uid, keys_known_file());
}

/* Anybody can ask for keys: it is the last word only of somebody who is trusted. */
static enum link_status asks_keys(struct link *l, const struct known *known)
{
    enum link_status status = check_owner(l, known);
    if (status == LINK_FINE || status == LINK_UNREACHABLE)
        mismatch(l);
    return status == LINK_FINE ? LINK_DENIED : status == LINK_UNREACHABLE ? LINK_UNTRUSTED : status;
}

static enum link_status greet(struct link *l, const struct endpoints *to, const struct known *known, bool insecure, bool careful,
                              int64_t deadline_ms)
{
    enum link_status status = connect_any(l, to, known->keyed, insecure, deadline_ms);
    if (status == LINK_FINE)
        status = shake_hands(l, known->keyed ? &known->keys : NULL, careful, deadline_ms);
    if (status == LINK_FINE && !known->keyed)
        status = check_owner(l, known);
    else if (status == LINK_DENIED && l->zmtp.fault == ZMTP_ASKS_KEYS)
        status = asks_keys(l, known);
    if (status == LINK_FINE)
        return status;
    link_close(l);
    l->exposed = false; /* nothing of ours has gone there */
    return status;
}

static enum link_status open_to(struct link *l, const struct address *address, const struct known *known, bool insecure, int64_t deadline_ms)
{
    struct endpoints endpoints;
    const char *problem = address_resolve(address, deadline_ms, &endpoints);
    if (problem)
        return fault(l, now_ms() >= deadline_ms ? LINK_SILENT : LINK_UNREACHABLE, problem);
    l->zmtp.state = ZMTP_BROKEN;
    enum link_status status = greet(l, &endpoints, known, insecure, false, deadline_ms);
    /* It hung up when it had seen what we speak; what it speaks it tells to somebody who waits for that. */
    if (status == LINK_UNREACHABLE && l->zmtp.state == ZMTP_IN_GREETING && !known->keyed)
        status = greet(l, &endpoints, known, insecure, true, deadline_ms);
    return status;
}

enum link_status link_open(struct link *l, const struct address *address, bool insecure, int64_t deadline_ms)
{
    struct known known;
    l->fd = -1;
    l->name = address->text;
    l->exposed = false;
    l->out_start = l->out_end = 0;
    l->heard_ms = l->pinged_ms = l->asked_ms = now_ms();
    l->quiet_ms = PING_AFTER_MS;
    enum link_status status = LINK_FORBIDDEN;
    if (keys_find(address->text, &known, l->why, sizeof l->why))
        status = open_to(l, address, &known, insecure, deadline_ms);
    keys_forget(&known);
    return status;
}

void link_close(struct link *l)
{
    if (l->fd < 0)
        return;
    close(l->fd);
    l->fd = -1;
    zmtp_end(&l->zmtp);
}

static void put(struct link *l, const void *bytes, size_t length)
{
    if (length)
        memcpy(l->out + l->out_end, bytes, length);
    l->out_end += length;
}

static void put_frame(struct link *l, const void *bytes, size_t length, bool more)
{
    unsigned char front[ZMTP_FRONT_BYTES];
    put(l, front, zmtp_front(&l->zmtp, front, length, more));
    put(l, bytes, length);
    zmtp_seal(&l->zmtp, (unsigned char *)l->out + l->out_end - length, length);
}

/* Makes the free space one piece. */
static size_t free_bytes(struct link *l)
{
    if (l->out_start > 0) {
        memmove(l->out, l->out + l->out_start, l->out_end - l->out_start);
        l->out_end -= l->out_start;
        l->out_start = 0;
    }
    return sizeof l->out - l->out_end;
}

bool link_queue_reply(struct link *l)
{
    if (l->zmtp.reply_length > free_bytes(l))
        return false;
    put(l, l->zmtp.reply, l->zmtp.reply_length);
    l->zmtp.reply_length = 0;
    return true;
}

bool link_queue(struct link *l, const char *verb, const struct fields_out *fields, const void *data, size_t length)
{
    size_t verb_length = strlen(verb);
    if (fields->overflow || !link_queue_reply(l) || free_bytes(l) < verb_length + fields->length + length + 3 * ZMTP_FRONT_BYTES)
        return false;
    put_frame(l, verb, verb_length, true);
    put_frame(l, fields->at, fields->length, data != NULL);
    if (data)
        put_frame(l, data, length, false);
    return true;
}

size_t link_room(const struct link *l)
{
    size_t used = l->out_end - l->out_start;
    return used + LINK_URGENT_BYTES < sizeof l->out ? sizeof l->out - LINK_URGENT_BYTES - used : 0;
}

enum link_status link_flush(struct link *l)
{
    if (l->zmtp.reply_length)
        link_queue_reply(l); /* when there is no room it goes next time */
    while (l->out_start < l->out_end) {
        ssize_t sent = send(l->fd, l->out + l->out_start, l->out_end - l->out_start, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0 && errno != EAGAIN)
            return fault(l, LINK_LOST, "the connection broke");
        if (sent < 0)
            return LINK_FINE;
        l->out_start += (size_t)sent;
    }
    l->out_start = l->out_end = 0;
    return LINK_FINE;
}

enum link_status link_receive(struct link *l)
{
    size_t room;
    char *space = zmtp_space(&l->zmtp, &room);
    if (room == 0)
        return fault(l, LINK_STRANGE, "it sent an oversized message");
    ssize_t got = recv(l->fd, space, room, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return LINK_FINE;
    if (got <= 0)
        return fault(l, LINK_LOST, "the connection broke");
    zmtp_received(&l->zmtp, (size_t)got);
    l->heard_ms = now_ms();
    return LINK_FINE;
}

static bool verb_valid(const struct zmtp_frame *frame)
{
    for (size_t i = 0; i < frame->length; i++)
        if (frame->at[i] < 'A' || frame->at[i] > 'Z')
            return false;
    return frame->length >= 1 && frame->length <= 16;
}

/* Frames to a message. False when it does not follow the grammar. */
static bool read_message(const struct zmtp *z, struct message *m)
{
    const struct zmtp_frame *f = z->frames;
    if (z->frame_count < 2 || !verb_valid(&f[0]) || !fields_valid(f[1].at, f[1].length))
        return false;
    memcpy(m->verb, f[0].at, f[0].length);
    m->verb[f[0].length] = 0;
    m->fields = fields_of(f[1].at, f[1].length);
    m->data = z->frame_count > 2 ? f[2].at : NULL;
    m->data_length = z->frame_count > 2 ? f[2].length : 0;
    m->more = fields_of(NULL, 0);
    if (m->data && fields_valid(m->data, m->data_length))
        m->more = fields_of(m->data, m->data_length);
    return true;
}

bool link_next(struct link *l, struct message *m, enum link_status *status)
{
    *status = LINK_FINE;
    for (;;) {
        enum zmtp_event event = zmtp_next(&l->zmtp);
        if (event == ZMTP_MORE)
            return false;
        if (event == ZMTP_BAD)
            *status = mismatch(l);
        else if (event == ZMTP_MESSAGE && !read_message(&l->zmtp, m))
            *status = fault(l, LINK_STRANGE, "it sent a malformed message");
        if (*status != LINK_FINE)
            return false;
        if (event == ZMTP_MESSAGE)
            return true;
    }
}

enum link_status link_await(struct link *l, struct message *m, int64_t deadline_ms)
{
    enum link_status status;
    for (;;) {
        if (link_next(l, m, &status))
            return LINK_FINE;
        if (status == LINK_FINE)
            status = link_flush(l);
        if (status != LINK_FINE)
            return status;
        short events = l->out_start < l->out_end ? POLLIN | POLLOUT : POLLIN;
        if (!wait_for(l->fd, events, deadline_ms))
            return fault(l, LINK_SILENT, "no answer");
        status = link_receive(l);
        if (status != LINK_FINE)
            return status;
    }
}

void link_keep_alive(struct link *l, int64_t now)
{
    unsigned char ping[ZMTP_PING_BYTES];
    if (now - l->heard_ms < l->quiet_ms || now - l->pinged_ms < l->quiet_ms || !link_queue_reply(l) || free_bytes(l) < sizeof ping)
        return;
    put(l, ping, zmtp_ping(&l->zmtp, ping));
    if (l->asked_ms <= l->heard_ms)
        l->asked_ms = now;
    l->pinged_ms = now;
}
