#include "justify.h"

#include <assert.h>
#include <stdlib.h>

int main(void)
{
    struct words words = words_of("aaa bb cc ddddd");
    unsigned char *ends = breaks_of(&words, 6); /* greedy would take "aaa bb" and leave "cc" alone */
    assert(ends[0] && !ends[1] && ends[2] && ends[3]);
    free(ends);
    free(words.all);
    return 0;
}
