/* See environment.h. Knows what counts and how it is put into a line. Does not know how packages are managed, or who asks. */
#include "environment/environment.h"

#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "environment/packages.h"
#include "environment/stamp.h"
#include "protocol/hash.h"

#define EXTRA "/etc/dwrap/environment"
#define ALTERNATIVES "/etc/alternatives"
#define BINARIES "/usr/bin"

static const char *const own_binaries[] = { "/usr/local/bin", "/usr/local/go/bin" };
static const char *const os_release[] = { "/etc/os-release", "/usr/lib/os-release" };

#define COUNTS(pattern)
#define IGNORED(pattern)
#define TOOL(name, prefix, plain)

static const char *const counting[] = {
#undef COUNTS
#define COUNTS(pattern) pattern,
#include "environment/counts.def"
#undef COUNTS
#define COUNTS(pattern)
};

static const char *const ignored[] = {
#undef IGNORED
#define IGNORED(pattern) pattern,
#include "environment/counts.def"
#undef IGNORED
#define IGNORED(pattern)
};

static const struct tool {
    const char *name, *prefix, *plain;
} tools[] = {
#undef TOOL
#define TOOL(name, prefix, plain) { name, prefix, plain },
#include "environment/counts.def"
};

enum { COUNTING = sizeof counting / sizeof *counting, IGNORING = sizeof ignored / sizeof *ignored, TOOLS = sizeof tools / sizeof *tools };

enum { OWN = sizeof own_binaries / sizeof *own_binaries };

enum { VERSION_BYTES = 48, MOST_VERSIONS = 3, FINGERPRINT_BYTES = 65536, DIGEST_BYTES = sizeof " #0123456789abcdef" };

/* The versions of one tool that are installed, in order; there may be several. */
struct versions {
    char text[MOST_VERSIONS][VERSION_BYTES];
    size_t count;
};

/* What has been gathered. The digest is a sum of hashes, so the order in which a database is written is of no importance. */
struct gathering {
    const char *root;
    uint64_t digest;
    bool failed, managed; /* managed: there are packages */
    FILE *list;
    struct versions numbered[TOOLS], plain[TOOLS];
};

static bool matches(const char *const patterns[], size_t count, const char *name)
{
    for (size_t i = 0; i < count; i++) {
        char first = patterns[i][0];
        if ((first == '*' || first == name[0]) && fnmatch(patterns[i], name, 0) == 0)
            return true;
    }
    return false;
}

static bool counts(const char *name)
{
    return matches(counting, COUNTING, name) && !matches(ignored, IGNORING, name);
}

/* What is shown must stay one word of a line. */
static void make_word(char *text)
{
    for (; *text; text++)
        if (*text <= ' ' || *text >= 127 || *text == '#' || *text == '=' || *text == ',')
            *text = '_';
}

static bool is_one_of(const char *name, const char *words)
{
    size_t length = strlen(name);
    for (const char *at = words; *at; at += strspn(at, " ")) {
        size_t word = strcspn(at, " ");
        if (word == length && memcmp(at, name, length) == 0)
            return true;
        at += word;
    }
    return false;
}

/* PREFIX and a version: digits and dots to the end, or, as in golang-1.19-go, to the next hyphen. */
static bool is_numbered(const char *name, const char *prefix)
{
    size_t length = strlen(prefix);
    if (!length || strncmp(name, prefix, length) != 0 || !isdigit((unsigned char)name[length]))
        return false;
    const char *end = name + length + strspn(name + length, "0123456789.");
    return !*end || strcmp(end, "-go") == 0;
}

/* Keeps the first few in their order, not in that of the database, which differs where all else is equal. */
static void add_version(struct versions *versions, const char *version)
{
    char text[VERSION_BYTES];
    size_t at = 0;
    snprintf(text, sizeof text, "%s", version);
    make_word(text);
    while (at < versions->count && strcmp(versions->text[at], text) < 0)
        at++;
    if (at == MOST_VERSIONS || (at < versions->count && strcmp(versions->text[at], text) == 0))
        return;
    versions->count += versions->count < MOST_VERSIONS;
    memmove(versions->text + at + 1, versions->text + at, (versions->count - 1 - at) * VERSION_BYTES);
    memcpy(versions->text[at], text, sizeof text);
}

/* Something that counts: into the digest, and onto the list. */
static void count_in(struct gathering *all, const char *name, const char *version)
{
    uint64_t hash = hash_on(HASH_START, name, strlen(name) + 1);
    all->digest += hash_on(hash, version, strlen(version) + 1);
    if (all->list)
        fprintf(all->list, "%s %s\n", name, version);
}

static void see_package(void *context, const char *name, const char *version, const char *architecture)
{
    struct gathering *all = context;
    char full[600];
    all->managed = true;
    if (!counts(name) && strcmp(name, PACKAGES_UNFINISHED) != 0)
        return;
    snprintf(full, sizeof full, "%s%s%s", name, architecture[0] ? ":" : "", architecture);
    count_in(all, full, version);
    for (size_t i = 0; i < TOOLS; i++) {
        if (is_numbered(name, tools[i].prefix))
            add_version(&all->numbered[i], version);
        else if (is_one_of(name, tools[i].plain))
            add_version(&all->plain[i], version);
    }
}

