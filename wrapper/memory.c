/* Files that remember; see memory.h. Does not know what an address or a name is, or why it is remembered. */
#include "wrapper/memory.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { SILENT_SECONDS = 5, ALIVE_SECONDS = 60, ALIVE_AGAIN_SECONDS = 20, NAME_SECONDS = 60, READS_SECONDS = 86400, SAID_SECONDS = 3600, LOCK_TRIES = 25 };

static char directory[4096];
static bool silent_known; /* the address at hand had a file when we looked */

void memory_at(const char *runtime_dir)
{
    struct stat st;
    int length = -1;
    if (runtime_dir && runtime_dir[0] == '/' && stat(runtime_dir, &st) == 0 && st.st_uid == geteuid())
        length = snprintf(directory, sizeof directory - 300, "%s/dwrap", runtime_dir);
    if (length < 0 || (size_t)length >= sizeof directory - 300)
        snprintf(directory, sizeof directory, "/tmp/dwrap-%u", (unsigned)geteuid());
}

/* DIRECTORY/KIND-KEY, with everything but letters, digits, '.' and '-' in the key written as _XX. */
static bool file_name(const char *kind, const char *key, char *path, size_t size)
{
    static const char hex[] = "0123456789abcdef";
    char name[256];
    size_t used = 0;
    for (; *key && used < sizeof name - 4; key++) {
        unsigned char c = (unsigned char)*key;
        if ((c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z') || c == '.' || c == '-') {
            name[used++] = (char)c;
        } else {
            name[used++] = '_';
            name[used++] = hex[c >> 4];
            name[used++] = hex[c & 15];
        }
    }
    name[used] = 0;
    int length = snprintf(path, size, "%s/%s-%s", directory, kind, name);
    return !*key && used < 240 && length > 0 && (size_t)length < size;
}

/* Is the directory ours alone? Anything else could have been put there to mislead us. */
static bool directory_is_ours(void)
{
    struct stat st;
    return lstat(directory, &st) == 0 && S_ISDIR(st.st_mode) && st.st_uid == geteuid() && (st.st_mode & 077) == 0;
}

static bool directory_exists(void)
{
    if (mkdir(directory, 0700) < 0 && errno != EEXIST)
        return false;
    return directory_is_ours();
}

static double age_seconds(const struct stat *st)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (double)(now.tv_sec - st->st_mtim.tv_sec) + (double)(now.tv_nsec - st->st_mtim.tv_nsec) / 1e9;
}

static bool is_fresh(const struct stat *st, double seconds)
{
    double age = age_seconds(st);
    return age >= 0 && age < seconds;
}

bool memory_is_silent(const char *address)
{
    char path[sizeof directory + 300];
    struct stat st;
    silent_known = false;
    if (!file_name("silent", address, path, sizeof path) || stat(path, &st) < 0 || !directory_is_ours())
        return false;
    silent_known = true;
    if (is_fresh(&st, SILENT_SECONDS))
        return true;
    /* Old: whoever gets the lock first makes it young again and tries at length; the others stay brief. The lock
     * goes with the descriptor, which is closed on exec. */
    int fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return false;
    bool ours = flock(fd, LOCK_EX | LOCK_NB) == 0 && fstat(fd, &st) == 0 && !is_fresh(&st, SILENT_SECONDS);
    if (ours)
        futimens(fd, NULL);
    close(fd);
    return !ours;
}

void memory_mark_silent(const char *address)
{
    char path[sizeof directory + 300];
    if (!directory_exists() || !file_name("silent", address, path, sizeof path))
        return;
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return;
    if (!silent_known)
        futimens(fd, NULL);
    close(fd);
}

void memory_forget_silent(const char *address)
{
    char path[sizeof directory + 300];
    if (silent_known && file_name("silent", address, path, sizeof path))
        unlink(path);
    silent_known = false;
}

