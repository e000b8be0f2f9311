/* What the arguments name, as this machine sees it: whoever runs the command compares it with what is cached there, and so learns of
 * what the user, or a command that was not wrapped, has just changed here.
 *
 * A path may be a word itself, what follows a two-character option, '@' or '='. What follows something counts only with a '/' or a
 * '.' in it: each name that is not there costs a question to the server, and most options are no paths. Files are told as they are
 * cached, directories as stat sees them. Knows the file system; does not know which of it is shared, or what options mean. */
#include "wrapper/seen.h"

#include <string.h>

#include "coherence/look.h"

enum { MOST_ENTRIES = 256, MOST_LOOKS = 1024 };

struct seen {
    char *out;
    size_t room, used;
    unsigned entries, looks;
    const char *cwd;
    bool numbered;
    char last[MANIFEST_PATH_BYTES]; /* the directory told last: objects of one directory come in rows */
};

static void put(struct seen *s, struct entry entry)
{
    if (!s->numbered)
        entry.ino = 0;
    size_t written = s->entries < MOST_ENTRIES ? entry_write(s->out + s->used, s->room - s->used, &entry) : 0;
    s->entries = written ? s->entries + 1 : MOST_ENTRIES; /* what no longer fits ends it */
    s->used += written;
}

static void put_directory(struct seen *s, const char *path)
{
    struct entry entry;
    if (strcmp(path, s->last) == 0 || strcmp(path, s->cwd) == 0)
        return;
    if (!look_entry_as_stat(&entry, path) || entry.kind != MANIFEST_DIRECTORY)
        return;
    strcpy(s->last, path);
    put(s, entry);
}

/* CWD/TEXT, or TEXT when it is absolute, without "./" at its start and '/' at its end. False when it is too long. */
static bool make_absolute(char path[MANIFEST_PATH_BYTES], const char *cwd, const char *text)
{
    while (text[0] == '.' && text[1] == '/')
        text += 2 + strspn(text + 2, "/");
    size_t length = strlen(text), start = text[0] == '/' ? 0 : strlen(cwd);
    if (start + 1 + length >= MANIFEST_PATH_BYTES)
        return false;
    memcpy(path, cwd, start);
    if (start > 0 && path[start - 1] != '/')
        path[start++] = '/';
    memcpy(path + start, text, length + 1);
    for (size_t end = start + length; end > 1 && path[end - 1] == '/'; end--)
        path[end - 1] = 0;
    return true;
}

static void put_named(struct seen *s, const char *text)
{
    char path[MANIFEST_PATH_BYTES], directory[MANIFEST_PATH_BYTES];
    struct entry entry;
    if (!make_absolute(path, s->cwd, text) || s->looks++ >= MOST_LOOKS || s->entries >= MOST_ENTRIES || !look_entry(&entry, path, false))
        return;
    if (entry.kind == MANIFEST_DIRECTORY) {
        put_directory(s, path);
        return;
    }
    const char *slash = strrchr(path, '/');
    size_t length = slash == path ? 1 : (size_t)(slash - path);
    memcpy(directory, path, length);
    directory[length] = 0;
    put_directory(s, directory);
    if (entry.kind == MANIFEST_FILE)
        put(s, entry);
}

static bool may_be_a_path(const char *text)
{
    return text[0] && strpbrk(text, "/.") != NULL;
}

static void put_word(struct seen *s, const char *word)
{
    const char *equals = strchr(word, '=');
    if (equals && may_be_a_path(equals + 1))
        put_named(s, equals + 1);
    if (word[0] == '@')
        put_named(s, word + 1);
    else if (word[0] == '-' && word[1] && word[1] != '-' && !equals && may_be_a_path(word + 2))
        put_named(s, word + 2);
    else if (word[0] && word[0] != '-' && !equals)
        put_named(s, word);
}

size_t seen_write(char *out, size_t room, char *const argv[], int count, const char *cwd, bool numbered)
{
    static struct seen s; /* large: not on the stack */
    struct entry entry;
    s = (struct seen){ .out = out, .room = room, .cwd = cwd, .numbered = numbered };
    if (!look_entry_as_stat(&entry, cwd) || entry.kind != MANIFEST_DIRECTORY)
        return 0;
    put(&s, entry);
    for (int i = 1; i < count && s.entries < MOST_ENTRIES; i++)
        put_word(&s, argv[i]);
    return s.used;
}
