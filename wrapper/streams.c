/* Own streams without waiting; see streams.h. Does not know messages. */
#include "wrapper/streams.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <unistd.h>

static enum stream_kind kind_of(int fd, const struct stat *st)
{
    if (S_ISFIFO(st->st_mode))
        return STREAM_PIPE;
    if (S_ISSOCK(st->st_mode))
        return STREAM_SOCKET;
    if (S_ISREG(st->st_mode) || S_ISBLK(st->st_mode))
        return STREAM_FILE;
    if (S_ISCHR(st->st_mode) && st->st_rdev == makedev(1, 3))
        return STREAM_NULL;
    return S_ISCHR(st->st_mode) && isatty(fd) ? STREAM_TTY : STREAM_DEVICE;
}

void streams_look(struct stream streams[3])
{
    struct stat st;
    for (int fd = 0; fd < 3; fd++) {
        streams[fd] = (struct stream){ .kind = STREAM_CLOSED, .fd = fd };
        if (fstat(fd, &st) < 0)
            continue;
        streams[fd].kind = kind_of(fd, &st);
        streams[fd].device = st.st_dev;
        streams[fd].inode = st.st_ino;
    }
    for (int fd = 0; fd < 3; fd++)
        if (streams[fd].kind == STREAM_CLOSED && open("/dev/null", O_RDWR | O_CLOEXEC) < 0 && open("/", O_RDONLY | O_CLOEXEC) < 0)
            return; /* the lowest free number is this one: those below are in use by now */
}

bool streams_same(const struct stream *a, const struct stream *b)
{
    return a->kind != STREAM_CLOSED && a->kind == b->kind && a->device == b->device && a->inode == b->inode;
}

