/* Makes a file whose name lies in a page that somebody is to bring and nobody does: whoever reads that page waits for ever, this process,
 * and who looks at its memory. Says "up" before. Needs root. */
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { PAGE = 65536 }; /* or a part of one */

int main(void)
{
    int faults = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
    struct uffdio_api api = {.api = UFFD_API};
    char *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct uffdio_register what = {.range = {(unsigned long)page, PAGE}, .mode = UFFDIO_REGISTER_MODE_MISSING};
    if (faults < 0 || page == MAP_FAILED || ioctl(faults, UFFDIO_API, &api) != 0 || ioctl(faults, UFFDIO_REGISTER, &what) != 0) {
        perror("userfaultfd");
        return 77;
    }
    if (write(1, "up\n", 3) != 3)
        return 1;
    return open(page, O_WRONLY | O_CREAT, 0600) < 0;
}
