"""What views cost a compilation: `gcc -c` of a C file on a runner that records what it writes, beside one that only hears whether it
may be run again.

The runner is driven as an agent drives it, and is answered at once; both sides run on a local disk, so that only the runner is measured.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path

from figures import heading, interleaved, median, row

from dwrap.agent.accounts import Identity
from dwrap.agent.events import Kind, Start, Tell
from dwrap.agent.runner import Runners, choose_tree, find_program
from dwrap.protocol import messages

PAIRS = 30
BUDGET = 1.02
HEADERS = (
    "errno",
    "fcntl",
    "limits",
    "math",
    "poll",
    "pthread",
    "signal",
    "stdio",
    "stdlib",
    "string",
    "sys/socket",
    "sys/stat",
    "time",
    "unistd",
)
FUNCTION = "int f{0}(int *a, int n) {{ int s = {0}; for (int i = 0; i < n; i++) s += a[i] * (i ^ s) % (n + {0}); return s; }}\n"


class Compiler:
    """Compiles one file in a directory of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        includes = "".join(f"#include <{name}.h>\n" for name in HEADERS)
        (folder / "one.c").write_text(includes + "".join(FUNCTION.format(number) for number in range(30)))
        program = find_program()
        (folder / "work").mkdir()
        self.runners = Runners(program, folder / "work", (str(folder),), choose_tree(program))
        self.jobs = 0

    def seconds(self, *, views: bool) -> float:
        """Wall time of one job, from its start to its report. Exits with a message when it fails."""
        self.jobs += 1
        started = time.perf_counter()
        runner = self.runners.start(
            Start(
                (f"job{self.jobs}", 1),
                messages.decode_fields(messages.encode_fields([("cwd", str(self.folder))])),
                messages.encode_fields([("stdin", "null"), ("stdout", "stream"), ("stderr", "stream")]),
                messages.encode_strings([b"gcc", b"-O2", b"-MD", b"-c", b"one.c", b"-o", b"one.o"]),
                messages.encode_strings([b"PATH=/usr/local/bin:/usr/bin:/bin"]),
                views=views,
            ),
            Identity(0, 0, (), become=False),
        )
        runner._socket.setblocking(True)
        manifest = False
        while True:
            packet = runner._socket.recv(65_536)
            kind = int.from_bytes(packet[:4], sys.byteorder)
            manifest |= kind == Kind.MANIFEST
            if kind == Kind.MADE:
                runner.tell(Tell(runner.key, Kind.NOTED, number=int.from_bytes(packet[8:16], sys.byteorder)))
            if kind == Kind.ENDED or not packet:
                break
        took = time.perf_counter() - started
        if not packet or messages.decode_fields(packet[16:]).get("status") != b"0" or manifest != views:
            sys.exit("benchmark: gcc -c one.c failed, or was not heard; run it by hand")
        runner.close()
        self.runners.reap()
        self.runners.forget(runner.key)
        (self.folder / "one.o").unlink()
        return took


def main() -> None:
    """Print the row."""
    folder = Path(tempfile.mkdtemp(prefix="dwrap-overhead-"))
    try:
        compiler = Compiler(folder)
        for _ in range(3):
            compiler.seconds(views=True)
        with_views, without = interleaved(PAIRS, lambda: compiler.seconds(views=True), lambda: compiler.seconds(views=False))
        ratio = median([ours / other for ours, other in zip(with_views, without, strict=True)])
        compiler.runners.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    beside = f"without {median(without) * 1e3:.1f} ms"
    row("`gcc -c`, with views", f"{median(with_views) * 1e3:.1f} ms, ratio {ratio:.3f}", beside, f"≤ {BUDGET}", kept=ratio <= BUDGET)


if __name__ == "__main__":
    heading()
    main()
