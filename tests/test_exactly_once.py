"""A distributor frozen at random points of the exchange, and thawed: each command ran exactly once (OFFER and GO, G3).

Every wrapper appends its number to one file. Some freezes are short; some outlast the wrapper's patience before GO, so that it
runs its command here while its messages still lie in the frozen distributor. PROOF_FULL=1 takes 1,000 freezes instead of 40,
FREEZES any number; SEED repeats a run.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

from farm import DWRAP, Farm

FREEZES = int(os.environ.get("FREEZES", 0)) or (1000 if os.environ.get("PROOF_FULL") else 40)
SEED = int(os.environ.get("SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
WRAPPERS_EACH = 3
EXCHANGE_SECONDS = 0.006
LONG_SHARE = 0.2
LONG_SECONDS = (1.4, 2.6)
SHORT_SECONDS = (0.001, 0.06)
END_SECONDS = 60.0


def start(number: int, farm: Farm, directory: Path) -> subprocess.Popen[bytes]:
    """A wrapper whose command appends its number; it may run here."""
    environment = farm.environment(DWRAP_FALLBACK="local", XDG_RUNTIME_DIR=str(directory / "runtime"))
    script = f"echo {number} ${{DWRAP_JOB:-here}} >>counter"
    return subprocess.Popen(
        [DWRAP, "sh", "-c", script], env=environment, cwd=directory,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def freeze(farm: Farm, chance: random.Random, directory: Path, first: int) -> list[subprocess.Popen[bytes]]:
    """Start a few wrappers and freeze the distributor, all at random moments of one exchange; hold it, thaw it."""
    moments = sorted([chance.uniform(0, EXCHANGE_SECONDS) for _ in range(WRAPPERS_EACH)])
    frozen = chance.uniform(0, EXCHANGE_SECONDS * 2)
    began, started, stopped = time.monotonic(), [], 0.0
    for moment in sorted([*moments, frozen]):
        time.sleep(max(0.0, began + moment - time.monotonic()))  # the random point, not a synchronisation
        if moment == frozen:
            farm.distributor.send_signal(signal.SIGSTOP)
            stopped = time.monotonic()
        else:
            started.append(start(first + len(started), farm, directory))
    held = chance.uniform(*(LONG_SECONDS if chance.random() < LONG_SHARE else SHORT_SECONDS))
    time.sleep(max(0.0, stopped + held - time.monotonic()))
    farm.distributor.send_signal(signal.SIGCONT)
    return started


def test_each_command_ran_exactly_once(farm: Farm, tmp_path: Path) -> None:
    print(f"seed {SEED}, {FREEZES} freezes")
    chance = random.Random(SEED)
    (tmp_path / "runtime").mkdir(mode=0o700)
    failed: list[tuple[int, int, bytes]] = []
    for round_number in range(FREEZES):
        first = round_number * WRAPPERS_EACH
        for number, process in enumerate(freeze(farm, chance, tmp_path, first), first):
            stderr = process.communicate(timeout=END_SECONDS)[1]
            if process.returncode or stderr:
                failed.append((number, process.returncode, stderr))
    lines = (tmp_path / "counter").read_text().split("\n")[:-1]
    ran = Counter(int(line.split()[0]) for line in lines)
    here = sum(line.endswith(" here") for line in lines)
    print(f"{len(lines)} commands: {len(lines) - here} on agents, {here} here; failed: {failed}")
    assert {number: times for number, times in ran.items() if times != 1} == {}
    assert sorted(ran) == list(range(FREEZES * WRAPPERS_EACH))
    assert failed == []
    assert 0 < here < len(lines), "both ways must have been taken"
