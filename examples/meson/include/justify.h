/* Breaks text into lines of a width, with as even a right margin as dynamic programming finds, and fills them with spaces. */
#ifndef JUSTIFY_H
#define JUSTIFY_H
#include <stddef.h>

struct word { const char *text; size_t length; };
struct words { struct word *all; size_t count; };
struct buffer { char *text; size_t length, room; };

/* Words of `text`, which they point into. Freed with free(words.all). */
struct words words_of(const char *text);
/* For each word whether a line ends after it; freed with free(). The last one always does. */
unsigned char *breaks_of(const struct words *words, size_t width);
/* Appends the words [first, last] as one line of `width`; the last line of a text is not filled up. */
void fill(struct buffer *out, const struct words *words, size_t first, size_t last, size_t width);
/* The whole of it; freed with free(). */
char *justify(const char *text, size_t width);

void buffer_add(struct buffer *buffer, const char *text, size_t length);
void buffer_spaces(struct buffer *buffer, size_t count);
#endif
