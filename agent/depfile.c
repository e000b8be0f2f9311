/* Which directories a command read from, as compilers tell it: depfiles in make's syntax. Knows the syntax only. */
#include "agent/runner.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_BYTES (1024 * 1024)

bool depfile_is_named(const char *path)
{
    static const char *const endings[] = {".d", ".Po", ".Plo", ".Tpo", ".dep"};
    const char *dot = strrchr(path, '.');
    bool found = false;
    for (size_t i = 0; dot && i < sizeof endings / sizeof *endings; i++)
        found |= strcmp(dot, endings[i]) == 0;
    return found;
}

/* Takes the next word, unescaped, and tells whether a colon ended it: then it was a target. False at the end. */
static bool next_word(const char **at, char word[PATH_ROOM], bool *is_target)
{
    const char *in = *at;
    size_t size = 0;
    *is_target = false;
    while (isspace((unsigned char)*in) || (in[0] == '\\' && (in[1] == '\n' || in[1] == '\r')))
        in += in[0] == '\\' ? 2 : 1;
    for (; *in && !isspace((unsigned char)*in); in++) {
        if (in[0] == '\\' && (in[1] == '\n' || in[1] == '\r'))
            break;
        if (in[0] == ':' && (in[1] == '\0' || isspace((unsigned char)in[1]))) {
            *is_target = true;
            in++;
            break;
        }
        if ((in[0] == '\\' && in[1] && strchr(" #\\:", in[1])) || (in[0] == '$' && in[1] == '$'))
            in++;
        if (size + 1 < PATH_ROOM)
            word[size++] = *in;
    }
    word[size] = '\0';
    *at = in;
    return size > 0 || *in;
}

void depfile_read(int fd, void *to, void (*found)(void *to, const char *directory))
{
    struct stat st;
    char word[PATH_ROOM];
    bool is_target;
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || st.st_size > MAX_BYTES)
        return;
    char *text = malloc((size_t)st.st_size + 1);
    ssize_t size = text ? pread(fd, text, (size_t)st.st_size, 0) : -1;
    if (size > 0) {
        text[size] = '\0';
        for (const char *at = text; next_word(&at, word, &is_target);) {
            char *slash = strrchr(word, '/');
            if (is_target || word[0] == '\0')
                continue;
            if (slash)
                slash[slash == word] = '\0';
            found(to, slash ? word : ".");
        }
    }
    free(text);
}
