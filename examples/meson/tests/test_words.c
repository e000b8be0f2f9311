#include "justify.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

int main(void)
{
    struct words words = words_of("  a bc\n\tdef ");
    assert(words.count == 3);
    assert(words.all[2].length == 3 && !memcmp(words.all[2].text, "def", 3));
    free(words.all);
    return words_of(" \n").count != 0;
}
