/* Words to the user. Knows where messages go; does not know what they are about. */
#include "wrapper/say.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int message_descriptor = STDERR_FILENO;

void say_to(int descriptor)
{
    message_descriptor = descriptor;
}

/* Hides, reorders or ends what stands around it: controls, marks of direction, separators of lines, what is no character. */
static bool is_treacherous(uint32_t c)
{
    static const struct { uint32_t first, last; } ranges[] = {
        { 0x80, 0x9f }, { 0x61c, 0x61c }, { 0x200b, 0x200f }, { 0x2028, 0x202e }, { 0x2060, 0x206f },
        { 0xd800, 0xdfff }, { 0xfeff, 0xfeff }, { 0xfff0, 0xfffb }, { 0xe0000, 0xe0fff }, { 0x110000, UINT32_MAX },
    };
    for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++)
        if (c >= ranges[i].first && c <= ranges[i].last)
            return true;
    return false;
}

size_t printable(const char *text)
{
    static const uint32_t least[] = { 0, 0, 0x80, 0x800, 0x10000 };
    const unsigned char *s = (const unsigned char *)text;
    if (s[0] < 0x80)
        return s[0] >= ' ' && s[0] != 127;
    size_t size = s[0] >= 0xf0 ? 4 : s[0] >= 0xe0 ? 3 : 2;
    uint32_t c = s[0] & (0x7fU >> size);
    if (s[0] < 0xc0 || s[0] > 0xf7)
        return 0;
    for (size_t i = 1; i < size; i++) {
        if ((s[i] & 0xc0) != 0x80)
            return 0; /* the end of the text, too */
        c = c << 6 | (s[i] & 0x3f);
    }
    return c < least[size] || is_treacherous(c) ? 0 : size;
}

void make_printable(char *text)
{
    for (size_t size; *text; text += size) {
        size = printable(text);
        if (size == 0) {
            *text = '?';
            size = 1;
        }
    }
}

static void say_line(const char *format, va_list arguments)
{
    char line[REASON_BYTES + 512] = "dwrap: ";
    size_t used = sizeof "dwrap: " - 1;
    int length = vsnprintf(line + used, sizeof line - used - 1, format, arguments);
    if (length < 0)
        return;
    size_t end = used + (size_t)length;
    if (end > sizeof line - 2)
        end = sizeof line - 2;
    make_printable(line);
    line[end] = '\n';
    if (write(message_descriptor, line, end + 1) < 0)
        return; /* nobody listens: nothing better can be done */
}

void say(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    say_line(format, arguments);
    va_end(arguments);
}

void say_and_leave(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    say_line(format, arguments);
    va_end(arguments);
    _exit(EXIT_DWRAP);
}

void print_and_leave(const char *text)
{
    for (size_t left = strlen(text); left > 0;) {
        ssize_t wrote = write(STDOUT_FILENO, text, left);
        if (wrote < 0)
            say_and_leave("cannot write to stdout: %s; redirect it elsewhere", strerror(errno));
        text += wrote;
        left -= (size_t)wrote;
    }
    _exit(0);
}
