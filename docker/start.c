/* Starts the interpreter of a daemon with SIGTERM held until the daemon takes it (protocol/service.py: end_when_told).
 *
 * The kernel gives the first process of a container no signal that it has no handler for, and an interpreter is at work for a third of a
 * second before it comes to have one: the signal would be lost, and the engine would wait for as long as a drain may last. One that is
 * blocked is kept. bundle.py writes this program into the first lines of the daemons' scripts, and into this program which PYTHON. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    sigset_t held;
    sigemptyset(&held);
    sigaddset(&held, SIGTERM);
    sigprocmask(SIG_BLOCK, &held, NULL);
    if (argc > 0)
        argv[0] = PYTHON; /* by its name it finds what belongs to it */
    execv(PYTHON, argv);
    fprintf(stderr, "dwrap: cannot start " PYTHON ": %s; make the image anew\n", strerror(errno));
    return 127;
}
