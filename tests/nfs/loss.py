"""An agent's host that is cut off from the file server and from the distributor in the middle of a job, and comes back, on real NFS.

    python loss.py CASE...      inside the lab (lab.py)

What its processes had written by then lies in its cache, and goes out when it is back, be they dead or not: neither a signal nor a
lease keeps it in. So another attempt may follow only where it makes files of its own. Each case raises AssertionError; see cases.py.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from cases import INFRASTRUCTURE, place, run_cases
from hosts import TREE, USER, Farm, cut_off, eventually, every_host, on

LEASE_SECONDS, GRACE_SECONDS = 10.0, 3.0
STATUS = 7
PIECES, PIECE = 64, 16 * 1024
BELATED_SECONDS = 5.0  # until what was kept back has gone out, and longer
HOW_LONG = 60.0

# Writes the name of its host all over two files, for three seconds: one as it goes, the other through a mapping.
PAUSE = "0.05"
WRITER = f"""
import mmap, os, socket, sys, time
block = socket.gethostname().encode().ljust(16, b".") * {PIECE // 16}
written, mapped = (os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666) for name in ("written", "mapped"))
os.ftruncate(mapped, {PIECES * PIECE})
memory = mmap.mmap(mapped, {PIECES * PIECE})
for piece in range({PIECES}):
    os.write(written, block)
    memory[piece * {PIECE} : (piece + 1) * {PIECE}] = block
    if piece == {PIECES // 4}:
        os.fsync(written)  # clients keep a megabyte back for as long as they like; the rest of it they shall
    time.sleep(float(sys.argv[1]))
print("all is written", flush=True)
sys.exit({STATUS})
"""


def right(host: str) -> bytes:
    """Both files when that host has written them, and nobody else."""
    return host.encode().ljust(16, b".") * (PIECES * PIECE // 16)


def size(file: Path) -> int:
    """0 as long as it is not there."""
    return file.stat().st_size if file.exists() else 0


def holder(farm: Farm) -> str:
    """The agent that has the one job; empty when none has it."""
    jobs = farm.jobs()
    return str(jobs[-1]["agent"] or "") if jobs and jobs[-1]["state"] == "assigned" else ""


def write_back(host: str) -> None:
    """Everything that waits in the host's cache goes out, or is refused: what it belongs to may be gone."""
    subprocess.run(on(host, ["sync", "-f", str(TREE)]), check=False, timeout=HOW_LONG, stderr=subprocess.DEVNULL)


def kill_everything(host: str) -> None:
    """Every process of the host, as when it breaks down, but for what keeps it in being."""
    holder = Path("/run/hosts", host).read_text().strip()
    network = os.readlink(f"/proc/{holder}/ns/net")
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if process.name != holder and os.readlink(process / "ns" / "net") == network:
                os.kill(int(process.name), signal.SIGKILL)


def seen(cwd: Path, name: str) -> dict[str, bytes]:
    """A file as each host sees it."""
    return {host: subprocess.run(on(host, ["cat", name], cwd=cwd), capture_output=True, check=True).stdout for host in every_host()}


def whose(content: bytes) -> str:
    """Who wrote how many of its pieces: for messages."""
    blocks = [content[at : at + 16].rstrip(b".").decode(errors="replace") for at in range(0, len(content), PIECE)]
    return ", ".join(f"{blocks.count(host)} pieces of {host or 'nobody'}" for host in sorted(set(blocks)))


def belated() -> None:
    """Cut off while it writes, run again elsewhere: what comes of the first attempt later on replaces nothing of the second one's."""
    disk, cwd = place("belated"), TREE / "belated"
    with ThreadPoolExecutor(1) as pool, Farm(uid=USER, cwd=cwd, slots=1) as farm:
        job: Future[subprocess.CompletedProcess[str]] = pool.submit(farm.job, "", sys.executable, "-c", WRITER, PAUSE, DWRAP_REMOTE="1")
        first = eventually(lambda: holder(farm), HOW_LONG, "an agent has the job")
        eventually(lambda: size(disk / "mapped"), HOW_LONG, "it has begun to write")
        eventually(lambda: size(disk / "written") >= PIECE * PIECES // 4, HOW_LONG, "some of it is written, some of it is not")
        cut = time.monotonic()
        with cut_off(first):
            second = eventually(lambda: holder(farm) not in ("", first) and holder(farm), HOW_LONG, "another agent has the job")
            waited = time.monotonic() - cut
            done = job.result()
        assert (done.returncode, done.stdout) == (STATUS, "all is written\n"), (done, farm.jobs()[-1])
        assert waited <= LEASE_SECONDS + GRACE_SECONDS + 3, f"it was given to another agent after {waited:.1f} s only"
        time.sleep(BELATED_SECONDS)
        write_back(first)
        for name in ("written", "mapped"):
            assert (disk / name).read_bytes() == right(second), f"{name} on the server: {whose((disk / name).read_bytes())}"
            for host, content in seen(cwd, name).items():
                assert content == right(second), f"{name} on {host}: {whose(content)}"
        eventually(lambda: first in farm.done(), HOW_LONG, "its agent serves again")
    print(f"    given to another agent after {waited:.1f} s; nothing of {first} came back", flush=True)


def control() -> None:
    """The same without what dwrap does, as a control: the second one writes into the file of the first, whose bytes then come back."""
    disk, cwd = place("control"), TREE / "control"
    first, second = every_host()[1:3]
    writer = subprocess.Popen(on(first, [sys.executable, "-c", WRITER, PAUSE], cwd=cwd, uid=USER), stdout=subprocess.DEVNULL)
    eventually(lambda: size(disk / "mapped"), HOW_LONG, "it has begun to write")
    time.sleep(1)
    with cut_off(first):
        time.sleep(1)  # it goes on writing
        writer.kill()
        done = subprocess.run(on(second, [sys.executable, "-c", WRITER, "0"], cwd=cwd, uid=USER), stdout=subprocess.DEVNULL, check=False)
        assert done.returncode == STATUS
        assert (disk / "written").read_bytes() == (disk / "mapped").read_bytes() == right(second)
    writer.wait(timeout=HOW_LONG)
    write_back(first)
    came_back = [name for name in ("written", "mapped") if first.encode() in (disk / name).read_bytes()]
    assert came_back, "nothing came back where nothing keeps it from doing so: the proof proves nothing"
    print(f"    without it there came back: {', '.join(f'{name} ({whose((disk / name).read_bytes())})' for name in came_back)}", flush=True)


def in_place() -> None:
    """Cut off after it changed what was there before, and broken down: nobody runs it again, it ends with 125 and one line."""
    disk, cwd = place("in_place"), TREE / "in_place"
    (disk / "kept").write_bytes(b"before\n" * 1000)
    (disk / "kept").chmod(0o666)
    change = "echo once >>ran; printf AFTER | dd of=kept conv=notrunc status=none; sleep 1000"
    with ThreadPoolExecutor(1) as pool, Farm(uid=USER, cwd=cwd, slots=1) as farm:
        farm.job("", "true")  # it warns that nothing is encrypted, once
        job: Future[subprocess.CompletedProcess[str]] = pool.submit(farm.job, "", "sh", "-c", change)
        first = eventually(lambda: holder(farm), HOW_LONG, "an agent has the job")
        eventually(lambda: (disk / "kept").read_bytes().startswith(b"AFTER"), HOW_LONG, "it has changed the file")
        with cut_off(first):
            time.sleep(LEASE_SECONDS + GRACE_SECONDS + 3)
            assert not job.done(), job.result()
            assert farm.jobs()[-1]["state"] == "missing", farm.jobs()[-1]
            kill_everything(first)
            farm.agents[first].wait()
        farm.start_agent(first, 1)  # it looks at what the one before it left
        done = job.result(timeout=HOW_LONG)
        write_back(first)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (INFRASTRUCTURE, "", 1), done
        assert done.stderr.startswith("dwrap: "), done
        assert farm.jobs()[-1]["attempt"] == 1, "it was given to somebody again"
        assert (disk / "ran").read_bytes() == b"once\n"
        assert (disk / "kept").read_bytes() == b"AFTER" + (b"before\n" * 1000)[5:]
    print(f"    {done.stderr.strip()}", flush=True)


if __name__ == "__main__":
    sys.exit(run_cases(sys.argv[1:], (control, belated, in_place)))
