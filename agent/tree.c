/* The job's process tree. A small process, the holder, starts the command and reaps everything below it: as init of a PID
 * namespace with its own /proc where the kernel allows that, else as a subreaper. It outlives the command until the tree is
 * empty, and kills the tree when the runner goes away. Knows processes; does not know streams, the agent, or time limits.
 *
 * In a namespace process ids start at a random number: scripts name temporary files after $$ on the shared tree, and two
 * jobs must not both be number 2. */
#include "agent/runner.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct order {
    int signal;
    bool all;
};

enum { KILL_AGAIN_MS = 5, KILL_AGAIN_MOST_MS = 160 };

struct holder {
    int channel, children; /* children: a signalfd for SIGCHLD */
    pid_t command;
    bool namespaces, killing;
};

static bool spread_process_ids(void)
{
    uint32_t number;
    char text[16];
    int fd = open("/proc/sys/kernel/ns_last_pid", O_WRONLY | O_CLOEXEC);
    if (fd < 0 || getrandom(&number, sizeof number, 0) != (ssize_t)sizeof number) {
        if (fd >= 0)
            close(fd);
        return false;
    }
    int size = snprintf(text, sizeof text, "%u", 300 + number % 4000000);
    bool done = write(fd, text, (size_t)size) == size;
    if (!done) { /* a small pid_max */
        size = snprintf(text, sizeof text, "%u", 300 + number % 30000);
        done = write(fd, text, (size_t)size) == size;
    }
    close(fd);
    return done;
}

static bool furnish_namespaces(void)
{
    if (mount("none", "/", NULL, MS_REC | MS_SLAVE, NULL) != 0 || /* what the host mounts and unmounts is seen here too */
        mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) != 0)
        return false;
    spread_process_ids(); /* without it names are merely less unique */
    return true;
}

static void signal_tree(const struct holder *holder, int signal)
{
    if (holder->namespaces)
        kill(-1, signal); /* everything in the namespace but its init, this process */
    else
        reaper_signal_descendants(signal);
}

static void kill_tree(const struct holder *holder)
{
    if (holder->namespaces)
        kill(-1, SIGKILL);
    else
        reaper_kill_descendants();
}

static void tell(const struct holder *holder, enum tree_news what, int status)
{
    struct news news = {.what = (int)what, .status = status};
    getrusage(RUSAGE_CHILDREN, &news.usage);
    send(holder->channel, &news, sizeof news, MSG_NOSIGNAL); /* the runner may be gone: see obey() */
}

/* Reaps what has ended. False when nothing is left. */
static bool reap(struct holder *holder)
{
    for (;;) {
        int status;
        pid_t pid = waitpid(-1, &status, WNOHANG | __WALL);
        if (pid < 0)
            return errno != ECHILD;
        if (pid == 0)
            return true;
        if (pid == holder->command) {
            holder->command = 0;
            tell(holder, TREE_MAIN_ENDED, status);
        }
    }
}

static void obey(struct holder *holder)
{
    struct order order;
    ssize_t size = recv(holder->channel, &order, sizeof order, 0);
    if (size == 0 || (size < 0 && errno != EINTR)) { /* the runner is gone, or has said all */
        holder->killing = true;
    } else if (size == (ssize_t)sizeof order) {
        if (order.all && order.signal == SIGKILL)
            holder->killing = true;
        else if (order.all)
            signal_tree(holder, order.signal);
        else if (holder->command)
            kill(-holder->command, order.signal);
    }
}

static void hold(struct holder *holder)
{
    int pause = KILL_AGAIN_MS;
    while (reap(holder)) {
        struct pollfd wait[2] = {{holder->children, POLLIN, 0}, {holder->killing ? -1 : holder->channel, POLLIN, 0}};
        poll(wait, 2, holder->killing ? pause : -1);
        pause = wait[0].revents ? KILL_AGAIN_MS : pause < KILL_AGAIN_MOST_MS ? 2 * pause : pause; /* what waits for a server is not hurried */
        if (wait[1].revents)
            obey(holder);
        if (holder->killing)
            kill_tree(holder); /* again and again: a fork may have been under way */
        struct signalfd_siginfo ignored;
        if (wait[0].revents && read(holder->children, &ignored, sizeof ignored) < 0)
            continue; /* whatever it says, reap() looks */
    }
    tell(holder, TREE_EMPTY, 0);
}

/* Blocked, a signal waits: one that is sent before the command has its own dispositions is not lost to those inherited here. */
static void block_signals(void)
{
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
}

/* Of all descriptors only the channel, and the lock that says that this job lives. */
static void keep_only(int channel)
{
    int low = channel < RUNS_FD ? channel : RUNS_FD, high = channel < RUNS_FD ? RUNS_FD : channel;
    if (low > 0)
        syscall(SYS_close_range, 0, low - 1, 0);
    if (high > low + 1)
        syscall(SYS_close_range, low + 1, high - 1, 0);
    syscall(SYS_close_range, high + 1, ~0u, 0);
}

_Noreturn static void give_up(int report_fd, const char *what)
{
    struct failure failure = {.stage = STAGE_SETUP, .error = errno};
    snprintf(failure.what, sizeof failure.what, "%s", what);
    _exit(write(report_fd, &failure, sizeof failure) == (ssize_t)sizeof failure ? 0 : 125);
}

