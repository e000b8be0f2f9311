#include "sums.h"

uint32_t fnv1a(uint32_t sum, const void *data, size_t length)
{
    const unsigned char *at = data;
    while (length--)
        sum = (sum ^ *at++) * 16777619u;
    return sum;
}
