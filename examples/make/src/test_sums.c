#include "sums.h"

#include <stdio.h>

static int failures;

static void expect(const char *what, uint32_t found, uint32_t expected)
{
    if (found == expected)
        return;
    fprintf(stderr, "%s: found %08x, expected %08x\n", what, found, expected);
    failures++;
}

int main(void)
{
    expect("crc32", crc32(CRC32_START, "123456789", 9), 0xCBF43926u);
    expect("crc32 in pieces", crc32(crc32(CRC32_START, "1234", 4), "56789", 5), 0xCBF43926u);
    expect("adler32", adler32(ADLER32_START, "Wikipedia", 9), 0x11E60398u);
    expect("fnv1a", fnv1a(FNV1A_START, "foobar", 6), 0xBF9CF968u);
    return failures;
}
