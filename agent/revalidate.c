/* This agent's view of the shared tree, made to agree before the command starts, and looked at again when it has failed.
 * Knows which entries and directories concern a job; how a view is looked at and healed is coherence/view.c's matter.
 * Everything is done as the user, and only below the roots: a submitter's entries make the agent touch nothing else. */
#include "agent/runner.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "coherence/look.h"
#include "coherence/view.h"

enum { REFRESH_NAMES = 50000, LOOK_AGAIN_NAMES = 10000, MAX_ASKED = 64, MAX_WORDS = 64, MAX_BASES = 32, MAX_RESPONSE = 1024 * 1024 };

struct entries_view {
    const char *data;
    size_t size;
    char *copy; /* of those below the roots, where others were among them */
};

/* The entries below the roots. */
static struct entries_view below_roots(const struct spec *spec, const char *piece, size_t size)
{
    struct entries_view out = {.data = piece, .size = size};
    struct entries rest = entries_of(piece, size);
    size_t kept = 0;
    const char *start = rest.at;
    for (struct entry entry; entries_next(&rest, &entry); start = rest.at) {
        bool shared = spec_is_shared(spec, entry.path);
        if (!shared && !out.copy && (out.copy = malloc(size))) {
            kept = (size_t)(start - piece);
            memcpy(out.copy, piece, kept);
        }
        if (shared && out.copy) {
            memcpy(out.copy + kept, start, (size_t)(rest.at - start));
            kept += (size_t)(rest.at - start);
        }
    }
    if (rest.at != rest.end) /* malformed: let it be seen as such */
        return out;
    if (out.copy)
        out = (struct entries_view){out.copy, kept, out.copy};
    return out;
}