_Noreturn static void run_holder(const struct spec *spec, int channel, const int stdio[3], int report_fd)
{
    struct holder holder = {.channel = channel, .namespaces = spec->namespaces};
    prctl(PR_SET_NAME, "dwrap-holder");
    /* It is not to die with the runner, though with init the whole namespace would: its end frees the lock that says that this job
     * lives, before the kernel has taken down the rest. */
    if (!spec->namespaces)
        prctl(PR_SET_CHILD_SUBREAPER, 1);
    prctl(PR_SET_PDEATHSIG, SIGCONT); /* its own job may have stopped it; then it could not act on that death */
    block_signals();
    if (spec->namespaces && !furnish_namespaces())
        give_up(report_fd, "mount");
    holder.command = fork();
    if (holder.command < 0)
        give_up(report_fd, "fork");
    if (holder.command == 0) {
        setpgid(0, 0);
        command_become(spec, stdio, report_fd);
    }
    setpgid(holder.command, holder.command); /* here too: a signal may come at once */
    keep_only(channel);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    holder.children = signalfd(-1, &set, SFD_CLOEXEC);
    hold(&holder);
    _exit(0);
}

bool tree_start(struct tree *tree, const struct spec *spec, const int stdio[3], int report_fd)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0)
        return false;
    /* Not unshare(), which would put every later child of ours into the namespace and end its use with its init. */
    long flags = SIGCHLD | (spec->namespaces ? CLONE_NEWPID | CLONE_NEWNS : 0);
    tree->holder = (pid_t)syscall(SYS_clone, flags, NULL, NULL, NULL, NULL);
    if (tree->holder == 0) {
        close(pair[0]);
        run_holder(spec, pair[1], stdio, report_fd);
    }
    int error = errno;
    close(pair[1]);
    tree->channel = pair[0];
    errno = error;
    return tree->holder > 0;
}

static void give_order(const struct tree *tree, int signal, bool all)
{
    struct order order = {signal, all};
    /* A holder that is gone has nothing left to signal; one that is killing the tree takes no more orders. */
    send(tree->channel, &order, sizeof order, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (all && signal == SIGKILL) { /* that must come to it, however many orders are on their way: nothing comes after it */
        shutdown(tree->channel, SHUT_WR);
        kill(tree->holder, SIGCONT); /* a job can stop its own holder where that is of its user, and without a namespace */
    }
}

void tree_signal(const struct tree *tree, int signal) { give_order(tree, signal, false); }
void tree_signal_all(const struct tree *tree, int signal) { give_order(tree, signal, true); }

struct news tree_news(struct tree *tree)
{
    struct news news = {.what = TREE_NOTHING};
    ssize_t size = recv(tree->channel, &news, sizeof news, MSG_DONTWAIT);
    if (size == 0 || (size < 0 && errno != EAGAIN && errno != EINTR))
        news.what = TREE_LOST;
    return news;
}

void tree_wait(struct tree *tree)
{
    while (tree->holder > 0 && waitpid(tree->holder, NULL, 0) < 0 && errno == EINTR)
        continue;
    tree->holder = 0;
}

static double milliseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

/* How long a tree that runs /bin/true takes, or -1 when it cannot be held this way. */
static double try_tree(bool namespaces)
{
    const char *argv[] = {"/bin/true", NULL}, *envp[] = {NULL};
    struct spec spec = {.cwd = "/", .umask = -1, .namespaces = namespaces, .probed = true, .argv = argv, .envp = envp};
    struct tree tree = {0};
    int status = -1, report[2];
    const int closed[3] = {-1, -1, -1};
    double start = milliseconds();
    if (pipe2(report, O_CLOEXEC) != 0 || !tree_start(&tree, &spec, closed, report[1]))
        return -1;
    struct news news = {0};
    while (recv(tree.channel, &news, sizeof news, 0) > 0 && news.what != TREE_EMPTY)
        status = news.status;
    tree_wait(&tree);
    close(tree.channel);
    close(report[0]);
    close(report[1]);
    return status == 0 ? milliseconds() - start : -1;
}

/* try_tree in a child, which does not change this process. */
static double try_apart(bool namespaces)
{
    double took = -1;
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0)
        return -1;
    pid_t child = fork();
    if (child == 0) {
        took = try_tree(namespaces);
        _exit(write(ends[1], &took, sizeof took) == (ssize_t)sizeof took ? 0 : 1);
    }
    close(ends[1]);
    if (child < 0 || read(ends[0], &took, sizeof took) != (ssize_t)sizeof took)
        took = -1;
    close(ends[0]);
    if (child > 0)
        waitpid(child, NULL, 0);
    return took;
}

static double least(double a, double b) { return b < 0 || a < b ? a : b; }

/* Whether an automounter serves mount points that are not shared between mount namespaces: what it mounts when a job looks
 * there would not be seen by the job. */
static bool automounts_need_this_namespace(void)
{
    char line[4096];
    bool found = false;
    FILE *mounts = fopen("/proc/self/mountinfo", "re");
    while (mounts && !found && fgets(line, sizeof line, mounts))
        found = strstr(line, " - autofs ") && !strstr(line, " shared:") && !strstr(line, " /proc/");
    if (mounts)
        fclose(mounts);
    return found;
}

/* Compares the best of both in turn, and tries again as long as a busy machine may have hidden what is true. */
int tree_probe(void)
{
    const double worth_ms = 1.5;
    const int enough = 4, most = 30;
    double with = -1, without = -1;
    for (int i = 0; i < most && (i < enough || with - without > worth_ms); i++) {
        double one = automounts_need_this_namespace() ? -1 : try_apart(true), other = try_apart(false);
        if (other < 0)
            return 1;
        without = least(other, without);
        if (one < 0) {
            with = -1;
            break;
        }
        with = least(one, with);
    }
    bool namespaces = with >= 0 && with - without <= worth_ms;
    printf("%s %.3f\n", namespaces ? "pidns" : "subreaper", with < 0 ? -1 : with - without);
    return 0;
}
