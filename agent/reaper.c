/* Finds and signals the descendants of this process through /proc, for agents without PID namespaces.
 * Knows parents and children only. A process that forks faster than it is found is met again on the caller's next round:
 * the caller is a subreaper, so nothing escapes by losing its parent. Those that fork without end are stopped first, all of them: what
 * is stopped forks no more and still counts among its user's processes, while each that is killed makes room for another. */
#include "agent/runner.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

struct process {
    pid_t pid, parent;
    char state;
    bool ours;
};

enum { MOST_ROUNDS = 50 }; /* one that waits for a stopped child in vfork() does not stop */

/* The parent of the process whose /proc directory this is, and its state; 0 when it is gone. */
static pid_t parent_of(int directory, char *state)
{
    char text[512];
    int fd = openat(directory, "stat", O_RDONLY | O_CLOEXEC);
    ssize_t size = fd >= 0 ? read(fd, text, sizeof text - 1) : -1;
    if (fd >= 0)
        close(fd);
    if (size <= 0)
        return 0;
    text[size] = '\0';
    const char *after_name = strrchr(text, ')'); /* a name may hold anything */
    int parent = 0;
    return after_name && sscanf(after_name, ") %c %d", state, &parent) == 2 ? parent : 0;
}

static size_t list_processes(struct process **all)
{
    size_t count = 0, room = 0;
    DIR *proc = opendir("/proc");
    *all = NULL;
    for (struct dirent *entry; proc && (entry = readdir(proc));) {
        pid_t pid = (pid_t)strtol(entry->d_name, NULL, 10);
        int directory = pid > 0 ? openat(dirfd(proc), entry->d_name, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
        if (directory < 0)
            continue;
        if (count == room) {
            room = room ? 2 * room : 256;
            struct process *more = realloc(*all, room * sizeof **all);
            if (!more)
                _exit(125); /* the runner notices, and the agent kills what is left */
            *all = more;
        }
        struct process *process = &(*all)[count++];
        *process = (struct process){.pid = pid};
        process->parent = parent_of(directory, &process->state);
        close(directory);
    }
    if (proc)
        closedir(proc);
    return count;
}

static int compare(const void *one, const void *other)
{
    pid_t a = ((const struct process *)one)->pid, b = ((const struct process *)other)->pid;
    return (a > b) - (a < b);
}

/* In an array that is in order. NULL when it is not there. */
static struct process *find(struct process *all, size_t count, pid_t pid)
{
    struct process wanted = {.pid = pid};
    return count ? bsearch(&wanted, all, count, sizeof *all, compare) : NULL;
}

/* Most parents have lower numbers than their children: few rounds do, however many there are. */
static void mark_descendants(struct process *all, size_t count)
{
    bool changed = true;
    qsort(all, count, sizeof *all, compare);
    while (changed) {
        changed = false;
        for (size_t i = 0; i < count; i++) {
            const struct process *parent = all[i].ours ? NULL : find(all, count, all[i].parent);
            if (all[i].ours || (all[i].parent != getpid() && !(parent && parent->ours)))
                continue;
            changed = all[i].ours = true;
        }
    }
}

/* Signals through the /proc directory, after a second look: the number cannot have become somebody else's in between. */
static void signal_process(const struct process *process, int signal)
{
    char path[32];
    snprintf(path, sizeof path, "/proc/%d", (int)process->pid);
    int directory = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0)
        return;
    char state;
    pid_t parent = parent_of(directory, &state);
    if (parent == process->parent || parent == getpid())
        syscall(SYS_pidfd_send_signal, directory, signal, NULL, 0);
    close(directory);
}

/* Children that /proc hides from us: with hidepid those that may not be traced. They are ours to reap, so their numbers are
 * not used again meanwhile; what hides below them is met here once they have ended. */
static void signal_hidden_children(struct process *all, size_t count, int signal)
{
    char path[64];
    int child;
    snprintf(path, sizeof path, "/proc/self/task/%d/children", (int)getpid());
    FILE *children = fopen(path, "re");
    while (children && fscanf(children, "%d", &child) == 1)
        if (!find(all, count, child))
            kill(child, signal);
    if (children)
        fclose(children);
}

static bool is_at_rest(const struct process *process) { return process->state && strchr("TtZX", process->state); }

/* How many of them were not at rest. */
static size_t signal_descendants(int signal)
{
    struct process *all;
    size_t count = list_processes(&all), active = 0;
    mark_descendants(all, count);
    for (size_t i = 0; i < count; i++) {
        if (!all[i].ours)
            continue;
        active += !is_at_rest(&all[i]);
        if (signal != SIGSTOP || !is_at_rest(&all[i]))
            signal_process(&all[i], signal);
    }
    signal_hidden_children(all, count, signal);
    free(all);
    return active;
}

void reaper_signal_descendants(int signal) { signal_descendants(signal); }

void reaper_kill_descendants(void)
{
    for (int round = 0; round < MOST_ROUNDS && signal_descendants(SIGSTOP) > 0; round++)
        continue;
    signal_descendants(SIGKILL);
}
