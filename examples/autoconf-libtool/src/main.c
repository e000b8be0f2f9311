/* roman NUMBER...: as numerals. */
#include "roman.h"

#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
    int good = 1;
    for (int i = 1; i < argc; i++) {
        char numeral[ROMAN_ROOM];
        if (to_roman(atoi(argv[i]), numeral))
            puts(numeral);
        else
            good = 0;
    }
    return !good;
}
