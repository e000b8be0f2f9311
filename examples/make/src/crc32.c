#include "sums.h"

#include "crc32_table.h"

uint32_t crc32(uint32_t sum, const void *data, size_t length)
{
    const unsigned char *at = data;
    sum = ~sum;
    while (length--)
        sum = crc32_table[(sum ^ *at++) & 0xFF] ^ (sum >> 8);
    return ~sum;
}
