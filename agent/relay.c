/* The runner's loop: relays the command's streams, hears what it does, tells the agent, keeps the time limits, ends its tree.
 * Knows packets, phases and limits; does not know what comes before the command or after its tree (main.c).
 *
 * What the distributor must know of the command it has noted before the call that makes it true goes on. When the lease is over, or
 * the agent is gone, a job that may be run again ends at once. Another is let finish, so that no file of its user's is left
 * half-written: nobody hears it any more, and BEYOND_SECONDS after the lease it ends too. */
#include "agent/run.h"

#include <poll.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#define GRACE_MS 1000     /* for what the command left running, before SIGTERM */
#define TERMINATE_MS 500  /* and from there to SIGKILL */

int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void enter(struct run *run, enum phase phase)
{
    run->phase = phase;
    run->deadline_ms = phase == GRACE ? now_ms() + GRACE_MS : phase == TERMINATING ? now_ms() + TERMINATE_MS : 0;
    if (phase == TERMINATING) {
        tree_signal_all(&run->tree, SIGTERM);
        tree_signal_all(&run->tree, SIGCONT);
    }
    if (phase == KILLING)
        tree_signal_all(&run->tree, SIGKILL);
    if (phase == KILLING || phase == EMPTY) { /* the runner does not hang, nor will it */
        guard_stop(run->guard);
        run->guard = 0;
    }
}

static bool is_over(const struct run *run) { return run->phase == EMPTY && run->streams.out[1].fd < 0 && run->streams.out[2].fd < 0; }

/* Ends it, at once, for a reason of the agent's; nobody waits for its output any more. Its own status counts only when all of its output
 * is on its way. */
static void lose(struct run *run, const char *why)
{
    if (!is_over(run) && !run->lost)
        run->lost = why;
    run->meddled = true;
    hold_release(&run->hold);
    output_close(&run->streams.out[1]);
    output_close(&run->streams.out[2]);
    input_close(&run->streams.in);
    if (run->phase != EMPTY)
        enter(run, KILLING);
}

/* Nobody hears it or gives it anything any more. */
static void let_finish(struct run *run)
{
    run->meddled = true;
    hold_release(&run->hold);
    run->control.stashed = 0;
    run->streams.in.ended = true;
    for (int stream = 1; stream <= 2; stream++) {
        run->hold.size[stream] = 0;
        run->streams.out[stream].limit = UINT64_MAX;
    }
}

static void lose_agent(struct run *run)
{
    run->orphaned = true;
    if (repeat_is_possible(&run->trace.repeat))
        lose(run, "the agent that ran it has died");
    else
        let_finish(run);
}

static void end_lease(struct run *run)
{
    if (run->lease_timer >= 0)
        close(run->lease_timer);
    run->lease_timer = -1;
    lose(run, "the agent's lease was over: it had not heard from the distributor");
}

static void keep_lease(struct run *run)
{
    if (run->lease_timer >= 0 && lease_look(run->lease_timer, !repeat_is_possible(&run->trace.repeat)))
        end_lease(run);
}

/* A call was left unanswered: whatever the lease is by now, it goes on no more. */
static void heed_lateness(struct run *run)
{
    if (run->trace.late && !run->lost)
        end_lease(run);
}

/* So many facts are known where they must be. What may be run again elsewhere by now does nothing more here. */
static void clear_facts(struct run *run, uint64_t facts)
{
    struct repeat *repeat = &run->trace.repeat;
    if (facts > repeat->sent || run->lost)
        return;
    run->trace.late |= repeat_is_possible(repeat) && lease_is_over();
    if (!run->trace.late && repeat->beyond[0] && facts == repeat_facts(repeat))
        guard_let_linger();
    if (!run->trace.late)
        trace_clear(&run->trace, &run->spec, facts);
    heed_lateness(run);
}

/* A command that is not heard begins once that is known. */
static void let_begin(struct run *run)
{
    if (!run->held_up || run->trace.repeat.cleared < repeat_facts(&run->trace.repeat))
        return;
    command_let_begin(run->report_fd);
    run->held_up = false;
}

