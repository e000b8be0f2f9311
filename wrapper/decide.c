/* The rules that need no network, from protocol/rules.def, and the path arguments.
 *
 * A path argument starts with `/`, or has one after a two-character option (`-I/x`) or after `@`; it counts when it
 * exists, or when its directory does and is not `/` (an output). Sent are the directories, as they are written and, when
 * a symbolic link leads elsewhere, as they really are: both must be reachable on the agent.
 * Knows the desktop's file system and nothing else: which roots are shared is the distributor's knowledge. */
#include "wrapper/decide.h"

#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum rule_kind { NAMED, ONLY, NO_INPUT, NATIVE, IMAGE, STAYS };
enum { MOST_PATHS = 1000 };

static const struct rule {
    enum rule_kind kind;
    const char *pattern;
    const char *why;
} rules[] = {
#define RULE(kind, pattern, why) { kind, pattern, why },
#include "protocol/rules.def"
#undef RULE
};

enum { RULES = sizeof rules / sizeof rules[0] };

static bool matches(const struct rule *rule, const char *text)
{
    char first = rule->pattern[0];
    if (first != text[0] && first != '*' && first != '?' && first != '[' && first != '\\')
        return false; /* nearly always: a long link line must not cost thousands of fnmatch calls */
    return fnmatch(rule->pattern, text, 0) == 0;
}

static const char *match_kind(enum rule_kind kind, const char *text)
{
    for (size_t i = 0; i < RULES; i++)
        if (rules[i].kind == kind && matches(&rules[i], text))
            return rules[i].why;
    return NULL;
}

/* Does a component of the path match a NAMED rule? */
static const char *probe_component(const char *path)
{
    char component[NAME_MAX + 1];
    for (const char *at = path; *at;) {
        size_t length = strcspn(at, "/");
        if (length > 0 && length < sizeof component) {
            memcpy(component, at, length);
            component[length] = 0;
            const char *why = match_kind(NAMED, component);
            if (why)
                return why;
        }
        at += length + (at[length] == '/');
    }
    return NULL;
}

static bool names_a_file(const char *word)
{
    struct stat st;
    return word[0] && stat(word, &st) == 0 && !S_ISDIR(st.st_mode);
}

static const char *question_without_input(char *const argv[], int count)
{
    const char *why = NULL;
    for (int i = 1; i < count && !why; i++)
        if (argv[i][0] == '-')
            why = match_kind(NO_INPUT, argv[i]);
    for (int i = 1; i < count && why; i++)
        if (names_a_file(argv[i]))
            return NULL;
    return why;
}

const char *rule_for_here(char *const argv[], int count, const char *cwd)
{
    const char *why = probe_component(cwd);
    for (int i = 1; i < count && !why; i++)
        why = probe_component(argv[i]);
    if (!why && count == 2)
        why = match_kind(ONLY, argv[1]);
    return why ? why : question_without_input(argv, count);
}

bool is_native(char *const argv[], int count)
{
    for (int i = 1; i < count; i++)
        if (match_kind(NATIVE, argv[i]))
            return true;
    return false;
}

/* Is `path` the directory `prefix` or below it? */
static bool is_under(const char *path, const char *prefix, size_t length)
{
    if (length == 1 && prefix[0] == '/')
        return true;
    return strncmp(path, prefix, length) == 0 && (path[length] == '/' || path[length] == 0);
}

static bool in_image(const char *path)
{
    for (size_t i = 0; i < RULES; i++)
        if (rules[i].kind == IMAGE && is_under(path, rules[i].pattern, strlen(rules[i].pattern)))
            return true;
    return false;
}

/* Is it covered by the working directory, the image, or a path that was added? */
static bool is_covered(const struct fields_out *out, size_t first, const char *path, const char *cwd)
{
    if (in_image(path) || is_under(path, cwd, strlen(cwd)))
        return true;
    struct fields added = fields_of(out->at + first, out->length - first);
    struct field one;
    while (fields_next(&added, &one))
        if (is_under(path, one.value, one.value_length))
            return true;
    return false;
}

static bool climbs(const char *path)
{
    for (const char *dots = path; (dots = strstr(dots, "/..")); dots += 3)
        if (dots[3] == '/' || dots[3] == 0)
            return true;
    return false;
}

/* The path in the argument, or NULL. */
static const char *path_in(const char *word)
{
    if (word[0] == '/')
        return word;
    if (word[0] == '@' && word[1] == '/')
        return word + 1;
    return word[0] == '-' && word[1] && word[2] == '/' ? word + 2 : NULL;
}

/* Cuts the last component off. False when nothing but the root would be left. */
static bool cut_last(char *path)
{
    char *slash = strrchr(path, '/');
    if (!slash || slash == path)
        return false;
    *slash = 0;
    return true;
}

/* Where a descriptor really lies. */
static bool real_path(int fd, char *real, size_t size)
{
    char link[32];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, real, size - 1);
    if (length <= 0 || real[0] != '/')
        return false;
    real[length] = 0;
    return true;
}

/* Finds the directory that `path` lies in (itself, when it is one), as written and as it really is. */
static bool find_directory(const char *path, char *written, char *real)
{
    struct stat st;
    size_t length = strlen(path);
    if (length >= PATH_MAX)
        return false;
    memcpy(written, path, length + 1);
    int fd = open(path, O_PATH | O_CLOEXEC);
    bool exists = fd >= 0;
    if (!exists && cut_last(written))
        fd = open(written, O_PATH | O_CLOEXEC | O_DIRECTORY);
    if (fd < 0)
        return false;
    bool known = fstat(fd, &st) == 0 && real_path(fd, real, PATH_MAX);
    close(fd);
    if (known && exists && !S_ISDIR(st.st_mode))
        known = cut_last(written) && cut_last(real);
    return known;
}

static void add_path(struct fields_out *out, size_t first, const char *path, const char *cwd)
{
    char written[PATH_MAX], real[PATH_MAX];
    bool plain = !climbs(path);
    if (plain && is_covered(out, first, path, cwd))
        return;
    if (!find_directory(path, written, real))
        return;
    if (plain && !is_covered(out, first, written, cwd))
        fields_add(out, "path", written);
    if (!is_covered(out, first, real, cwd))
        fields_add(out, "path", real);
}

static size_t count_fields(struct fields all)
{
    struct field one;
    size_t count = 0;
    while (fields_next(&all, &one))
        count++;
    return count;
}

const char *add_paths(struct fields_out *out, char *const argv[], int count, const char *cwd)
{
    size_t first = out->length, seen = out->length, paths = 0;
    for (int i = 0; i < count; i++) {
        const char *path = path_in(argv[i]);
        if (path)
            add_path(out, first, path, cwd);
        if (out->length != seen)
            paths = count_fields(fields_of(out->at + first, out->length - first));
        seen = out->length;
        if (out->overflow || paths > MOST_PATHS)
            return "its arguments lie in too many directories";
    }
    return NULL;
}

bool variable_stays(const char *name, size_t length)
{
    char text[64];
    if (length == 0 || length >= sizeof text)
        return false;
    memcpy(text, name, length);
    text[length] = 0;
    return match_kind(STAYS, text) != NULL;
}
