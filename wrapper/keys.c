/* Reading keys and known distributors; see keys.h. A file that others may have written, or may read, is none, nor is one with a line that is
 * not understood: what it was to say is not known. Does not know what the keys are used for. */
#include "wrapper/keys.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#define SYSTEM "/etc/dwrap"

enum { KEY_FILE_BYTES = 4096, KNOWN_BYTES = 1024 * 1024, HEX_DIGITS = 2 * CURVE_KEY_BYTES, STACK_BYTES = 32 * 1024 };

static char directory[PATH_MAX - 64];
static char known_file[PATH_MAX];
static bool chosen_by_name;
static int dumpable_before = -1; /* -1: it is as it was */

void keys_at(const char *named, const char *config_home, const char *home)
{
    int length = 0;
    chosen_by_name = named && *named;
    if (chosen_by_name)
        length = snprintf(directory, sizeof directory, "%s", named);
    else if (geteuid() == 0)
        length = snprintf(directory, sizeof directory, SYSTEM "/keys");
    else if (config_home && config_home[0] == '/')
        length = snprintf(directory, sizeof directory, "%s/dwrap/keys", config_home);
    else if (home && home[0] == '/')
        length = snprintf(directory, sizeof directory, "%s/.config/dwrap/keys", home);
    if (length <= 0 || (size_t)length >= sizeof directory)
        directory[0] = 0; /* there is none */
    snprintf(known_file, sizeof known_file, "%s/known_distributors", directory[0] ? directory : SYSTEM);
}

/* Whether the directory may be used. One that nobody named need not be there. */
static bool check_directory(char *why, size_t size)
{
    struct stat st;
    bool found = directory[0] && stat(directory, &st) == 0;
    if (chosen_by_name && directory[0] != '/')
        snprintf(why, size, "DWRAP_KEYS names %.200s, which is no absolute path; name a directory from / on, or unset it", directory);
    else if (chosen_by_name && (!found || !S_ISDIR(st.st_mode)))
        snprintf(why, size, "DWRAP_KEYS names %s: %s; make it, or unset it", directory, found ? strerror(ENOTDIR) : strerror(errno));
    else if (found && (st.st_mode & 022))
        snprintf(why, size, "others may write to %s (mode %03o); chmod go-w it", directory, (unsigned)st.st_mode & 0777);
    else
        return true;
    return false;
}

const char *keys_known_file(void)
{
    return known_file;
}

/* Is there nothing that is meant for us? A home that we may not even enter (that of root, kept by su or a container) is not ours. */
static bool is_absent(int error)
{
    return error == ENOENT || error == ENOTDIR || (error == EACCES && !chosen_by_name && access(directory, X_OK) < 0);
}

/* Opens a regular file of ours or root's that others have none of the permissions `closed` of. -1: `why` says what is wrong, and is
 * empty when there is no such file. */
static int open_trusted(const char *path, mode_t closed, char *why, size_t size)
{
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY); /* a fifo must not hold us up */
    *why = 0;
    if (fd < 0) {
        if (!is_absent(errno))
            snprintf(why, size, "%s cannot be read: %s; make it readable for its owner", path, strerror(errno));
        return -1;
    }
    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
        snprintf(why, size, "%s is not a regular file; replace it by one", path);
    else if (st.st_uid != geteuid() && st.st_uid != 0)
        snprintf(why, size, "%s belongs to uid %u; chown it to yourself, or remove it", path, (unsigned)st.st_uid);
    else if (st.st_mode & closed)
        snprintf(why, size, "%s is open to others (mode %03o); chmod %s %s", path, (unsigned)st.st_mode & 0777, closed & 044 ? "600" : "go-w",
                 path);
    else
        return fd;
    close(fd);
    return -1;
}

/* Is it text? */
static bool is_text(const char *text, size_t length)
{
    for (size_t i = 0; i < length; i++) {
        unsigned char c = (unsigned char)text[i];
        if ((c < ' ' && c != '\t' && c != '\r' && c != '\n') || c == 0x7f)
            return false;
    }
    return true;
}

/* Reads a whole file into a string. False when it does not fit, cannot be read, or is no text. */
static bool read_whole(int fd, const char *path, char *text, size_t room, char *why, size_t size)
{
    size_t have = 0;
    ssize_t got;
    while (have < room && (got = read(fd, text + have, room - have)) != 0) {
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0) {
            snprintf(why, size, "%s cannot be read: %s; replace it", path, strerror(errno));
            return false;
        }
        have += (size_t)got;
    }
    if (have == room) {
        snprintf(why, size, "%s is larger than %zu bytes; remove what does not belong there", path, room - 1);
        return false;
    }
    if (!is_text(text, have)) {
        snprintf(why, size, "%s holds control characters and is not understood; write it anew", path);
        return false;
    }
    text[have] = 0;
    return true;
}

/* Blanks instead of comments (from a '#' on that begins a line or follows a blank) and carriage returns. */
static void clear_comments(char *text)
{
    bool in_comment = false;
    char before = '\n';
    for (char *at = text; *at; at++) {
        in_comment = *at != '\n' && (in_comment || (*at == '#' && (before == '\n' || before == ' ' || before == '\t')));
        before = *at;
        if (in_comment || *at == '\r')
            *at = ' ';
    }
}

/* The next word of a line; its length, 0 at the end. */
static size_t next_word(const char **at)
{
    *at += strspn(*at, " \t");
    return strcspn(*at, " \t\n");
}

static bool parse_key(const char *at, size_t length, unsigned char key[CURVE_KEY_BYTES])
{
    return length == HEX_DIGITS && strspn(at, "0123456789abcdefABCDEF") >= HEX_DIGITS &&
           sodium_hex2bin(key, CURVE_KEY_BYTES, at, length, NULL, NULL, NULL) == 0;
}

