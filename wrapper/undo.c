/* Removing names; see undo.h. Whoever names them could have had any command run as this user, so they are not judged further
 * than that they are absolute. Does not know who made them, or why they go. */
#include "wrapper/undo.h"

#include <errno.h>
#include <unistd.h>

/* Whatever it is, but for a directory in which something is. */
static bool is_gone(const char *name)
{
    if (name[0] != '/') {
        errno = EINVAL;
        return false;
    }
    if (unlink(name) == 0 || errno == ENOENT || errno == ENOTDIR)
        return true;
    if (errno != EISDIR && errno != EPERM)
        return false;
    int why = errno;
    if (rmdir(name) == 0 || errno == ENOENT)
        return true;
    if (errno == ENOTDIR)
        errno = why;
    return false;
}

const char *undo_names(struct fields fields)
{
    static const char *names[DWRAP_MAX_FIELDS];
    struct field one;
    size_t count = 0;
    while (count < DWRAP_MAX_FIELDS && fields_next(&fields, &one))
        if (field_is(&one, "undo"))
            names[count++] = one.value;
    while (count > 0)
        if (!is_gone(names[--count]))
            return names[count];
    return NULL;
}
