#include "sums.h"

uint32_t adler32(uint32_t sum, const void *data, size_t length)
{
    const unsigned char *at = data;
    uint32_t low = sum & 0xFFFF, high = sum >> 16;
    while (length--) {
        low = (low + *at++) % 65521;
        high = (high + low) % 65521;
    }
    return high << 16 | low;
}
