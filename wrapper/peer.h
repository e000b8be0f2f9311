/* Who holds the other end of a connection on this machine: the kernel's word. Does not know who may. */
#ifndef DWRAP_PEER_H
#define DWRAP_PEER_H

#include <stdbool.h>
#include <sys/types.h>

enum peer {
    PEER_KNOWN,   /* *uid */
    PEER_GONE,    /* nobody holds it any more */
    PEER_FAR,     /* it is not on loopback */
    PEER_UNKNOWN, /* the kernel does not tell; errno */
};

/* Of a connected Unix or TCP socket. The peer must have taken the connection (it has said something): before that it is nobody's. */
enum peer peer_owner(int fd, uid_t *uid);

#endif
