/* Makes one system call by its number, as a 64-bit or (int $0x80) as a 32-bit program would: `one_call ABI NUMBER ARGUMENT...`.
 * An argument is a number, s:TEXT, d:DIRECTORY or f:FILE (a descriptor), k: (a socket), u:PATH (its address) or h:FLAGS (open_how).
 * Prints what the call returned. It knows no call by name: the tests take names and numbers from the agent's own table. */
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

/* Static, in a program that is not relocated: their addresses fit into 32 bits. */
static char texts[5][256];
static struct sockaddr_un address = {.sun_family = AF_UNIX};
static struct open_how how;

static long value_of(char *argument, int i)
{
    const char *text = argument + 2;
    if (argument[0] == '\0' || argument[1] != ':')
        return strtol(argument, NULL, 0);
    if (argument[0] == 'd')
        return open(text, O_PATH | O_DIRECTORY);
    if (argument[0] == 'f')
        return open(text, O_RDONLY);
    if (argument[0] == 'k')
        return socket(AF_UNIX, SOCK_STREAM, 0);
    if (argument[0] == 'u') {
        strcpy(address.sun_path, text);
        return (long)&address;
    }
    if (argument[0] == 'h') {
        how.flags = strtoul(text, NULL, 0);
        how.mode = 0644;
        return (long)&how;
    }
    strcpy(texts[i], text);
    return (long)texts[i];
}

static long call_32(long number, const long a[5])
{
#ifdef __x86_64__
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a[0]), "c"(a[1]), "d"(a[2]), "S"(a[3]), "D"(a[4])
                     : "memory", "r8", "r9", "r10", "r11");
    return (int)result;
#else
    return (void)number, (void)a, -ENOSYS;
#endif
}

int main(int argc, char **argv)
{
    long a[5] = {0}, number = argc > 2 ? atol(argv[2]) : -1;
    for (int i = 3; i < argc && i < 8; i++)
        a[i - 3] = value_of(argv[i], i - 3);
    if (argc > 2 && strcmp(argv[1], "32") == 0)
        printf("%ld\n", call_32(number, a));
    else
        printf("%ld\n", syscall(number, a[0], a[1], a[2], a[3], a[4]) < 0 ? (long)-errno : 0L);
    return 0;
}
