/* From a forked child to the submitter's command: identity, limits, signals, streams, directory, exec.
 * Knows what one process needs; does not know who reaps it or who reads its streams.
 * The command never gains rights here (no_new_privs): set-user-id programs run without theirs. */
#include "agent/runner.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/keyctl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static bool take_identity(const struct spec *spec)
{
    if (!spec->become)
        return true;
    /* Else users' jobs would have one session keyring in common, the agent's. While still root, whose quota of keys is large; a container's
     * profile may forbid it, and then nobody there can use one. */
    (void)syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, NULL);
    return setgroups(spec->group_count, spec->groups) == 0 && setresgid(spec->gid, spec->gid, spec->gid) == 0 &&
           setresuid(spec->uid, spec->uid, spec->uid) == 0;
}

/* So that no user takes the room for processes that the agent and others need. It comes after the identity: where it is used up already
 * the command is started all the same, and meets the limit itself. Root has none. */
static void take_room(const struct spec *spec)
{
    struct rlimit room;
    if (spec->processes == 0 || getuid() == 0 || getrlimit(RLIMIT_NPROC, &room) != 0)
        return;
    if (room.rlim_max > spec->processes)
        room.rlim_max = spec->processes;
    if (room.rlim_cur > room.rlim_max)
        room.rlim_cur = room.rlim_max;
    setrlimit(RLIMIT_NPROC, &room);
}

/* Limits are lowered, never raised above what this agent has itself: a claim gains nothing. */
static void take_limits(const struct spec *spec)
{
    for (size_t i = 0; i < spec->limit_count; i++) {
        struct rlimit want = spec->limits[i].value, have;
        if (getrlimit((__rlimit_resource_t)spec->limits[i].resource, &have) != 0)
            continue;
        if (want.rlim_max > have.rlim_max)
            want.rlim_max = have.rlim_max;
        if (want.rlim_cur > want.rlim_max)
            want.rlim_cur = want.rlim_max;
        setrlimit((__rlimit_resource_t)spec->limits[i].resource, &want);
    }
}

/* Runs after the identity was taken, so that a negative value is the kernel's to refuse. */
static void take_nice(const struct spec *spec)
{
    if (spec->has_nice && setpriority(PRIO_PROCESS, 0, spec->nice) != 0)
        errno = 0;
}

/* The two signals that glibc keeps for itself: posix_spawn ignores them in us, and its sigaction refuses to touch them. */
static void reset_libc_signals(void)
{
    struct { /* the kernel's own struct sigaction, all default */
        void *handler;
        unsigned long flags;
        void *restorer;
        unsigned long mask;
    } action = { 0 };
    for (int number = 32; number <= 33; number++)
        syscall(SYS_rt_sigaction, number, &action, NULL, sizeof action.mask);
}

static void take_signals(const struct spec *spec)
{
    struct sigaction action = {.sa_handler = SIG_DFL};
    for (int number = 1; number < NSIG; number++) {
        bool ignored = spec->ignored >> (number - 1) & 1;
        action.sa_handler = ignored ? SIG_IGN : SIG_DFL;
        sigaction(number, &action, NULL); /* refused for KILL and STOP: as it should be */
    }
    reset_libc_signals();
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

static bool take_streams(const int stdio[3])
{
    int moved[3];
    for (int i = 0; i < 3; i++) /* first out of the way of 0 to 2 */
        if (stdio[i] >= 0 && (moved[i] = fcntl(stdio[i], F_DUPFD_CLOEXEC, 10)) < 0)
            return false;
    for (int i = 0; i < 3; i++) {
        if (stdio[i] < 0)
            close(i);
        else if (dup2(moved[i], i) < 0)
            return false;
    }
    return true;
}

_Noreturn static void fail(int report_fd, enum stage stage, const char *what)
{
    struct failure failure = {.stage = stage, .error = errno};
    snprintf(failure.what, sizeof failure.what, "%s", what);
    if (write(report_fd, &failure, sizeof failure) != (ssize_t)sizeof failure)
        _exit(125);
    _exit(127);
}

union passed { /* one descriptor as the kernel lays it out */
    struct cmsghdr head;
    char room[CMSG_SPACE(sizeof(int))];
};

/* The last step before exec: from here on every call of the recorder's table waits for the runner. Where nothing will be heard the
 * command waits here until that is known. */
static bool be_heard(const struct spec *spec, int report_fd)
{
    struct failure word = {.stage = STAGE_HEARD};
    int listener = spec->unheard ? -1 : filter_install();
    union passed passed = {0};
    struct iovec part = {&word, sizeof word};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    word.error = listener < 0 && !spec->unheard ? errno : 0;
    if (listener >= 0) {
        message.msg_control = &passed;
        message.msg_controllen = sizeof passed;
        passed.head = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
        memcpy(CMSG_DATA(&passed.head), &listener, sizeof listener);
    }
    bool sent = sendmsg(report_fd, &message, MSG_NOSIGNAL) == (ssize_t)sizeof word;
    if (listener >= 0)
        close(listener);
    char go;
    return sent && (listener >= 0 || recv(report_fd, &go, sizeof go, 0) == (ssize_t)sizeof go);
}

void command_let_begin(int report_fd)
{
    send(report_fd, "", 1, MSG_NOSIGNAL); /* a command that is gone has nothing to begin */
}

bool command_report(int report_fd, struct failure *word, int *listener)
{
    union passed passed;
    struct iovec part = {word, sizeof *word};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &passed, .msg_controllen = sizeof passed};
    *listener = -1;
    if (recvmsg(report_fd, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT) != (ssize_t)sizeof *word)
        return false;
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    if (head && head->cmsg_level == SOL_SOCKET && head->cmsg_type == SCM_RIGHTS)
        memcpy(listener, CMSG_DATA(head), sizeof *listener);
    return true;
}

_Noreturn void command_become(const struct spec *spec, const int stdio[3], int report_fd)
{
    if (!take_streams(stdio))
        fail(report_fd, STAGE_SETUP, "dup2");
    if (!take_identity(spec))
        fail(report_fd, STAGE_SETUP, "setuid");
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
        fail(report_fd, STAGE_SETUP, "no_new_privs");
    take_room(spec);
    take_limits(spec);
    take_nice(spec);
    if (spec->umask >= 0)
        umask((mode_t)spec->umask);
    if (chdir(spec->cwd) != 0)
        fail(report_fd, STAGE_CWD, "chdir");
    take_signals(spec);
    if (!spec->probed && !be_heard(spec, report_fd))
        fail(report_fd, STAGE_SETUP, "seccomp");
    environ = (char **)(uintptr_t)spec->envp; /* execvpe looks PATH up in it; neither list is written to */
    execvpe(spec->argv[0], (char **)(uintptr_t)spec->argv, environ);
    fail(report_fd, STAGE_EXEC, "exec");
}
