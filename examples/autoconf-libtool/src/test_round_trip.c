#include "roman.h"

int main(void)
{
    for (int value = 1; value <= 3999; value++) {
        char numeral[ROMAN_ROOM];
        if (!to_roman(value, numeral) || from_roman(numeral) != value || !is_roman(numeral))
            return 1;
    }
    return to_roman(4000, (char[ROMAN_ROOM]){0});
}
