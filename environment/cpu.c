/* The processor, as the kernel describes it; see environment.h. */
#include "environment/environment.h"

#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "protocol/hash.h"

enum { READ_BYTES = 8192 };

/* What compilers ask it for: x86, then Arm, RISC-V, Power, and what others call it. */
static const char *const telling[] = {
    "vendor_id", "cpu family", "model", "flags", "CPU implementer", "CPU architecture", "CPU variant", "CPU part", "Features", "isa", "uarch",
    "cpu", "features",
};

static bool tells(const char *line, size_t length)
{
    while (length > 0 && (line[length - 1] == '\t' || line[length - 1] == ' '))
        length--;
    for (size_t i = 0; i < sizeof telling / sizeof *telling; i++)
        if (strlen(telling[i]) == length && memcmp(telling[i], line, length) == 0)
            return true;
    return false;
}

/* The first processor's paragraph. One read: the kernel makes the text as it is read, and there may be hundreds of them. */
static void read_first(char text[READ_BYTES])
{
    int fd = open("/proc/cpuinfo", O_RDONLY | O_CLOEXEC);
    ssize_t got = fd < 0 ? 0 : read(fd, text, READ_BYTES - 1);
    text[got > 0 ? got : 0] = 0;
    char *end = strstr(text, "\n\n");
    if (end)
        end[1] = 0;
    if (fd >= 0)
        close(fd);
}

void cpu_read(char line[CPU_BYTES])
{
    char text[READ_BYTES], model[CPU_BYTES - 32];
    uint64_t hash = HASH_START;
    struct utsname host;
    uname(&host);
    snprintf(model, sizeof model, "%.60s", host.machine);
    read_first(text);
    for (char *rest = text, *one; (one = strsep(&rest, "\n")) && *one;) {
        char *colon = strchr(one, ':');
        size_t length = colon ? (size_t)(colon - one) : 0;
        if (colon && tells(one, length))
            hash = hash_on(hash, one, strlen(one));
        if (colon && strncmp(one, "model name", 10) == 0)
            snprintf(model, sizeof model, "%.60s", colon + 1 + strspn(colon + 1, " "));
    }
    snprintf(line, CPU_BYTES, "%s #%016llx", model, (unsigned long long)hash);
}
