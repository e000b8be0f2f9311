/* Addresses: parsed by hand (protocol/endpoint.py makes the same of the same words: tests/addresses.txt), resolved by getent(1), because a static program must not load the name service modules.
 * Does not know connections. */
#include "wrapper/address.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "protocol/protocol.h"
#include "wrapper/memory.h"
#include "wrapper/say.h"

enum { NAME_MOST = 253 };

static bool is_ip(const char *host)
{
    unsigned char raw[16];
    return inet_pton(AF_INET, host, raw) == 1 || inet_pton(AF_INET6, host, raw) == 1;
}

/* A port number: 1 to 65535, 0 for anything else. */
static unsigned parse_port(const char *text)
{
    unsigned long port = 0;
    size_t digits = strspn(text, "0123456789");
    if (digits >= 1 && digits <= 5 && !text[digits])
        port = strtoul(text, NULL, 10);
    return port <= 65535 ? (unsigned)port : 0;
}

bool address_looks_like_one(const char *word)
{
    if (strncmp(word, "tcp://", 6) == 0 || strncmp(word, "ipc://", 6) == 0 || strcmp(word, "localhost") == 0 || is_ip(word))
        return true;
    if (strchr(word, '/'))
        return false;
    const char *colon = strrchr(word, ':');
    return (word[0] == '[' && strchr(word, ']')) || (colon && colon != word && parse_port(colon + 1));
}

static const char *parse_ipc(const char *path, struct address *out)
{
    size_t length = strlen(path);
    struct sockaddr_un limit;
    if (length < 2)
        return "the path is missing";
    if (path[0] != '/' && path[0] != '@')
        return "the path does not start with /";
    if (length >= sizeof limit.sun_path)
        return "the path is longer than a Unix socket's may be";
    for (const char *at = path; *at; at++)
        if ((unsigned char)*at < ' ' || *at == 0x7f)
            return "there are control characters in the path";
    out->local_socket = true;
    memcpy(out->host, path, length + 1);
    snprintf(out->text, sizeof out->text, "ipc://%s", path);
    return NULL;
}

/* Would resolvers take it for an IPv4 address, each for another? Its last part is a number, decimal or hexadecimal. */
static bool is_number(const char *name)
{
    const char *dot = strrchr(name, '.'), *last = dot ? dot + 1 : name;
    if (strncmp(last, "0x", 2) == 0 && !last[2 + strspn(last + 2, "0123456789abcdef")])
        return true;
    return *last && !last[strspn(last, "0123456789")];
}

/* Lower case, without the dot that may end it. */
static bool parse_name(char *name, struct address *out)
{
    size_t length = strlen(name);
    if (length && name[length - 1] == '.')
        name[--length] = 0;
    for (char *at = name; *at; at++)
        if (*at >= 'A' && *at <= 'Z')
            *at = (char)(*at | 32);
    snprintf(out->host, sizeof out->host, "%s", name);
    if (is_ip(name) && !strchr(name, ':'))
        return true;
    return length && length <= NAME_MOST && strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789.-_") == length && name[0] != '-' && name[0] != '.' &&
           name[length - 1] != '.' && !strstr(name, "..") && !is_number(name);
}

/* The shortest form of an IPv6 address. */
static bool parse_v6(const char *text, struct address *out)
{
    struct in6_addr address;
    return inet_pton(AF_INET6, text, &address) == 1 && inet_ntop(AF_INET6, &address, out->host, sizeof out->host);
}

/* Splits HOST[:PORT], [V6][:PORT] or V6. */
static const char *parse_tcp(char *text, struct address *out)
{
    const char *port = DWRAP_DEFAULT_PORT;
    char *host = text, *colon = strchr(text, ':');
    if (*host == '[') {
        char *close = strchr(++host, ']');
        if (!close || (close[1] && close[1] != ':'))
            return "the brackets of an IPv6 address are not closed";
        *close = 0;
        if (close[1])
            port = close + 2;
        if (!parse_v6(host, out))
            return "there is no IPv6 address between the brackets";
    } else if (colon && strchr(colon + 1, ':')) {
        if (!parse_v6(host, out))
            return "the host is not a name or an IP address";
    } else {
        if (colon) {
            *colon = 0;
            port = colon + 1;
        }
        if (!parse_name(host, out))
            return "the host is not a name or an IP address";
    }
    out->port = (uint16_t)parse_port(port);
    if (!out->port)
        return "the port is not a number from 1 to 65535";
    snprintf(out->text, sizeof out->text, strchr(out->host, ':') ? "tcp://[%s]:%u" : "tcp://%s:%u", out->host, (unsigned)out->port);
    return NULL;
}

static bool is_blank(char c)
{
    return c == ' ' || c == '\t';
}

const char *address_parse(const char *word, size_t length, struct address *out)
{
    char text[ADDRESS_TEXT_BYTES];
    memset(out, 0, sizeof *out);
    for (; length > 0 && is_blank(word[0]); length--)
        word++;
    while (length > 0 && is_blank(word[length - 1]))
        length--;
    if (length == 0)
        return "it is empty";
    if (length >= sizeof text)
        return "it is too long";
    memcpy(text, word, length);
    text[length] = 0;
    if (strncmp(text, "ipc://", 6) == 0)
        return parse_ipc(text + 6, out);
    if (strncmp(text, "tcp://", 6) == 0)
        return parse_tcp(text + 6, out);
    if (strstr(text, "://"))
        return "only tcp:// and ipc:// are known";
    return parse_tcp(text, out);
}

