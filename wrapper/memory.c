/* Files that remember; see memory.h. Does not know what an address or a name is, or why it is remembered. */
#include "wrapper/memory.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { SILENT_SECONDS = 5, ALIVE_SECONDS = 60, ALIVE_AGAIN_SECONDS = 20, NAME_SECONDS = 60, READS_SECONDS = 86400, SAID_SECONDS = 3600, EVER_SECONDS = INT_MAX, LOCK_TRIES = 25 };

enum { FILE_BYTES = 256 };

static char directory[4096];
static int place = -1;    /* it, once it was found to be ours alone: whatever gets its name later is not it */
static bool silent_known; /* the address at hand had a file when we looked */

void memory_at(const char *runtime_dir)
{
    struct stat st;
    int length = -1;
    if (runtime_dir && runtime_dir[0] == '/' && stat(runtime_dir, &st) == 0 && st.st_uid == geteuid())
        length = snprintf(directory, sizeof directory, "%s/dwrap", runtime_dir);
    if (length < 0 || (size_t)length >= sizeof directory)
        snprintf(directory, sizeof directory, "/tmp/dwrap-%u", (unsigned)geteuid());
}

/* KIND-KEY, with everything but letters, digits, '.' and '-' in the key written as _XX. */
static bool file_name(const char *kind, const char *key, char file[FILE_BYTES])
{
    static const char hex[] = "0123456789abcdef";
    size_t used = (size_t)snprintf(file, FILE_BYTES, "%s-", kind);
    for (; *key && used < FILE_BYTES - 16; key++) { /* keep() makes it longer */
        unsigned char c = (unsigned char)*key;
        if ((c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z') || c == '.' || c == '-') {
            file[used++] = (char)c;
        } else {
            file[used++] = '_';
            file[used++] = hex[c >> 4];
            file[used++] = hex[c & 15];
        }
    }
    file[used] = 0;
    return !*key;
}

/* Opens the directory, if it is ours alone: anything else could have been put there to mislead us. */
static bool have_directory(void)
{
    struct stat st;
    if (place >= 0)
        return true;
    place = open(directory, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (place >= 0 && (fstat(place, &st) < 0 || st.st_uid != geteuid() || (st.st_mode & 077))) {
        close(place);
        place = -1;
    }
    return place >= 0;
}

static bool make_directory(void)
{
    return have_directory() || ((mkdir(directory, 0700) == 0 || errno == EEXIST) && have_directory());
}

/* Opens one of its files, if it is ours; -1: it is none. */
static int open_ours(const char *file, int flags, struct stat *st)
{
    int fd = openat(place, file, flags | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600);
    if (fd >= 0 && (fstat(fd, st) < 0 || !S_ISREG(st->st_mode) || st->st_uid != geteuid())) {
        close(fd);
        fd = -1;
    }
    return fd;
}

/* Looks at one of them. */
static bool look(const char *file, struct stat *st)
{
    return fstatat(place, file, st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(st->st_mode) && st->st_uid == geteuid();
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
    char file[FILE_BYTES];
    struct stat st;
    silent_known = false;
    if (!file_name("silent", address, file) || !have_directory() || !look(file, &st))
        return false;
    silent_known = true;
    if (is_fresh(&st, SILENT_SECONDS))
        return true;
    /* Old: whoever gets the lock first makes it young again and tries at length; the others stay brief. The lock
     * goes with the descriptor, which is closed on exec. */
    int fd = open_ours(file, O_RDWR, &st);
    if (fd < 0)
        return false;
    bool ours = flock(fd, LOCK_EX | LOCK_NB) == 0 && fstat(fd, &st) == 0 && !is_fresh(&st, SILENT_SECONDS);
    if (ours)
        futimens(fd, NULL);
    close(fd);
    return !ours;
}

/* Makes the file, and with `again` its time now. */
static void mark(const char *file, bool again)
{
    struct stat st;
    int fd = open_ours(file, O_WRONLY | O_CREAT, &st);
    if (fd < 0)
        return;
    if (again)
        futimens(fd, NULL);
    close(fd);
}

void memory_mark_silent(const char *address)
{
    char file[FILE_BYTES];
    if (file_name("silent", address, file) && make_directory())
        mark(file, !silent_known);
}

void memory_forget_silent(const char *address)
{
    char file[FILE_BYTES];
    if (silent_known && file_name("silent", address, file))
        unlinkat(place, file, 0);
    silent_known = false;
}

bool memory_is_alive(const char *address)
{
    char file[FILE_BYTES];
    struct stat st;
    return file_name("alive", address, file) && have_directory() && look(file, &st) && is_fresh(&st, ALIVE_SECONDS);
}

void memory_mark_alive(const char *address)
{
    char file[FILE_BYTES];
    struct stat st;
    if (file_name("alive", address, file) && make_directory() && !(look(file, &st) && is_fresh(&st, ALIVE_AGAIN_SECONDS)))
        mark(file, true); /* mostly it is one look */
}

void memory_forget_alive(const char *address)
{
    char file[FILE_BYTES];
    if (file_name("alive", address, file) && have_directory())
        unlinkat(place, file, 0);
}

/* The bytes of a file that is not older than `seconds`; 0: there are none. */
static size_t recall(const char *kind, const char *key, double seconds, char *bytes, size_t room)
{
    char file[FILE_BYTES];
    struct stat st;
    int fd = file_name(kind, key, file) && have_directory() ? open_ours(file, O_RDONLY, &st) : -1;
    if (fd < 0)
        return 0;
    ssize_t got = is_fresh(&st, seconds) ? read(fd, bytes, room) : 0;
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
    char file[FILE_BYTES], fresh[FILE_BYTES + 16];
    if (!file_name(kind, key, file) || !make_directory())
        return;
    snprintf(fresh, sizeof fresh, "%s.%u", file, (unsigned)getpid());
    unlinkat(place, fresh, 0); /* of a process of our number that was killed */
    int fd = openat(place, fresh, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return;
    bool whole = write(fd, text, length) == (ssize_t)length;
    close(fd);
    if (!whole || renameat(place, fresh, place, file) < 0)
        unlinkat(place, fresh, 0);
}

void memory_keep_name(const char *name, const char *text, size_t length)
{
    keep("name", name, text, length);
}

size_t memory_recall_reads(const char *build, char *bytes, size_t room)
{
    return recall("reads", build, READS_SECONDS, bytes, room);
}

/* Another descriptor of it. */
static int directory_again(void)
{
    return have_directory() ? openat(place, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
}

/* Those of this kind (`KIND-`) that were made long ago. */
static void forget_old(const char *kind)
{
    struct stat st;
    int fd = directory_again();
    DIR *all = fd >= 0 ? fdopendir(fd) : NULL;
    for (struct dirent *one; all && (one = readdir(all));)
        if (strncmp(one->d_name, kind, strlen(kind)) == 0 && fstatat(place, one->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0 && !is_fresh(&st, READS_SECONDS))
            unlinkat(place, one->d_name, 0);
    if (all)
        closedir(all);
    else if (fd >= 0)
        close(fd);
}

void memory_keep_reads(const char *build, const char *bytes, size_t length)
{
    char file[FILE_BYTES];
    struct stat st;
    if (file_name("reads", build, file) && have_directory() && !look(file, &st))
        forget_old("reads-");
    keep("reads", build, bytes, length);
}

size_t memory_recall_environment(const char *stamp, char *text, size_t room)
{
    return recall("environment", stamp, EVER_SECONDS, text, room);
}

void memory_keep_environment(const char *stamp, const char *text, size_t length)
{
    if (have_directory())
        forget_old("environment-");
    keep("environment", stamp, text, length);
}

bool memory_is_kept(void)
{
    return make_directory();
}

int memory_lock(void)
{
    struct timespec pause = {.tv_nsec = 2000000};
    int fd = make_directory() ? directory_again() : -1;
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
    char file[FILE_BYTES];
    struct stat st;
    if (!file_name("said", topic, file) || !make_directory())
        return true;
    int fd = openat(place, file, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    bool is_new = fd >= 0;
    if (!is_new && errno == EEXIST)
        fd = open_ours(file, O_WRONLY, &st);
    if (fd < 0)
        return true;
    /* Of those who find it old, one is first. */
    bool ours = is_new || (flock(fd, LOCK_EX | LOCK_NB) == 0 && fstat(fd, &st) == 0 && !is_fresh(&st, SAID_SECONDS));
    if (ours && !is_new)
        futimens(fd, NULL);
    close(fd);
    return ours;
}
