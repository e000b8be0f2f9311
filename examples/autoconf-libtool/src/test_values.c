#include "roman.h"

int main(void)
{
    return !(from_roman("MCMXCIV") == 1994 && from_roman("nothing") == 0 && is_roman("XLII") && !is_roman("IIII"));
}
