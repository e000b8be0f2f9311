/* Jobs without wrappers: submits over a few persistent connections, and measures each from SUBMIT to RESULT.
 *
 *     submitter flood HOST PORT JOBS UNDER_WAY       JOBS jobs, UNDER_WAY of them at any time
 *     submitter paced HOST PORT JOBS RATE            JOBS jobs, RATE of them a second, whether or not earlier ones have ended
 *
 * Prints jobs per second, and the median and 99th percentile of a job's time in milliseconds, counted from when it was due.
 * Knows PROTOCOL.md's submitter side. */
#include "load.h"

enum { CONNECTIONS = 8, MAX_EVENTS = 64, MAX_JOBS = 1 << 20 };

extern char **environ;
static struct peer all[CONNECTIONS];
static char environment[ROOM / 4];
static size_t environment_size;
static double due_at[MAX_JOBS], took[MAX_JOBS];
static long started, done;
static int connected;

static void read_environment(void)
{
    for (char **one = environ; *one; one++) {
        size_t size = strlen(*one) + 1;
        if (size > sizeof environment - environment_size)
            break;
        memcpy(environment + environment_size, *one, size);
        environment_size += size;
    }
}

static void submit(double due)
{
    struct peer *p = &all[started % CONNECTIONS];
    char fields[200];
    int size = snprintf(fields, sizeof fields, "version=1%cjob=sub-%d-%ld%ccwd=/%ccommand=g++%cbuild=bench%c", 0, (int)getpid(), started, 0, 0, 0, 0);
    due_at[started++] = due;
    say(p, "SUBMIT", fields, size, false);
}

static void connected_one(struct peer *p)
{
    (void)p;
    connected++;
}

static void answer(struct peer *p, struct bytes verb, struct bytes fields)
{
    static const char argv[] = "g++\0-O2\0-c\0source.cpp\0-o\0source.o";
    const char *job = field(fields, "job");
    char text[300];
    if (is_verb(verb, "OFFER")) {
        int size = snprintf(text, sizeof text, "job=%s%cstamp=%s%cumask=022%cgid=%d%cstdin=null%cstdout=stream%cstderr=stream%c", job, 0,
                            field(fields, "stamp"), 0, 0, (int)getgid(), 0, 0, 0, 0);
        say(p, "GO", text, size, true);
        put_frame(p, MORE, argv, sizeof argv);
        put_frame(p, 0, environment, environment_size);
    } else if (is_verb(verb, "RESULT")) {
        took[done++] = seconds() - due_at[atol(strrchr(job, '-') + 1)];
        say(p, "ACK", text, snprintf(text, sizeof text, "job=%s%c", job, 0), false);
    } else if (!is_verb(verb, "QUEUED")) {
        surprise(verb, fields);
    }
}

static void turn(int milliseconds)
{
    struct epoll_event events[MAX_EVENTS];
    for (int i = 0; i < CONNECTIONS; i++)
        flush(&all[i]);
    int count = epoll_wait(poller, events, MAX_EVENTS, milliseconds);
    for (int i = 0; i < count; i++)
        readable(events[i].data.ptr, connected_one, answer);
}

static int by_size(const void *one, const void *other)
{
    double a = *(const double *)one, b = *(const double *)other;
    return (a > b) - (a < b);
}

int main(int argc, char **argv)
{
    if (argc != 6 || atol(argv[4]) < 1 || atol(argv[4]) > MAX_JOBS) {
        fprintf(stderr, "usage: submitter flood|paced HOST PORT JOBS UNDER_WAY|RATE, at most %d jobs\n", MAX_JOBS);
        return 2;
    }
    bool is_paced = !strcmp(argv[1], "paced");
    long jobs = atol(argv[4]);
    double pace = atof(argv[5]);
    read_environment();
    connect_to(argv[2], argv[3]);
    for (int i = 0; i < CONNECTIONS; i++)
        open_peer(&all[i]);
    while (connected < CONNECTIONS)
        turn(1000);
    double from = seconds();
    while (done < jobs) {
        if (is_paced)
            for (double due = from + (double)started / pace; started < jobs && due <= seconds(); due = from + (double)started / pace)
                submit(due);
        else
            while (started < jobs && started - done < (long)pace)
                submit(seconds());
        turn(is_paced ? 1 : 1000);
    }
    double took_all = seconds() - from;
    qsort(took, (size_t)jobs, sizeof *took, by_size);
    printf("%.1f %.3f %.3f\n", (double)jobs / took_all, took[jobs / 2] * 1e3, took[jobs * 99 / 100] * 1e3);
    return 0;
}