static void add_endpoint(struct endpoints *out, const char *ip, uint16_t port)
{
    if (out->count == ADDRESS_MANY)
        return;
    union socket_address *address = &out->at[out->count].address;
    memset(address, 0, sizeof *address);
    if (inet_pton(AF_INET, ip, &address->v4.sin_addr) == 1) {
        address->v4.sin_family = AF_INET;
        address->v4.sin_port = htons(port);
        out->at[out->count++].length = sizeof address->v4;
    } else if (inet_pton(AF_INET6, ip, &address->v6.sin6_addr) == 1) {
        address->v6.sin6_family = AF_INET6;
        address->v6.sin6_port = htons(port);
        out->at[out->count++].length = sizeof address->v6;
    }
}

static void add_local(struct endpoints *out, const char *path)
{
    struct sockaddr_un *local = &out->at[0].address.local;
    size_t length = strlen(path);
    memset(local, 0, sizeof *local);
    local->sun_family = AF_UNIX;
    memcpy(local->sun_path, path, length);
    if (path[0] == '@')
        local->sun_path[0] = 0;
    out->at[0].length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length + (path[0] != '@'));
    out->count = 1;
}

/* Starts `getent ahosts NAME`; *from is its output. Returns its pid, or -1. */
static pid_t start_getent(const char *name, int *from)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) < 0)
        return -1;
    char *argv[] = { "getent", "ahosts", (char *)name, NULL };
    char *envp[] = { "PATH=/usr/bin:/bin:/usr/local/bin", "LC_ALL=C", NULL };
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, ends[1], 1);
    posix_spawn_file_actions_addopen(&actions, 2, "/dev/null", O_WRONLY, 0);
    pid_t pid = -1;
    if (posix_spawn(&pid, "/usr/bin/getent", &actions, NULL, argv, envp) != 0 &&
        posix_spawn(&pid, "/bin/getent", &actions, NULL, argv, envp) != 0)
        pid = -1;
    posix_spawn_file_actions_destroy(&actions);
    close(ends[1]);
    if (pid < 0)
        close(ends[0]);
    *from = ends[0];
    return pid;
}

/* Reads until the end or the deadline; what was read is a string in `text`. */
static void read_until(int from, int64_t deadline_ms, char *text, size_t size)
{
    size_t have = 0;
    for (;;) {
        int64_t left = deadline_ms - now_ms();
        struct pollfd waiting = { .fd = from, .events = POLLIN };
        if (left <= 0 || poll(&waiting, 1, (int)left) <= 0)
            break;
        ssize_t got = read(from, text + have, size - 1 - have);
        if (got <= 0)
            break;
        have += (size_t)got;
    }
    text[have] = 0;
}

/* The first words of getent's lines, once each: several lines name one address (stream, dgram, raw). */
static void add_lines(struct endpoints *out, char *text, uint16_t port)
{
    char *rest = NULL, last[64] = "";
    for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        line[strcspn(line, " \t")] = 0;
        if (strcmp(line, last) != 0)
            add_endpoint(out, line, port);
        snprintf(last, sizeof last, "%s", line);
    }
}

static const char *ask_getent(const struct address *address, int64_t deadline_ms, struct endpoints *out)
{
    char text[4096];
    int from;
    pid_t pid = start_getent(address->host, &from);
    if (pid < 0)
        return "its name cannot be resolved: getent is not installed";
    read_until(from, deadline_ms, text, sizeof text);
    close(from);
    kill(pid, SIGKILL); /* it has ended or is late: either way nothing of ours stays behind */
    while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
        continue;
    size_t length = strlen(text);
    if (length)
        memory_keep_name(address->host, text, length);
    add_lines(out, text, address->port);
    return out->count ? NULL : "its name is not known";
}

const char *address_resolve(const struct address *address, int64_t deadline_ms, struct endpoints *out)
{
    char text[4096];
    out->count = 0;
    if (address->local_socket)
        add_local(out, address->host);
    else if (is_ip(address->host))
        add_endpoint(out, address->host, address->port);
    else if (strcmp(address->host, "localhost") == 0) {
        add_endpoint(out, "127.0.0.1", address->port);
        add_endpoint(out, "::1", address->port);
    } else if (memory_recall_name(address->host, text, sizeof text))
        add_lines(out, text, address->port);
    if (out->count)
        return NULL;
    return ask_getent(address, deadline_ms, out);
}

bool endpoint_is_here(const union socket_address *address)
{
    static const unsigned char mapped[13] = { 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127 };
    if (address->any.sa_family == AF_UNIX)
        return true;
    if (address->any.sa_family == AF_INET)
        return (ntohl(address->v4.sin_addr.s_addr) >> 24) == 127;
    return IN6_IS_ADDR_LOOPBACK(&address->v6.sin6_addr) || memcmp(&address->v6.sin6_addr, mapped, sizeof mapped) == 0;
}
