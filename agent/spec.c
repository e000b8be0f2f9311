/* Reads the job's spec from the agent's memfd. Knows its form and the claims a submitter may make; decides nothing:
 * what the agent says and what the submitter says are kept apart, and only the agent's fields can name an identity. */
#include "agent/runner.h"
#include "protocol/fields.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

struct setter {
    const char *key;
    void (*set)(struct spec *, const char *);
};

static void set_job(struct spec *s, const char *v) { s->job = v; }
static void set_cwd(struct spec *s, const char *v) { s->cwd = v; }
static void set_work(struct spec *s, const char *v) { s->work = v; }

/* A number of the agent's that cannot be one spoils the spec: it must never pass for 0, nor for -1, which means "as before". */
static unsigned id(struct spec *s, const char *v)
{
    uint64_t number = UINT32_MAX;
    s->spoilt |= !field_number(v, &number) || number >= UINT32_MAX;
    return (unsigned)number;
}

static void set_uid(struct spec *s, const char *v) { s->uid = id(s, v); s->become = true; }
static void set_gid(struct spec *s, const char *v) { s->gid = id(s, v); s->has_gid = true; }
static void add_group(struct spec *s, const char *v) { s->groups[s->group_count++] = id(s, v); }
static void add_root(struct spec *s, const char *v) { s->roots[s->root_count++] = v; }
static void add_path(struct spec *s, const char *v) { s->paths[s->path_count++] = v; }
static void add_undo(struct spec *s, const char *v) { s->undo[s->undo_count++] = v; }
static void set_run(struct spec *s, const char *v) { s->run = v; }
static void set_memory_retry(struct spec *s, const char *v) { s->memory_retry = strcmp(v, "1") == 0; }
static void set_groups_dropped(struct spec *s, const char *v) { s->groups_dropped = v; }
static void set_processes(struct spec *s, const char *v) { s->spoilt |= !field_number(v, &s->processes); }
static void set_spares(struct spec *s, const char *v) { s->spoilt |= !field_number(v, &s->spares); }
static void set_oom(struct spec *s, const char *v) { s->spoilt |= !field_number(v, &s->oom); }
static void set_tree(struct spec *s, const char *v) { s->namespaces = strcmp(v, "pidns") == 0; }
static void set_views(struct spec *s, const char *v) { s->views = strcmp(v, "1") == 0; }
static void set_refresh(struct spec *s, const char *v) { s->refresh = strcmp(v, "1") == 0; }

static void set_variable(struct spec *s, const char *v)
{
    if (strchr(v, '='))
        spec_set_env(s, v);
}

static void set_umask(struct spec *s, const char *v) { s->umask = (int)(strtoul(v, NULL, 8) & 0777); }
static void set_nice(struct spec *s, const char *v) { s->nice = (int)strtol(v, NULL, 10); s->has_nice = true; }
static void set_seekable(struct spec *s, const char *v) { s->seekable = strcmp(v, "1") == 0; }
static void set_rows(struct spec *s, const char *v) { s->rows = (unsigned short)strtoul(v, NULL, 10); }
static void set_columns(struct spec *s, const char *v) { s->columns = (unsigned short)strtoul(v, NULL, 10); }

static void add_ignored(struct spec *s, const char *v)
{
    unsigned long number = strtoul(v, NULL, 10);
    if (number >= 1 && number <= 64)
        s->ignored |= UINT64_C(1) << (number - 1);
}

static enum stdio_kind stdio_kind(const char *word)
{
    static const char *const words[] = {"null", "closed", "stream", "tty", "stdout"};
    for (int i = 0; i < 5; i++)
        if (strcmp(word, words[i]) == 0)
            return (enum stdio_kind)i;
    return STDIO_NULL;
}

static void set_stdin(struct spec *s, const char *v) { s->stdio[0] = stdio_kind(v); }
static void set_stdout(struct spec *s, const char *v) { s->stdio[1] = stdio_kind(v); }
static void set_stderr(struct spec *s, const char *v) { s->stdio[2] = stdio_kind(v); }

static rlim_t limit_value(const char *text)
{
    return strncmp(text, "unlimited", 9) == 0 ? RLIM_INFINITY : (rlim_t)strtoull(text, NULL, 10);
}

static void add_limit(struct spec *s, const char *v)
{
    static const struct { const char *name; int resource; } known[] = {
        {"cpu", RLIMIT_CPU}, {"fsize", RLIMIT_FSIZE}, {"data", RLIMIT_DATA}, {"stack", RLIMIT_STACK},
        {"core", RLIMIT_CORE}, {"rss", RLIMIT_RSS}, {"nproc", RLIMIT_NPROC}, {"nofile", RLIMIT_NOFILE},
        {"memlock", RLIMIT_MEMLOCK}, {"as", RLIMIT_AS}, {"locks", RLIMIT_LOCKS}, {"sigpending", RLIMIT_SIGPENDING},
        {"msgqueue", RLIMIT_MSGQUEUE}, {"nice", RLIMIT_NICE}, {"rtprio", RLIMIT_RTPRIO}, {"rttime", RLIMIT_RTTIME}};
    const char *soft = strchr(v, ':');
    const char *hard = soft ? strchr(soft + 1, ':') : NULL;
    if (!hard || s->limit_count == RLIM_NLIMITS)
        return;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strlen(known[i].name) == (size_t)(soft - v) && strncmp(known[i].name, v, (size_t)(soft - v)) == 0)
            s->limits[s->limit_count++] = (struct limit){known[i].resource, {limit_value(soft + 1), limit_value(hard + 1)}};
}

