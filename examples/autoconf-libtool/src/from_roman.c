#include "roman.h"

static int digit(char c)
{
    switch (c) {
    case 'I': return 1;
    case 'V': return 5;
    case 'X': return 10;
    case 'L': return 50;
    case 'C': return 100;
    case 'D': return 500;
    case 'M': return 1000;
    default: return 0;
    }
}

int from_roman(const char *text)
{
    int value = 0;
    for (; *text; text++) {
        int here = digit(*text);
        if (!here)
            return 0;
        value += here < digit(text[1]) ? -here : here;
    }
    return value;
}
