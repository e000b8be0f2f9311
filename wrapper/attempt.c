/* Offsets, credit and signals of one attempt; see attempt.h.
 *
 * What attempts printed is compared by a running hash, so that nothing of it is kept. It is there to
 * notice a command that does not print the same twice, not to resist an agent that lies, which could print what it likes anyway. */
#include "wrapper/attempt.h"

#include <string.h>
#include <time.h>

#include "protocol/hash.h"

enum { CREDIT_STEP = DWRAP_INITIAL_OUTPUT_CREDIT / 2 }; /* credit is renewed in pieces of this size */

static void begin(struct attempt *a, const struct message *offer)
{
    const char *epoch = fields_get(offer->fields, "epoch");
    a->number = fields_number(offer->fields, "attempt", 0);
    snprintf(a->epoch, sizeof a->epoch, "%s", epoch ? epoch : "");
    a->attaching = false;
    a->passed_before = a->passed;
    a->in.limit = 0;
    for (int i = 0; i < 2; i++) {
        struct output *o = &a->out[i];
        o->heard = 0;
        o->heard_hash = HASH_START;
        o->limit = DWRAP_INITIAL_OUTPUT_CREDIT;
        o->closed = false;
    }
}

void attempt_start(struct attempt *a, struct link *l, struct job *job, const struct message *offer)
{
    const struct stream *streams = job->streams;
    bool joined = streams_same(&streams[1], &streams[2]);
    a->link = l;
    a->job = job;
    a->passed = 0;
    a->touched = a->clogged = false;
    a->stamp[0] = 0;
    source_start(&a->in, &streams[0]);
    for (int i = 0; i < 2; i++) {
        enum stream_kind kind = streams[1 + i].kind;
        sink_start(&a->out[i].sink, &streams[1 + i]);
        a->out[i].name = i ? "stderr" : "stdout";
        a->out[i].expected = kind != STREAM_CLOSED && kind != STREAM_NULL && !(i && joined);
        a->out[i].printed_hash = HASH_START;
    }
    begin(a, offer);
    a->go_ms = boot_ms();
}

const char *attempt_restart(struct attempt *a, const struct message *offer)
{
    if (a->touched)
        return "a signal had been passed on to it";
    if (!source_rewind(&a->in, 0))
        return "its input cannot be given again";
    begin(a, offer);
    return NULL;
}

/* Queues a message about this job, where there is a connection: what counts of it is said again after ATTACH. */
static void tell(struct attempt *a, const char *verb, const struct fields_out *fields, const void *data, size_t length)
{
    if (a->link->fd >= 0 && !link_queue(a->link, verb, fields, data, length))
        a->clogged = true;
}

static struct fields_out about(const struct attempt *a, char *buffer, size_t size)
{
    struct fields_out fields = fields_into(buffer, size);
    fields_add(&fields, "job", a->job->id);
    return fields;
}

static bool is_repeating(const struct output *o)
{
    return o->heard < o->sink.received;
}

/* Credit counts from what needs not be sent again: written here, and come from this attempt. */
static void send_credit(struct attempt *a, struct output *o)
{
    char buffer[160];
    uint64_t done = o->heard < o->sink.written ? o->heard : o->sink.written, limit = done + DWRAP_INITIAL_OUTPUT_CREDIT;
    if (limit < o->limit + CREDIT_STEP || o->sink.broken)
        return;
    struct fields_out fields = about(a, buffer, sizeof buffer);
    fields_add(&fields, "stream", o->name);
    fields_addf(&fields, "limit", "%llu", (unsigned long long)limit);
    tell(a, "CREDIT", &fields, NULL, 0);
    o->limit = limit;
}

static void send_close(struct attempt *a, struct output *o)
{
    char buffer[160];
    if (!o->sink.broken || o->closed)
        return;
    struct fields_out fields = about(a, buffer, sizeof buffer);
    fields_add(&fields, "stream", o->name);
    tell(a, "CLOSE", &fields, NULL, 0);
    o->closed = true;
}

void attempt_started(struct attempt *a)
{
    a->go_ms = boot_ms();
    for (int i = 0; i < 2; i++)
        send_close(a, &a->out[i]);
}

/* Takes what an earlier attempt has printed already. False when it is something else. */
static bool take_repeated(struct output *o, const char **data, size_t *length)
{
    uint64_t left = o->sink.received - o->heard;
    size_t piece = left < *length ? (size_t)left : *length;
    o->heard_hash = hash_on(o->heard_hash, *data, piece);
    o->heard += piece;
    *data += piece;
    *length -= piece;
    return is_repeating(o) || o->sink.broken || o->heard_hash == o->printed_hash;
}

static enum taken take_piece(struct output *o, const char *data, size_t length)
{
    if (is_repeating(o) && !take_repeated(o, &data, &length))
        return TAKEN_DIFFERS;
    if (length == 0)
        return TAKEN;
    if (!sink_take(&o->sink, o->heard, data, length))
        return TAKEN_WRONG;
    o->heard += length;
    o->heard_hash = o->printed_hash = hash_on(o->heard_hash, data, length);
    return TAKEN;
}

static struct output *output_named(struct attempt *a, const char *name)
{
    for (int i = 0; i < 2; i++)
        if (name && strcmp(name, a->out[i].name) == 0)
            return &a->out[i];
    return NULL;
}

