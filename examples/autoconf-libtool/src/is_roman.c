#include "roman.h"

#include <string.h>

int is_roman(const char *text)
{
    char shortest[ROMAN_ROOM];
    return to_roman(from_roman(text), shortest) && !strcmp(text, shortest);
}