bool memory_is_alive(const char *address)
{
    char path[sizeof directory + 300];
    struct stat st;
    return file_name("alive", address, path, sizeof path) && stat(path, &st) == 0 && is_fresh(&st, ALIVE_SECONDS) && directory_is_ours();
}

void memory_mark_alive(const char *address)
{
    char path[sizeof directory + 300];
    struct stat st;
    if (!file_name("alive", address, path, sizeof path) || (stat(path, &st) == 0 && is_fresh(&st, ALIVE_AGAIN_SECONDS)) || !directory_exists())
        return; /* mostly it is one look */
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return;
    futimens(fd, NULL);
    close(fd);
}

void memory_forget_alive(const char *address)
{
    char path[sizeof directory + 300];
    if (file_name("alive", address, path, sizeof path))
        unlink(path);
}

/* The bytes of a file that is not older than `seconds`; 0: there are none. */
static size_t recall(const char *kind, const char *key, double seconds, char *bytes, size_t room)
{
    char path[sizeof directory + 300];
    struct stat st;
    if (!file_name(kind, key, path, sizeof path))
        return 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return 0;
    ssize_t got = 0;
    if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && is_fresh(&st, seconds) && directory_is_ours())
        got = read(fd, bytes, room);
    close(fd);
    return got > 0 ? (size_t)got : 0;
}

bool memory_recall_name(const char *name, char *text, size_t size)
{
    size_t got = recall("name", name, NAME_SECONDS, text, size - 1);
    text[got] = 0;
    return got > 0;
}

static void keep(const char *kind, const char *key, const char *text, size_t length)
{
    char path[sizeof directory + 300], fresh[sizeof path + 16];
    if (!directory_exists() || !file_name(kind, key, path, sizeof path))
        return;
    snprintf(fresh, sizeof fresh, "%s.%u", path, (unsigned)getpid());
    int fd = open(fresh, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return;
    bool whole = write(fd, text, length) == (ssize_t)length;
    close(fd);
    if (!whole || rename(fresh, path) < 0)
        unlink(fresh);
}

void memory_keep_name(const char *name, const char *text, size_t length)
{
    keep("name", name, text, length);
}

size_t memory_recall_reads(const char *build, char *bytes, size_t room)
{
    return recall("reads", build, READS_SECONDS, bytes, room);
}

/* Those of builds that ended long ago. */
static void forget_old_reads(void)
{
    struct stat st;
    DIR *all = opendir(directory);
    for (struct dirent *one; all && (one = readdir(all));)
        if (strncmp(one->d_name, "reads-", 6) == 0 && fstatat(dirfd(all), one->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
            !is_fresh(&st, READS_SECONDS))
            unlinkat(dirfd(all), one->d_name, 0);
    if (all)
        closedir(all);
}

void memory_keep_reads(const char *build, const char *bytes, size_t length)
{
    char path[sizeof directory + 300];
    if (file_name("reads", build, path, sizeof path) && access(path, F_OK) != 0)
        forget_old_reads();
    keep("reads", build, bytes, length);
}

int memory_lock(void)
{
    struct timespec pause = {.tv_nsec = 2000000};
    int fd = directory_exists() ? open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    for (int i = 0; fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) != 0; i++) {
        if (i == LOCK_TRIES) {
            close(fd);
            return -1;
        }
        nanosleep(&pause, NULL);
    }
    return fd;
}

bool memory_is_time_to_say(const char *topic)
{
    char path[sizeof directory + 300];
    struct stat st;
    if (!directory_exists() || !file_name("said", topic, path, sizeof path))
        return true;
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    bool is_new = fd >= 0;
    if (!is_new && errno == EEXIST)
        fd = open(path, O_WRONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return true;
    /* Of those who find it old, one is first. */
    bool ours = is_new || (flock(fd, LOCK_EX | LOCK_NB) == 0 && fstat(fd, &st) == 0 && !is_fresh(&st, SAID_SECONDS));
    if (ours && !is_new)
        futimens(fd, NULL);
    close(fd);
    return ours;
}
