/* The build's name from /proc/PID/stat. Shells and programs that exist for one command only are passed over; so is a make
 * that another make runs. Does not know what a build is used for. */
#include "wrapper/ancestry.h"

#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MOST_ANCESTORS = 64 };

struct ancestor {
    char name[64];
    int pid, parent;
    unsigned long long start;
};

/* Field 2 is the name in brackets and may hold brackets itself; 4 is the parent, 22 the start in clock ticks. */
static bool read_ancestor(int pid, struct ancestor *out)
{
    char path[32], text[1024];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    ssize_t got = read(fd, text, sizeof text - 1);
    close(fd);
    text[got > 0 ? got : 0] = 0;
    char *open_bracket = strchr(text, '('), *close_bracket = strrchr(text, ')');
    if (!open_bracket || !close_bracket || close_bracket < open_bracket)
        return false;
    *close_bracket = 0;
    snprintf(out->name, sizeof out->name, "%s", open_bracket + 1);
    out->pid = pid;
    return sscanf(close_bracket + 1, " %*c %d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu",
                  &out->parent, &out->start) == 2;
}

static bool is_one_of(const char *name, const char *const *names)
{
    for (; *names; names++)
        if (strcmp(name, *names) == 0)
            return true;
    return false;
}

void build_from_ancestors(char *out, size_t size, const char *host)
{
    static const char *const passed_over[] = { "sh",   "bash", "dash",    "zsh",     "ksh",  "mksh",  "ash",    "busybox", "fish", "tcsh", "csh",
                                               "env",  "nice", "timeout", "libtool", "time", "ccache", "sccache", "cmake", "dwrap", NULL };
    static const char *const makes[] = { "make", "gmake", "bmake", NULL };
    struct ancestor one = { 0 }, chosen = { .name = "shell", .pid = getppid() };
    int pid = chosen.pid;
    bool in_make = false;
    for (int i = 0; i < MOST_ANCESTORS && pid > 1 && read_ancestor(pid, &one); i++, pid = one.parent) {
        if (is_one_of(one.name, makes)) {
            chosen = one;
            in_make = true;
        } else if (!is_one_of(one.name, passed_over)) {
            if (!in_make)
                chosen = one;
            break;
        } else if (!in_make) {
            chosen = one; /* the outermost shell, when there is nothing else */
        }
    }
    for (char *at = chosen.name; *at; at++)
        if (*at < '!' || *at > '~')
            *at = '_';
    snprintf(out, size, "%.32s.%d.%llu@%.64s", chosen.name, chosen.pid, chosen.start, host);
}
