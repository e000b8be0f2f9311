# dwrap: `make demo` runs the main job, `make test` passes the tests; both set up what they need first.
PYTHON ?= python3
VENV   ?= .venv
CC     ?= cc
CFLAGS ?= -O2 -g
WARN   := -std=c11 -D_GNU_SOURCE -Wall -Wextra -Werror -Wshadow -Wvla -Wstrict-prototypes -Wmissing-prototypes
HARDEN := -fstack-protector-strong -D_FORTIFY_SOURCE=2
# Static where the C library allows it: a dynamic start costs more CPU than the whole exchange.
STATIC := $(shell printf 'int main(void){return 0;}' | $(CC) -static -x c - -o /dev/null 2>/dev/null && echo -static)

WRAPPER := $(wildcard wrapper/*.c)
RUNNER  := $(wildcard agent/*.c)
HEADERS := $(wildcard wrapper/*.h agent/*.h protocol/*.h protocol/*.def)

.PHONY: programs
programs: build/bin/dwrap build/bin/dwrap-runner

build/bin/dwrap: $(WRAPPER) $(HEADERS)
	@mkdir -p $(@D)
	$(CC) $(WARN) $(HARDEN) $(CFLAGS) $(STATIC) -I. $(WRAPPER) -o $@ $(LDFLAGS)

build/bin/dwrap-runner: $(RUNNER) $(HEADERS)
	@mkdir -p $(@D)
	$(CC) $(WARN) $(HARDEN) $(CFLAGS) $(STATIC) -I. $(RUNNER) -o $@ $(LDFLAGS)
