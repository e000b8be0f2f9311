/* Package databases; see packages.h. Each is read as it lies on disk, but rpm's, which only rpm can read.
 *
 * dpkg(1): /var/lib/dpkg/status, deb-control(5) paragraphs. apk(8): the "installed" index, one-letter fields. pacman(8): a directory for
 * each package, NAME-VERSION-RELEASE. Knows their formats. Does not know which packages matter. */
#include "environment/packages.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define DPKG "/var/lib/dpkg/status"
#define DPKG_UPDATES "/var/lib/dpkg/updates"
#define PACMAN "/var/lib/pacman/local"
#define RPM_QUERY "%{NAME}\t%|EPOCH?{%{EPOCH}:}|%{VERSION}-%{RELEASE}\t%{ARCH}\n"

static const char *const apk[] = { "/usr/lib/apk/db/installed", "/lib/apk/db/installed" };
static const char *const rpm[] = {
    "/usr/lib/sysimage/rpm/rpmdb.sqlite", "/usr/lib/sysimage/rpm/rpmdb.sqlite-wal", "/var/lib/rpm/rpmdb.sqlite",
    "/var/lib/rpm/rpmdb.sqlite-wal", "/usr/lib/sysimage/rpm/Packages.db", "/var/lib/rpm/Packages.db", "/var/lib/rpm/Packages",
};

enum { APKS = sizeof apk / sizeof *apk, RPMS = sizeof rpm / sizeof *rpm };

enum { FIELD_BYTES = 256, RPM_PATIENCE_MS = 15000 };

/* What a paragraph has said so far. */
struct paragraph {
    char name[FIELD_BYTES], version[FIELD_BYTES], architecture[FIELD_BYTES];
    bool removed;
};

/* How the fields of a paragraph are written. */
struct dialect {
    const char *name, *version, *architecture, *status;
};

static const struct dialect deb = { "Package: ", "Version: ", "Architecture: ", "Status: " };
static const struct dialect alpine = { "P:", "V:", "A:", NULL };

static bool take(const char *line, const char *field, char value[FIELD_BYTES])
{
    size_t length = field ? strlen(field) : 0;
    if (!field || strncmp(line, field, length) != 0)
        return false;
    snprintf(value, FIELD_BYTES, "%s", line + length);
    return true;
}

static void end_paragraph(struct paragraph *p, package_seen *seen, void *context)
{
    if (p->name[0] && p->version[0] && !p->removed)
        seen(context, p->name, p->version, p->architecture);
    *p = (struct paragraph){ 0 };
}

/* The third word of dpkg's Status: whatever is neither of these is there, in whole or in part. */
static bool is_removed(const char *status)
{
    const char *last = strrchr(status, ' ');
    return last && (strcmp(last, " not-installed") == 0 || strcmp(last, " config-files") == 0);
}

/* A file that is not there is no failure. */
static bool read_paragraphs(const char *root, const char *path, const struct dialect *as, package_seen *seen, void *context)
{
    char full[PATH_MAX], status[FIELD_BYTES], *line = NULL;
    struct paragraph now = { 0 };
    size_t size = 0;
    snprintf(full, sizeof full, "%s%s", root, path);
    FILE *file = fopen(full, "re");
    bool done = file || errno == ENOENT || errno == ENOTDIR;
    while (file && getline(&line, &size, file) > 0) {
        line[strcspn(line, "\n")] = 0;
        if (!line[0])
            end_paragraph(&now, seen, context);
        else if (take(line, as->status, status))
            now.removed = is_removed(status);
        else if (!take(line, as->name, now.name) && !take(line, as->version, now.version))
            take(line, as->architecture, now.architecture);
    }
    end_paragraph(&now, seen, context);
    free(line);
    done = done && !(file && ferror(file));
    if (file)
        fclose(file);
    return done;
}

/* What dpkg has begun and not ended lies beside its status: until it has, the machine is like no other, this one a moment ago included. */
static void see_unfinished(const char *root, package_seen *seen, void *context)
{
    char full[PATH_MAX], moment[FIELD_BYTES];
    struct stat st;
    snprintf(full, sizeof full, "%s" DPKG_UPDATES, root);
    DIR *all = opendir(full);
    for (struct dirent *one; all && (one = readdir(all));) {
        if (one->d_name[0] == '.' || fstatat(dirfd(all), one->d_name, &st, 0) < 0)
            continue;
        snprintf(moment, sizeof moment, "%lld.%09ld", (long long)st.st_mtim.tv_sec, st.st_mtim.tv_nsec);
        seen(context, PACKAGES_UNFINISHED, moment, "");
    }
    if (all)
        closedir(all);
}

/* Does a package, by its directory in the database, bring headers? */
static bool has_headers(DIR *all, const char *package)
{
    char full[PATH_MAX], *line = NULL;
    size_t size = 0;
    bool found = false;
    snprintf(full, sizeof full, "%s/files", package);
    int fd = openat(dirfd(all), full, O_RDONLY | O_CLOEXEC);
    FILE *file = fd >= 0 ? fdopen(fd, "re") : NULL;
    while (file && !found && getline(&line, &size, file) > 0)
        found = strncmp(line, "usr/include/", 12) == 0;
    free(line);
    if (file)
        fclose(file);
    else if (fd >= 0)
        close(fd);
    return found;
}

