#include "roman.h"

#include <string.h>

int to_roman(int value, char out[ROMAN_ROOM])
{
    static const struct { int value; const char *text; } parts[] = {
        {1000, "M"}, {900, "CM"}, {500, "D"}, {400, "CD"}, {100, "C"}, {90, "XC"}, {50, "L"},
        {40, "XL"},  {10, "X"},   {9, "IX"},  {5, "V"},    {4, "IV"},  {1, "I"}};
    out[0] = '\0';
    if (value < 1 || value > 3999)
        return 0;
    for (unsigned i = 0; i < sizeof parts / sizeof *parts; i++)
        for (; value >= parts[i].value; value -= parts[i].value)
            strcat(out, parts[i].text);
    return 1;
}
