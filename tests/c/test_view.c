/* coherence/ against a host that believes what it should not: its system calls are answered from a script where a network
 * file system would answer from its cache, and by the kernel elsewhere. Argument: an empty directory. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

/* One name of which the host believes something wrong, and what makes it drop that. */
static struct {
    const char *name;  /* NULL: it believes only what is so */
    const char *other; /* the file that it takes for it; NULL: it believes that there is none */
    bool expired;      /* it says nothing of it until the directory was asked about */
    bool sticky;       /* a question about the directory does not help: the change was within a tick */
} lie;
static unsigned asked, made, linked, dropped;
static time_t passed; /* seconds by which the monotonic clock has gone on */

static long fake_openat2(int directory, const char *name)
{
    bool lies = lie.name && strcmp(name, lie.name) == 0;
    if (lies && !lie.expired && lie.other)
        return openat(AT_FDCWD, lie.other, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    int fd = lies ? -1 : openat(directory, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        errno = lies && !lie.expired ? ENOENT : EAGAIN;
    return fd;
}

static int fake_statx(int fd, const char *path, int flags, unsigned mask, struct statx *out)
{
    int result = statx(fd, path, flags, mask, out);
    if (result != 0 || (flags & AT_STATX_SYNC_TYPE) != AT_STATX_FORCE_SYNC)
        return result;
    asked++;
    if (S_ISDIR(out->stx_mode) && lie.name) {
        lie.expired = false;
        if (!lie.sticky)
            lie.name = NULL;
    }
    return 0;
}

static int fake_mkdirat(int directory, const char *name, mode_t mode)
{
    made++;
    lie.name = NULL;
    return mkdirat(directory, name, mode);
}

static int fake_linkat(int from, const char *old, int directory, const char *name, int flags)
{
    linked++;
    lie.name = NULL;
    return linkat(from, old, directory, name, flags);
}

static int fake_fstatfs(int fd, struct statfs *out)
{
    int result = fstatfs(fd, out);
    out->f_type = 0x6969;
    return result;
}

static int fake_fadvise(int fd)
{
    dropped++;
    return fcntl(fd, F_GETFD) < 0;
}

static int fake_clock(clockid_t clock, struct timespec *now)
{
    int result = clock_gettime(clock, now);
    now->tv_sec += clock == CLOCK_MONOTONIC ? passed : 0;
    return result;
}

static bool closed; /* to this user: no listing can be read */

static int fake_openat(int directory, const char *name, int flags)
{
    if (!closed || strcmp(name, ".") != 0)
        return openat(directory, name, flags);
    errno = EACCES;
    return -1;
}

#define openat(directory, name, flags) fake_openat(directory, name, flags)
#define posix_fadvise(fd, start, size, advice) fake_fadvise(fd)
#define clock_gettime(clock, now) fake_clock(clock, now)
#define syscall(number, directory, name, how, size) ((void)(how), fake_openat2(directory, name))
#define statx(...) fake_statx(__VA_ARGS__)
#define mkdirat(...) fake_mkdirat(__VA_ARGS__)
#define linkat(...) fake_linkat(__VA_ARGS__)
#define fstatfs(...) fake_fstatfs(__VA_ARGS__)
#include "coherence/look.c"
#include "coherence/view.c"
#include "coherence/refresh.c"
#undef mkdirat
#undef linkat

static unsigned checks, failures;

#define CHECK(condition)                                                   \
    do {                                                                   \
        checks++;                                                          \
        if (!(condition)) {                                                \
            failures++;                                                    \
            printf("%s:%d: %s\n", __func__, __LINE__, #condition);         \
        }                                                                  \
    } while (0)

static struct view view;
static char piece[MANIFEST_PIECE_BYTES];
static size_t used;

static void add(struct entry entry, const char *path)
{
    entry.path = path;
    used += entry_write(piece + used, sizeof piece - used, &entry);
}

/* The entry of a name, changed `later` nanoseconds after its file or directory was. */
static struct entry seen_at(const char *path, int64_t later)
{
    struct entry entry;
    if (!look_entry(&entry, path, false))
        printf("no entry of %s: %s\n", path, strerror(errno));
    entry.ctime += later;
    return entry;
}

static bool run(bool strict)
{
    bool sound = strict ? view_apply(&view, piece, used) : view_compare(&view, piece, used);
    used = 0;
    return sound;
}

static void begin(void)
{
    view_end(&view);
    view_start(&view);
    lie.name = lie.other = NULL;
    lie.expired = lie.sticky = false;
    asked = made = linked = 0;
}

static void write_file(const char *path, const char *text)
{
    FILE *file = fopen(path, "w");
    if (!file || fputs(text, file) < 0 || fclose(file) != 0)
        printf("cannot write %s: %s\n", path, strerror(errno));
}

static char base[2048], file[2100], gone[2100], old[2100], sub[2100];

static void prepare(const char *directory)
{
    if (!realpath(directory, base))
        exit(2);
    snprintf(file, sizeof file, "%s/file", base);
    snprintf(gone, sizeof gone, "%s/gone", base);
    snprintf(old, sizeof old, "%s/old", base);
    snprintf(sub, sizeof sub, "%s/sub", base);
    write_file(old, "of old");
    write_file(file, "new");
    mkdir(sub, 0755);
}

static void what_agrees_costs_no_question(void)
{
    begin();
    add(seen_at(base, 0), base);
    add(seen_at(file, 0), file);
    add((struct entry){ .kind = MANIFEST_READ }, sub);
    CHECK(run(true));
    CHECK(view.checked == 2 && view.stale == 0 && view.unseen == 0 && asked == 0 && made == 0 && linked == 0);
}

static void a_changed_directory_is_asked_about_once(void)
{
    begin();
    add(seen_at(base, 5), base);
    add(seen_at(file, 0), file);
    add(seen_at(base, 9), base);
    CHECK(run(true));
    CHECK(asked == 1);
    add(seen_at(sub, 9), sub);
    add(seen_at(base, 9), base);
    CHECK(run(true));
    CHECK(asked == 2 && view.unseen == 0);
}

static void a_name_believed_missing_is_there_after_a_question(void)
{
    begin();
    lie.name = "file";
    add(seen_at(file, 1000000000), file);
    CHECK(run(false));
    CHECK(view.stale == 1 && view.healed == 0 && view.unseen == 0 && made == 0);
}

static void within_a_tick_it_takes_a_cure(void)
{
    for (int expired = 0; expired < 2; expired++) {
        begin();
        lie.name = "file";
        lie.sticky = true;
        lie.expired = expired;
        write_file(file, "new");
        add(seen_at(file, 0), file);
        CHECK(run(true));
        CHECK(view.healed == 1 && view.unseen == 0 && made == 1);
    }
}

static void what_was_removed_since_is_left_alone(void)
{
    begin();
    lie.name = "gone";
    lie.sticky = true;
    struct entry entry = seen_at(file, 0);
    entry.ctime = seen_at(base, -1).ctime;
    add(entry, gone);
    CHECK(run(true));
    CHECK(made == 0 && view.unseen == 0);
}

static void what_is_not_there_is_told_and_leaves_nothing(void)
{
    begin();
    lie.name = "gone";
    lie.sticky = true;
    struct entry entry = seen_at(file, 0);
    entry.ctime = seen_at(base, 1000000000).ctime;
    add(entry, gone);
    CHECK(run(true));
    CHECK(made == 1 && view.unseen == 1 && strcmp(view.path, gone) == 0 && access(gone, F_OK) != 0);

    begin(); /* he who merely saw it may have seen what is no more */
    lie.name = "gone";
    lie.sticky = true;
    entry.ctime = seen_at(base, 1000000000).ctime;
    add(entry, gone);
    CHECK(run(false));
    CHECK(view.unseen == 0 && access(gone, F_OK) != 0);
}

static void another_inode_under_the_name(void)
{
    for (int sticky = 0; sticky < 2; sticky++) {
        begin();
        lie.name = "file";
        lie.other = old;
        lie.sticky = sticky;
        write_file(file, "new");
        add(seen_at(file, 0), file);
        CHECK(run(true));
        CHECK(view.stale >= 1 && view.unseen == 0 && linked == (unsigned)sticky && view.healed == (unsigned)sticky && made == 0);
    }
}

static void a_name_that_went(void)
{
    for (int sticky = 0; sticky < 2; sticky++) {
        begin();
        lie.name = "gone";
        lie.other = old;
        lie.sticky = sticky;
        add((struct entry){ .kind = MANIFEST_GONE }, gone);
        CHECK(run(true));
        CHECK(view.stale == 1 && linked == (unsigned)sticky && view.healed == (unsigned)sticky && made == 0 && access(gone, F_OK) != 0);
    }
    begin(); /* one that came back */
    add((struct entry){ .kind = MANIFEST_GONE }, file);
    CHECK(run(true));
    CHECK(view.unseen == 0 && view.stale == 0 && access(file, F_OK) == 0);
}

static void other_numbers(void)
{
    begin(); /* newer here: changed since */
    struct entry entry = seen_at(file, -1);
    entry.size = 77;
    add(entry, file);
    CHECK(run(true));
    CHECK(asked == 0 && view.unseen == 0);
    begin(); /* older here, also after a question */
    entry = seen_at(file, 1);
    entry.size = 77;
    add(entry, file);
    CHECK(run(true));
    CHECK(asked == 1 && view.unseen == 1 && strcmp(view.path, file) == 0);
    add(entry, file);
    CHECK(run(false));
    CHECK(view.unseen == 1);
    begin(); /* the same, as the word of somebody who merely saw it */
    entry.seen = true;
    add(entry, file);
    CHECK(run(true));
    CHECK(asked == 1 && view.unseen == 0);
}

static void odd_paths(void)
{
    static char deep[MANIFEST_PATH_BYTES];
    begin();
    memset(deep, 'x', sizeof deep - 1);
    for (size_t i = 0; i < sizeof deep - 1; i += 2)
        deep[i] = '/';
    struct entry entry = { .kind = MANIFEST_FILE, .ctime = 1 };
    add(entry, deep);
    add(entry, "/");
    add(entry, "/no/such/place/at/all");
    add(entry, "/trailing/");
    entry.kind = MANIFEST_DIRECTORY;
    add(entry, "/");
    add(entry, file);
    add(entry, "/no/such/place/at/all");
    entry.kind = MANIFEST_GONE;
    add(entry, "/");
    add(entry, "//");
    add(entry, file + 0);
    CHECK(run(true));
    CHECK(made == 0 && view.unseen == 0 && access(file, F_OK) == 0);
}

static void malformed_pieces(void)
{
    static const char *const bad[] = { "F 1 2 3 4", "F 1 2 3 4 relative", "X 1 2 3 4 /x", "F  2 3 4 /x", "F 1 2 3 /x", "F 1 2 3 -4 /x",
                                       "F 1 2 3 9223372036854775808 /x", "F 99999999999999999999 2 3 4 /x", "", "F" };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        begin();
        CHECK(!view_apply(&view, bad[i], strlen(bad[i]) + 1));
    }
    CHECK(!view_apply(&view, "F 1 2 3 4 /x", 12)); /* no end */
    CHECK(view_apply(&view, "", 0) && view_apply(&view, NULL, 0));
}

static void a_path_that_is_not_there_is_gone(void)
{
    struct entry entry;
    begin();
    CHECK(look_entry(&entry, gone, true) && entry.kind == MANIFEST_GONE && entry.ino == 0 && strcmp(entry.path, gone) == 0);
    CHECK(look_entry(&entry, file, true) && entry.kind == MANIFEST_FILE && entry.size == 3);
    CHECK(look_entry_as_stat(&entry, sub) && entry.kind == MANIFEST_DIRECTORY);
}

static void a_refresh_counts_what_was_wrong(void)
{
    begin();
    view_refresh(&view, base, 100);
    CHECK(view.synced >= 3 && view.stale == 0 && asked == view.synced);
    unsigned whole = view.synced;
    begin();
    view_refresh(&view, base, 1); /* names, not questions: the directories come on top */
    CHECK(view.synced < whole);
    view_refresh(&view, gone, 100);
}

/* How many listings are dropped for an entry of a directory that nothing seems to have changed since. */
static unsigned drops_for(const char *path)
{
    unsigned before = dropped;
    begin();
    add(seen_at(path, 0), path);
    add(seen_at(path, 0), path);
    CHECK(run(true));
    CHECK(view.unseen == 0 && asked == 0);
    return dropped - before;
}

static void a_listing_is_dropped_until_it_is_newer_than_the_tick(void)
{
    CHECK(drops_for(sub) == 1 && drops_for(sub) == 1); /* nothing is known of what others do */
    view_share();
    CHECK(drops_for(sub) == 1); /* the first that is told */
    CHECK(drops_for(sub) == 1); /* read anew within the same second, maybe within the tick */
    passed -= 1;
    CHECK(drops_for(sub) == 1); /* another process has read its clock before */
    passed += 3;
    closed = true;
    CHECK(drops_for(sub) == 0); /* what could not be dropped is not noted */
    closed = false;
    CHECK(drops_for(sub) == 1); /* what is read from here on holds all of that tick */
    CHECK(drops_for(sub) == 0);
    passed += 1000000;
    CHECK(drops_for(sub) == 0);
    CHECK(chmod(sub, 0700) == 0 && chmod(sub, 0755) == 0); /* its ctime is another */
    CHECK(drops_for(sub) == 1);
}

static void a_listing_is_dropped_also_after_a_question(void)
{
    unsigned before = dropped;
    begin();
    struct entry entry = seen_at(sub, 0);
    entry.mtime++;
    add(entry, sub);
    add(entry, sub);
    CHECK(run(true));
    CHECK(asked == 1 && dropped == before + 1);
}

int main(int argc, char **argv)
{
    if (argc != 2)
        return 2;
    prepare(argv[1]);
    what_agrees_costs_no_question();
    a_changed_directory_is_asked_about_once();
    a_name_believed_missing_is_there_after_a_question();
    within_a_tick_it_takes_a_cure();
    what_was_removed_since_is_left_alone();
    what_is_not_there_is_told_and_leaves_nothing();
    another_inode_under_the_name();
    a_name_that_went();
    other_numbers();
    odd_paths();
    malformed_pieces();
    a_path_that_is_not_there_is_gone();
    a_refresh_counts_what_was_wrong();
    a_listing_is_dropped_until_it_is_newer_than_the_tick();
    a_listing_is_dropped_also_after_a_question();
    view_end(&view);
    printf("%u checks, %u failures\n", checks, failures);
    return failures != 0;
}