static void send_facts(struct run *run)
{
    struct repeat *repeat = &run->trace.repeat;
    char field[PATH_ROOM + 8];
    while (repeat->sent < repeat_facts(repeat) && !run->control.stashed && !run->orphaned) {
        size_t size = repeat_fact(repeat, ++repeat->sent, field);
        if (!control_send(&run->control, (struct packet){PACKET_MADE, 1, repeat->sent}, field, size))
            lose_agent(run);
    }
}

static void take_kill(struct run *run)
{
    lose(run, "the agent ended it");
    run->told_to_end = true;
}

/* Whom the agent does not hear say so, it kills. */
static void answer_kill(struct run *run)
{
    if (!run->told_to_end || run->control.stashed || run->orphaned)
        return;
    run->told_to_end = false;
    if (!control_send(&run->control, (struct packet){PACKET_ENDING, 0, 0}, NULL, 0))
        lose_agent(run);
}

static void close_stream(struct run *run, uint32_t stream)
{
    run->meddled = true;
    if (stream == 0)
        input_close(&run->streams.in);
    else
        output_close(&run->streams.out[stream]);
}

static void pass_signal(struct run *run, int number)
{
    run->meddled |= number != SIGWINCH && number != SIGCONT; /* which leave nothing behind */
    tree_signal(&run->tree, number);
}

static void take_packet(struct run *run, const struct packet *packet, const char *payload, size_t size)
{
    struct output *out = packet->stream == 1 || packet->stream == 2 ? &run->streams.out[packet->stream] : NULL;
    if (packet->kind == PACKET_INPUT)
        input_add(&run->streams.in, packet->number, payload, size);
    else if (packet->kind == PACKET_CREDIT && out && packet->number > out->limit)
        out->limit = packet->number;
    else if (packet->kind == PACKET_CLOSE && packet->stream <= 2)
        close_stream(run, packet->stream);
    else if (packet->kind == PACKET_SIGNAL && packet->number >= 1 && packet->number <= 64)
        pass_signal(run, (int)packet->number);
    else if (packet->kind == PACKET_NOTED)
        clear_facts(run, packet->number);
    else if (packet->kind == PACKET_KILL)
        take_kill(run);
}

static void take_packets(struct run *run)
{
    static char buffer[MAX_PACKET_BYTES] __attribute__((aligned(8)));
    ssize_t size;
    while ((size = control_receive(&run->control, buffer, sizeof buffer)) > 0) {
        struct packet packet;
        memcpy(&packet, buffer, sizeof packet);
        take_packet(run, &packet, buffer + sizeof packet, (size_t)size - sizeof packet);
    }
    if (size < 0)
        lose_agent(run);
}

static void take_news(struct run *run)
{
    for (struct news news = tree_news(&run->tree); run->phase != EMPTY && news.what != TREE_NOTHING; news = tree_news(&run->tree)) {
        if (news.what == TREE_MAIN_ENDED) {
            run->main_ended = true;
            run->status = news.status;
            run->ended_ms = now_ms();
            if (run->status == 0)
                hold_release(&run->hold);
            if (run->phase == RUNNING)
                enter(run, GRACE);
        } else {
            run->emptied = news.what == TREE_EMPTY;
            if (run->emptied)
                run->usage = news.usage;
            enter(run, EMPTY);
        }
    }
}

static void send_credit(struct run *run)
{
    struct input *in = &run->streams.in;
    uint64_t limit = input_credit(in);
    if (limit == in->limit || run->control.stashed || run->orphaned)
        return;
    in->limit = limit;
    if (!control_send(&run->control, (struct packet){PACKET_CREDIT, 0, limit}, NULL, 0))
        lose_agent(run);
}

bool is_untouched(const struct run *run)
{
    const struct output *out = run->streams.out;
    bool unheard = (run->hold.open && !run->hold.late) || (out[1].sent == 0 && out[2].sent == 0);
    return unheard && !run->meddled && !run->orphaned && input_taken(&run->streams.in) == 0;
}

