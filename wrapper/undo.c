/* Removing names; see undo.h. Whoever names them has had a command run as this user, but perhaps where only a part of this machine's files
 * is seen: so nothing goes but what a command can have made since this one was handed over (coherence/remove.c), on the file systems of
 * its working directory and of what its arguments name. The shared roots are not known here; the distributor has let the command go only
 * because all of these lie on them. Does not know who made the names, or why they go. */
#include "wrapper/undo.h"

#include <sys/stat.h>

#include "coherence/remove.h"

enum { MOST_DEVICES = 16 };

static size_t add_device(dev_t devices[MOST_DEVICES], size_t count, const char *path)
{
    struct stat st;
    if (count == MOST_DEVICES || stat(path, &st) != 0)
        return count;
    for (size_t i = 0; i < count; i++)
        if (devices[i] == st.st_dev)
            return count;
    devices[count] = st.st_dev;
    return count + 1;
}

static size_t find_devices(const struct job *job, dev_t devices[MOST_DEVICES])
{
    struct fields told = fields_of(job->submit, job->submit_length);
    struct field one;
    size_t count = add_device(devices, 0, job->cwd);
    while (fields_next(&told, &one))
        if (field_is(&one, "path"))
            count = add_device(devices, count, one.value);
    return count;
}

const char *undo_names(struct fields fields, const struct job *job, const char **why)
{
    static const char *names[DWRAP_MAX_FIELDS];
    dev_t devices[MOST_DEVICES];
    struct field one;
    size_t count = 0;
    while (count < DWRAP_MAX_FIELDS && fields_next(&fields, &one))
        if (field_is(&one, "undo"))
            names[count++] = one.value;
    const struct removal limits = { .root = "", .devices = devices, .device_count = find_devices(job, devices), .since_ms = job->first_go_ms };
    while (count > 0)
        if ((*why = remove_made(names[--count], &limits)))
            return names[count];
    return NULL;
}
