/* The canonical form of each address on stdin, one a line; `-` for what is none. */
#include <stdio.h>
#include <string.h>

#include "wrapper/address.h"

int main(void)
{
    char line[1024];
    while (fgets(line, sizeof line, stdin)) {
        struct address address;
        puts(address_parse(line, strcspn(line, "\n"), &address) ? "-" : address.text);
    }
    return 0;
}
