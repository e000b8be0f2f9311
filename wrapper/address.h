/* Addresses of distributors: what a user may write, and the socket addresses behind it. */
#ifndef DWRAP_ADDRESS_H
#define DWRAP_ADDRESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <netinet/in.h>

enum { ADDRESS_TEXT_BYTES = 320, ADDRESS_MANY = 8 };

/* One distributor. `text` is the canonical form: tcp://HOST:PORT, tcp://[V6]:PORT or ipc://PATH. */
struct address {
    bool local_socket; /* ipc:// */
    uint16_t port;
    char host[256]; /* a name or an IP address; of ipc:// the path ('@' first: the abstract namespace) */
    char text[ADDRESS_TEXT_BYTES];
};

union socket_address {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
    struct sockaddr_un local;
};

/* Socket addresses to try, in order. */
struct endpoints {
    size_t count;
    struct {
        union socket_address address;
        socklen_t length;
    } at[ADDRESS_MANY];
};

/* Does the word have the form of an address (with a scheme, a port, an IP address, localhost)? */
bool address_looks_like_one(const char *word);

/* Parses any form, a bare host name included, with blanks around it. Returns NULL, or what is wrong with it. */
const char *address_parse(const char *word, size_t length, struct address *out);

/* Finds the socket addresses. Names that are no IP addresses are asked of getent(1), until `deadline_ms`, and
 * remembered for a minute (memory.h). Returns NULL, or what went wrong. */
const char *address_resolve(const struct address *address, int64_t deadline_ms, struct endpoints *out);

/* Can nobody but this machine see what goes there? */
bool endpoint_is_here(const union socket_address *address);

#endif
