/* The command line, every environment variable, and client.conf: nothing else of the wrapper reads settings.
 *
 * client.conf (~/.config/dwrap/client.conf, then /etc/dwrap/client.conf; $XDG_CONFIG_HOME is honoured) holds lines
 * `key = value` and `# comments`. The key `distributor` is the default distributor (a comma list); every other key is a
 * name that may be used as DISTRIBUTOR, `buildhost = tcp://10.0.0.5:7776`.
 * Does not know how addresses are reached, or what the rules say about the command. */
#include "wrapper/options.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/stat.h>
#include <unistd.h>

#include "environment/environment.h"
#include "wrapper/address.h"
#include "wrapper/keys.h"
#include "wrapper/likeness.h"
#include "wrapper/memory.h"
#include "wrapper/say.h"

static const char help[] =
    "usage: dwrap [OPTIONS] [DISTRIBUTOR] COMMAND [ARG...]\n"
    "\n"
    "Runs COMMAND on another machine that shares this source tree, as if it ran here: same directory, environment,\n"
    "user, streams and exit status. When no machine can take it, it runs here.\n"
    "\n"
    "  dwrap g++ -c a.cpp                 the distributor is $DWRAP_HOST, or the one in client.conf\n"
    "  dwrap buildhost g++ -c a.cpp       ... or named on the command line: a name, tcp://HOST:PORT, ipc://PATH\n"
    "  make CXX='dwrap g++'               ninja, cmake, meson, cargo: the same, see dwrap(1)\n"
    "  ln -s $(which dwrap) bin/g++       called as g++ it is `dwrap g++`\n"
    "  dwrapctl up -- make -j8 CXX='dwrap g++'    a farm on this machine, for this one command\n"
    "\n"
    "options:\n"
    "  -H HOST      use this distributor; what follows is the command\n"
    "  --explain    say where the command would run, and why; run nothing. Without a command: what of this machine counts\n"
    "               when it is compared with others\n"
    "  --version    print the version\n"
    "  --help       print this\n"
    "\n"
    "environment (more in dwrap(1)):\n"
    "  DWRAP_HOST=A[,B]           distributors, tried in order\n"
    "  DWRAP_LOCAL=1              run the command here, at once\n"
    "  DWRAP_FALLBACK=local|fail  when no machine can take it: run it here (default), or wait and fail with 125\n"
    "  DWRAP_ENVIRONMENT=any      allow machines with other compilers and packages than here\n"
    "  DWRAP_NATIVE=1             only machines with a processor as here; -march=native says so by itself\n"
    "  DWRAP_VERBOSE=1            one line on stderr about each command\n"
    "  DWRAP_KEYS=DIR             where your key and the distributors' lie; dwrapctl join makes them\n"
    "  DWRAP_INSECURE=1           allow other machines without keys; warns on stderr once an hour\n"
    "\n"
    "status: the command's own; 125 dwrap itself failed, 126 not executable, 127 not found.\n"
    "`dwrapctl why last` tells where the last command ran and why; `dwrapctl doctor` finds what is wrong.\n";

enum { CONFIG_BYTES = 16 * 1024, HOSTS_BYTES = 4096 };

/* The two files, one after the other, so that the user's is found first. Read when first needed. */
static char config[2 * CONFIG_BYTES + 4];

static size_t read_config_file(const char *path, char *into)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    ssize_t got = read(fd, into, CONFIG_BYTES);
    close(fd);
    if (got <= 0)
        return 0;
    into[got] = '\n';
    return (size_t)got + 1;
}

static void read_config(void)
{
    static bool done;
    char path[PATH_MAX];
    const char *base = getenv("XDG_CONFIG_HOME"), *home = getenv("HOME");
    size_t used = 0;
    if (done)
        return;
    done = true;
    int length = base && base[0] == '/' ? snprintf(path, sizeof path, "%s/dwrap/client.conf", base)
                 : home                 ? snprintf(path, sizeof path, "%s/.config/dwrap/client.conf", home)
                                        : -1;
    if (length > 0 && (size_t)length < sizeof path)
        used = read_config_file(path, config);
    used += read_config_file("/etc/dwrap/client.conf", config + used);
    config[used] = 0;
}