/* Sends what was held back, once it is no longer. */
static void send_held(struct run *run)
{
    for (uint32_t stream = 1; stream <= 2 && !run->hold.open; stream++) {
        size_t size = run->hold.size[stream];
        if (size == 0 || run->control.stashed)
            continue;
        run->hold.size[stream] = 0;
        struct packet head = {PACKET_OUTPUT, stream, run->streams.out[stream].sent - size};
        if (!control_send(&run->control, head, run->hold.data[stream], size))
            lose_agent(run);
    }
}

static bool may_read_output(const struct run *run, uint32_t stream)
{
    if (!output_ready_to_read(&run->streams.out[stream]))
        return false;
    return run->hold.open || (!run->control.stashed && run->hold.size[stream] == 0);
}

/* Is what the command says from here on not to be told, because it may have been killed? Asked once for each piece, after it was
 * read: a process that is killed is counted before anybody can say so. */
static bool begins_to_starve(struct run *run)
{
    if (!run->spec.memory_retry || run->starved || !repeat_is_possible(&run->trace.repeat) || !starved_since(run->spec.oom))
        return false;
    run->starved = true;
    return true;
}

static ssize_t relay_piece(struct run *run, uint32_t stream)
{
    static char piece[MAX_PACKET_BYTES - sizeof(struct packet)];
    struct output *out = &run->streams.out[stream];
    uint64_t offset = out->sent;
    ssize_t size = output_read(out, piece, sizeof piece);
    if (size > 0 && !out->tty && begins_to_starve(run) && hold_late(&run->hold, now_ms()))
        hold_add(&run->hold, (int)stream, piece, (size_t)size);
    else if (size > 0 && !run->orphaned && !control_send(&run->control, (struct packet){PACKET_OUTPUT, stream, offset}, piece, (size_t)size))
        lose_agent(run);
    return size;
}

/* Passes on, or holds back, one piece. False when there is nothing to read, or no room to send. */
static bool relay_output(struct run *run, uint32_t stream)
{
    struct output *out = &run->streams.out[stream];
    if (!may_read_output(run, stream))
        return false;
    ssize_t size = run->hold.open ? hold_read(&run->hold, out, (int)stream, now_ms()) : relay_piece(run, stream);
    if (size == 0 && run->phase == EMPTY)
        output_close(out); /* whoever else holds the other end is no part of this job */
    return size > 0;
}

/* When held output is let go; 0: not by time. A command that has failed already may yet be run again. */
static int64_t hold_deadline(const struct run *run) { return run->hold.open && !run->main_ended ? run->hold.until_ms : 0; }

static void keep_time(struct run *run)
{
    int64_t hold = hold_deadline(run), now = now_ms();
    if (hold != 0 && now >= hold && !(begins_to_starve(run) && hold_late(&run->hold, now)))
        hold_release(&run->hold);
    if (run->deadline_ms != 0 && now >= run->deadline_ms)
        enter(run, run->phase == GRACE ? TERMINATING : KILLING);
}

/* The command's own word while it starts: how it failed, or how it is heard. */
static void take_reports(struct run *run)
{
    struct failure word;
    int listener;
    while (run->report_fd >= 0 && command_report(run->report_fd, &word, &listener)) {
        if (word.stage != STAGE_HEARD)
            run->failure = word;
        else if (listener >= 0)
            trace_start(&run->trace, listener);
        else
            run->held_up = true;
        if (run->held_up)
            trace_doubt(&run->trace, "this kernel, or what this agent runs in, refuses seccomp listeners");
    }
}

static void stop_reports(struct run *run)
{
    take_reports(run);
    if (run->report_fd >= 0)
        close(run->report_fd);
    run->report_fd = -1;
}

/* One call of the tree waits. A command that asks for a listener, of which there can be one, gets it in a second start without
 * ours; when it is too late for that the kernel refuses it. */
