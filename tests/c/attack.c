/* What one user's job might try against another's, and against the machine. It prints what it could do.
 *   attack reach PID DIRECTORY   signal it, trace it, read its environment, memory, descriptors; list the directory
 *   attack fork COUNT            have so many children at once, then wait to be killed
 *   attack bomb                  every process of it forks without end; where nothing else stops it 600 of them do, for a minute */
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

static bool can_read(const char *pid, const char *name)
{
    char path[64], byte;
    snprintf(path, sizeof path, "/proc/%s/%s", pid, name);
    int fd = open(path, O_RDONLY);
    return fd >= 0 && (strcmp(name, "mem") == 0 || read(fd, &byte, 1) == 1);
}

static bool can_list(const char *directory)
{
    DIR *opened = opendir(directory);
    return opened && readdir(opened);
}

static void reach(const char *pid, const char *directory)
{
    char fds[64];
    snprintf(fds, sizeof fds, "/proc/%s/fd", pid);
    if (kill(atoi(pid), 0) == 0)
        printf("signal ");
    if (ptrace(PTRACE_SEIZE, atoi(pid), 0, 0) == 0)
        printf("ptrace ");
    if (can_read(pid, "environ"))
        printf("environ ");
    if (can_read(pid, "mem"))
        printf("mem ");
    if (can_list(fds))
        printf("fd ");
    if (can_list(directory))
        printf("tmpdir ");
    printf("end\n");
}

static void fork_until(int most)
{
    int count = 0;
    for (pid_t child; count < most && (child = fork()) >= 0; count++)
        if (child == 0) {
            alarm(60);
            pause();
            _exit(0);
        }
    printf("%d\n", count);
}

static void bomb(void)
{
    time_t end = time(NULL) + 60; /* of all of them: it is inherited */
    struct rlimit most;
    getrlimit(RLIMIT_NPROC, &most);
    if (most.rlim_max > 600) /* whoever tries out what happens without a limit of the agent's wants the machine back */
        most = (struct rlimit){600, 600};
    if (getuid() == 0 || setrlimit(RLIMIT_NPROC, &most) != 0)
        return;
    signal(SIGCHLD, SIG_IGN);
    printf("lit\n");
    fflush(stdout);
    while (time(NULL) < end)
        if (fork() < 0)
            usleep(1000);
}

int main(int argc, char **argv)
{
    if (argc == 4 && strcmp(argv[1], "reach") == 0)
        reach(argv[2], argv[3]);
    else if (argc == 3 && strcmp(argv[1], "fork") == 0)
        fork_until(atoi(argv[2]));
    else if (argc == 2 && strcmp(argv[1], "bomb") == 0)
        bomb();
    return 0;
}