enum taken attempt_take_output(struct attempt *a, const struct message *m)
{
    struct output *o = output_named(a, fields_get(m->fields, "stream"));
    uint64_t offset;
    if (!o || !field_number(fields_get(m->fields, "offset"), &offset))
        return TAKEN_WRONG;
    if (offset > o->heard) /* what the agent said before it knew that a piece was lost: it says all of it again */
        return a->attaching ? TAKEN : TAKEN_WRONG;
    uint64_t known = o->heard - offset;
    if (known >= m->data_length)
        return TAKEN; /* said again */
    enum taken taken = take_piece(o, m->data + known, m->data_length - (size_t)known);
    send_credit(a, o);
    send_close(a, o);
    return taken;
}

bool attempt_take_credit(struct attempt *a, const struct message *m)
{
    uint64_t limit = fields_number(m->fields, "limit", 0), received;
    if (limit > a->in.limit)
        a->in.limit = limit;
    if (!a->attaching || !field_number(fields_get(m->fields, "received"), &received))
        return true;
    a->attaching = false;
    return source_rewind(&a->in, received);
}

bool attempt_is_incomplete(const struct attempt *a, const struct message *result)
{
    static const char *const fields[2] = { "stdout_bytes", "stderr_bytes" };
    for (int i = 0; i < 2; i++)
        if (a->out[i].expected && !a->out[i].sink.broken && fields_number(result->fields, fields[i], 0) > a->out[i].heard)
            return true;
    return false;
}

bool attempt_fell_short(const struct attempt *a)
{
    for (int i = 0; i < 2; i++)
        if (is_repeating(&a->out[i]) && !a->out[i].sink.broken)
            return true;
    return false;
}

bool attempt_is_untouched(const struct attempt *a)
{
    return !a->touched && a->out[0].sink.received == 0 && a->out[1].sink.received == 0 && source_is_whole(&a->in);
}

void attempt_write(struct attempt *a, int stream)
{
    sink_write(&a->out[stream].sink);
    send_credit(a, &a->out[stream]);
    send_close(a, &a->out[stream]);
}

void attempt_send_input(struct attempt *a)
{
    static char data[DWRAP_MAX_DATA_BYTES];
    char buffer[160];
    uint64_t offset = a->in.sent;
    size_t length = source_read(&a->in, data, sizeof data);
    bool end = length == 0 && a->in.ended && a->in.sent == a->in.known;
    if (length == 0 && !end)
        return;
    struct fields_out fields = about(a, buffer, sizeof buffer);
    fields_addf(&fields, "offset", "%llu", (unsigned long long)offset);
    if (end)
        fields_add(&fields, "eof", "1");
    a->in.told = end;
    tell(a, "INPUT", &fields, data, length);
}

static void send_signal(struct attempt *a, uint64_t seq)
{
    char buffer[160];
    struct fields_out fields = about(a, buffer, sizeof buffer);
    fields_addf(&fields, "signal", "%d", a->signals[seq % PASSED_KEPT]);
    fields_addf(&fields, "seq", "%llu", (unsigned long long)seq);
    tell(a, "SIGNAL", &fields, NULL, 0);
}

void attempt_pass_signal(struct attempt *a, int number)
{
    a->touched |= number == SIGUSR1 || number == SIGUSR2; /* stops and window sizes leave nothing */
    a->passed++;
    a->signals[a->passed % PASSED_KEPT] = number;
    send_signal(a, a->passed);
}

void attempt_detach(struct attempt *a)
{
    a->attaching = a->in.held = true;
    a->clogged = false;
    a->stamp[0] = 0;
}

static void add_progress(const struct attempt *a, struct fields_out *fields)
{
    fields_addf(fields, "attempt", "%llu", (unsigned long long)a->number);
    if (a->epoch[0])
        fields_add(fields, "epoch", a->epoch);
    fields_addf(fields, "go_ms", "%lld", (long long)(boot_ms() - a->go_ms));
    for (int i = 0; i < 2; i++) {
        char limit[16];
        snprintf(limit, sizeof limit, "%s_limit", a->out[i].name);
        fields_addf(fields, a->out[i].name, "%llu", (unsigned long long)a->out[i].heard);
        fields_addf(fields, limit, "%llu", (unsigned long long)a->out[i].limit);
    }
    if (a->stamp[0])
        fields_add(fields, "stamp", a->stamp);
}

void attempt_attach(struct attempt *a)
{
    struct fields_out fields = submit_fields(a->job);
    a->attaching = a->in.held = true;
    add_progress(a, &fields);
    tell(a, "ATTACH", &fields, NULL, 0);
    for (int i = 0; i < 2; i++) {
        a->out[i].closed = false;
        send_close(a, &a->out[i]);
    }
    uint64_t first = a->passed > a->passed_before + PASSED_KEPT ? a->passed - PASSED_KEPT : a->passed_before;
    for (uint64_t seq = first + 1; seq <= a->passed; seq++)
        send_signal(a, seq);
}

void attempt_acknowledge(struct attempt *a)
{
    char buffer[160];
    struct fields_out fields = about(a, buffer, sizeof buffer);
    tell(a, "ACK", &fields, NULL, 0);
}