/* Opens a pipe or terminal anew, for us alone and without waiting. Done when the first byte is moved. */
static void make_own(struct stream *s, int mode)
{
    char path[32];
    if (s->own || (s->kind != STREAM_PIPE && s->kind != STREAM_TTY))
        return;
    snprintf(path, sizeof path, "/proc/self/fd/%d", s->fd);
    int fd = open(path, mode | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (fd < 0)
        return;
    s->fd = fd;
    s->own = true;
}

static bool is_ready(int fd, short events)
{
    struct pollfd waiting = { .fd = fd, .events = events };
    return poll(&waiting, 1, 0) > 0;
}

/* One write that does not wait. Returns what write returns; EAGAIN when it would have to. */
static ssize_t write_now(struct stream *s, struct iovec *pieces, int count)
{
    struct msghdr message = { .msg_iov = pieces, .msg_iovlen = (size_t)count };
    if (s->kind == STREAM_SOCKET)
        return sendmsg(s->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (s->kind == STREAM_FILE || s->kind == STREAM_DEVICE || s->own)
        return writev(s->fd, pieces, count);
    if (!is_ready(s->fd, POLLOUT)) {
        errno = EAGAIN;
        return -1;
    }
    return write(s->fd, pieces->iov_base, pieces->iov_len < PIPE_BUF ? pieces->iov_len : PIPE_BUF);
}

/* Writes some of the pieces; returns how many bytes went, marks the sink broken when none ever will. */
static size_t write_some(struct sink *s, struct iovec *pieces, int count)
{
    make_own(&s->stream, O_WRONLY);
    ssize_t wrote;
    do
        wrote = write_now(&s->stream, pieces, count);
    while (wrote < 0 && errno == EINTR);
    if (wrote >= 0)
        return (size_t)wrote;
    if (errno != EAGAIN) {
        s->broken = true;
        s->error = errno == EPIPE ? 0 : errno;
    }
    return 0;
}

void sink_start(struct sink *s, const struct stream *stream)
{
    s->stream = *stream; /* the ring is large, and its bytes do not count */
    s->received = s->written = 0;
    s->broken = false;
    s->error = 0;
}

void sink_write(struct sink *s)
{
    while (!s->broken && !sink_is_empty(s)) {
        size_t waiting = (size_t)(s->received - s->written), at = (size_t)(s->written % sizeof s->ring);
        size_t straight = sizeof s->ring - at < waiting ? sizeof s->ring - at : waiting;
        struct iovec pieces[2] = { { s->ring + at, straight }, { s->ring, waiting - straight } };
        size_t wrote = write_some(s, pieces, waiting > straight ? 2 : 1);
        s->written += wrote;
        if (wrote == 0)
            break;
    }
    if (s->broken)
        s->written = s->received;
}

bool sink_take(struct sink *s, uint64_t offset, const char *data, size_t length)
{
    if (offset > s->received || offset + length < offset)
        return false;
    size_t known = (size_t)(s->received - offset);
    if (known >= length)
        return true; /* said again */
    data += known;
    length -= known;
    if (length > sizeof s->ring - (size_t)(s->received - s->written))
        return false;
    while (length && !s->broken && sink_is_empty(s)) {
        struct iovec piece = { (char *)data, length };
        size_t wrote = write_some(s, &piece, 1);
        if (wrote == 0)
            break;
        s->received += wrote;
        s->written += wrote;
        data += wrote;
        length -= wrote;
    }
    size_t at = (size_t)(s->received % sizeof s->ring);
    size_t straight = sizeof s->ring - at < length ? sizeof s->ring - at : length;
    memcpy(s->ring + at, data, straight);
    memcpy(s->ring, data + straight, length - straight);
    s->received += length;
    if (s->broken)
        s->written = s->received;
    return true;
}

void source_start(struct source *s, const struct stream *stream)
{
    *s = (struct source){ .stream = *stream };
    if (stream->kind != STREAM_FILE)
        return;
    s->start = lseek(stream->fd, 0, SEEK_CUR);
    s->seekable = s->start >= 0;
}

bool source_is_wanted(const struct source *s)
{
    if (s->ended || s->held || s->sent < s->known || s->sent >= s->limit)
        return false;
    if (s->stream.kind != STREAM_TTY)
        return true;
    pid_t foreground = tcgetpgrp(STDIN_FILENO);
    return foreground < 0 || foreground == getpgrp(); /* the terminal of another session stops nobody */
}

bool source_is_behind(const struct source *s)
{
    if (s->held || s->told)
        return false;
    return s->sent < s->known ? s->sent < s->limit : s->ended;
}

static ssize_t read_now(struct source *s, char *data, size_t size)
{
    if (s->seekable)
        return pread(s->stream.fd, data, size, s->start + (off_t)s->sent);
    if (s->stream.kind == STREAM_SOCKET)
        return recv(s->stream.fd, data, size, MSG_DONTWAIT);
    make_own(&s->stream, O_RDONLY);
    if (s->stream.own || is_ready(s->stream.fd, POLLIN))
        return read(s->stream.fd, data, size);
    errno = EAGAIN;
    return -1;
}

/* Copies between a stream's bytes from `offset` and the ring that keeps the last of them. */
static void keep(struct source *s, uint64_t offset, const char *data, size_t length)
{
    for (size_t i = 0; i < length; i++)
        s->kept[(offset + i) % sizeof s->kept] = data[i];
}

static size_t read_kept(const struct source *s, char *data, size_t size)
{
    size_t length = s->known - s->sent < size ? (size_t)(s->known - s->sent) : size;
    for (size_t i = 0; i < length; i++)
        data[i] = s->kept[(s->sent + i) % sizeof s->kept];
    return length;
}

/* Reads on. 0: nothing now, or ended. */
static size_t read_new(struct source *s, char *data, size_t size)
{
    ssize_t got;
    do
        got = read_now(s, data, size);
    while (got < 0 && errno == EINTR);
    if (got < 0 && errno == EAGAIN)
        return 0;
    if (got <= 0) {
        s->ended = true; /* an error ends it as well: the command could not have read more either */
        s->known = s->sent; /* less than before, when somebody has cut the file short */
        return 0;
    }
    if (!s->seekable)
        keep(s, s->sent, data, (size_t)got);
    return (size_t)got;
}

size_t source_read(struct source *s, char *data, size_t size)
{
    if (s->sent >= s->limit)
        return 0;
    if (size > s->limit - s->sent)
        size = (size_t)(s->limit - s->sent);
    bool again = s->sent < s->known && !s->seekable;
    size_t got = again ? read_kept(s, data, size) : read_new(s, data, size);
    s->sent += got;
    if (s->known < s->sent)
        s->known = s->sent;
    return got;
}

bool source_rewind(struct source *s, uint64_t offset)
{
    if (offset > s->known || (!s->seekable && s->known - offset > sizeof s->kept))
        return false;
    s->sent = offset;
    s->told = s->held = false;
    return true;
}

void source_give_back(const struct source *s, uint64_t taken)
{
    if (s->seekable && taken <= s->known)
        lseek(s->stream.fd, s->start + (off_t)taken, SEEK_SET);
}
