/* The runner: one process per job, which it serves for the agent (runner.py) over descriptor 3.
 *
 * Knows how to hold one command: its identity, streams, process tree, outputs. Does not know the network, the distributor,
 * leases, or any other job.
 *
 * The agent starts the program once: the starter (starter.c), which forks a runner for each packet of one byte that brings two
 * descriptors over its AF_UNIX SOCK_SEQPACKET socket, descriptor 3, and answers with two int32: the runner's pid, or -1 and errno.
 * In the runner descriptor 3 is the first of the two, a socket of the same kind. A packet on it is `struct packet` in host
 * order, then a payload:
 *   agent to runner   INPUT  number=offset, payload=bytes of stdin; no payload: end of file
 *                     CREDIT stream, number=limit      CLOSE stream      SIGNAL number      KILL
 *   runner to agent   OUTPUT stream, number=offset, payload=bytes          CREDIT stream=0, number=limit
 *                     APPLIED (the view agrees with the spec's entries)    MANIFEST payload=entries (all before ENDED)
 *                     REJECTED payload=reason (nothing was started)        ENDED payload=the fields of RESULT
 * End of file on it means that the agent is gone: the tree is killed and the runner ends.
 * The other, descriptor 4, is the spec, a memfd: six uint32 lengths, then the agent's fields, the submitter's claims, argv, env,
 * the entries that the submitter saw, the entries that the journal brought. */
#ifndef DWRAP_RUNNER_H
#define DWRAP_RUNNER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/types.h>
#include <time.h>

#define CONTROL_FD 3
#define SPEC_FD 4
#define MAX_PACKET_BYTES (16 + 32 * 1024)
#define MAX_REASON 512

enum packet_kind { PACKET_INPUT = 1, PACKET_CREDIT, PACKET_CLOSE, PACKET_SIGNAL, PACKET_KILL, PACKET_OUTPUT, PACKET_REJECTED, PACKET_ENDED,
                   PACKET_APPLIED, PACKET_MANIFEST };

struct packet {
    uint32_t kind;
    uint32_t stream; /* 0 stdin, 1 stdout, 2 stderr */
    uint64_t number;
};

/* ---- starter.c: where runners come from ---- */

/* Serves the agent until it is gone (false); in each runner that is forked meanwhile it returns true. */
bool starter_serve(int fd);

/* ---- spec.c: what is to be run, as whom, and how ---- */

enum stdio_kind { STDIO_NULL, STDIO_CLOSED, STDIO_STREAM, STDIO_TTY, STDIO_SAME };

struct limit {
    int resource;
    struct rlimit value;
};

struct spec {
    /* the agent's own word */
    const char *job, *cwd, *work;
    uid_t uid;
    gid_t gid, *groups;
    size_t group_count;
    bool become;       /* take on uid, gid and groups */
    bool has_gid, spoilt; /* checked by spec_read */
    bool namespaces;   /* hold the tree in a PID namespace; else by reaping */
    bool views;        /* record what the command writes; make this host's view agree with the entries first */
    bool refresh;      /* and with the server, whatever is cached near the job */
    const char **roots, **paths;
    size_t root_count, path_count;
    /* the submitter's claims */
    int umask, nice; /* umask -1: the agent's own */
    bool has_nice, seekable;
    struct limit limits[RLIM_NLIMITS];
    size_t limit_count;
    uint64_t ignored; /* bit n: signal n + 1 is ignored, as in /proc/PID/status */
    enum stdio_kind stdio[3];
    unsigned short rows, columns;
    const char **argv, **envp; /* envp has room for SPEC_ENV_ROOM more */
    size_t env_count;
    const char *seen, *journal; /* entries (protocol/manifest.h) */
    size_t seen_size, journal_size;
};

#define SPEC_ENV_ROOM 8

/* Reads the spec from a descriptor. NULL, or what is wrong with it. */
const char *spec_read(struct spec *spec, int fd);
/* The value of an environment variable of the job, or NULL. */
const char *spec_env(const struct spec *spec, const char *name);
/* Sets a variable of the job; `assignment` ("NAME=value") must stay. */
void spec_set_env(struct spec *spec, const char *assignment);

/* ---- command.c: from a forked child to the command ---- */

enum stage { STAGE_SETUP = 1, STAGE_CWD, STAGE_EXEC };

