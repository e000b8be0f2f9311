/* What every file of the wrapper needs: words to the user, and the clock. Knows nothing of jobs. */
#ifndef DWRAP_SAY_H
#define DWRAP_SAY_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#define DWRAP_RELEASE "0.1.0"

enum { EXIT_USAGE = 2, EXIT_DWRAP = 125, EXIT_NOT_EXECUTABLE = 126, EXIT_NOT_FOUND = 127, REASON_BYTES = 1200 };

/* Names the descriptor for messages; 2 until then. */
void say_to(int descriptor);

/* How many bytes the character takes that the text begins with. 0: it is one that could forge what stands around it (a control, a mark of
 * direction), or no UTF-8. */
size_t printable(const char *text);

/* Each byte of what is not printable becomes '?'. */
void make_printable(char *text);

/* Writes `dwrap: …` and a newline in one write. Only what is printable: parts of it come from others. */
__attribute__((format(printf, 1, 2))) void say(const char *format, ...);

/* Says it and leaves with status 125: dwrap itself could not. */
__attribute__((format(printf, 1, 2), noreturn)) void say_and_leave(const char *format, ...);

/* Prints the text on stdout and leaves: status 0, or 125 when it cannot be written. */
__attribute__((noreturn)) void print_and_leave(const char *text);

/* Milliseconds of the monotonic clock. */
static inline int64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* The same on the clock that counts suspend, as leases do. */
static inline int64_t boot_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_BOOTTIME, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

#endif
