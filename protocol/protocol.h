/* Limits and names of the dwrap protocol, version 1 (PROTOCOL.md), for the C programs. Knows no sockets. */
#ifndef DWRAP_PROTOCOL_H
#define DWRAP_PROTOCOL_H

#define DWRAP_VERSION_NUMBER 1
#define DWRAP_DEFAULT_PORT "7776"
#define DWRAP_MAX_FRAMES 8
#define DWRAP_MAX_FIELDS_BYTES (256u * 1024)
#define DWRAP_MAX_DATA_BYTES (32u * 1024)
#define DWRAP_MAX_STRINGS 262144
#define DWRAP_INITIAL_OUTPUT_CREDIT 65536u

#endif
