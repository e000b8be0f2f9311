/* The starter: one process for each agent, from which every runner is forked.
 *
 * A runner so begins where the starter stands (program loaded, C library ready): that is half the CPU and a third of the time
 * that an exec for each job costs. The runner is made a child of the agent, not of this process. Knows descriptors and fork;
 * does not know what a job is. Ends when the agent's end of the socket is closed. */
#include "agent/runner.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "coherence/view.h"

struct answer {
    int32_t pid, error;
};

union passed { /* two descriptors as the kernel lays them out */
    struct cmsghdr head;
    char room[CMSG_SPACE(2 * sizeof(int))];
};

/* Takes a request: its two descriptors. False when the agent is gone; *count is 0 for a request that cannot be met. */
static bool take_request(int fd, int descriptors[2], size_t *count)
{
    char byte;
    union passed passed;
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &passed, .msg_controllen = sizeof passed};
    ssize_t size;
    while ((size = recvmsg(fd, &message, MSG_CMSG_CLOEXEC)) < 0 && errno == EINTR)
        continue;
    *count = 0;
    struct cmsghdr *head = size > 0 ? CMSG_FIRSTHDR(&message) : NULL;
    if (head && head->cmsg_level == SOL_SOCKET && head->cmsg_type == SCM_RIGHTS) {
        *count = (head->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        memcpy(descriptors, CMSG_DATA(head), *count * sizeof(int));
    }
    return size > 0;
}

/* A sibling: the agent is its parent, and reaps it. Not fork(), which cannot say so; this process has one thread. */
static pid_t fork_for_agent(void) { return (pid_t)syscall(SYS_clone, CLONE_PARENT | SIGCHLD, NULL, NULL, NULL, NULL); }

/* Control comes first and has the lower number, so that it cannot be overwritten by the spec on its way. */
static void place(const int descriptors[2])
{
    dup2(descriptors[0], CONTROL_FD);
    if (descriptors[1] != SPEC_FD)
        dup2(descriptors[1], SPEC_FD);
}

bool starter_serve(int fd)
{
    int descriptors[2];
    size_t count;
    prctl(PR_SET_NAME, "dwrap-starter");
    view_share();
    lease_map();
    starved_map();
    while (take_request(fd, descriptors, &count)) {
        struct answer answer = {-1, EBADF};
        if (count == 2) {
            answer.pid = fork_for_agent();
            answer.error = answer.pid < 0 ? errno : 0;
        }
        if (answer.pid == 0) {
            prctl(PR_SET_NAME, "dwrap-runner");
            place(descriptors);
            return true;
        }
        for (size_t i = 0; i < count; i++)
            close(descriptors[i]);
        send(fd, &answer, sizeof answer, MSG_NOSIGNAL); /* an agent that is gone is noticed above */
    }
    return false;
}
