"""The same C++ build through dwrap, distcc and icecream on loopback, beside plain ninja: wall time, and CPU of the desktop's side.

A peer that is not installed, or whose daemons do not start here, has a row that says so. The desktop's CPU is that of ninja
and everything it starts, without the servers.
"""

from __future__ import annotations

import os
import pwd
import resource
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from figures import heading, median, row
from surroundings import DWRAP, Farm, with_farm

UNITS = 8
ROUNDS = 3
JOBS = max(2, len(os.sched_getaffinity(0)))
READY_SECONDS = 10.0
BUILD_SECONDS = 120.0
UNIT = """#include <map>
#include <regex>
#include <string>
int unit_{n}(const std::string &text) {{
    std::map<std::string, int> seen;
    std::regex word("[a-z]+{n}");
    for (auto at = std::sregex_iterator(text.begin(), text.end(), word); at != std::sregex_iterator(); ++at) seen[at->str()]++;
    return static_cast<int>(seen.size());
}}
"""


class BuildFailed(Exception):
    """A contender did not build the project within BUILD_SECONDS."""


def write_project(directory: Path) -> None:
    """UNITS translation units, a program that calls them, a build.ninja whose $wrap stands before each command."""
    calls = " + ".join(f'unit_{n}("a")' for n in range(UNITS))
    declared = "\n".join(f"int unit_{n}(const std::string &);" for n in range(UNITS))
    for n in range(UNITS):
        (directory / f"unit{n}.cpp").write_text(UNIT.format(n=n))
    (directory / "main.cpp").write_text(f"#include <string>\n{declared}\nint main() {{ return {calls}; }}\n")
    names = [*(f"unit{n}" for n in range(UNITS)), "main"]
    compile_rule = ["rule cxx", "  command = $wrap g++ -O1 -c $in -o $out"]
    rules = ["include wrap.ninja", *compile_rule, "rule link", "  command = $linkwrap g++ $in -o $out"]
    builds = [f"build {name}.o: cxx {name}.cpp" for name in names]
    (directory / "build.ninja").write_text("\n".join([*rules, *builds, f"build program: link {' '.join(n + '.o' for n in names)}"]) + "\n")


def build(directory: Path, wrap: str, link_wrap: str, environment: dict[str, str]) -> tuple[float, float]:
    """Wall and CPU seconds of ninja and its children, from nothing."""
    for made in [*directory.glob("*.o"), directory / ".ninja_log", directory / "program"]:
        made.unlink(missing_ok=True)
    (directory / "wrap.ninja").write_text(f"wrap = {wrap}\nlinkwrap = {link_wrap}\n")
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with subprocess.Popen(["ninja", "-C", str(directory), f"-j{JOBS}"], env=environment, stdout=subprocess.DEVNULL) as ninja:
        try:
            status = ninja.wait(BUILD_SECONDS)
        except subprocess.TimeoutExpired:
            ninja.terminate()
            raise BuildFailed from None
    if status:
        raise BuildFailed
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - started, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def answers(port: int) -> bool:
    """Whether something listens on the port within READY_SECONDS."""
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return True
        except OSError:
            time.sleep(0.05)
    return False


@contextmanager
def daemon(argv: list[str]) -> Iterator[None]:
    """A server that runs in the foreground, ended afterwards."""
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()


@contextmanager
def distcc(environment: dict[str, str]) -> Iterator[dict[str, str] | None]:
    """An environment in which distcc compiles on a server on loopback; None when that is not possible."""
    server = shutil.which("distccd")
    if not server or not shutil.which("distcc"):
        yield None
        return
    port, user = free_port(), "nobody" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name
    options = ["--no-detach", "--daemon", "--allow", "127.0.0.1", "--listen", "127.0.0.1", "--port", str(port), "--jobs", str(JOBS)]
    with daemon([server, *options, "--user", user, "--log-file", os.devnull, "--enable-tcp-insecure"]):
        yield {**environment, "DISTCC_HOSTS": f"127.0.0.1:{port}/{JOBS}", "DISTCC_FALLBACK": "0"} if answers(port) else None


@contextmanager
def icecream(environment: dict[str, str]) -> Iterator[dict[str, str] | None]:
    """The same for icecream: a scheduler, a daemon that compiles, a daemon for the desktop. None when that is not possible."""
    if os.getuid() != 0 or not shutil.which("icecc-scheduler") or not shutil.which("iceccd"):
        yield None
        return
    net, port, place = f"dwrap-bench-{os.getpid()}", free_port(), Path.cwd()
    with daemon(["icecc-scheduler", "-n", net, "-p", str(port)]):
        if not answers(port):
            yield None
            return
        common = ["iceccd", "-n", net, "-s", f"127.0.0.1:{port}", "-u", "nobody"]
        for name in ("far", "near"):
            (place / name).mkdir(mode=0o755, exist_ok=True)
            shutil.chown(place / name, "nobody")
        far = [*common, "-N", "far", "-m", str(JOBS), "-b", str(place / "far"), "-p", str(free_port())]
        near = [*common, "-N", "near", "-m", "0", "--no-remote", "-b", str(place / "near"), "-p", str(free_port())]
        with daemon(far), daemon(near):
            yield {**environment, "ICECC_PREFERRED_HOST": "far", "ICECC_SCHEDULER": "127.0.0.1"}


def tell(who: str, runs: list[tuple[float, float]], plain: list[tuple[float, float]]) -> None:
    """A row: who, and plain ninja beside it."""
    wall, cpu = median([run[0] for run in runs]), median([run[1] for run in runs])
    local_wall, local_cpu = median([run[0] for run in plain]), median([run[1] for run in plain])
    beside = f"ninja alone {local_wall:.1f} s, desktop CPU {local_cpu:.2f} s"
    row(f"{UNITS} C++ units and a link, -j{JOBS}: {who}", f"{wall:.1f} s, desktop CPU {cpu:.2f} s", beside)


def rounds(farm: Farm, project: Path) -> None:
    """Every contender once a round, so that the machine's mood meets all of them."""
    environment = farm.environment()
    with distcc(environment) as with_distcc, icecream(environment) as with_icecream:
        contenders: dict[str, tuple[str, str, dict[str, str] | None]] = {
            "plain": ("", "", environment),
            "dwrap": (DWRAP, DWRAP, environment),
            "distcc": ("distcc", "", with_distcc),
            "icecream": ("icecc", "", with_icecream),
        }
        measured: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
        failed: set[str] = set()
        for _ in range(ROUNDS):
            for name, (wrap, link_wrap, surroundings) in contenders.items():
                if surroundings is None or name in failed:
                    continue
                try:
                    measured[name].append(build(project, wrap, link_wrap, surroundings))
                except BuildFailed:
                    failed.add(name)
    for name, runs in measured.items():
        if name == "plain":
            continue
        if runs and name not in failed:
            tell(name, runs, measured["plain"])
        else:
            row(f"{UNITS} C++ units and a link: {name}", "its build did not end" if name in failed else "not installed here", "")


def main() -> None:
    """Print the rows."""
    with with_farm(agents=2, slots=max(1, JOBS // 2)) as farm:
        project = farm.directory / "project"
        project.mkdir()
        write_project(project)
        rounds(farm, project)


if __name__ == "__main__":
    heading()
    main()
