/* The seccomp filter that stops the calls of calls.c, in programs of every kind that this machine runs: made from that table, and installed
 * by the child that becomes the command. What was stopped is looked up in the same table. Does not know what a call means. */
#include "agent/calls.h"
#include "agent/runner.h"

#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
#define SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV (1UL << 5)
#endif
#define X32_BIT 0x40000000u
#define MAX_FILTER 1024

#if defined __x86_64__
static const struct { int abi; uint32_t arch; } heard[] = {{ABI_X86_64, AUDIT_ARCH_X86_64}, {ABI_I386, AUDIT_ARCH_I386}};
#define HEARD 2
#elif defined __aarch64__
static const struct { int abi; uint32_t arch; } heard[] = {{ABI_AARCH64, AUDIT_ARCH_AARCH64}};
#define HEARD 1
#else
static const struct { int abi; uint32_t arch; } heard[1];
#define HEARD 0
#endif

struct program {
    struct sock_filter code[MAX_FILTER];
    unsigned short size;
};

static void emit(struct program *p, uint16_t code, uint32_t k, uint8_t when_true, uint8_t when_false)
{
    if (p->size < MAX_FILTER)
        p->code[p->size++] = (struct sock_filter){code, when_true, when_false, k};
}

static void emit_answer(struct program *p, uint32_t answer) { emit(p, BPF_RET | BPF_K, answer, 0, 0); }

/* Skips what follows, `count` instructions long, unless the number loaded is this one. */
static void emit_only_for(struct program *p, int number, uint8_t count) { emit(p, BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)number, 0, count); }

static void emit_flags(struct program *p, const struct call *call, uint32_t any_of)
{
    emit(p, BPF_LD | BPF_W | BPF_ABS, (uint32_t)offsetof(struct seccomp_data, args[call->flags]), 0, 0); /* little endian */
    emit(p, BPF_JMP | BPF_JSET | BPF_K, any_of, 0, 1);
    emit_answer(p, SECCOMP_RET_USER_NOTIF);
    emit_answer(p, SECCOMP_RET_ALLOW);
}

static void emit_call(struct program *p, const struct call *call, int number)
{
    bool flags = call->watch == WATCH_WRITERS || call->watch == WATCH_LISTENER;
    emit_only_for(p, number, flags ? 4 : 1);
    if (flags)
        emit_flags(p, call, call->watch == WATCH_WRITERS ? OPENS_TO_WRITE : SECCOMP_FILTER_FLAG_NEW_LISTENER);
    else
        emit_answer(p, call->watch == REFUSE ? SECCOMP_RET_ERRNO | ENOSYS : SECCOMP_RET_USER_NOTIF);
}

/* One block for each kind of program. Since Linux 5.11 the kernel keeps the numbers that are always allowed in a bitmap, so that
 * read and write do not even run this; before, they pass some 50 comparisons (0.1 us). */
static void build(struct program *p)
{
    for (int a = 0; a < HEARD; a++) {
        emit(p, BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch), 0, 0);
        emit(p, BPF_JMP | BPF_JEQ | BPF_K, heard[a].arch, 1, 0);
        unsigned short skip = p->size;
        emit(p, BPF_JMP | BPF_JA, 0, 0, 0);
        emit(p, BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr), 0, 0);
        if (heard[a].abi == ABI_X86_64)
            emit(p, BPF_ALU | BPF_AND | BPF_K, ~X32_BIT, 0, 0);
        for (size_t i = 0; i < call_count; i++)
            if (calls[i].number[heard[a].abi] >= 0)
                emit_call(p, &calls[i], calls[i].number[heard[a].abi]);
        emit_answer(p, SECCOMP_RET_ALLOW);
        p->code[skip].k = (uint32_t)(p->size - skip - 1);
    }
    emit_answer(p, SECCOMP_RET_ALLOW);
}

int filter_install(void)
{
    static struct program program;
    build(&program);
    struct sock_fprog filter = {program.size, program.code};
    if (HEARD == 0 || program.size == MAX_FILTER) {
        errno = ENOSYS;
        return -1;
    }
    unsigned long flags = SECCOMP_FILTER_FLAG_NEW_LISTENER;
    long fd = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags | SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, &filter);
    if (fd < 0 && errno == EINVAL) /* before Linux 5.19 a signal makes the call start over: we hear it twice */
        fd = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &filter);
    return (int)fd;
}

const struct call *filter_call_of(const struct seccomp_data *data)
{
    int abi = -1;
    uint32_t number = (uint32_t)data->nr;
    for (int a = 0; a < HEARD; a++)
        if (heard[a].arch == data->arch)
            abi = heard[a].abi;
    if (abi == ABI_X86_64)
        number &= ~X32_BIT;
    for (size_t i = 0; abi >= 0 && i < call_count; i++)
        if (calls[i].number[abi] >= 0 && (uint32_t)calls[i].number[abi] == number)
            return &calls[i];
    return NULL;
}
