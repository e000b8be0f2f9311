/* Words to the user. Knows where messages go; does not know what they are about. */
#include "wrapper/say.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int message_descriptor = STDERR_FILENO;

void say_to(int descriptor)
{
    message_descriptor = descriptor;
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
    for (size_t i = used; i < end; i++)
        if ((unsigned char)line[i] < ' ' || line[i] == 127)
            line[i] = '?';
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