static void hear(struct run *run)
{
    struct trace *trace = &run->trace;
    trace->may_start_over = is_untouched(run) && !trace->acted && run->phase == RUNNING;
    if (!trace_hear(trace, &run->spec))
        trace_end(trace);
    heed_lateness(run);
    if (!trace->wants_listener || run->spec.unheard)
        return;
    run->note = "it installs a seccomp listener of its own";
    trace->wants_listener = false;
    if (trace->may_start_over) {
        run->start_over = true;
        run->spec.unheard = true;
        trace_doubt(trace, run->note);
        enter(run, KILLING);
    } else {
        run->note = "it asked for a seccomp listener of its own, and was refused one";
    }
}

static int until_deadline(const struct run *run)
{
    int64_t hold = hold_deadline(run), deadline = run->deadline_ms;
    if (hold != 0 && (deadline == 0 || hold < deadline))
        deadline = hold;
    int64_t left = deadline - now_ms();
    return deadline == 0 ? -1 : left < 0 ? 0 : (int)left;
}

static void wait_for_events(struct run *run)
{
    struct streams *s = &run->streams;
    struct pollfd fds[8] = {
        {run->orphaned ? -1 : run->control.fd, (short)(POLLIN | (run->control.stashed ? POLLOUT : 0)), 0},
        {run->phase == EMPTY ? -1 : run->tree.channel, POLLIN, 0},
        {may_read_output(run, 1) ? s->out[1].fd : -1, POLLIN, 0},
        {may_read_output(run, 2) ? s->out[2].fd : -1, POLLIN, 0},
        {(!run->control.stashed || s->in.pending) && input_wants_room(&s->in) ? s->in.write_fd : -1, POLLOUT, 0},
        {run->lost ? -1 : run->trace.listener, POLLIN, 0}, /* what is being killed does nothing more */
        {run->report_fd, POLLIN, 0},
        {run->lost ? -1 : run->lease_timer, POLLIN, 0}};
    poll(fds, 8, until_deadline(run));
    if (fds[7].revents)
        keep_lease(run);
    if (fds[5].revents & POLLIN && !run->lost)
        hear(run);
    else if (fds[5].revents & ~POLLIN)
        trace_end(&run->trace);
    if (fds[6].revents & ~POLLIN) /* whoever could say more is gone; what has been said is still taken */
        stop_reports(run);
    else if (fds[6].revents)
        take_reports(run);
    if (fds[0].revents & POLLOUT && !control_flush(&run->control))
        lose_agent(run);
    if (fds[0].revents & ~POLLOUT)
        take_packets(run);
    for (uint32_t stream = 1; stream <= 2; stream++)
        if (fds[1 + stream].revents)
            relay_output(run, stream);
    if (fds[1].revents)
        take_news(run);
}

void relay(struct run *run)
{
    send_credit(run);
    keep_lease(run);
    while (!is_over(run)) {
        wait_for_events(run);
        answer_kill(run);
        send_facts(run);
        let_begin(run);
        keep_time(run);
        input_push(&run->streams.in);
        send_credit(run);
        send_held(run);
        for (uint32_t stream = 1; stream <= 2; stream++)
            while (run->phase == EMPTY && relay_output(run, stream))
                continue;
        send_held(run); /* what has just been let go: nothing else may come that wakes us */
    }
    tree_wait(&run->tree);
    trace_end(&run->trace);
    stop_reports(run);
}

void send_stashed(struct control *control)
{
    while (control->stashed && control_flush(control)) {
        struct pollfd room = {control->fd, POLLOUT, 0};
        if (control->stashed)
            poll(&room, 1, -1);
    }
}

void drop_held(struct run *run)
{
    for (int stream = 1; stream <= 2; stream++) {
        run->streams.out[stream].sent -= run->hold.size[stream];
        run->hold.size[stream] = 0;
    }
}

void deliver_held(struct run *run)
{
    hold_release(&run->hold);
    for (int stream = 1; stream <= 2; stream++) {
        send_stashed(&run->control);
        send_held(run);
    }
    send_stashed(&run->control);
}

