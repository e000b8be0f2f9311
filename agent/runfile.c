/* The file in which a job's result outlives its agent. The runner makes it before the start (three uint32: the user, 0, 0), puts the
 * result behind that, and then says how long it is: uint32 length of RESULT's fields, uint32 length of the manifest's entries. Until
 * then it says: started, and nothing is known; without it nothing was. Knows that form (former.py reads it); does not know what is in
 * it. */
#include "agent/run.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

static bool write_at(int fd, const void *data, size_t size, off_t at)
{
    for (const char *from = data; size > 0;) {
        ssize_t done = pwrite(fd, from, size, at);
        if (done <= 0)
            return false;
        from += done;
        at += done;
        size -= (size_t)done;
    }
    return true;
}

/* The room for it is had before the start: what fills the disk meanwhile, this job perhaps, costs no result. */
static bool has_room(int fd)
{
    return fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, RUNFILE_BYTES) == 0 || errno == EOPNOTSUPP;
}

/* A new file, or where there is no room for it one that was set aside. -1 with errno. */
static int make_file(const struct spec *spec)
{
    int fd = open(spec->run, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd >= 0 && has_room(fd))
        return fd;
    if (fd >= 0) {
        int error = errno;
        close(fd);
        unlink(spec->run);
        errno = error;
    }
    return spare_take(spec, "file", spec->run) ? open(spec->run, O_WRONLY | O_NOFOLLOW | O_CLOEXEC) : -1;
}

bool runfile_begin(const struct spec *spec)
{
    const uint32_t head[3] = {spec->become ? spec->uid : geteuid(), 0, 0};
    if (!spec->run[0])
        return true;
    int fd = make_file(spec);
    bool done = fd >= 0 && write_at(fd, head, sizeof head, 0);
    int error = errno;
    if (fd >= 0)
        close(fd);
    errno = error;
    return done;
}

void runfile_write(const struct spec *spec, const struct report *report, const struct outputs *outputs)
{
    const uint32_t lengths[2] = {(uint32_t)report->size, (uint32_t)outputs->manifest_size};
    const off_t start = 3 * sizeof(uint32_t);
    int fd = spec->run[0] ? open(spec->run, O_WRONLY | O_NOFOLLOW | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    if (write_at(fd, report->text, report->size, start) &&
        write_at(fd, outputs->manifest, outputs->manifest_size, start + (off_t)report->size))
        write_at(fd, lengths, sizeof lengths, sizeof(uint32_t)); /* last: it makes the result count */
    close(fd);
}

void runfile_remove(const struct spec *spec)
{
    if (spec->run[0])
        unlink(spec->run);
}
