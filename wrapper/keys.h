/* What is known of a distributor, and our key pair, as files:
 *
 *     DIRECTORY/client.key           one line `public = HEX` and one `secret = HEX`; ours or root's, and closed to everybody else
 *     DIRECTORY/known_distributors   lines `ADDRESS KEY`, or `ADDRESS uid=N`; the first line of an address counts
 *     /etc/dwrap/known_distributors  the same, read after it
 *
 * Words are separated by blanks; '#' begins a comment, at the start of a line or after a blank. Nobody but root and us may write to the files
 * or to DIRECTORY. It is $DWRAP_KEYS, which then has to be there, else root's /etc/dwrap/keys, else ~/.config/dwrap/keys
 * ($XDG_CONFIG_HOME is honoured). protocol/keys.py reads and writes the same files. Does not know connections. */
#ifndef DWRAP_KEYS_H
#define DWRAP_KEYS_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "wrapper/curve.h"

struct known {
    bool keyed; /* `keys` hold its key and our pair: it is spoken to in no other way */
    struct curve_keys keys;
    bool owned; /* `owner` is trusted to run it on this machine */
    uid_t owner;
};

/* Chooses the directory. Values of the environment, or NULL. Call it once, before the rest. */
void keys_at(const char *directory, const char *config_home, const char *home);

/* What is known of the distributor at this address (as address.text). False: what is known cannot be used, and why. From here to
 * keys_forget, which is due either way, this process leaves no core file if it has read our pair. */
bool keys_find(const char *address, struct known *out, char *why, size_t size);

/* Forgets what is secret; no copy of it may be left elsewhere by then. */
void keys_forget(struct known *known);

/* The user's known_distributors, for messages. */
const char *keys_known_file(void);

#endif
