/* Sane settings for a ccache whose files, or whose cache, lie on a network file system; what the job sets itself stands.
 * Knows ccache's variables (4.7: each has a form that says yes and one that says no); does not know whether ccache will run.
 *
 * inode_cache trusts times that NFS caches and gave wrong objects; hard links and clones share inodes between hosts; its temporary
 * files belong on a local disk. */
#include "agent/runner.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "coherence/look.h"

/* The nearest directory that exists says what file system a path lies on, or will. */
static bool is_shared(const char *path)
{
    char near[PATH_ROOM];
    int fd = -1;
    if (!path || path[0] != '/' || !path_join(near, sizeof near, "/", path))
        return false;
    while ((fd = open(near, O_PATH | O_CLOEXEC)) < 0 && near[1]) {
        char *slash = strrchr(near, '/');
        slash[slash == near] = '\0';
    }
    bool shared = fd >= 0 && !look_is_coherent(fd);
    if (fd >= 0)
        close(fd);
    return shared;
}

static void turn_off(struct spec *spec, const char *feature)
{
    char yes[64], no[64], *assignment;
    snprintf(yes, sizeof yes, "CCACHE_%s", feature);
    snprintf(no, sizeof no, "CCACHE_NO%s", feature);
    if (!spec_env(spec, yes) && !spec_env(spec, no) && asprintf(&assignment, "%s=1", no) >= 0)
        spec_set_env(spec, assignment);
}

/* One for each user, in the agent's own place: it goes when the agent goes. */
static void set_temporary(struct spec *spec)
{
    char *assignment;
    struct stat st;
    uid_t uid = spec->become ? spec->uid : geteuid();
    if (spec->work[0] == '\0' || spec_env(spec, "CCACHE_TEMPDIR") || asprintf(&assignment, "CCACHE_TEMPDIR=%s/ccache-%u", spec->work, uid) < 0)
        return;
    const char *path = strchr(assignment, '=') + 1;
    if (mkdir(path, 0700) == 0 && spec->become && lchown(path, spec->uid, spec->gid) != 0)
        rmdir(path);
    if (lstat(path, &st) == 0 && S_ISDIR(st.st_mode) && st.st_uid == uid)
        spec_set_env(spec, assignment);
    else
        free(assignment);
}

void ccache_settle(struct spec *spec)
{
    const char *cache = spec_env(spec, "CCACHE_DIR");
    bool user = identity_assume(spec);
    bool shared = user && is_shared(cache ? cache : spec_env(spec, "HOME"));
    bool anything = shared || (user && is_shared(spec->cwd));
    identity_drop(spec);
    if (anything)
        turn_off(spec, "INODECACHE");
    if (!shared)
        return;
    turn_off(spec, "HARDLINK");
    turn_off(spec, "FILECLONE");
    set_temporary(spec);
}