/* Size, beginning and end: what tells two builds of a program apart (an ELF file has its build id near the beginning). Of one that not
 * everybody may read the size alone: root and users must come to the same. */
static bool fingerprint(int fd, const struct stat *st, char text[DIGEST_BYTES])
{
    static char bytes[FINGERPRINT_BYTES];
    uint64_t hash = hash_on(HASH_START, &st->st_size, sizeof st->st_size);
    off_t tail = st->st_size > FINGERPRINT_BYTES ? st->st_size - FINGERPRINT_BYTES : 0;
    for (int end = 0; end < 2 && (st->st_mode & S_IROTH); end++) {
        ssize_t got = pread(fd, bytes, sizeof bytes, end ? tail : 0);
        if (got < 0)
            return false;
        hash = hash_on(hash, bytes, (size_t)got);
    }
    snprintf(text, DIGEST_BYTES, "#%016llx", (unsigned long long)hash);
    return true;
}

/* A link to dwrap, or to a program that works as dwrap does, is no compiler. */
static bool is_wrapper(const char *path)
{
    char real[PATH_MAX];
    const char *name = realpath(path, real) ? strrchr(real, '/') : NULL;
    return name && is_one_of(name + 1, "dwrap ccache distcc icecc sccache");
}

/* Programs that no package manager has installed. */
static void see_binaries(struct gathering *all, const char *where)
{
    char path[PATH_MAX], text[DIGEST_BYTES];
    struct stat st;
    snprintf(path, sizeof path, "%s%s", all->root, where);
    DIR *folder = opendir(path);
    for (struct dirent *one; folder && (one = readdir(folder));) {
        snprintf(path, sizeof path, "%s%s/%s", all->root, where, one->d_name);
        if (one->d_name[0] == '.' || !counts(one->d_name) || is_wrapper(path))
            continue;
        if (stat(path, &st) < 0 || !S_ISREG(st.st_mode))
            continue;
        int fd = st.st_mode & S_IROTH ? open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK) : -1;
        if (fingerprint(fd, &st, text))
            count_in(all, path + strlen(all->root), text);
        else
            all->failed = true;
        if (fd >= 0)
            close(fd);
    }
    if (folder)
        closedir(folder);
}

static void see_own_binaries(struct gathering *all)
{
    for (size_t i = 0; i < OWN; i++)
        see_binaries(all, own_binaries[i]);
    if (!all->managed)
        see_binaries(all, BINARIES);
}

/* Which compiler `cc` is, where several are installed: update-alternatives(1). */
static void see_alternatives(struct gathering *all)
{
    char path[PATH_MAX], target[PATH_MAX];
    snprintf(path, sizeof path, "%s" ALTERNATIVES, all->root);
    DIR *folder = opendir(path);
    for (struct dirent *one; folder && (one = readdir(folder));) {
        ssize_t length = counts(one->d_name) ? readlinkat(dirfd(folder), one->d_name, target, sizeof target - 1) : -1;
        if (length <= 0)
            continue;
        target[length] = 0;
        snprintf(path, sizeof path, ALTERNATIVES "/%s", one->d_name);
        count_in(all, path, target);
    }
    if (folder)
        closedir(folder);
}

/* What the operator says that counts, a line each: an image's tag, a toolchain in /opt. */
static void see_extra(struct gathering *all)
{
    char path[PATH_MAX], *line = NULL;
    size_t size = 0;
    snprintf(path, sizeof path, "%s" EXTRA, all->root);
    struct stat st;
    FILE *file = stat(path, &st) == 0 && (st.st_mode & S_IROTH) ? fopen(path, "re") : NULL; /* root must not see more than users */
    while (file && getline(&line, &size, file) > 0) {
        line[strcspn(line, "\r\n")] = 0;
        if (line[0] && line[0] != '#')
            count_in(all, EXTRA, line);
    }
    free(line);
    if (file)
        fclose(file);
}

/* A value of os-release(5), as one word. Empty where there is none. */
static void system_word(const char *root, const char *key, char word[VERSION_BYTES])
{
    char path[PATH_MAX], *line = NULL;
    size_t size = 0, length = strlen(key);
    FILE *file = NULL;
    for (size_t i = 0; i < sizeof os_release / sizeof *os_release && !file; i++) {
        snprintf(path, sizeof path, "%s%s", root, os_release[i]);
        file = fopen(path, "re");
    }
    word[0] = 0;
    while (file && !word[0] && getline(&line, &size, file) > 0) {
        if (strncmp(line, key, length) != 0 || line[length] != '=')
            continue;
        char *value = line + length + 1 + strspn(line + length + 1, "\"'");
        value[strcspn(value, "\"'\r\n")] = 0;
        snprintf(word, VERSION_BYTES, "%s", value);
        make_word(word);
    }
    free(line);
    if (file)
        fclose(file);
}