struct failure {
    int stage, error;
    char what[32];
};

/* Becomes the command; on failure writes a struct failure to report_fd and exits. */
_Noreturn void command_become(const struct spec *spec, const int stdio[3], int report_fd);

/* ---- identity.c: acting as the submitter inside the runner ---- */

/* Takes on the submitter's effective ids (files are then made and removed as the user), and goes back. */
bool identity_assume(const struct spec *spec);
void identity_drop(const struct spec *spec);

/* ---- tree.c: the job's process tree ---- */

struct tree {
    pid_t holder; /* the process that reaps the tree; 0: not started */
    int channel;
};

enum tree_news { TREE_NOTHING, TREE_MAIN_ENDED, TREE_EMPTY, TREE_LOST };

struct news {
    int what, status;
    struct rusage usage;
};

/* Starts the holder and the command. False with errno. */
bool tree_start(struct tree *tree, const struct spec *spec, const int stdio[3], int report_fd);
/* Delivers a signal to the command's process group, or to the whole tree. */
void tree_signal(const struct tree *tree, int signal);
void tree_signal_all(const struct tree *tree, int signal);
/* The next news from the holder; TREE_NOTHING when there is none yet. */
struct news tree_news(struct tree *tree);
/* Waits for the holder to end. */
void tree_wait(struct tree *tree);
/* Whether PID namespaces work here and are cheap: prints the kind of tree to use and its extra cost. */
int tree_probe(void);

/* ---- reaper.c: inside the holder ---- */

/* Signals every descendant of the calling process, found through /proc. */
void reaper_signal_descendants(int signal);

/* ---- streams.c: stdin, stdout, stderr with credit ---- */

struct output {
    int fd; /* -1: closed or ended */
    bool tty;
    uint64_t sent, limit;
};

struct input {
    int write_fd, read_fd; /* read_fd is kept, never read: it tells how much the command took */
    uint64_t received, written, limit;
    size_t window, start, pending;
    bool ended;
    char *buffer;
};

struct streams {
    struct input in;
    struct output out[3]; /* 1 and 2 are used */
};

/* Opens the runner's and the command's ends. False with errno. */
bool streams_open(struct streams *streams, const struct spec *spec, int command_ends[3]);
void streams_close_command_ends(int command_ends[3]);
/* Bytes of stdin from the agent; size 0 is end of file. */
void input_add(struct input *in, uint64_t offset, const char *data, size_t size);
/* Moves what is pending into the pipe. */
void input_push(struct input *in);
/* The credit that may be announced now; equal to in->limit when there is nothing new. */
uint64_t input_credit(const struct input *in);
bool input_wants_room(const struct input *in);
uint64_t input_taken(const struct input *in);
void input_close(struct input *in);
/* Reads a piece of at most the credit. >0 bytes, 0 nothing now, -1 the stream has ended (and is closed). */
ssize_t output_read(struct output *out, char *data, size_t room);
bool output_ready_to_read(const struct output *out);
void output_close(struct output *out);

/* ---- control.c: packets to and from the agent ---- */

struct control {
    int fd;
    size_t stashed; /* a packet that the socket had no room for; nothing else is sent before it */
    char stash[MAX_PACKET_BYTES];
};

/* Sends a packet, or stashes it. Only to be called when nothing is stashed. False: the agent is gone. */
bool control_send(struct control *control, struct packet head, const void *payload, size_t size);
bool control_flush(struct control *control);
/* The size of the packet received, 0 when there is none, -1 when the agent is gone. */
ssize_t control_receive(struct control *control, char *packet, size_t room);

/* ---- scratch.c: the job's private TMPDIR ---- */

/* Makes it and sets TMPDIR, unless the job's own lies on the shared tree. The path, "" when none was needed, or NULL with errno. */
const char *scratch_make(struct spec *spec);
void scratch_remove(const struct spec *spec, const char *path);

/* ---- outputs.c: what the command wrote, made durable ---- */

struct outputs {
    const char *word; /* "coherent" or "approximate" */
    unsigned count;
    int error; /* errno of a write-back that failed, or 0 */
    char path[256];
};

/* Flushes what was written since `started` (wall clock). */
struct outputs outputs_flush(const struct spec *spec, struct timespec started);

#endif
