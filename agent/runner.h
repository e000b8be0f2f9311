/* The runner: one process per job, which it serves for the agent (runner.py) over descriptor 3.
 *
 * Knows how to hold one command: its identity, streams, process tree, outputs, and until when it may. Does not know the network,
 * the distributor, or any other job.
 *
 * The agent starts the program once: the starter (starter.c), which forks a runner for each packet of one byte that brings two
 * descriptors over its AF_UNIX SOCK_SEQPACKET socket, descriptor 3, and answers with two int32: the runner's pid, or -1 and errno.
 * In the runner descriptor 3 is the first of the two, a socket of the same kind. A packet on it is `struct packet` in host
 * order, then a payload:
 *   agent to runner   INPUT  number=offset, payload=bytes of stdin; no payload: end of file
 *                     CREDIT stream, number=limit      CLOSE stream      SIGNAL number
 *                     KILL (end its tree)
 *                     NOTED number=seq (the distributor knows all that MADE told up to it: the calls that wait for it go on);
 *                           the first has number=0: the agent knows of this runner, which changes nothing before that
 *   runner to agent   OUTPUT stream, number=offset, payload=bytes          CREDIT stream=0, number=limit
 *                     APPLIED (the view agrees with the spec's entries)    MANIFEST payload=entries (all before ENDED)
 *                     MADE number=seq (1, 2, ...), stream=1: it waits for NOTED, payload=a field `path` or `beyond`
 *                     ENDING (it has taken KILL)
 *                     REJECTED payload=reason (nothing was started), number=1 when it is the agent's own trouble
 *                     ENDED payload=the fields of RESULT
 * End of file on it means that the agent is gone: a job that may be run again is killed, another is let finish unheard (relay.c).
 * The other, descriptor 4, is the spec, a memfd: six uint32 lengths, then the agent's fields, the submitter's claims, argv, env,
 * the entries that the submitter saw, the entries that the journal brought.
 *
 * The starter is given two more: descriptor 5, a memfd that holds the end of the agent's lease (lease.c), and descriptor 6, the
 * directory of the records, locked: whoever finds it free knows that no process of this agent's jobs lives. */
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
#define LEASE_FD 5
#define RUNS_FD 6 /* held, never used: the lock lives as long as the last process that has it */
#define MAX_PACKET_BYTES (16 + 32 * 1024)
#define MAX_REASON 512

enum packet_kind { PACKET_INPUT = 1, PACKET_CREDIT, PACKET_CLOSE, PACKET_SIGNAL, PACKET_KILL, PACKET_OUTPUT, PACKET_REJECTED, PACKET_ENDED,
                   PACKET_APPLIED, PACKET_MANIFEST, PACKET_MADE, PACKET_NOTED, PACKET_ENDING };

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
    const char *run; /* the file for the result; "": none */
    uint64_t oom;    /* how often the kernel had killed for want of memory before */
    bool memory_retry; /* if it is killed for want of memory, that is no result yet */
    uid_t uid;
    gid_t gid, *groups;
    size_t group_count;
    const char *groups_dropped; /* those that were claimed and are not had, for the report; or NULL */
    uint64_t processes; /* how many its user may have, all jobs together; 0: as many as the agent's */
    uint64_t spares;    /* how many of each kind may be set aside */
    bool become;       /* take on uid, gid and groups */
    bool has_gid, spoilt; /* checked by spec_read */
    bool namespaces;   /* hold the tree in a PID namespace; else by reaping */
    bool views;        /* record what the command writes; make this host's view agree with the entries first */
    bool refresh;      /* and with the server, whatever is cached near the job */
    bool unheard;      /* start it without a recorder: it has one of its own */
    bool probed;       /* no job: nobody listens at all */
    const char **roots, **paths, **undo;
    size_t root_count, path_count, undo_count;
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

enum stage { STAGE_SETUP = 1, STAGE_CWD, STAGE_EXEC, STAGE_HEARD /* no failure: with it comes the listener, or why there is none */ };

struct failure {
    int stage, error;
    char what[32];
};

/* Becomes the command; on failure writes a struct failure to report_fd and exits. The recorder's listener goes there too; where
 * there is none the command does not begin before command_let_begin. */
