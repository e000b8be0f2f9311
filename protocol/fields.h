/* Fields of a message, `*( key "=" value NUL )`: walk them and append them (PROTOCOL.md is the grammar).
 *
 * Header-only, so that the wrapper, the runner and the fuzzer share one parser. Works on memory that the caller owns:
 * nothing is copied while reading, nothing is allocated while writing, and a value that was read ends in NUL.
 * Does not know verbs, sockets, or what a field means. */
#ifndef DWRAP_FIELDS_H
#define DWRAP_FIELDS_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "protocol/protocol.h"

#define DWRAP_MAX_FIELDS 4096
#define DWRAP_MAX_KEY 32

/* One field. `key` is not terminated; `value` is, and may hold any byte but NUL. */
struct field {
    const char *key;
    size_t key_length;
    const char *value;
    size_t value_length;
};

/* What is left of a fields frame. */
struct fields {
    const char *at;
    const char *end;
};

static inline struct fields fields_of(const void *frame, size_t length)
{
    const char *start = frame;
    return (struct fields){ start, length ? start + length : start };
}

static inline bool field_key_char(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_';
}

/* Takes the next field. False at the end, and at the first malformed field: fields_valid tells which. */
static inline bool fields_next(struct fields *rest, struct field *out)
{
    size_t left = (size_t)(rest->end - rest->at);
    const char *nul = left ? memchr(rest->at, 0, left) : NULL;
    if (!nul)
        return false;
    const char *equals = memchr(rest->at, '=', (size_t)(nul - rest->at));
    size_t key = equals ? (size_t)(equals - rest->at) : 0;
    if (key == 0 || key > DWRAP_MAX_KEY)
        return false;
    for (size_t i = 0; i < key; i++)
        if (!field_key_char(rest->at[i]))
            return false;
    *out = (struct field){ rest->at, key, equals + 1, (size_t)(nul - equals) - 1 };
    rest->at = nul + 1;
    return true;
}

/* Does the frame follow the grammar and its limits? Call it once for each frame that comes from a peer. */
static inline bool fields_valid(const void *frame, size_t length)
{
    if (length > DWRAP_MAX_FIELDS_BYTES)
        return false;
    struct fields rest = fields_of(frame, length);
    struct field one;
    size_t count = 0;
    while (fields_next(&rest, &one))
        if (++count > DWRAP_MAX_FIELDS)
            return false;
    return rest.at == rest.end;
}

static inline bool field_is(const struct field *one, const char *key)
{
    return one->key_length == strlen(key) && memcmp(one->key, key, one->key_length) == 0;
}

/* The first value of `key`, NUL-terminated, or NULL. */
static inline const char *fields_get(struct fields all, const char *key)
{
    struct field one;
    while (fields_next(&all, &one))
        if (field_is(&one, key))
            return one.value;
    return NULL;
}

/* A number without sign, at most 18 digits. False, and *out unchanged, when it is anything else (NULL included). */
static inline bool field_number(const char *text, uint64_t *out)
{
    uint64_t value = 0;
    size_t digits = 0;
    if (!text)
        return false;
    for (; text[digits] >= '0' && text[digits] <= '9' && digits <= 18; digits++)
        value = value * 10 + (uint64_t)(text[digits] - '0');
    if (digits == 0 || digits > 18 || text[digits])
        return false;
    *out = value;
    return true;
}

/* The number under `key`, or `otherwise` when it is missing or malformed. */
static inline uint64_t fields_number(struct fields all, const char *key, uint64_t otherwise)
{
    uint64_t value = otherwise;
    (void)field_number(fields_get(all, key), &value);
    return value;
}

/* A fields frame that grows in the caller's buffer. Once something did not fit, `overflow` stays set and nothing more
 * is added, so one check at the end is enough. */
struct fields_out {
    char *at;
    size_t length;
    size_t size;
    bool overflow;
};

static inline struct fields_out fields_into(void *buffer, size_t size)
{
    return (struct fields_out){ buffer, 0, size, false };
}

static inline void fields_add_bytes(struct fields_out *out, const char *key, const void *value, size_t length)
{
    size_t key_length = strlen(key);
    if (out->overflow || key_length + length + 2 > out->size - out->length) {
        out->overflow = true;
        return;
    }
    char *to = out->at + out->length;
    memcpy(to, key, key_length);
    to[key_length] = '=';
    if (length)
        memcpy(to + key_length + 1, value, length);
    to[key_length + 1 + length] = 0;
    out->length += key_length + length + 2;
}

static inline void fields_add(struct fields_out *out, const char *key, const char *value)
{
    fields_add_bytes(out, key, value, strlen(value));
}

/* For numbers and short composed values: longer than 255 bytes counts as overflow. */
__attribute__((format(printf, 3, 4))) static inline void fields_addf(struct fields_out *out, const char *key,
                                                                      const char *format, ...)
{
    char text[256];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (length < 0 || (size_t)length >= sizeof text)
        out->overflow = true;
    else
        fields_add_bytes(out, key, text, (size_t)length);
}

#endif
