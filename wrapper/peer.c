/* The owner of a peer's socket; see peer.h. protocol/peer.py asks the same from the other end.
 *
 * When no connection is found the kernel answers about whoever listens on that port instead, and it finds none of a socket that is bound to
 * a device: so an answer counts only when it is about the very connection that was asked for. */
#include "wrapper/peer.h"

#include <errno.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "wrapper/address.h"

struct question {
    struct nlmsghdr header;
    struct inet_diag_req_v2 asked;
};

/* A socket address as sock_diag wants it. Returns its family; one that is IPv4 in IPv6's clothes is AF_INET. */
static sa_family_t put_address(const union socket_address *from, __be32 out[4], __be16 *port)
{
    const unsigned char *six = from->v6.sin6_addr.s6_addr;
    bool is_four = from->any.sa_family == AF_INET, is_mapped = !is_four && IN6_IS_ADDR_V4MAPPED(&from->v6.sin6_addr);
    memset(out, 0, 4 * sizeof *out);
    *port = is_four ? from->v4.sin_port : from->v6.sin6_port;
    if (is_four)
        memcpy(out, &from->v4.sin_addr, 4);
    else
        memcpy(out, is_mapped ? six + 12 : six, is_mapped ? 4 : 16);
    return is_four || is_mapped ? AF_INET : AF_INET6;
}

/* Asks for the socket whose own end is the peer's. */
static ssize_t ask(const union socket_address *peer, const union socket_address *own, void *answer, size_t size)
{
    struct question q = { .header = { .nlmsg_len = sizeof q, .nlmsg_type = SOCK_DIAG_BY_FAMILY, .nlmsg_flags = NLM_F_REQUEST },
                          .asked = { .sdiag_protocol = IPPROTO_TCP, .idiag_states = ~0u } };
    struct inet_diag_sockid *id = &q.asked.id;
    q.asked.sdiag_family = (unsigned char)put_address(peer, id->idiag_src, &id->idiag_sport);
    put_address(own, id->idiag_dst, &id->idiag_dport);
    id->idiag_cookie[0] = id->idiag_cookie[1] = INET_DIAG_NOCOOKIE;
    int fd = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
    if (fd < 0)
        return -1;
    ssize_t got = send(fd, &q, sizeof q, 0) < 0 ? -1 : recv(fd, answer, size, MSG_DONTWAIT); /* the kernel answers while it is asked */
    int error = errno;
    close(fd);
    errno = error;
    return got;
}

/* Both ends of a connection, of either family, in one form: an IPv4 address as IPv6 has it. */
struct ends {
    unsigned char addresses[2][16];
    __be16 ports[2];
};

static struct ends ends_of(unsigned family, const struct inet_diag_sockid *id)
{
    static const unsigned char mapped[12] = { [10] = 0xff, [11] = 0xff };
    struct ends ends = { .ports = { id->idiag_sport, id->idiag_dport } };
    for (int i = 0; i < 2; i++) {
        const __be32 *from = i ? id->idiag_dst : id->idiag_src;
        if (family == AF_INET)
            memcpy(ends.addresses[i], mapped, sizeof mapped);
        memcpy(ends.addresses[i] + (family == AF_INET ? sizeof mapped : 0), from, family == AF_INET ? 4 : 16);
    }
    return ends;
}

/* A connection, be it that it is ending; no listener, nothing half open, nothing that is over. */
static bool is_connection(unsigned state)
{
    return state == TCP_ESTABLISHED || state == TCP_FIN_WAIT1 || state == TCP_FIN_WAIT2 || state == TCP_CLOSE_WAIT || state == TCP_LAST_ACK ||
           state == TCP_CLOSING;
}

static bool is_asked_for(const struct inet_diag_msg *found, const union socket_address *peer, const union socket_address *own)
{
    struct inet_diag_sockid id = { 0 };
    sa_family_t family = put_address(peer, id.idiag_src, &id.idiag_sport);
    put_address(own, id.idiag_dst, &id.idiag_dport);
    struct ends asked = ends_of(family, &id), answered = ends_of(found->idiag_family, &found->id);
    return (found->idiag_family == AF_INET || found->idiag_family == AF_INET6) && is_connection(found->idiag_state) &&
           memcmp(asked.addresses, answered.addresses, sizeof asked.addresses) == 0 && memcmp(asked.ports, answered.ports, sizeof asked.ports) == 0;
}

static enum peer tcp_owner(const union socket_address *peer, const union socket_address *own, uid_t *uid)
{
    union {
        struct nlmsghdr header;
        char bytes[4096];
    } answer;
    ssize_t got = ask(peer, own, &answer, sizeof answer);
    if (got < 0)
        return PEER_UNKNOWN;
    errno = EPROTO;
    if ((size_t)got < NLMSG_HDRLEN)
        return PEER_UNKNOWN;
    if (answer.header.nlmsg_type == NLMSG_ERROR && (size_t)got >= NLMSG_LENGTH(sizeof(struct nlmsgerr))) {
        errno = -((struct nlmsgerr *)NLMSG_DATA(&answer.header))->error;
        return errno == ENOENT ? PEER_GONE : PEER_UNKNOWN;
    }
    if (answer.header.nlmsg_type != SOCK_DIAG_BY_FAMILY || (size_t)got < NLMSG_LENGTH(sizeof(struct inet_diag_msg)))
        return PEER_UNKNOWN;
    const struct inet_diag_msg *found = NLMSG_DATA(&answer.header);
    if (!is_asked_for(found, peer, own))
        return PEER_GONE;
    *uid = found->idiag_uid;
    return found->idiag_inode ? PEER_KNOWN : PEER_GONE;
}

enum peer peer_owner(int fd, uid_t *uid)
{
    union socket_address peer, own;
    struct ucred who;
    socklen_t peer_length = sizeof peer, own_length = sizeof own, length = sizeof who;
    if (getpeername(fd, &peer.any, &peer_length) < 0 || getsockname(fd, &own.any, &own_length) < 0)
        return errno == ENOTCONN ? PEER_GONE : PEER_UNKNOWN;
    if (!endpoint_is_here(&peer))
        return PEER_FAR;
    if (peer.any.sa_family != AF_UNIX)
        return tcp_owner(&peer, &own, uid);
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &length) < 0)
        return PEER_UNKNOWN;
    *uid = who.uid;
    return PEER_KNOWN;
}