_Noreturn void command_become(const struct spec *spec, const int stdio[3], int report_fd);
/* The runner's end of it: the next word, and the descriptor that came with it, or -1. False when there is none. */
bool command_report(int report_fd, struct failure *word, int *listener);
void command_let_begin(int report_fd);

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
/* Kills them, also those that fork without end. */
void reaper_kill_descendants(void);

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
/* Once more, for a command that is started again: what it has not read of stdin is still there. */
bool streams_open_again(struct streams *streams, const struct spec *spec, int command_ends[3]);
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

/* ---- hold.c: output held back for a moment ---- */

enum { HOLD_BYTES = 32 * 1024 };

struct hold {
    bool open;        /* what comes is still held back */
    bool late;        /* only what came after the kernel had killed for want of memory */
    int64_t until_ms; /* 0: nothing has come */
    char *data[3];    /* 1 and 2 are used */
    size_t size[3];   /* held, or on its way out once it is no longer open */
};

void hold_start(struct hold *hold, const struct spec *spec);
void hold_release(struct hold *hold);
/* Holds back what comes from now on, for long enough that a command whose process was killed has ended. False without room. */
bool hold_late(struct hold *hold, int64_t now_ms);
/* The first of it. */
void hold_add(struct hold *hold, int stream, const char *piece, size_t size);
/* As output_read, into it; it opens when it is full. */
ssize_t hold_read(struct hold *hold, struct output *out, int stream, int64_t now_ms);

/* ---- starved.c: the kernel kills for want of memory ---- */

/* In the starter: finds the counters of the agent's control group. In a runner: counts before the start. */
void starved_map(void);
void starved_begin(void);
/* Has it since then? `count`: for the whole machine, as the agent has counted it. */
bool starved_since(uint64_t count);
/* The words for it. */
const char *starved_why(void);

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
/* Waits until the agent knows of this runner. False: it never will, and has told that there is none. */
bool control_await_begin(struct control *control);

/* ---- scratch.c: the job's private TMPDIR ---- */

/* Makes it and sets TMPDIR, unless the job's own lies on the shared tree. The path, "" when none was needed, or NULL with errno. */
const char *scratch_make(struct spec *spec);
void scratch_remove(const struct spec *spec, const char *path);
/* The same directory, empty again. False with errno. */
bool scratch_renew(const struct spec *spec, const char *path);

/* ---- spare.c: what was set aside for when the agent's disk is full ---- */

/* After a call has failed: if there was no room (errno), a spare `kind` ("file", "directory") becomes `to`. Else false, with errno. */
bool spare_take(const struct spec *spec, const char *kind, const char *to);

/* ---- ccache.c ---- */

/* Sets what a ccache on a network file system needs, unless the job does. */
void ccache_settle(struct spec *spec);

/* ---- record.c: what a command did to names ---- */

enum { PATH_ROOM = 4096 };

enum {
    REC_NAME = 1,      /* the name came, went, or names something else */
    REC_DATA = 2,      /* it was opened for writing */
    REC_MADE = 4,      /* made as something that holds no data: a directory, a link */
    REC_WHOLE = 8,     /* emptied or put in place: what is in it now is all of this command's making */
    REC_IN_PLACE = 16, /* changed as it was */
    REC_LOST = 32,     /* removed, or moved away */
    REC_PLACED = 64,   /* something else was moved here */
    REC_TOUCHED = 128, /* its mode, owner or times were changed */
    REC_ABSENT = 256,  /* it was not there before the command first touched it */
};

struct stamp { /* tells a file from another that has its name later */
    uint64_t device, inode;
    int64_t born, changed; /* born 0: the file system does not tell */
};

struct recorded {
    char *path;
    uint32_t hash;
    unsigned flags;
    struct stamp stamp; /* kept by repeat.c */
};

struct record {
    struct recorded *paths; /* in the order of their first mention */
    size_t count, slot_count, text;
    uint32_t *slots;
};

struct recorded *record_find(const struct record *record, const char *path);
/* Adds a path that is not in it. NULL when there is no room. */
struct recorded *record_add(struct record *record, const char *path);
/* Writes the absolute path without "." and doubled slashes. False when it is too long. */
bool path_join(char *out, size_t room, const char *directory, const char *path);
bool path_is_below(const char *path, const char *root);
/* The last name of an absolute path, and its directory. NULL when it has none ("/", "..") */
const char *path_split(const char *path, char above[PATH_ROOM]);
/* Where it leads, links followed. False when nothing is there, or it may not be reached. */
bool path_real(const char *path, char out[PATH_ROOM]);
/* The same path with its directory as the kernel finds it now. */
bool path_settle(const char *path, char out[PATH_ROOM]);