/* Copies the value of `key`, up to a comment, to `out`. False when there is none. */
static bool config_get(const char *key, char *out, size_t size)
{
    size_t key_length = strlen(key);
    read_config();
    for (const char *line = config, *next; *line; line = next) {
        const char *end = strchrnul(line, '\n');
        next = *end ? end + 1 : end;
        line += strspn(line, " \t");
        if (strncmp(line, key, key_length) != 0)
            continue;
        const char *at = line + key_length + strspn(line + key_length, " \t");
        if (*at != '=')
            continue;
        at += 1 + strspn(at + 1, " \t");
        size_t length = at < end ? strcspn(at, "\r\n#") : 0;
        while (length > 0 && (at[length - 1] == ' ' || at[length - 1] == '\t'))
            length--;
        if (length == 0 || length >= size)
            continue;
        memcpy(out, at, length);
        out[length] = 0;
        return true;
    }
    return false;
}

bool stat_self(struct stat *out)
{
    const char *started_as = (const char *)(uintptr_t)getauxval(AT_EXECFN); /* where /proc is not mounted */
    return stat("/proc/self/exe", out) == 0 || (started_as && stat(started_as, out) == 0);
}

/* Is there such a command: an executable path, or a name on `path`? */
static bool is_runnable(const char *word, const char *path)
{
    char full[PATH_MAX];
    struct stat st;
    if (strchr(word, '/'))
        return access(word, X_OK) == 0 && stat(word, &st) == 0 && S_ISREG(st.st_mode);
    for (const char *at = path; *word && at; at = *at ? at + 1 : NULL) {
        size_t length = strcspn(at, ":");
        int full_length = snprintf(full, sizeof full, "%.*s/%s", length ? (int)length : 1, length ? at : ".", word);
        if (full_length > 0 && (size_t)full_length < sizeof full && access(full, X_OK) == 0 && stat(full, &st) == 0 &&
            S_ISREG(st.st_mode))
            return true;
        at += length;
    }
    return false;
}

static bool flag_of(const char *name)
{
    const char *value = getenv(name);
    if (!value || !*value || strcmp(value, "0") == 0)
        return false;
    if (strcmp(value, "1") != 0)
        say_and_leave("%s=%s is not understood: it is neither 0 nor 1; correct or unset it", name, value);
    return true;
}

static long number_of(const char *name, long least, long most, long otherwise)
{
    const char *value = getenv(name);
    char *end;
    if (!value || !*value)
        return otherwise;
    errno = 0;
    long number = strtol(value, &end, 10);
    if (errno || *end || end == value || number < least || number > most)
        say_and_leave("%s=%s is not understood: it is not a number from %ld to %ld; correct or unset it", name, value, least, most);
    return number;
}

static const char *text_of(const char *name)
{
    const char *value = getenv(name);
    return value && *value ? value : NULL;
}

static void check_labels(const char *labels)
{
    for (const char *at = labels; at;) {
        size_t length = strcspn(at, ",");
        const char *equals = memchr(at, '=', length);
        if (!equals || equals == at)
            say_and_leave("DWRAP_LABELS=%s is not understood: it is not of the form KEY=VALUE,...; correct or unset it", labels);
        at = at[length] ? at + length + 1 : NULL;
    }
}

static bool fallback_is_fail(void)
{
    const char *value = text_of("DWRAP_FALLBACK");
    if (value && strcmp(value, "local") != 0 && strcmp(value, "fail") != 0)
        say_and_leave("DWRAP_FALLBACK=%s is not understood: it is neither local nor fail; correct or unset it", value);
    return value && strcmp(value, "fail") == 0;
}

static bool wants_views(void)
{
    const char *value = text_of("DWRAP_VIEWS");
    if (value && strcmp(value, "auto") != 0 && strcmp(value, "never") != 0)
        say_and_leave("DWRAP_VIEWS=%s is not understood: it is neither auto nor never; correct or unset it", value);
    return !value || strcmp(value, "auto") == 0;
}

static bool wants_any_environment(void)
{
    const char *value = text_of("DWRAP_ENVIRONMENT");
    if (value && strcmp(value, "same") != 0 && strcmp(value, "any") != 0)
        say_and_leave("DWRAP_ENVIRONMENT=%s is not understood: it is neither same nor any; correct or unset it", value);
    return value && value[0] == 'a';
}