/* NAME-VERSION-RELEASE: neither of the last two has a hyphen. What other systems call NAME-dev is part of NAME: where there are headers it
 * is told as if there were both. */
static bool read_pacman(const char *root, package_seen *seen, void *context)
{
    char full[PATH_MAX], development[FIELD_BYTES + sizeof "-dev"];
    snprintf(full, sizeof full, "%s" PACMAN, root);
    DIR *all = opendir(full);
    bool done = all || errno == ENOENT || errno == ENOTDIR;
    for (struct dirent *one; all && (one = readdir(all));) {
        char *release = strrchr(one->d_name, '-'), *version;
        if (!release || one->d_name[0] == '.')
            continue;
        bool headers = has_headers(all, one->d_name);
        *release = 0;
        version = strrchr(one->d_name, '-');
        *release = '-';
        if (!version)
            continue;
        *version = 0;
        seen(context, one->d_name, version + 1, "");
        snprintf(development, sizeof development, "%s-dev", one->d_name);
        if (headers)
            seen(context, development, version + 1, "");
    }
    if (all)
        closedir(all);
    return done;
}

/* `rpm -qa`, as a pipe; NULL: it cannot be started. An environment of its own: ours may be anything. */
static FILE *start_rpm(const char *root, char *folder, pid_t *pid)
{
    static char *const environment[] = { "PATH=/usr/bin:/bin:/usr/sbin:/sbin", "LC_ALL=C", NULL };
    char *arguments[] = { "rpm", "-qa", "--qf", RPM_QUERY, "--dbpath", folder, root[0] ? "--root" : NULL, (char *)root, NULL };
    posix_spawn_file_actions_t actions;
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) < 0)
        return NULL;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
    posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
    posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    bool started = posix_spawn(pid, "/usr/bin/rpm", &actions, NULL, arguments, environment) == 0 ||
                   posix_spawn(pid, "/bin/rpm", &actions, NULL, arguments, environment) == 0;
    posix_spawn_file_actions_destroy(&actions);
    close(ends[1]);
    FILE *answer = started ? fdopen(ends[0], "re") : NULL;
    if (!answer)
        close(ends[0]);
    if (started && !answer)
        waitpid(*pid, NULL, 0); /* its pipe is closed: it ends */
    return answer;
}

/* Waits for its first words, and ends it if there are none: it waits for as long as anybody, dead ones included, holds its database. */
static void await_rpm(FILE *answer, pid_t pid)
{
    struct pollfd said = { .fd = fileno(answer), .events = POLLIN };
    if (poll(&said, 1, RPM_PATIENCE_MS) == 0)
        kill(pid, SIGKILL);
}

static bool read_rpm(const char *root, package_seen *seen, void *context)
{
    struct sigaction heard = { .sa_handler = SIG_DFL }, before; /* else nobody is told how it ended */
    char full[PATH_MAX], folder[PATH_MAX] = "", *line = NULL;
    size_t size = 0;
    pid_t pid;
    int status = -1;
    for (size_t i = 0; i < RPMS && !folder[0]; i++) {
        snprintf(full, sizeof full, "%s%s", root, rpm[i]);
        if (access(full, F_OK) == 0)
            snprintf(folder, sizeof folder, "%.*s", (int)(strrchr(rpm[i], '/') - rpm[i]), rpm[i]);
    }
    if (!folder[0])
        return true;
    sigaction(SIGCHLD, &heard, &before);
    FILE *answer = start_rpm(root, folder, &pid);
    if (answer)
        await_rpm(answer, pid);
    while (answer && getline(&line, &size, answer) > 0) {
        char *version = strchr(line, '\t'), *architecture = version ? strchr(version + 1, '\t') : NULL;
        if (!architecture)
            continue;
        line[strcspn(line, "\n")] = 0;
        *version = *architecture = 0;
        seen(context, line, version + 1, architecture + 1);
    }
    free(line);
    if (answer)
        fclose(answer);
    while (answer && waitpid(pid, &status, 0) < 0 && errno == EINTR)
        continue;
    sigaction(SIGCHLD, &before, NULL);
    return answer && status == 0;
}

bool packages_each(const char *root, package_seen *seen, void *context)
{
    bool done = read_paragraphs(root, DPKG, &deb, seen, context);
    see_unfinished(root, seen, context);
    for (size_t i = 0; i < APKS; i++)
        done = read_paragraphs(root, apk[i], &alpine, seen, context) && done;
    done = read_pacman(root, seen, context) && done;
    return read_rpm(root, seen, context) && done;
}

void packages_stamp(const char *root, struct stamp *stamp)
{
    stamp_add(stamp, root, DPKG);
    stamp_add(stamp, root, DPKG_UPDATES);
    stamp_add(stamp, root, PACMAN);
    for (size_t i = 0; i < APKS; i++)
        stamp_add(stamp, root, apk[i]);
    for (size_t i = 0; i < RPMS; i++)
        stamp_add(stamp, root, rpm[i]);
}
