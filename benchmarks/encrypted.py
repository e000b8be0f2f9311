"""What encryption costs: a whole command, and the distributor, each beside the same in clear in interleaved runs.

The wrapper's own CPU is in client_cost.py.
"""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from figures import cpu_seconds, heading, interleaved, median, percentile, row, run
from surroundings import DWRAP, Farm, eventually, scratch

from dwrap.protocol import authorized, keys

PAIRS, ROUNDS = 300, 3
JOBS, UNDER_WAY = 3_000, 32
PROCESSES, AT_ONCE = 400, 4
BUDGET_MS = 8.0
LOAD = Path(__file__).with_name("keyed_load.py")


class Place:
    """A farm whose every part may be reached in clear or with keys."""

    def __init__(self, directory: Path, farm: Farm) -> None:
        self.farm = farm
        self.clear = farm.over("tcp")
        self.keyed = f"tcp://127.0.0.1:{farm.addresses[2].rpartition(':')[2]}"
        self.server = keys.read_pair(directory / "keys", "server").public
        self.folders = {kind: directory / kind for kind in ("client", "agent")}
        for kind, rights in (("client", "submit uid=0"), ("agent", "serve")):
            pair = keys.new_pair()
            keys.write_pair(self.folders[kind], kind, pair)
            keys.pin(self.folders[kind], self.keyed, self.server)
            grant = authorized.parse_line(f"{pair.public} {kind} {rights}")
            assert grant is not None
            authorized.edit(directory / "keys", lambda text, grant=grant: authorized.with_grant(text, grant))
        farm.add_agent("keyed", 4, "--keys", str(self.folders["agent"]), at=self.keyed)

    def environment(self, address: str) -> dict[str, str]:
        """A wrapper's: encrypted all the way, or nowhere."""
        agent = "keyed" if address == self.keyed else "agent-1"
        return self.farm.environment(DWRAP_HOST=address, DWRAP_LABELS=f"agent={agent}", DWRAP_KEYS=str(self.folders["client"]))


def latency(place: Place) -> None:
    """Print the row."""
    keyed, clear = place.environment(place.keyed), place.environment(place.clear)
    ours, other = interleaved(PAIRS, lambda: run([DWRAP, "true"], keyed)[0], lambda: run([DWRAP, "true"], clear)[0])
    local = [run(["/bin/true"], clear)[0] for _ in range(PAIRS)]
    mine, theirs, least = (median(times) * 1000 for times in (ours, other, local))
    more = mine - least
    measured = f"{mine:.2f} ms (p90 {percentile(ours, 0.9) * 1000:.2f}), {more:.2f} more than `true`"
    budget = f"≤ {BUDGET_MS:g} ms more"
    row("`dwrap true`, wall, encrypted to the agent", measured, f"in clear {theirs:.2f} ms", budget, kept=more <= BUDGET_MS)


def costs(place: Place, what: str, load: dict[str, list[str]] | None) -> None:
    """Print the row of the distributor's rate and CPU per job under a load, encrypted beside in clear."""
    pid = place.farm.distributor.pid
    rates: dict[str, list[float]] = {place.keyed: [], place.clear: []}
    used = dict.fromkeys(rates, 0.0)
    count = JOBS if load else PROCESSES
    for _ in range(ROUNDS):
        for address in rates:
            before = cpu_seconds(pid)
            rates[address].append(persistent(load[address]) if load else connections(place, address))
            used[address] += cpu_seconds(pid) - before
    mine, theirs = median(rates[place.keyed]), median(rates[place.clear])
    cost = {address: used[address] / count / ROUNDS * 1000 for address in rates}
    row(
        f"distributor, {what}, encrypted", f"{mine:,.0f} jobs/s, its CPU {cost[place.keyed]:.3f} ms per job",
        f"in clear {theirs:,.0f} jobs/s, its CPU {cost[place.clear]:.3f} ms",
    )  # fmt: skip


def persistent(argv: list[str]) -> float:
    return float(subprocess.run([sys.executable, str(LOAD), *argv], check=True, capture_output=True, text=True).stdout)


def connections(place: Place, address: str) -> float:
    """Real wrappers, a connection and a handshake each."""
    environment = place.environment(address)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        times = [*pool.map(lambda _: run([DWRAP, "true"], environment)[0], range(PROCESSES))]
    return AT_ONCE / (sum(times) / len(times))


def main() -> None:
    """Print the rows."""
    listen = ("tcp://127.0.0.1:0", "tcp://127.0.0.1:0", "tcp://0.0.0.0:0")
    with scratch() as directory, Farm(directory, agents=1, slots=4, listen=listen, more=("--keys", str(directory / "keys"))) as farm:
        place = Place(directory, farm)
        eventually(lambda: run([DWRAP, "true"], place.environment(place.keyed))[0] > 0)
        latency(place)
        costs(place, "a connection per job", None)
        under = [str(JOBS), str(UNDER_WAY)]
        with_keys = [place.keyed, *under, place.server, str(place.folders["client"]), str(place.folders["agent"])]
        costs(place, "persistent connections", {place.keyed: with_keys, place.clear: [place.clear, *under]})


if __name__ == "__main__":
    heading()
    main()
