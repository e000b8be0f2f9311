/* What the wrapper says to the distributor: SUBMIT and GO, built from this process and its settings. */
#ifndef DWRAP_TALK_H
#define DWRAP_TALK_H

#include <limits.h>
#include <signal.h>

#include "wrapper/link.h"
#include "wrapper/options.h"
#include "wrapper/streams.h"

enum { JOB_ID_BYTES = 33, STAMP_BYTES = 65, GO_FIELDS_BYTES = 128 * 1024, ATTACH_BYTES = 512, SEEN_BYTES = 64 * 1024, BUILD_BYTES = 256 };

struct job {
    const struct settings *settings;
    const struct stream *streams; /* three */
    const char *name;             /* the command's, for people */
    const char *cwd;
    char id[JOB_ID_BYTES];
    char build[BUILD_BYTES];
    bool stdin_seekable;
    unsigned traits; /* of the working directory's file system (coherence/look.h) */

    /* SUBMIT's fields but for job. ATTACH, which must say the same, adds its own. */
    char submit[DWRAP_MAX_FIELDS_BYTES];
    size_t submit_length;

    /* GO's fields but for job and stamp, gathered while the distributor looks for a slot. */
    char go[GO_FIELDS_BYTES];
    size_t go_length;

    /* GO's third body, empty unless an OFFER asked for it. */
    char seen[SEEN_BYTES];
    size_t seen_length;
    bool seen_known;

    int64_t first_go_ms; /* when its first GO was about to be sent, on the clock that counts suspend: nothing of it is older */
};

/* A new id: each SUBMIT is a job of its own, because a distributor may not have noticed yet that the last one left. */
void job_name(struct job *job);

void job_start(struct job *job, const struct settings *settings, const struct stream streams[3], const char *cwd);

/* Gathers what SUBMIT says. Returns why the command must run here instead, or NULL. */
const char *submit_prepare(struct job *job);

/* SUBMIT's fields, with room for ATTACH_BYTES more. They lie in `job`. */
struct fields_out submit_fields(struct job *job);

/* Gathers what GO says about this process. Returns why the command must run here instead, or NULL. */
const char *go_prepare(struct job *job);

/* Before GO, when the OFFER says `views=1`: looks at what the command names, and queues what changed here in the directories that its
 * build reads from. */
void views_prepare(struct job *job, struct link *l);

/* Sends GO with this stamp. `mask` is the signal mask while it has to wait: until the last byte has gone, a signal ends
 * us as it always did, and a GO that is not whole is none. */
enum link_status go_send(struct link *l, const struct job *job, const char *stamp, const sigset_t *mask);

#endif