static bool parse_owner(const char *at, size_t length, uid_t *owner)
{
    if (length < 5 || length > 14 || strncmp(at, "uid=", 4) != 0 || strspn(at + 4, "0123456789") < length - 4)
        return false;
    unsigned long long number = strtoull(at + 4, NULL, 10);
    *owner = (uid_t)number;
    return number < (uid_t)-1;
}

/* The rest of a line of known_distributors, after its address. */
static bool parse_pin(const char *at, struct known *out)
{
    size_t length = next_word(&at);
    memset(out, 0, sizeof *out);
    out->keyed = parse_key(at, length, out->keys.server);
    out->owned = !out->keyed && parse_owner(at, length, &out->owner);
    at += length;
    return (out->keyed || out->owned) && next_word(&at) == 0;
}

static const char *next_line(const char *line)
{
    const char *end = strchrnul(line, '\n');
    return *end ? end + 1 : end;
}

/* Looks the address up in one file. False: there is something that cannot be used; *found: the address is there. */
static bool look_up(const char *path, const char *address, struct known *out, bool *found, char *why, size_t size)
{
    static char text[KNOWN_BYTES + 1]; /* untouched as long as there is no such file */
    size_t wanted = strlen(address);
    int fd = open_trusted(path, 022, why, size);
    if (fd < 0)
        return !*why;
    bool whole = read_whole(fd, path, text, sizeof text, why, size);
    close(fd);
    if (!whole)
        return false;
    clear_comments(text);
    unsigned number = 1;
    for (const char *line = text; *line; line = next_line(line), number++) {
        const char *at = line;
        struct known pin;
        size_t length = next_word(&at);
        if (length == 0)
            continue;
        if (!parse_pin(at + length, &pin)) {
            snprintf(why, size, "line %u of %s is not understood; write ADDRESS and 64 hexadecimal digits, or ADDRESS uid=N", number, path);
            return false;
        }
        if (*found || length != wanted || memcmp(at, address, wanted) != 0)
            continue;
        *out = pin;
        *found = true;
    }
    return true;
}

/* `WORD = HEX` of our pair, and nothing else: 1, or 0. */
static unsigned take_half(const char *line, const char *word, unsigned char key[CURVE_KEY_BYTES])
{
    size_t length = strlen(word);
    line += strspn(line, " \t");
    if (strncmp(line, word, length) != 0)
        return 0;
    line += length + strspn(line + length, " \t");
    if (*line++ != '=')
        return 0;
    line += strspn(line, " \t");
    const char *rest = line + strcspn(line, " \t\r\n");
    rest += strspn(rest, " \t\r");
    return (!*rest || *rest == '\n') && parse_key(line, strcspn(line, " \t\r\n"), key);
}

static bool parse_pair(const char *text, struct curve_keys *keys)
{
    unsigned char derived[CURVE_KEY_BYTES];
    unsigned public = 0, secret = 0;
    for (const char *line = text; *line; line = next_line(line)) {
        public += take_half(line, "public", keys->public);
        secret += take_half(line, "secret", keys->secret);
    }
    return public == 1 && secret == 1 && sodium_init() >= 0 && crypto_scalarmult_base(derived, keys->secret) == 0 &&
           memcmp(derived, keys->public, sizeof derived) == 0;
}

/* From here until the secret half is wiped nothing of us may come into a core file, nor may others of our user trace us. */
static void close_memory(void)
{
    int before = prctl(PR_GET_DUMPABLE);
    if (before > 0 && prctl(PR_SET_DUMPABLE, 0) == 0)
        dumpable_before = before;
}

/* What functions that have returned left below us: libsodium does not wipe all that it derives from a secret. */
__attribute__((noinline)) static void wipe_stack(void)
{
    unsigned char below[STACK_BYTES];
    sodium_memzero(below, sizeof below);
}

static void open_memory(void)
{
    if (dumpable_before < 0)
        return;
    wipe_stack();
    prctl(PR_SET_DUMPABLE, dumpable_before);
    dumpable_before = -1;
}

static bool read_pair(struct curve_keys *keys, char *why, size_t size)
{
    char path[PATH_MAX], text[KEY_FILE_BYTES + 1];
    if (!directory[0]) {
        snprintf(why, size, "there is no place for a key of yours: neither HOME nor DWRAP_KEYS is set; set one");
        return false;
    }
    snprintf(path, sizeof path, "%s/client.key", directory);
    int fd = open_trusted(path, 077, why, size);
    if (fd < 0 && !*why)
        snprintf(why, size, "there is no key of yours, %s; make one with dwrapctl join, or dwrapctl key new client", path);
    if (fd < 0)
        return false;
    close_memory();
    bool good = read_whole(fd, path, text, sizeof text, why, size);
    close(fd);
    if (good && !parse_pair(text, keys)) {
        snprintf(why, size, "%s holds no key pair; restore it, or remove it and make one with dwrapctl key new client", path);
        good = false;
    }
    sodium_memzero(text, sizeof text);
    return good;
}

bool keys_find(const char *address, struct known *out, char *why, size_t size)
{
    bool found = false;
    memset(out, 0, sizeof *out);
    if (!check_directory(why, size))
        return false;
    if (directory[0] && !look_up(known_file, address, out, &found, why, size))
        return false;
    if (!found && !look_up(SYSTEM "/known_distributors", address, out, &found, why, size))
        return false;
    return !out->keyed || read_pair(&out->keys, why, size);
}

void keys_forget(struct known *known)
{
    sodium_memzero(&known->keys.secret, sizeof known->keys.secret);
    open_memory();
}