/* The submitter's first entry is its working directory: the same path must lead to the same directory here. */
static bool is_same_tree(const struct spec *spec)
{
    struct entries rest = entries_of(spec->seen, spec->seen_size);
    struct entry theirs, ours;
    if (!entries_next(&rest, &theirs) || theirs.kind != MANIFEST_DIRECTORY || theirs.ino == 0 || !spec_is_shared(spec, theirs.path))
        return true;
    int fd = open(theirs.path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    bool numbers = fd >= 0 && look_numbers_agree(fd);
    if (fd >= 0)
        close(fd);
    if (!numbers || !look_entry(&ours, theirs.path, false) || ours.ino == theirs.ino)
        return true;
    return !look_entry(&ours, theirs.path, true) || ours.ino == theirs.ino;
}

/* ---- response files: what is named in them is named by the command ---- */

struct asked {
    const struct spec *spec;
    unsigned count;
    char last[PATH_ROOM];
};

static void ask_directory(struct asked *asked, const char *word)
{
    char path[PATH_ROOM];
    struct entry entry;
    const char *slash = strrchr(word, '/');
    if (word[0] == '-' && word[1])
        word += 2;
    if (asked->count == MAX_ASKED || !slash || slash <= word || !path_join(path, sizeof path, asked->spec->cwd, word))
        return;
    *strrchr(path, '/') = '\0';
    if (strcmp(path, asked->last) == 0 || !spec_is_shared(asked->spec, path))
        return;
    strcpy(asked->last, path);
    asked->count++;
    look_entry(&entry, path, true);
}

static void ask_words(struct asked *asked, char *text)
{
    char word[PATH_ROOM];
    for (char *at = text; *at && asked->count < MAX_ASKED;) {
        size_t size = 0;
        char quote = '\0';
        for (; *at && (quote || !isspace((unsigned char)*at)); at++) {
            if (*at == quote || (!quote && (*at == '"' || *at == '\'')))
                quote = quote ? '\0' : *at;
            else if (size + 1 < sizeof word)
                word[size++] = *at;
        }
        word[size] = '\0';
        ask_directory(asked, word);
        at += *at != '\0';
    }
}

static void ask_response_file(struct asked *asked, const char *name)
{
    char path[PATH_ROOM];
    struct stat st;
    int fd = path_join(path, sizeof path, asked->spec->cwd, name) && spec_is_shared(asked->spec, path)
                 ? open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    size_t room = fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size <= MAX_RESPONSE ? (size_t)st.st_size : 0;
    char *text = malloc(room + 1);
    ssize_t size = text ? read(fd, text, room) : -1;
    if (size > 0) {
        text[size] = '\0';
        ask_words(asked, text);
    }
    free(text);
    close(fd);
}

static void refresh(const struct spec *spec, struct view *view, unsigned most)
{
    char path[PATH_ROOM];
    if (spec_is_shared(spec, spec->cwd))
        view_refresh(view, spec->cwd, most);
    for (size_t i = 0; i < spec->path_count; i++)
        if (path_join(path, sizeof path, spec->cwd, spec->paths[i]) && spec_is_shared(spec, path) && !path_is_below(path, spec->cwd))
            view_refresh(view, path, most);
}

/* Compares with what the submitter saw. False when that is malformed. */
static bool compare_seen(const struct spec *spec, struct view *view)
{
    struct entries_view seen = below_roots(spec, spec->seen, spec->seen_size);
    bool sound = view_compare(view, seen.data, seen.size);
    free(seen.copy);
    return sound;
}

static bool apply_journal(const struct spec *spec, struct view *view)
{
    struct entries_view journal = below_roots(spec, spec->journal, spec->journal_size);
    bool sound = view_apply(view, journal.data, journal.size);
    free(journal.copy);
    return sound;
}

static bool bring_up_to_date(const struct spec *spec, struct view *view, char reason[MAX_REASON])
{
    struct asked asked = {.spec = spec};
    if (!is_same_tree(spec)) {
        snprintf(reason, MAX_REASON, "%.400s is another directory on this agent: mount the same tree at the same path", spec->cwd);
        return false;
    }
    if (!compare_seen(spec, view) || !apply_journal(spec, view)) {
        snprintf(reason, MAX_REASON, "the entries that came with it are malformed");
        return false;
    }
    if (spec->refresh)
        refresh(spec, view, REFRESH_NAMES);
    for (const char **argument = spec->argv + 1; *argument; argument++)
        if ((*argument)[0] == '@')
            ask_response_file(&asked, *argument + 1);
    if (view->unseen > 0)
        snprintf(reason, MAX_REASON, "this agent still does not see %.255s as another host wrote it; look at its mount (dwrapctl doctor)", view->path);
    return view->unseen == 0;
}

bool revalidate_before(const struct spec *spec, unsigned *stale, char reason[MAX_REASON])
{
    static struct view view;
    view_start(&view);
    bool user = identity_assume(spec);
    if (!user)
        snprintf(reason, MAX_REASON, "this agent cannot act as the job's user: %s", strerror(errno));
    bool good = user && bring_up_to_date(spec, &view, reason);
    view_end(&view);
    identity_drop(spec);
    *stale += view.stale;
    return good;
}

/* The directory that a word of the command names, or in which what it names lies. False when there is none that is shared. */
static bool named_directory(const struct spec *spec, const char *word, char out[PATH_ROOM])
{
    char path[PATH_ROOM], above[PATH_ROOM];
    struct statx st;
    const char *value = strchr(word, '=');
    if (word[0] == '-' && word[1])
        word = value && word[1] == '-' ? value + 1 : word + 2;
    else if (word[0] == '@')
        word++;
    if (!*word || (!strchr(word, '/') && strcmp(word, "..") != 0) || !path_join(path, sizeof path, spec->cwd, word))
        return false;
    /* Without asking: an answer would hide that what was believed is wrong. */
    bool whole = statx(AT_FDCWD, path, AT_STATX_DONT_SYNC, STATX_TYPE, &st) == 0 && S_ISDIR(st.stx_mode);
    if (!whole && !path_split(path, above))
        return false;
    return path_real(whole ? path : above, out) && spec_is_shared(spec, out);
}

/* What the command's own words name, each directory once in a row, as far as the bounds go. */
static void refresh_named(const struct spec *spec, struct view *view)
{
    char path[PATH_ROOM], last[PATH_ROOM] = "";
    int left = MAX_ASKED;
    for (const char **word = spec->argv + 1; *word && left > 0; word++) {
        if (!named_directory(spec, *word, path) || strcmp(path, last) == 0 || path_is_below(path, spec->cwd))
            continue;
        strcpy(last, path);
        left--;
        if (!path_is_below(spec->cwd, path)) /* not everything above: that may be the whole tree */
            view_refresh(view, path, LOOK_AGAIN_NAMES / MAX_ASKED);
    }
}

/* ---- what it said: the names that it may have looked for in vain ---- */

/* A name as messages write it, looked for where the command would have: below its directory, and below those that -I and the
 * like, or the submitter, name. */
static void doubt_word(const struct spec *spec, struct view *view, const char *word)
{
    char base[PATH_ROOM], path[PATH_ROOM];
    int bases = MAX_BASES;
    if (path_join(path, sizeof path, spec->cwd, word) && spec_is_shared(spec, path))
        view_doubt(view, path);
    for (const char **argument = spec->argv + 1; word[0] != '/' && *argument && bases > 0; argument++) {
        bool beside = strcmp(*argument, "-I") == 0 || strcmp(*argument, "-isystem") == 0 || strcmp(*argument, "-iquote") == 0;
        const char *directory = beside ? argument[1] : strncmp(*argument, "-I", 2) == 0 ? *argument + 2 : NULL;
        if (!directory || !path_join(base, sizeof base, spec->cwd, directory))
            continue;
        bases--;
        if (path_join(path, sizeof path, base, word) && spec_is_shared(spec, path))
            view_doubt(view, path);
    }
}

static void doubt_words(const struct spec *spec, struct view *view, const char *said, size_t size)
{
    static const char around[] = " \t\r\n:;,'\"`()<>[]";
    char word[PATH_ROOM];
    int left = MAX_WORDS;
    for (size_t at = 0, length; at < size && left > 0; at += length + 1) {
        for (length = 0; at + length < size && said[at + length] && !strchr(around, said[at + length]);)
            length++;
        if (length < 3 || length >= sizeof word || (!memchr(said + at, '/', length) && !memchr(said + at, '.', length)))
            continue;
        memcpy(word, said + at, length);
        word[length] = '\0';
        left--;
        doubt_word(spec, view, word);
    }
}

struct doubt revalidate_after_failure(const struct spec *spec, struct timespec started, const struct hold *hold)
{
    static struct view view;
    view_start(&view);
    bool user = identity_assume(spec);
    for (int stream = 2; user && hold->open && stream > 0; stream--) /* first: whatever else is asked would cure it unnoticed */
        doubt_words(spec, &view, hold->data[stream], hold->size[stream]);
    unsigned by_words = view.stale;
    if (user)
        compare_seen(spec, &view);
    struct doubt doubt = {.certain = view.stale > by_words};
    if (user) {
        refresh(spec, &view, LOOK_AGAIN_NAMES);
        refresh_named(spec, &view);
    }
    view_end(&view);
    identity_drop(spec);
    doubt.stale = view.stale;
    doubt.certain |= view.stale_at != 0 && view.stale_at <= (int64_t)started.tv_sec * 1000000000 + started.tv_nsec;
    return doubt;
}
