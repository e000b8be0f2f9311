/* What agent/reaper.c does to a tree of its own. It prints one number.
 *   reaper orphans COUNT   of so many that are stopped in a group that loses its last parent: how many ran once more before they died
 *   reaper threads         how often the thread of a process whose first thread has ended ran while all were stopped
 *   reaper vfork           how often all processes are looked at to kill one that cannot stop, and its child
 *   reaper tree            how many live on of a tree of some depth, in groups and sessions of their own */
#include "agent/runner.h"

#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static int looks, said, heard;
static volatile long *ran;

DIR *__real_opendir(const char *name);
DIR *__wrap_opendir(const char *name);

DIR *__wrap_opendir(const char *name)
{
    looks += strcmp(name, "/proc") == 0;
    return __real_opendir(name);
}

static void say(int signal)
{
    (void)signal;
    if (write(said, "c", 1) < 0)
        _exit(1);
}

_Noreturn static void wait_to_be_killed(void)
{
    alarm(30);
    for (;;)
        pause();
}

static void orphans(int count)
{
    setsid();
    for (pid_t group = 0, child; count--; group = group ? group : child) {
        child = fork();
        setpgid(child, group);
        if (child)
            continue;
        signal(SIGHUP, SIG_IGN);
        signal(SIGCONT, say);
        wait_to_be_killed();
    }
    wait_to_be_killed();
}

static void *count_on(void *nothing)
{
    for (;; usleep(1000))
        ++*ran;
    return nothing;
}

static void threads(void)
{
    pthread_t thread;
    alarm(30);
    pthread_create(&thread, NULL, count_on, NULL);
    pthread_exit(NULL);
}

static void tree(int depth)
{
    for (int i = 0; depth && i < 3; i++) {
        if (fork())
            continue;
        if (i == 1)
            setpgid(0, 0);
        if (i == 2)
            setsid();
        depth--;
        i = -1;
    }
    wait_to_be_killed();
}

static long bytes_that_came(void)
{
    char bytes[65536];
    ssize_t got = read(heard, bytes, sizeof bytes);
    return got > 0 ? (long)got : 0;
}

int main(int argc, char **argv)
{
    int ends[2], left = 0;
    const char *what = argc > 1 ? argv[1] : "";
    if (pipe2(ends, O_NONBLOCK) < 0 || prctl(PR_SET_CHILD_SUBREAPER, 1) < 0)
        return 1;
    heard = ends[0];
    said = ends[1];
    ran = mmap(NULL, sizeof *ran, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (fork() == 0) {
        if (strcmp(what, "orphans") == 0)
            orphans(atoi(argv[2]));
        else if (strcmp(what, "threads") == 0)
            threads();
        else if (strcmp(what, "tree") == 0)
            tree(4);
        else if (vfork() == 0)
            pause();
        wait_to_be_killed();
    }
    usleep(500000);
    if (strcmp(what, "threads") == 0) {
        for (int i = 0; i < 20; i++)
            reaper_signal_descendants(SIGSTOP);
        usleep(100000);
        long before = *ran;
        usleep(200000);
        printf("%ld\n", *ran - before);
    }
    looks = 0;
    reaper_kill_descendants();
    if (strcmp(what, "vfork") == 0)
        printf("%d\n", looks);
    usleep(300000);
    while (waitpid(-1, NULL, WNOHANG) > 0)
        continue;
    left = waitpid(-1, NULL, WNOHANG) == 0;
    if (strcmp(what, "orphans") == 0)
        printf("%ld\n", bytes_that_came());
    if (strcmp(what, "tree") == 0)
        printf("%d\n", left);
    reaper_kill_descendants();
    while (wait(NULL) > 0)
        continue;
    return 0;
}
