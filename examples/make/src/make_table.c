/* Prints the table of CRC-32 as a C header. */
#include <stdint.h>
#include <stdio.h>

int main(void)
{
    puts("static const uint32_t crc32_table[256] = {");
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t entry = i;
        for (int bit = 0; bit < 8; bit++)
            entry = entry & 1 ? 0xEDB88320u ^ (entry >> 1) : entry >> 1;
        printf("0x%08xu,\n", entry);
    }
    return puts("};") < 0;
}
