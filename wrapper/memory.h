/* What wrappers of one user remember for each other: distributors that were silent or alive, names that were resolved, a warning
 * that was given, the directories that a build reads from, what is installed. Small files in $XDG_RUNTIME_DIR/dwrap or /tmp/dwrap-UID, a directory that counts only when it is
 * ours and closed to others. Everything here is a hint: losing it costs time, never a result. */
#ifndef DWRAP_MEMORY_H
#define DWRAP_MEMORY_H

#include <stdbool.h>
#include <stddef.h>

/* Names the directory's parent: $XDG_RUNTIME_DIR or NULL. One that is another user's (sudo may keep it) is none. Call it once, before the rest. */
void memory_at(const char *runtime_dir);

/* Has this address been silent lately? False also for one wrapper every five seconds, which tries it at length. */
bool memory_is_silent(const char *address);
void memory_mark_silent(const char *address);

/* It has answered: forgets it. Costs nothing when it was not remembered. */
void memory_forget_silent(const char *address);

/* Did this address answer some wrapper in the last minute? */
bool memory_is_alive(const char *address);
void memory_mark_alive(const char *address);
void memory_forget_alive(const char *address);

/* The text kept for a name less than a minute ago. */
bool memory_recall_name(const char *name, char *text, size_t size);
void memory_keep_name(const char *name, const char *text, size_t length);

/* What is kept for a build (reads.c), and its replacement. */
size_t memory_recall_reads(const char *build, char *bytes, size_t room);
void memory_keep_reads(const char *build, const char *bytes, size_t length);

/* What a machine with this stamp was found to be (likeness.c). There may be several: containers share /tmp. */
size_t memory_recall_environment(const char *stamp, char *text, size_t room);
void memory_keep_environment(const char *stamp, const char *text, size_t length);

/* Is there a place where anything can be remembered? */
bool memory_is_kept(void);

/* A descriptor that keeps the user's other wrappers from taking the same lock until it is closed; -1: it could not be had soon. */
int memory_lock(void);

/* True once an hour for each `topic` (and each time when nothing can be remembered). */
bool memory_is_time_to_say(const char *topic);

#endif