/* The prototype's names are honoured with any value but 0. */
static const char *must_be_local(void)
{
    const char *old;
    if (flag_of("DWRAP_LOCAL"))
        return "DWRAP_LOCAL is set";
    if ((old = text_of("FORCE_INLINE")) && strcmp(old, "0") != 0)
        return "FORCE_INLINE is set";
    if ((old = text_of("FORCE_LOCAL")) && strcmp(old, "0") != 0)
        return "FORCE_LOCAL is set";
    return NULL;
}

static const char *log_directory(void)
{
    static char path[PATH_MAX];
    const char *state = text_of("XDG_STATE_HOME"), *home = text_of("HOME");
    int length = state && state[0] == '/' ? snprintf(path, sizeof path, "%s/dwrap", state)
                 : home && home[0] == '/' ? snprintf(path, sizeof path, "%s/.local/state/dwrap", home)
                                          : -1;
    return length > 0 && (size_t)length < sizeof path - 16 ? path : NULL;
}

/* ccache caches what its compiler prints, and names a descriptor for words that are not the compiler's. */
static void choose_message_descriptor(void)
{
    const char *value = text_of("UNCACHED_ERR_FD");
    char *end;
    if (!value)
        return;
    long fd = strtol(value, &end, 10);
    if (!*end && fd > 2 && fd < INT_MAX && fcntl((int)fd, F_GETFD) >= 0)
        say_to((int)fd);
}

static void read_environment(struct settings *s)
{
    choose_message_descriptor();
    memory_at(getenv("XDG_RUNTIME_DIR"));
    keys_at(getenv("DWRAP_KEYS"), getenv("XDG_CONFIG_HOME"), getenv("HOME"));
    s->path = getenv("PATH");
    if (!s->path)
        s->path = "/bin:/usr/bin";
    s->inside = text_of("DWRAP_JOB");
    s->local = must_be_local();
    s->labels = text_of("DWRAP_LABELS");
    s->build = text_of("DWRAP_BUILD");
    s->log_directory = log_directory();
    s->patience_ms = number_of("DWRAP_PATIENCE", 0, 86400, 30) * 1000;
    s->priority = number_of("DWRAP_PRIORITY", -8, 8, 0);
    s->local_slots = number_of("DWRAP_LOCAL_SLOTS", 1, 32767, 0);
    s->remote = flag_of("DWRAP_REMOTE");
    s->any_environment = wants_any_environment();
    s->native = flag_of("DWRAP_NATIVE");
    s->fallback_fail = fallback_is_fail();
    s->verbose = flag_of("DWRAP_VERBOSE");
    s->insecure = flag_of("DWRAP_INSECURE");
    s->views = wants_views();
    s->slot_held = text_of("DWRAP_SLOT_HELD") != NULL;
    check_labels(s->labels);
}

__attribute__((noreturn)) static void usage(const char *problem, const char *word)
{
    say("%s%s; usage: dwrap [OPTIONS] [DISTRIBUTOR] COMMAND [ARG...]; see dwrap --help", problem, word);
    _exit(EXIT_USAGE);
}

/* Takes the leading options and returns how many words they were. Configure steps probe with options of the compiler
 * (`dwrap -print-sysroot`): those end here, before anything is looked up. */
static int take_options(struct settings *s, int argc, char **argv)
{
    int at = 1;
    for (; at < argc && argv[at][0] == '-'; at++) {
        const char *word = argv[at];
        if (strcmp(word, "--") == 0)
            return at + 1;
        if (strcmp(word, "--help") == 0)
            print_and_leave(help);
        else if (strcmp(word, "--version") == 0)
            print_and_leave("dwrap " DWRAP_RELEASE "\n");
        else if (strcmp(word, "--explain") == 0)
            s->explain = true;
        else if (strcmp(word, "-H") == 0 && at + 1 == argc)
            usage("no host is given after ", word);
        else if (strcmp(word, "-H") == 0)
            s->hosts = argv[++at];
        else
            usage("unknown option ", word);
    }
    return at;
}

/* Is the first word a distributor, and not the command? */
static bool is_distributor(const struct settings *s, char **argv, int left)
{
    static char named[HOSTS_BYTES];
    if (address_looks_like_one(argv[0]))
        return true;
    if (left < 2 || strchr(argv[0], '/'))
        return false;
    if (config_get(argv[0], named, sizeof named)) {
        argv[0] = named;
        return true;
    }
    return !is_runnable(argv[0], s->path) && is_runnable(argv[1], s->path);
}

