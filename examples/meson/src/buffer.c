#include "justify.h"

#include <stdlib.h>
#include <string.h>

void buffer_add(struct buffer *buffer, const char *text, size_t length)
{
    if (buffer->length + length + 1 > buffer->room) {
        buffer->room = 2 * (buffer->length + length + 1);
        buffer->text = realloc(buffer->text, buffer->room);
        if (!buffer->text)
            abort();
    }
    memcpy(buffer->text + buffer->length, text, length);
    buffer->length += length;
    buffer->text[buffer->length] = '\0';
}

void buffer_spaces(struct buffer *buffer, size_t count)
{
    while (count--)
        buffer_add(buffer, " ", 1);
}
