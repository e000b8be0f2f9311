/* One run of a command, as the runner's loop (relay.c) holds it and its report (report.c) tells it. */
#ifndef DWRAP_RUN_H
#define DWRAP_RUN_H

#include "agent/runner.h"

enum phase { RUNNING, GRACE, TERMINATING, KILLING, EMPTY };

struct run {
    struct spec spec;
    struct control control;
    struct streams streams;
    struct tree tree;
    pid_t guard; /* of the tree; 0: none */
    struct trace trace;
    struct hold hold;
    struct failure failure; /* of the start; stage 0: none */
    const char *scratch;
    int report_fd; /* -1: nothing more will come */
    int lease_timer; /* -1: no lease */
    bool held_up;  /* the command is not heard, and has not begun */
    enum phase phase;
    int64_t deadline_ms; /* of the phase; 0: none */
    bool main_ended, orphaned;
    bool told_to_end; /* and has not answered */
    bool emptied;     /* the holder has seen the end of all of its tree */
    const char *lost; /* why it was ended, not by itself and not for its submitter; or NULL */
    bool meddled;    /* a signal, a kill or a closed stream came: it cannot be started again as if nothing had been */
    bool start_over; /* its tree is being killed in order to start it again */
    bool reran;
    bool starved;    /* the kernel has killed since its start, and what it says since then is held back, or was told */
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
    char text[MAX_PACKET_BYTES - sizeof(struct packet)];
};

/* ---- relay.c ---- */

int64_t now_ms(void);
/* From the start of the command until its tree is empty and its output is delivered, or held back. */
void relay(struct run *run);
/* Nobody has seen anything of the command, and it has taken nothing: it can be started again. */
bool is_untouched(const struct run *run);
/* Waits until what has no room in the socket is on its way. */
void send_stashed(struct control *control);
/* What was held back goes out before anything else is told, or is not told at all. */
void deliver_held(struct run *run);
void drop_held(struct run *run);

/* ---- runfile.c: what outlives the agent ---- */

enum { RUNFILE_BYTES = 64 * 1024 }; /* for the longest report, and the entries of all but the largest jobs */

/* Says that the attempt is started from here on. False with errno. */
bool runfile_begin(const struct spec *spec);
/* Leaves the result where the agent after this one finds it. */
void runfile_write(const struct spec *spec, const struct report *report, const struct outputs *outputs);
void runfile_remove(const struct spec *spec);

/* ---- report.c ---- */

/* Writes the fields of RESULT. */
void report_write(struct report *report, struct run *run, const struct outputs *outputs, int64_t flush_ms);

#endif
