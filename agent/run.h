/* One run of a command, as the runner's loop (main.c) holds it and its report (report.c) tells it. */
#ifndef DWRAP_RUN_H
#define DWRAP_RUN_H

#include "agent/runner.h"

enum phase { RUNNING, GRACE, TERMINATING, KILLING, EMPTY };

struct run {
    struct spec spec;
    struct control control;
    struct streams streams;
    struct tree tree;
    struct trace trace;
    struct hold hold;
    struct failure failure; /* of the start; stage 0: none */
    const char *scratch;
    int report_fd; /* -1: nothing more will come */
    enum phase phase;
    int64_t deadline_ms; /* of the phase; 0: none */
    bool main_ended, orphaned;
    bool meddled;    /* a signal, a kill or a closed stream came: it cannot be started again as if nothing had been */
    bool start_over; /* its tree is being killed in order to start it again */
    bool reran;
    bool wrong;      /* it failed while the view was stale, and cannot be run again here */
    unsigned stale;
    const char *note; /* on the record, or NULL */
    int64_t revalidate_ms;
    int status;
    struct rusage usage;
    struct timespec started;
    int64_t started_ms, ended_ms;
};

struct report {
    size_t size;
    char text[4096];
};

/* Writes the fields of RESULT. */
void report_write(struct report *report, struct run *run, const struct outputs *outputs, int64_t flush_ms);

#endif
