/* Supervises a child of its own through seccomp user notification, as container managers do: `listener FILE` lets the child
 * make a directory, a call that it answers itself, then writes FILE. Prints how many calls were answered. */
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdio.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static int listen_to_mkdir(void)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mkdir, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog filter = {sizeof code / sizeof *code, code};
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    return (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &filter);
}

int main(int argc, char **argv)
{
    int listener = argc == 2 ? listen_to_mkdir() : -1;
    if (listener < 0) {
        perror("listener");
        return 1;
    }
    pid_t child = fork();
    if (child == 0)
        _exit(syscall(SYS_mkdir, "/never/made", 0755) == 0 ? 0 : 1);
    struct seccomp_notif call = {0};
    if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &call) < 0) {
        perror("listener: receive");
        return 1;
    }
    struct seccomp_notif_resp answer = {.id = call.id, .val = 0};
    if (ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &answer) < 0) {
        perror("listener: answer");
        return 1;
    }
    int status, fd = open(argv[1], O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (waitpid(child, &status, 0) < 0 || status != 0 || fd < 0 || write(fd, "heard\n", 6) != 6 || close(fd) < 0) {
        perror(argv[1]);
        return 1;
    }
    puts("1 call was answered");
    return 0;
}
