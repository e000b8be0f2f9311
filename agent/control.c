/* Packets to and from the agent over the control socket. Knows sizes and "not now"; does not know what packets mean. */
#include "agent/runner.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

bool control_send(struct control *control, struct packet head, const void *payload, size_t size)
{
    struct iovec parts[2] = {{&head, sizeof head}, {(void *)(uintptr_t)payload, size}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = size ? 2 : 1};
    if (sendmsg(control->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0)
        return true;
    if (errno != EAGAIN && errno != EINTR && errno != ENOBUFS)
        return false;
    memcpy(control->stash, &head, sizeof head);
    if (size)
        memcpy(control->stash + sizeof head, payload, size);
    control->stashed = sizeof head + size;
    return true;
}

bool control_flush(struct control *control)
{
    if (control->stashed == 0)
        return true;
    if (send(control->fd, control->stash, control->stashed, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
        return errno == EAGAIN || errno == EINTR || errno == ENOBUFS;
    control->stashed = 0;
    return true;
}

ssize_t control_receive(struct control *control, char *packet, size_t room)
{
    ssize_t size = recv(control->fd, packet, room, MSG_DONTWAIT);
    if (size < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    return size < (ssize_t)sizeof(struct packet) ? -1 : size;
}

bool control_await_begin(struct control *control)
{
    struct packet packet;
    ssize_t size;
    while ((size = recv(control->fd, &packet, sizeof packet, 0)) < 0 && errno == EINTR)
        continue;
    return size == (ssize_t)sizeof packet && packet.kind == PACKET_NOTED && packet.number == 0;
}