/* ---- leads.c: where the names lead that calls give ---- */

enum leads {
    LEADS_TO,       /* there is a path; whether something is there, too, is another matter */
    LEADS_NOWHERE,  /* to no name, or the call fails */
    LEADS_NAMELESS, /* to a file, or a directory, that has no name any more */
    LEADS_UNCLEAR,  /* nobody can tell */
};

struct place { /* of what a call names */
    pid_t pid;               /* of the process that calls */
    const char *scratch;     /* the private TMPDIR, as it really is */
    char written[PATH_ROOM]; /* absolute */
    bool into;               /* with a slash at its end: then a link there is always followed */
    char path[PATH_ROOM];    /* where that is; on a shared root with the name of that */
    bool private, shared;    /* it is no name of a tree; it is one of the shared tree */
    bool strayed;            /* it is not, but is written like one */
    bool homeless;           /* its directory is not there */
};

/* Where a link goes that a process's directory in /proc holds. With errno where that is unclear. */
enum leads lead_of_process(const char *link, char to[PATH_ROOM]);
/* Is there a ".." in it? */
bool path_climbs(const char *path);
/* Where a path leads for a process. As the user. `follows`: also by a link at its last name. */
enum leads path_lead(pid_t pid, const char *path, bool follows, char out[PATH_ROOM]);
/* Finds the path and what follows. As the user. `follows`: the call goes by a link there. One on the shared tree stays nevertheless. */
enum leads place_find(const struct spec *spec, bool follows, struct place *place);

/* ---- repeat.c: may it be run again? ---- */

/* What of that the agent must know comes as facts, numbered from 1: each name that was made, and at last why it is beyond. */
struct repeat {
    struct record made;
    char beyond[MAX_REASON]; /* why there can be no other attempt; "": there can */
    uint64_t sent, cleared;  /* how many facts were sent; how many were noted, so that their calls go on */
    bool again;              /* what is looked at was looked at before, and is about to go on */
};

uint64_t repeat_facts(const struct repeat *repeat);
/* Writes a fact as a field of MADE. Its size. */
size_t repeat_fact(const struct repeat *repeat, uint64_t number, char out[PATH_ROOM + 8]);
/* Has it, as far as its calls were let go on, only made what was not there? */
bool repeat_is_possible(const struct repeat *repeat);
void repeat_rule_out(struct repeat *repeat, const char *why);
/* A call is about to be let go on that opens this, makes it, changes what is there, takes its name away, gives it the name of `from`
 * (or `exchanges` the two), runs it. */
void repeat_opens(struct repeat *repeat, const struct spec *spec, const struct place *place, uint64_t how);
void repeat_makes(struct repeat *repeat, const struct spec *spec, const struct place *place);
void repeat_changes(struct repeat *repeat, const struct spec *spec, const struct place *place, bool follows);
void repeat_takes(struct repeat *repeat, const struct spec *spec, const struct place *place);
void repeat_places(struct repeat *repeat, const struct spec *spec, const struct place *place, const struct place *from, bool exchanges);
/* Here only what is written, and by whom, is known of the place. */
void repeat_runs(struct repeat *repeat, const struct spec *spec, struct place *place);
/* All is over: finds which names are its own still, where that is not known. */
void repeat_end(struct repeat *repeat, const struct spec *spec);
/* After that: is this one of them? */
bool repeat_has_made(const struct repeat *repeat, size_t number);
/* Is it no name of a tree at all: a device, a process, or in the private TMPDIR? */
bool path_is_private(const char *path, const char *scratch);

/* ---- filter.c: stopping the calls that do so ---- */

/* In the child that becomes the command, last of all: the listener's descriptor, or -1 with errno. */
int filter_install(void);

/* ---- trace.c: hearing what the tree writes ---- */

struct trace {
    int listener;        /* -1: nothing is heard (any more) */
    const char *why;     /* what could not be heard, or NULL */
    const char *scratch; /* the private TMPDIR is nobody else's business */
    bool wants_listener; /* the command asked for a seccomp listener of its own */
    bool acted;          /* it was heard to do something to names that others see */
    bool may_start_over; /* then its call is not answered, for it is killed and started again without ours */
    struct record record; /* with `views` */
    struct repeat repeat;
    bool late;           /* the lease was over before a call went on: none does any more */
    struct waiting *waiting; /* calls that go on once enough facts are cleared */
    size_t waiting_count, waiting_room;
};

