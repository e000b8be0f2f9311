#include "justify.h"

#include <ctype.h>
#include <stdlib.h>

struct words words_of(const char *text)
{
    struct words words = {NULL, 0};
    while (*text) {
        if (isspace((unsigned char)*text)) {
            text++;
            continue;
        }
        const char *end = text;
        while (*end && !isspace((unsigned char)*end))
            end++;
        words.all = realloc(words.all, (words.count + 1) * sizeof *words.all);
        if (!words.all)
            abort();
        words.all[words.count++] = (struct word){text, (size_t)(end - text)};
        text = end;
    }
    return words;
}
