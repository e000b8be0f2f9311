#include "justify.h"

#include <stdlib.h>

void fill(struct buffer *out, const struct words *words, size_t first, size_t last, size_t width)
{
    size_t length = 0, gaps = last - first;
    for (size_t i = first; i <= last; i++)
        length += words->all[i].length;
    size_t spaces = last + 1 < words->count && length + gaps <= width ? width - length : gaps;
    for (size_t i = first; i <= last; i++) {
        buffer_add(out, words->all[i].text, words->all[i].length);
        if (i == last)
            break;
        size_t here = (spaces + (last - i) - 1) / (last - i);
        buffer_spaces(out, here);
        spaces -= here;
    }
    buffer_add(out, "\n", 1);
}

char *justify(const char *text, size_t width)
{
    struct words words = words_of(text);
    unsigned char *ends = breaks_of(&words, width);
    struct buffer out = {NULL, 0, 0};
    buffer_add(&out, "", 0);
    for (size_t first = 0, i = 0; i < words.count; i++) {
        if (!ends[i])
            continue;
        fill(&out, &words, first, i, width);
        first = i + 1;
    }
    free(ends);
    free(words.all);
    return out.text;
}
