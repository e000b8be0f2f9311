/* Everything that is cached here below a directory, asked about: for what no entry tells of. Knows how listings and names are
 * looked at without curing unnoticed what is wrong with them; does not know why somebody doubts this host's view. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "coherence/look.h"
#include "coherence/view.h"

enum { MAX_DEPTH = 64 };

/* A name that nobody has: what is believed of it shows whether the directory was changed by others. */
static const char canary[] = ".dwrap-view";

struct refresh {
    struct view *view;
    unsigned left;
    uint64_t device;
};

/* Has somebody else changed names in this directory? Its times alone do not tell: this host's own changes leave them old. */
static void refresh_names(struct refresh *refresh, int fd)
{
    struct entry before, after;
    struct stat st;
    bool known = look(&before, fd, "", CACHED);
    int old = look_believed(fd, canary);
    if (old < 0 && errno == EAGAIN)
        (void)!fstatat(fd, canary, &st, AT_SYMLINK_NOFOLLOW);
    refresh->view->synced++;
    if (!look(&after, fd, "", ASK) || !known || look_same(&before, &after))
        return;
    old = look_believed(fd, canary);
    if (old < 0 && errno == EAGAIN)
        view_count_stale(refresh->view, &after);
}

static void refresh_file(struct view *view, int fd, const struct entry *before)
{
    struct entry after;
    view->checked++;
    view->synced++;
    bool there = look(&after, fd, "", ASK);
    if (!there || !look_same(before, &after))
        view_count_stale(view, there ? &after : NULL);
}

static void refresh_directory(struct refresh *refresh, int fd, int depth);

/* What is believed of a name, asked about. Directories are entered in any case: what is in them may be cached when they are not.
 * Opening them for reading would ask, and hide what was wrong. */
static void refresh_name(struct refresh *refresh, int directory, const struct dirent *entry, int depth)
{
    struct entry before;
    int fd = look_believed(directory, entry->d_name);
    if (fd < 0 && entry->d_type == DT_DIR)
        fd = openat(directory, entry->d_name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return;
    if (!look(&before, fd, "", CACHED))
        refresh->view->stale++;
    else if (before.kind != MANIFEST_DIRECTORY)
        refresh_file(refresh->view, fd, &before);
    else if (depth > 0)
        refresh_directory(refresh, fd, depth - 1);
    close(fd);
}

static void refresh_directory(struct refresh *refresh, int fd, int depth)
{
    if (look_device(fd) != refresh->device)
        return;
    refresh_names(refresh, fd);
    int readable = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *names = readable < 0 ? NULL : fdopendir(readable);
    if (!names) {
        if (readable >= 0)
            close(readable);
        return;
    }
    for (struct dirent *entry; refresh->left > 0 && (entry = readdir(names));) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        refresh->left--;
        refresh_name(refresh, fd, entry, depth);
    }
    closedir(names);
}

void view_refresh(struct view *view, const char *directory, unsigned most)
{
    int fd = open(directory, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return;
    if (!look_is_coherent(fd)) {
        struct refresh refresh = {view, most, look_device(fd)};
        refresh_directory(&refresh, fd, MAX_DEPTH);
    }
    close(fd);
}
