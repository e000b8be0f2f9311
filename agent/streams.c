/* The command's stdin, stdout and stderr: pipes or pseudo-terminals, and how far each may run.
 * Knows offsets and credit; does not know who gives it. Nothing here blocks.
 *
 * stdin of which no more may be read than the command takes is a pipe of one page; what the command took is what was written
 * less what still lies in the pipe. The runner keeps a read end of its own, so that this can be asked at any time. */
#include "agent/runner.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

#define FIRST_OUTPUT_CREDIT 65536
#define NARROW_WINDOW 4096
#define WIDE_WINDOW (256 * 1024)

static int dev_null(int flags) { return open("/dev/null", flags | O_CLOEXEC); }

static bool open_pipe(int ends[2], int runners_end)
{
    if (pipe2(ends, O_CLOEXEC) != 0)
        return false;
    int flags = fcntl(ends[runners_end], F_GETFL);
    return fcntl(ends[runners_end], F_SETFL, flags | O_NONBLOCK) == 0;
}

static bool open_input(struct input *in, const struct spec *spec, int *commands_end)
{
    int ends[2];
    in->window = spec->seekable ? WIDE_WINDOW : NARROW_WINDOW;
    in->buffer = malloc(in->window);
    if (!in->buffer || !open_pipe(ends, 1))
        return false;
    in->write_fd = ends[1];
    in->read_fd = fcntl(ends[0], F_DUPFD_CLOEXEC, 0);
    *commands_end = ends[0];
    return in->read_fd >= 0 && (spec->seekable || fcntl(in->write_fd, F_SETPIPE_SZ, NARROW_WINDOW) >= 0);
}

/* A terminal that changes no byte: the desktop's own does the rest. */
static bool open_terminal(struct output *out, const struct spec *spec, int *commands_end)
{
    char name[64];
    struct termios raw;
    struct winsize size = {.ws_row = spec->rows, .ws_col = spec->columns};
    out->fd = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
    if (out->fd < 0 || grantpt(out->fd) != 0 || unlockpt(out->fd) != 0 || ptsname_r(out->fd, name, sizeof name) != 0)
        return false;
    *commands_end = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (*commands_end < 0 || tcgetattr(*commands_end, &raw) != 0)
        return false;
    out->tty = true;
    cfmakeraw(&raw);
    if (tcsetattr(*commands_end, TCSANOW, &raw) != 0 || ioctl(*commands_end, TIOCSWINSZ, &size) != 0)
        return false;
    return !spec->become || fchown(*commands_end, spec->uid, (gid_t)-1) == 0;
}

static bool open_output(struct output *out, const struct spec *spec, enum stdio_kind kind, int *commands_end)
{
    int ends[2];
    out->limit = FIRST_OUTPUT_CREDIT;
    if (kind == STDIO_NULL)
        return (*commands_end = dev_null(O_WRONLY)) >= 0;
    if (kind == STDIO_CLOSED)
        return true;
    if (kind == STDIO_TTY)
        return open_terminal(out, spec, commands_end);
    if (!open_pipe(ends, 0))
        return false;
    out->fd = ends[0];
    *commands_end = ends[1];
    return true;
}

static bool open_outputs(struct streams *streams, const struct spec *spec, int command_ends[3])
{
    bool done = open_output(&streams->out[1], spec, spec->stdio[1], &command_ends[1]);
    if (done && spec->stdio[2] != STDIO_SAME)
        return open_output(&streams->out[2], spec, spec->stdio[2], &command_ends[2]);
    if (done && command_ends[1] >= 0)
        done = (command_ends[2] = fcntl(command_ends[1], F_DUPFD_CLOEXEC, 0)) >= 0;
    return done;
}

