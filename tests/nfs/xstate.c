/* Lets User-Mode Linux run on processors whose register state is larger than its buffer (AVX-512, AMX); LD_PRELOAD.
 *
 * UML 6.1 sets a guest process's registers from a buffer of a fixed size, and the kernel of this machine refuses a state that is
 * shorter than the processor's. So what UML gives is laid over the whole state, as it was read just before. Where UML's
 * buffer is long enough nothing is changed. Knows one ptrace request; does not know UML. */
#include <dlfcn.h>
#include <elf.h>
#include <stdarg.h>
#include <string.h>
#include <sys/uio.h>

/* Not from <sys/ptrace.h>, which declares ptrace with another first parameter than the one that is called here. */
enum { GET_REGSET = 0x4204, SET_REGSET = 0x4205, STATE_BYTES = 64 * 1024 };

typedef long traced(int request, ...);
long ptrace(int request, ...);

static long set_whole_state(traced *real, long pid, void *kind, const struct iovec *given)
{
    static char whole[STATE_BYTES]; /* UML calls from one thread */
    struct iovec all = { whole, sizeof whole };
    if (real(GET_REGSET, pid, kind, &all) < 0 || given->iov_len >= all.iov_len)
        return real(SET_REGSET, pid, kind, given);
    memcpy(whole, given->iov_base, given->iov_len);
    return real(SET_REGSET, pid, kind, &all);
}

long ptrace(int request, ...)
{
    static traced *real;
    if (!real)
        real = (traced *)dlsym(RTLD_NEXT, "ptrace");
    va_list rest;
    va_start(rest, request);
    long pid = va_arg(rest, long);
    void *address = va_arg(rest, void *);
    void *data = va_arg(rest, void *);
    va_end(rest);
    if (request == SET_REGSET && (long)address == NT_X86_XSTATE)
        return set_whole_state(real, pid, address, data);
    return real(request, pid, address, data);
}
