/* A connection to a distributor; see link.h. Does not know verbs. */
#include "wrapper/link.h"

#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static enum link_status fault(struct link *l, enum link_status status, const char *why)
{
    snprintf(l->why, sizeof l->why, "%s", why);
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

static enum link_status connect_any(struct link *l, const struct endpoints *to, bool insecure, int64_t deadline_ms)
{
    int error = ENOENT;
    for (size_t i = 0; i < to->count; i++) {
        const union socket_address *address = &to->at[i].address;
        l->exposed = l->exposed || !endpoint_is_here(address);
        if (!insecure && l->exposed)
            return fault(l, LINK_FORBIDDEN, "it is on another machine, and the connection is not encrypted");
        l->fd = socket(address->any.sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (l->fd < 0) {
            error = errno;
            continue;
        }
        int64_t now = now_ms(), share = (deadline_ms - now) / (int64_t)(to->count - i);
        error = connect_until(l->fd, address, to->at[i].length, now + share);
        if (error == 0) {
            int on = 1;
            if (address->any.sa_family != AF_UNIX)
                setsockopt(l->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
            return LINK_FINE;
        }
        link_close(l);
    }
    return fault(l, error == ETIMEDOUT ? LINK_SILENT : LINK_UNREACHABLE, error == ETIMEDOUT ? "no answer" : strerror(error));
}

/* Everything until the peer's READY: messages sent before it would be dropped. */
static enum link_status shake_hands(struct link *l, int64_t deadline_ms)
{
    zmtp_start(&l->zmtp);
    while (l->zmtp.state != ZMTP_OPEN) {
        enum link_status status = link_flush(l);
        if (status == LINK_FINE && !wait_for(l->fd, POLLIN, deadline_ms))
            status = fault(l, LINK_SILENT, "no answer");
        if (status == LINK_FINE)
            status = link_receive(l);
        if (status == LINK_LOST)
            status = fault(l, LINK_UNREACHABLE, "it closed the connection at once");
        if (status == LINK_FINE && zmtp_next(&l->zmtp) == ZMTP_BAD)
            status = fault(l, LINK_STRANGE, l->zmtp.why);
        if (status != LINK_FINE)
            return status;
    }
    return link_flush(l); /* our READY, if the peer's came together with its greeting */
}

enum link_status link_open(struct link *l, const struct address *address, bool insecure, int64_t deadline_ms)
{
    struct endpoints endpoints;
    l->fd = -1;
    l->name = address->text;
    l->exposed = false;
    l->out_start = l->out_end = 0;
    l->heard_ms = l->pinged_ms = l->asked_ms = now_ms();
    l->quiet_ms = PING_AFTER_MS;
    const char *problem = address_resolve(address, deadline_ms, &endpoints);
    if (problem)
        return fault(l, now_ms() >= deadline_ms ? LINK_SILENT : LINK_UNREACHABLE, problem);
    enum link_status status = connect_any(l, &endpoints, insecure, deadline_ms);
    if (status == LINK_FINE)
        status = shake_hands(l, deadline_ms);
    if (status != LINK_FINE)
        link_close(l);
    return status;
}

void link_close(struct link *l)
{
    if (l->fd >= 0)
        close(l->fd);
    l->fd = -1;
}

static void put(struct link *l, const void *bytes, size_t length)
{
    if (length)
        memcpy(l->out + l->out_end, bytes, length);
    l->out_end += length;
}

static void put_frame(struct link *l, const void *bytes, size_t length, bool more)
{
    unsigned char header[ZMTP_HEADER_BYTES];
    put(l, header, zmtp_frame_header(header, length, more));
    put(l, bytes, length);
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

bool link_queue(struct link *l, const char *verb, const struct fields_out *fields, const void *data, size_t length)
{
    size_t verb_length = strlen(verb);
    if (fields->overflow || free_bytes(l) < verb_length + fields->length + length + 3 * ZMTP_HEADER_BYTES)
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
    if (l->zmtp.reply_length && l->zmtp.reply_length <= free_bytes(l)) {
        put(l, l->zmtp.reply, l->zmtp.reply_length);
        l->zmtp.reply_length = 0;
    }
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
            *status = fault(l, LINK_STRANGE, l->zmtp.why);
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
    if (now - l->heard_ms < l->quiet_ms || now - l->pinged_ms < l->quiet_ms || free_bytes(l) < sizeof ping)
        return;
    zmtp_ping(ping);
    put(l, ping, sizeof ping);
    if (l->asked_ms <= l->heard_ms)
        l->asked_ms = now;
    l->pinged_ms = now;
}