bool streams_open(struct streams *streams, const struct spec *spec, int command_ends[3])
{
    *streams = (struct streams){.in = {.write_fd = -1, .read_fd = -1}, .out = {{.fd = -1}, {.fd = -1}, {.fd = -1}}};
    for (int i = 0; i < 3; i++)
        command_ends[i] = -1;
    bool done = spec->stdio[0] == STDIO_STREAM ? open_input(&streams->in, spec, &command_ends[0])
                                               : spec->stdio[0] == STDIO_CLOSED || (command_ends[0] = dev_null(O_RDONLY)) >= 0;
    return done && open_outputs(streams, spec, command_ends);
}

bool streams_open_again(struct streams *streams, const struct spec *spec, int command_ends[3])
{
    for (int i = 0; i < 3; i++) {
        output_close(&streams->out[i]);
        streams->out[i] = (struct output){.fd = -1};
        command_ends[i] = -1;
    }
    if (spec->stdio[0] == STDIO_STREAM)
        command_ends[0] = fcntl(streams->in.read_fd, F_DUPFD_CLOEXEC, 0);
    else if (spec->stdio[0] != STDIO_CLOSED)
        command_ends[0] = dev_null(O_RDONLY);
    return (command_ends[0] >= 0 || spec->stdio[0] == STDIO_CLOSED) && open_outputs(streams, spec, command_ends);
}

void streams_close_command_ends(int command_ends[3])
{
    for (int i = 0; i < 3; i++)
        if (command_ends[i] >= 0)
            close(command_ends[i]);
}

void input_add(struct input *in, uint64_t offset, const char *data, size_t size)
{
    if (in->write_fd < 0 || in->ended || offset > in->received)
        return;
    if (size == 0) {
        in->ended = true;
        return;
    }
    uint64_t known = in->received - offset; /* sent again after a torn connection */
    if (known >= size || in->received + (size - known) > in->limit)
        return;
    size -= (size_t)known;
    if (in->start + in->pending + size > in->window) {
        memmove(in->buffer, in->buffer + in->start, in->pending);
        in->start = 0;
    }
    if (in->pending + size > in->window)
        return; /* cannot be: credit is never more than the window */
    memcpy(in->buffer + in->start + in->pending, data + known, size);
    in->pending += size;
    in->received += size;
}

void input_push(struct input *in)
{
    while (in->pending > 0) {
        ssize_t size = write(in->write_fd, in->buffer + in->start, in->pending);
        if (size <= 0)
            break;
        in->start += (size_t)size;
        in->pending -= (size_t)size;
        in->written += (uint64_t)size;
    }
    if (in->ended && in->pending == 0)
        input_close(in);
}

uint64_t input_taken(const struct input *in)
{
    int unread = 0;
    if (in->read_fd >= 0 && ioctl(in->read_fd, FIONREAD, &unread) != 0)
        unread = 0;
    return in->written - (uint64_t)unread;
}

uint64_t input_credit(const struct input *in)
{
    if (in->write_fd < 0 || in->ended)
        return in->limit;
    uint64_t may = input_taken(in) + in->window;
    bool worth_it = may >= in->limit + in->window / 2 || (may > in->limit && in->received == in->limit);
    return worth_it ? may : in->limit;
}

bool input_wants_room(const struct input *in)
{
    return in->write_fd >= 0 && (in->pending > 0 || (in->received == in->limit && !in->ended));
}

void input_close(struct input *in)
{
    if (in->write_fd >= 0)
        close(in->write_fd);
    in->write_fd = -1;
    in->pending = 0;
}

bool output_ready_to_read(const struct output *out) { return out->fd >= 0 && out->sent < out->limit; }

ssize_t output_read(struct output *out, char *data, size_t room)
{
    uint64_t credit = out->limit - out->sent;
    ssize_t size = read(out->fd, data, credit < room ? (size_t)credit : room);
    if (size < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    if (size <= 0) { /* a terminal whose last user has gone says EIO */
        output_close(out);
        return -1;
    }
    out->sent += (uint64_t)size;
    return size;
}

void output_close(struct output *out)
{
    if (out->fd >= 0)
        close(out->fd);
    out->fd = -1;
}
