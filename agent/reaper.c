/* Finds and signals the descendants of this process through /proc, for agents without PID namespaces.
 * Knows parents and children only. A process that forks faster than it is found is met again on the caller's next round:
 * the caller is a subreaper, so nothing escapes by losing its parent. Those that fork without end are stopped first, all of them: what
 * is stopped forks no more and still counts among its user's processes, while each that is killed makes room for another. Then they are
 * killed from the leaves on: the kernel continues a stopped process group when the last parent outside of it dies. */
#include "agent/runner.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

struct process {
    pid_t pid, parent;
    char state;
    int depth; /* below us; 0: it is none of ours */
};

/* Those that are not at rest, and of them those that cannot come to rest by themselves: one that waits for a stopped child in vfork(), or
 * for a server, does not stop. */
struct tally {
    size_t all, active, stuck;
};

enum { MOST_ROUNDS = 50, PAUSE_MS = 5, STUCK_ROUNDS = 3 };

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

static bool is_at_rest(char state) { return state && strchr("TtZX", state); }

/* The state of a process whose first thread has ended: that of a thread that is not at rest, if there is one. */
static char state_of_others(int directory)
{
    char state = 'Z', one;
    int tasks = openat(directory, "task", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *list = tasks >= 0 ? fdopendir(tasks) : NULL;
    if (!list && tasks >= 0)
        close(tasks);
    for (struct dirent *entry; list && is_at_rest(state) && (entry = readdir(list));) {
        int task = entry->d_name[0] != '.' ? openat(dirfd(list), entry->d_name, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
        if (task < 0)
            continue;
        if (parent_of(task, &one))
            state = one;
        close(task);
    }
    if (list)
        closedir(list);
    return state;
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
        if (process->state == 'Z')
            process->state = state_of_others(directory);
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

static int deepest_first(const void *one, const void *other)
{
    return ((const struct process *)other)->depth - ((const struct process *)one)->depth;
}

/* In an array that is in order. NULL when it is not there. */
static struct process *find(struct process *all, size_t count, pid_t pid)
{
    struct process wanted = {.pid = pid};
    return all ? bsearch(&wanted, all, count, sizeof *all, compare) : NULL;
}

/* Most parents have lower numbers than their children: few rounds do, however many there are. */
static void mark_descendants(struct process *all, size_t count)
{
    bool changed = count > 0;
    if (all)
        qsort(all, count, sizeof *all, compare);
    while (changed) {
        changed = false;
        for (size_t i = 0; i < count; i++) {
            const struct process *parent = all[i].depth || all[i].parent == getpid() ? NULL : find(all, count, all[i].parent);
            if (all[i].depth || (all[i].parent != getpid() && !(parent && parent->depth)))
                continue;
            all[i].depth = parent ? parent->depth + 1 : 1;
            changed = true;
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

/* The members of an array in the order in which the signal is due. */
static struct tally signal_ours(struct process *all, size_t count, int signal)
{
    struct tally tally = {0};
    for (size_t i = 0; i < count; i++) {
        if (!all[i].depth)
            continue;
        bool rests = is_at_rest(all[i].state);
        tally.all++;
        tally.active += !rests;
        tally.stuck += all[i].state == 'D';
        if (signal != SIGSTOP || !rests)
            signal_process(&all[i], signal);
    }
    return tally;
}

static struct tally signal_descendants(int signal)
{
    struct process *all;
    size_t count = list_processes(&all);
    mark_descendants(all, count);
    if (signal == SIGKILL && all)
        qsort(all, count, sizeof *all, deepest_first);
    struct tally tally = signal_ours(all, count, signal);
    if (signal == SIGKILL && all)
        qsort(all, count, sizeof *all, compare);
    signal_hidden_children(all, count, signal);
    free(all);
    return tally;
}

void reaper_signal_descendants(int signal) { signal_descendants(signal); }

static void pause_for(long milliseconds)
{
    struct timespec pause = {milliseconds / 1000, milliseconds % 1000 * 1000000};
    nanosleep(&pause, NULL);
}

/* Until all are at rest, or only those are left that cannot be brought to it. */
static void stop_descendants(void)
{
    struct tally last = {0};
    int stuck = 0;
    for (int round = 0; round < MOST_ROUNDS; round++) {
        struct tally now = signal_descendants(SIGSTOP);
        bool changed = now.all != last.all || now.active != last.active;
        last = now;
        if (changed || now.active > now.stuck)
            stuck = 0;
        if (now.active == 0 || stuck == STUCK_ROUNDS)
            return;
        if (now.active == now.stuck)
            pause_for(PAUSE_MS << stuck++);
        else if (!changed)
            pause_for(PAUSE_MS);
    }
}

void reaper_kill_descendants(void)
{
    stop_descendants();
    signal_descendants(SIGKILL);
}