void trace_start(struct trace *trace, int listener);
/* Hears one call, and lets it go on unless it has to wait. False when there is nothing left to hear. */
bool trace_hear(struct trace *trace, const struct spec *spec);
/* So many facts are known where they must be: lets go on what waited for them, unless it has become something else meanwhile. */
void trace_clear(struct trace *trace, const struct spec *spec, uint64_t facts);
/* From here on the record is not the whole truth, and the attempt is beyond. */
void trace_doubt(struct trace *trace, const char *why);
void trace_end(struct trace *trace);

/* ---- outputs.c: what the command wrote, made durable and told ---- */

struct outputs {
    const char *word; /* "coherent", "exact" or "approximate" */
    unsigned count;   /* files written */
    int error;        /* errno of a write-back that failed, or 0 */
    char path[256];
    unsigned escaped; /* files left outside of the roots */
    char escaped_path[256];
    char *manifest; /* entries, each whole */
    size_t manifest_size;
};

/* Writes back, as the user, what the record names, and where it is in doubt what was written since `started` (wall clock). */
struct outputs outputs_flush(const struct spec *spec, const struct trace *trace, struct timespec started);
/* The next piece of a manifest: how many of these bytes, ending with an entry, fit in a packet. */
size_t outputs_piece(const char *at, size_t left);

/* ---- revalidate.c: this agent's view of the shared tree ---- */

/* Makes the view agree with what came with the spec. False with a reason: the command must not start here. */
bool revalidate_before(const struct spec *spec, unsigned *stale, char reason[MAX_REASON]);
struct doubt {
    unsigned stale; /* of what the job looks at, what was not as the server has it */
    bool certain;   /* and some of it was so when the job started; else it may have changed since, which is nobody's fault */
};

/* After a failure: was the view to blame? */
struct doubt revalidate_after_failure(const struct spec *spec, struct timespec started, const struct hold *hold);

/* ---- scan.c: what was written, found by time stamps ---- */

struct found {
    void *to;
    void (*file)(void *to, const char *path);
    void (*directory)(void *to, const char *path);
};

/* Looks, as the current user, in the directories that the job names, and below its working directory. */
void scan_job(const struct spec *spec, struct timespec since, const struct found *found);
/* Everything at and below a directory, not following links, at most `most` names. */
void scan_all(const char *directory, unsigned most, const struct found *found);

/* ---- depfile.c: which directories a command read from ---- */

bool depfile_is_named(const char *path);
/* Calls `found` with the directory of each prerequisite, as written; often with the same one in a row. */
void depfile_read(int fd, void *to, void (*found)(void *to, const char *directory));

/* ---- undo.c: what a lost attempt made ---- */

/* Why this attempt may not do anything any more, though it has not begun, or NULL. */
const char *undo_why_not(const struct control *control);
/* Removes it as the user, last to first. False with a reason: the command must not start here. */
bool undo_all(const struct spec *spec, const struct control *control, struct record *record, char reason[MAX_REASON]);

/* ---- lease.c: until when jobs may run ---- */

enum { BEYOND_SECONDS = 300 };

/* In the starter: maps the agent's word, where there is one. */
void lease_map(void);
bool lease_is_kept(void);
bool lease_is_over(void);
/* `may_linger`: BEYOND_SECONDS later. */
bool lease_is_over_for(bool may_linger);
/* Until then, as far as is known now; it may have been renewed meanwhile. */
void lease_sleep(bool may_linger);
/* A descriptor that is readable when it is time to look, or -1 without a lease. */
int lease_timer(void);
/* Is it over? If not, the timer is set to when it would be. */
bool lease_look(int timer, bool may_linger);

/* ---- guard.c: who ends a runner that hangs ---- */

/* Watches the lease for this tree. Its process, or 0: there is no lease, or no room for it; a job does without. */
pid_t guard_start(const struct tree *tree);
/* The job may go on for BEYOND_SECONDS after the lease. To be said before it is let become so. */
void guard_let_linger(void);
void guard_stop(pid_t guard);

/* ---- roots.c ---- */

/* Does it lie on the shared tree? */
bool spec_is_shared(const struct spec *spec, const char *path);
/* The same of a path as the kernel tells it, which is then written with the name of its root. As the user. */
bool spec_name_by_root(const struct spec *spec, char path[PATH_ROOM]);

/* ---- text ---- */

/* A reason is one line, whatever the names in it hold. */
void make_printable(char *text, size_t size);

#endif