/* $DWRAP_HOST, else client.conf's. */
static const char *default_hosts(void)
{
    static char hosts[HOSTS_BYTES];
    const char *value = text_of("DWRAP_HOST");
    return value || !config_get("distributor", hosts, sizeof hosts) ? value : hosts;
}

/* The list, with what a name from client.conf stands for in the place of that name. */
static const char *without_names(const char *hosts)
{
    static char list[HOSTS_BYTES];
    char word[256], named[HOSTS_BYTES];
    size_t used = 0;
    for (const char *at = hosts; at;) {
        const char *next = strchr(at, ',');
        at += strspn(at, " \t");
        size_t length = strcspn(at, ",");
        while (length > 0 && (at[length - 1] == ' ' || at[length - 1] == '\t'))
            length--;
        snprintf(word, sizeof word, "%.*s", (int)length, at);
        bool is_name = length > 0 && length < sizeof word && !address_looks_like_one(word) && config_get(word, named, sizeof named);
        int added = snprintf(list + used, sizeof list - used, "%s%.*s", used ? "," : "", is_name ? HOSTS_BYTES : (int)length, is_name ? named : at);
        if (added < 0 || (size_t)added >= sizeof list - used)
            say_and_leave("the list of distributors is longer than %d bytes; shorten DWRAP_HOST or client.conf", HOSTS_BYTES - 1);
        used += (size_t)added;
        at = next ? next + 1 : NULL;
    }
    return hosts ? list : NULL;
}

/* Takes the directories in which `name` is a link to ourselves out of PATH: gcc looks for its parts beside the first `gcc`
 * that it finds there, and neither it nor what it starts shall meet the link again. */
static void leave_out_links(struct settings *s, const char *name)
{
    char full[PATH_MAX];
    struct stat self, st;
    bool any = false;
    if (!stat_self(&self))
        return;
    char *kept = malloc(strlen(s->path) + sizeof "/dev/null"), *end = kept;
    if (!kept)
        return;
    for (const char *at = s->path; at;) {
        size_t length = strcspn(at, ":");
        int used = snprintf(full, sizeof full, "%.*s/%s", length ? (int)length : 1, length ? at : ".", name);
        bool is_link = used > 0 && (size_t)used < sizeof full && stat(full, &st) == 0 && st.st_dev == self.st_dev && st.st_ino == self.st_ino;
        size_t separated = length + (at[length] == ':');
        if (!is_link)
            end = mempcpy(end, at, separated);
        any = any || !is_link;
        at = at[length] ? at + separated : NULL;
    }
    if (end > kept && s->path[0] && end[-1] == ':' && s->path[strlen(s->path) - 1] != ':')
        end--; /* the last directory was a link's */
    strcpy(end, any ? "" : "/dev/null"); /* nothing is found there; an empty PATH would mean the working directory */
    setenv("PATH", kept, 1);
    s->path = kept;
}

void settings_read(struct settings *s, int argc, char **argv)
{
    static char called[NAME_MAX + 1];
    const char *slash = argc > 0 ? strrchr(argv[0], '/') : NULL;
    const char *name = slash ? slash + 1 : argc > 0 ? argv[0] : "dwrap";
    bool masquerading = strcmp(name, "dwrap") != 0;
    *s = (struct settings){ 0 };
    int at = masquerading ? 0 : take_options(s, argc, argv);
    read_environment(s);
    if (masquerading) {
        snprintf(called, sizeof called, "%s", name);
        argv[0] = called;
        leave_out_links(s, called);
    } else if (at < argc && !s->hosts && is_distributor(s, argv + at, argc - at)) {
        s->hosts = argv[at++];
    }
    if (at >= argc && s->explain) {
        bool whole = environment_print("", NULL, environment_here());
        if (!whole)
            say("a package database cannot be read to its end; if it is one of rpm's, install rpm, or remove it");
        exit(whole ? 0 : EXIT_DWRAP);
    }
    if (at >= argc)
        usage("no command is given", "");
    s->hosts = without_names(s->hosts ? s->hosts : default_hosts());
    s->command = argv + at;
    s->count = argc - at;
}
