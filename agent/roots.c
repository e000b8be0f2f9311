/* The shared roots, by name and as they really are. Knows paths; does not know what is done with them. */
#include "agent/runner.h"

#include <stdlib.h>
#include <string.h>

bool spec_is_shared(const struct spec *spec, const char *path)
{
    bool shared = false;
    for (size_t i = 0; i < spec->root_count; i++)
        shared |= path_is_below(path, spec->roots[i]);
    return shared;
}

typedef char place[PATH_ROOM];

/* Where the roots lead; empty for one that is nowhere, or is "/". Found once: a runner has one spec. */
static const place *real_roots(const struct spec *spec)
{
    static place *all;
    if (all || !(all = calloc(spec->root_count + 1, sizeof *all)))
        return all;
    for (size_t i = 0; i < spec->root_count; i++)
        if (!path_real(spec->roots[i], all[i]) || !all[i][1])
            all[i][0] = '\0';
    return all;
}

/* A root may be a link, and lead elsewhere on each host: below it paths are written with its name. */
bool spec_name_by_root(const struct spec *spec, char path[PATH_ROOM])
{
    char named[PATH_ROOM];
    const place *real = spec_is_shared(spec, path) ? NULL : real_roots(spec);
    for (size_t i = 0; real && i < spec->root_count; i++)
        if (real[i][0] && path_is_below(path, real[i]) && path_join(named, sizeof named, "/", spec->roots[i]) &&
            path_join(named, sizeof named, named, path[strlen(real[i])] ? path + strlen(real[i]) + 1 : ".")) {
            strcpy(path, named);
            return true;
        }
    return spec_is_shared(spec, path);
}
