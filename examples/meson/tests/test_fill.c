#include "justify.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

int main(void)
{
    char *text = justify("one two three four five six", 13);
    assert(!strcmp(text, "one two three\nfour five six\n"));
    free(text);
    text = justify("a b c dddddddd e", 7);
    assert(!strcmp(text, "a  b  c\ndddddddd\ne\n"));
    free(text);
    return 0;
}