/* ` TOOL=VERSION,VERSION`, or as much of it as fits. */
static size_t add_tool(char *line, size_t used, size_t size, const char *name, const struct versions *versions)
{
    char text[VERSION_BYTES * MOST_VERSIONS + VERSION_BYTES];
    size_t length = (size_t)snprintf(text, sizeof text, " %s=", name);
    for (size_t i = 0; i < versions->count; i++)
        length += (size_t)snprintf(text + length, sizeof text - length, "%s%s", i ? "," : "", versions->text[i]);
    if (used + length >= size)
        length = (size_t)snprintf(text, sizeof text, " %s=several", name);
    if (!versions->count || used + length >= size)
        return used;
    memcpy(line + used, text, length + 1);
    return used + length;
}

bool environment_read(const char *root, char line[ENVIRONMENT_BYTES], FILE *list)
{
    static struct gathering all; /* large: not on the stack */
    char id[VERSION_BYTES], version[VERSION_BYTES];
    struct utsname host;
    all = (struct gathering){ .root = root, .list = list };
    all.failed = !packages_each(root, see_package, &all);
    see_own_binaries(&all);
    see_alternatives(&all);
    see_extra(&all);
    system_word(root, "ID", id);
    system_word(root, "VERSION_ID", version);
    uname(&host);
    int used = snprintf(line, ENVIRONMENT_BYTES / 2, "%s %s%s%s", host.machine, id[0] ? id : "unknown", version[0] ? "/" : "", version);
    size_t length = used < ENVIRONMENT_BYTES / 2 ? (size_t)used : ENVIRONMENT_BYTES / 2 - 1;
    for (size_t i = 0; i < TOOLS; i++)
        length = add_tool(line, length, ENVIRONMENT_BYTES - DIGEST_BYTES, tools[i].name, all.numbered[i].count ? &all.numbered[i] : &all.plain[i]);
    snprintf(line + length, DIGEST_BYTES, " #%016llx", (unsigned long long)all.digest);
    return !all.failed;
}

/* Those that nobody packaged may be written over in place. */
static void stamp_binaries(const char *root, const char *where, struct stamp *stamp)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s%s", root, where);
    DIR *folder = opendir(path);
    struct stamp sum = { 0 };
    for (struct dirent *one; folder && (one = readdir(folder));) {
        struct stamp file;
        if (!counts(one->d_name))
            continue;
        snprintf(path, sizeof path, "%s/%s", where, one->d_name);
        stamp_start(&file);
        file.hash = hash_on(file.hash, one->d_name, strlen(one->d_name));
        stamp_add(&file, root, path);
        sum.hash += file.hash; /* in whatever order they are listed */
    }
    if (folder)
        closedir(folder);
    stamp->hash = hash_on(stamp->hash, &sum, sizeof sum);
}

uint64_t environment_stamp(const char *root)
{
    struct stamp stamp;
    struct utsname host;
    uname(&host);
    stamp_start(&stamp);
    stamp.hash = hash_on(stamp.hash, host.machine, strlen(host.machine)); /* linux32(8) */
    for (size_t i = 0; i < COUNTING; i++) /* another release may count otherwise */
        stamp.hash = hash_on(stamp.hash, counting[i], strlen(counting[i]) + 1);
    for (size_t i = 0; i < IGNORING; i++)
        stamp.hash = hash_on(stamp.hash, ignored[i], strlen(ignored[i]) + 1);
    packages_stamp(root, &stamp);
    for (size_t i = 0; i < OWN; i++)
        stamp_binaries(root, own_binaries[i], &stamp);
    stamp_add(&stamp, root, BINARIES); /* programs there are replaced, not written over */
    stamp_add(&stamp, root, ALTERNATIVES);
    stamp_add(&stamp, root, EXTRA);
    for (size_t i = 0; i < sizeof os_release / sizeof *os_release; i++)
        stamp_add(&stamp, root, os_release[i]);
    return stamp.hash;
}

bool environment_print(const char *root, const char *known, const char *said)
{
    char line[ENVIRONMENT_BYTES], cpu[CPU_BYTES], stamp[DIGEST_BYTES], *text = NULL;
    size_t size = 0;
    snprintf(stamp, sizeof stamp, "%016llx", (unsigned long long)environment_stamp(root)); /* first: what changes meanwhile is seen later */
    if (known && strcmp(known, stamp) == 0) {
        printf("stamp=%s\n", stamp);
        return true;
    }
    FILE *list = open_memstream(&text, &size);
    bool done = environment_read(root, line, list);
    cpu_read(cpu);
    if (list)
        fclose(list);
    printf("environment=%s\ncpu=%s\nstamp=%s\n\n%s", said ? said : line, cpu, stamp, text ? text : "");
    free(text);
    return done;
}
