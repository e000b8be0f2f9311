/* Checksums of bytes: each takes the sum so far, so that data may come in pieces. */
#ifndef SUMS_H
#define SUMS_H
#include <stddef.h>
#include <stdint.h>

#define CRC32_START 0u
#define ADLER32_START 1u
#define FNV1A_START 2166136261u

uint32_t crc32(uint32_t sum, const void *data, size_t length);
uint32_t adler32(uint32_t sum, const void *data, size_t length);
uint32_t fnv1a(uint32_t sum, const void *data, size_t length);
#endif
