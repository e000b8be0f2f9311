#include "paths.h"

#include <stdio.h>

int main(void)
{
    static const char *const grid[] = {"19111", "19191", "19191", "11191"};
    unsigned found = cheapest(grid, 4, 5);
    printf("%u\n", found);
    return found != 13;
}