static const struct setter agents_word[] = {
    {"job", set_job}, {"cwd", set_cwd}, {"work", set_work}, {"uid", set_uid}, {"gid", set_gid}, {"group", add_group},
    {"root", add_root}, {"path", add_path}, {"tree", set_tree}, {"views", set_views},
    {"refresh", set_refresh}, {"env", set_variable}, {"run", set_run}, {"oom", set_oom},
    {"memory_retry", set_memory_retry}, {"undo", add_undo}, {"groups_dropped", set_groups_dropped}, {"processes", set_processes},
    {"spares", set_spares}, {NULL, NULL}};

static const struct setter claims[] = {
    {"umask", set_umask}, {"nice", set_nice}, {"limit", add_limit}, {"ignore", add_ignored}, {"stdin", set_stdin},
    {"seekable", set_seekable}, {"stdout", set_stdout}, {"stderr", set_stderr}, {"rows", set_rows}, {"columns", set_columns},
    {NULL, NULL}};

static size_t count_strings(const char *section, size_t size)
{
    size_t count = 0;
    for (size_t i = 0; i < size; i++)
        count += section[i] == '\0';
    return count;
}

static void read_fields(struct spec *spec, const struct setter *setters, const char *section, size_t size)
{
    struct fields rest = fields_of(section, size);
    for (struct field field; fields_next(&rest, &field);)
        for (const struct setter *s = setters; s->key; s++)
            if (field_is(&field, s->key))
                s->set(spec, field.value);
}

static const char **read_strings(char *section, size_t size, size_t room, size_t *count)
{
    const char **all = calloc(count_strings(section, size) + room + 1, sizeof *all);
    *count = 0;
    for (char *string = section; all && string < section + size; string += strlen(string) + 1)
        all[(*count)++] = string;
    return all;
}

static bool make_room(struct spec *spec, const char *section, size_t size)
{
    size_t count = count_strings(section, size) + 1;
    spec->groups = calloc(count, sizeof *spec->groups);
    spec->roots = calloc(count, sizeof *spec->roots);
    spec->paths = calloc(count, sizeof *spec->paths);
    spec->undo = calloc(count, sizeof *spec->undo);
    return spec->groups && spec->roots && spec->paths && spec->undo;
}

enum { OWN, CLAIMS, ARGV, ENVIRONMENT, SEEN, JOURNAL, SECTIONS };

struct sections {
    char *start[SECTIONS];
    size_t size[SECTIONS];
};

/* Maps the memfd and cuts it into its sections; every section is empty or ends in NUL. */
static const char *cut(int fd, struct sections *out)
{
    struct stat st;
    uint32_t lengths[SECTIONS];
    if (fstat(fd, &st) != 0 || (size_t)st.st_size < sizeof lengths)
        return "the spec is too short";
    char *all = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    if (all == MAP_FAILED)
        return "the spec cannot be mapped";
    memcpy(lengths, all, sizeof lengths);
    size_t at = sizeof lengths;
    for (int i = 0; i < SECTIONS; i++) {
        if (lengths[i] > (size_t)st.st_size - at || (lengths[i] > 0 && all[at + lengths[i] - 1] != '\0'))
            return "the spec is cut wrong";
        out->start[i] = all + at;
        out->size[i] = lengths[i];
        at += lengths[i];
    }
    return NULL;
}

const char *spec_read(struct spec *spec, int fd)
{
    struct sections cuts;
    size_t argc;
    *spec = (struct spec){.job = "", .cwd = "/", .work = "", .run = "", .oom = UINT64_MAX, .umask = -1, .stdio = {STDIO_NULL, STDIO_STREAM, STDIO_STREAM}};
    const char *wrong = cut(fd, &cuts);
    if (wrong)
        return wrong;
    if (!make_room(spec, cuts.start[OWN], cuts.size[OWN]))
        return "no memory for the spec";
    if (count_strings(cuts.start[ARGV], cuts.size[ARGV]) > DWRAP_MAX_STRINGS ||
        count_strings(cuts.start[ENVIRONMENT], cuts.size[ENVIRONMENT]) > DWRAP_MAX_STRINGS)
        return "the command or its environment has too many strings";
    spec->argv = read_strings(cuts.start[ARGV], cuts.size[ARGV], 0, &argc);
    spec->envp = read_strings(cuts.start[ENVIRONMENT], cuts.size[ENVIRONMENT], SPEC_ENV_ROOM, &spec->env_count);
    if (!spec->argv || !spec->envp)
        return "no memory for the spec";
    read_fields(spec, agents_word, cuts.start[OWN], cuts.size[OWN]);
    read_fields(spec, claims, cuts.start[CLAIMS], cuts.size[CLAIMS]);
    spec->seen = cuts.start[SEEN];
    spec->seen_size = cuts.size[SEEN];
    spec->journal = cuts.start[JOURNAL];
    spec->journal_size = cuts.size[JOURNAL];
    if (spec->spoilt || spec->become != spec->has_gid)
        return "the agent's own word is malformed";
    return argc == 0 ? "the command is empty" : NULL;
}

static size_t find_env(const struct spec *spec, const char *name, size_t length)
{
    size_t i = 0;
    while (i < spec->env_count && !(strncmp(spec->envp[i], name, length) == 0 && spec->envp[i][length] == '='))
        i++;
    return i;
}

const char *spec_env(const struct spec *spec, const char *name)
{
    size_t length = strlen(name), i = find_env(spec, name, length);
    return i < spec->env_count ? spec->envp[i] + length + 1 : NULL;
}

void spec_set_env(struct spec *spec, const char *assignment)
{
    size_t i = find_env(spec, assignment, (size_t)(strchr(assignment, '=') - assignment));
    spec->envp[i] = assignment;
    if (i == spec->env_count)
        spec->env_count++;
}
