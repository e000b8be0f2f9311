/* justify [WIDTH]: standard input, justified. */
#include "justify.h"
#include "version.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv)
{
    if (argc > 1 && !strcmp(argv[1], "--version"))
        return puts("justify " JUSTIFY_VERSION) < 0;
    struct buffer in = {NULL, 0, 0};
    char piece[4096];
    buffer_add(&in, "", 0);
    for (size_t got; (got = fread(piece, 1, sizeof piece, stdin)) > 0;)
        buffer_add(&in, piece, got);
    char *out = justify(in.text, argc > 1 ? (size_t)atoi(argv[1]) : 72);
    fputs(out, stdout);
    free(out);
    free(in.text);
    return 0;
}
