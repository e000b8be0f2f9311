/* sums < FILE: its three checksums. */
#include "sums.h"

#include <stdio.h>

int main(void)
{
    char piece[65536];
    uint32_t crc = CRC32_START, adler = ADLER32_START, fnv = FNV1A_START;
    for (size_t got; (got = fread(piece, 1, sizeof piece, stdin)) > 0;) {
        crc = crc32(crc, piece, got);
        adler = adler32(adler, piece, got);
        fnv = fnv1a(fnv, piece, got);
    }
    return printf("crc32 %08x\nadler32 %08x\nfnv1a %08x\n", crc, adler, fnv) < 0;
}
