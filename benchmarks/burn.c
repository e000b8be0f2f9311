/* A stand-in for a compiler: uses a given amount of CPU time, then writes one small file.
 *
 *     burn MILLISECONDS OUTPUT */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

int main(int argc, char **argv)
{
    struct timespec used;
    if (argc != 3)
        return 2;
    double until = atof(argv[1]) / 1000;
    do
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
    while ((double)used.tv_sec + (double)used.tv_nsec / 1e9 < until);
    FILE *output = fopen(argv[2], "w");
    return !output || fputs("done\n", output) < 0 || fclose(output) ? 1 : 0;
}
