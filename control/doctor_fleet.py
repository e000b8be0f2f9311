"""Asks each agent what only a job there can tell: is it the same tree, is it seen at once both ways, are clock and identity ours?

Knows the wrapper's command line and what a POSIX shell can print. Does not know how jobs travel. Two jobs an agent: the first reads a
file that was made just now, looks for one that is not there yet, and writes one that was looked for here before; the second reads
what the first had not found, and the first file again, which has been replaced as editors do. So each side has to see at once what it
has just been told is not there, or is something else. Each agent has a directory of its own, lest one's news be another's.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dwrap.control.findings import Finding, Surroundings
from dwrap.protocol import mounts
from dwrap.protocol.mounts import Mount
from dwrap.protocol.probe import skew

AGENT_SECONDS = 10.0
END_SECONDS = 1.0
SIGNAL_SECONDS = 0.1
AT_ONCE = 8
PREFIX = ".dwrap-doctor-"
_KEEPS_HERE = ("DWRAP_LOCAL", "FORCE_INLINE", "FORCE_LOCAL", "DWRAP_JOB", "DWRAP_LABELS", "DWRAP_VERBOSE")

FIRST = """read -r word < "$1" || word=
printf 'nonce=%s\\nclock=%s\\numask=%s\\ngroups=%s\\n' "$word" "$(date +%s.%N)" "$(umask)" "$(id -G)"
printf 'inode=%s\\n' "$(ls -di .)"
test -e "$2" && echo early=1
printf '%s\\n' "$4" > "$3"
echo mountinfo=
cat /proc/self/mountinfo"""
SECOND = """read -r word < "$2" || word=
read -r again < "$1" || again=
printf 'nonce=%s\\nagain=%s\\n' "$word" "$again" """


@dataclass(frozen=True)
class Answer:
    """What came of a job: its status (None: no end in time), what it printed, and when it was asked and answered."""

    status: int | None
    out: str
    error: str
    before: float
    after: float

    def facts(self) -> dict[str, str]:
        """The lines KEY=VALUE that it printed."""
        head = self.out.partition("mountinfo=\n")[0]
        return {key: value for key, equals, value in (line.partition("=") for line in head.splitlines()) if equals}

    def mount(self, path: str) -> Mount | None:
        """On what `path` lies over there."""
        return mounts.covering(mounts.parse(self.out.partition("mountinfo=\n")[2]), path)


@dataclass(frozen=True)
class Desk:
    """What jobs are expected to find, told by this machine."""

    cwd: str
    inode: int
    umask: int
    groups: frozenset[int]
    mount: Mount | None


class Fleet:
    """The agents, asked through the wrapper. `host` is a distributor named on the command line."""

    def __init__(self, host: str | None = None, agent_seconds: float = AGENT_SECONDS) -> None:
        self._host = host
        self._seconds = agent_seconds
        self._running: set[subprocess.Popen[str]] = set()
        self._cancelled = False

    def examine(self, here: Surroundings, agents: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
        """A finding for each agent, more where something is wrong."""
        if not agents:
            return
        folder = os.path.join(os.path.realpath(here.cwd), PREFIX + secrets.token_hex(8))
        try:
            os.mkdir(folder, 0o700)
        except OSError as error:
            yield Finding("warn", "agents", f"not tried: nothing can be made in {here.cwd} ({str(error.strerror).lower()})",
                          "run doctor where you build")  # fmt: skip
            return
        pool = ThreadPoolExecutor(AT_ONCE)
        try:
            desk = look_round(here)
            tries = [pool.submit(lambda pair: list(self._try(here, desk, folder, *pair)), pair) for pair in enumerate(agents)]
            for attempt in tries:
                while not attempt.done():  # a signal that comes just before a wait without an end would not interrupt it (CPython)
                    wait([attempt], timeout=SIGNAL_SECONDS)
                yield from attempt.result()
        finally:
            self._cancel()
            pool.shutdown(cancel_futures=True)
            shutil.rmtree(folder, ignore_errors=True)

    def _try(self, here: Surroundings, desk: Desk, folder: str, number: int, agent: Mapping[str, Any]) -> Iterator[Finding]:
        what, name = f"agent {agent.get('name')}", str(agent.get("name"))
        question, later, reply = (os.path.join(folder, str(number), leaf) for leaf in ("question", "later", "reply"))
        words = [secrets.token_hex(8) for _ in range(3)]
        deadline = time.monotonic() + self._seconds
        os.mkdir(os.path.dirname(question), 0o700)
        Path(question).write_text(words[0] + "\n")
        os.path.exists(reply)  # so that this host believes that it is not there
        first = self._job(here, name, [FIRST, "doctor", question, later, reply, words[1]], deadline)
        wrong = list(judge_first(what, desk, first, words[0]))
        if first.status == 0 and not wrong:
            wrong += judge_reply(what, reply, words[1])
            Path(later).write_text(words[2] + "\n")
            _replace(question, words[2] + "\n")
            second = self._job(here, name, [SECOND, "doctor", question, later], deadline)
            wrong += judge_second(what, desk, second, words[2])
        differs = list(judge_surroundings(what, desk, first)) if first.status == 0 else []
        if not wrong:
            mount = first.mount(desk.cwd)
            seen = f" on {mount.name()}" if mount and mount.is_shared else ""
            alike = "" if differs else "; clock, groups and umask are as here"
            yield Finding("ok", what, f"the same tree{seen}, seen at once both ways{alike}")
        yield from wrong + differs
        yield from (Finding("warn", what, *_split(str(flaw))) for flaw in agent.get("flaws") or ())

    def _job(self, here: Surroundings, agent: str, script: Sequence[str], deadline: float) -> Answer:
        before = time.time()
        host = ["-H", self._host] if self._host else []
        environment = {key: value for key, value in here.environment.items() if key not in _KEEPS_HERE}
        environment |= {"DWRAP_LABELS": f"agent={agent}", "DWRAP_FALLBACK": "fail", "DWRAP_REMOTE": "1", "DWRAP_PATIENCE": "5",
                        "DWRAP_ENVIRONMENT": "any", "DWRAP_BUILD": "dwrapctl doctor"}  # fmt: skip
        program = shutil.which("dwrap", path=here.environment.get("PATH", os.defpath)) or "dwrap"
        try:
            process = subprocess.Popen(  # noqa: S603 # nosec B603 # our own wrapper
                [program, *host, "sh", "-c", *script], cwd=here.cwd, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE, text=True, errors="surrogateescape",
            )  # fmt: skip
        except OSError as error:
            return Answer(125, "", f"dwrap: cannot run {program}: {error.strerror}", before, time.time())
        self._running.add(process)
        if self._cancelled:  # after it was added: whichever of the two threads comes second sees what the other did, and ends it
            _end(process)
        try:
            out, error_text = process.communicate(timeout=max(0.0, deadline - time.monotonic()))
            return Answer(process.returncode, out, error_text, before, time.time())
        except subprocess.TimeoutExpired:
            _end(process)
            process.communicate()
            return Answer(None, "", "", before, time.time())
        finally:
            self._running.discard(process)

    def _cancel(self) -> None:
        self._cancelled = True
        running = list(self._running)
        for process in running:
            process.terminate()
        for process in running:
            _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    """A wrapper passes TERM on and waits for the command's end; one that is killed has it killed."""
    process.terminate()
    try:
        process.wait(timeout=END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()


def look_round(here: Surroundings) -> Desk:
    """What a job from here should find."""
    status = Path("/proc/self/status").read_text("ascii", "replace")
    umask = next((int(line.split()[1], 8) for line in status.splitlines() if line.startswith("Umask:")), 0)
    cwd = os.path.realpath(here.cwd)
    return Desk(cwd, os.stat(cwd).st_ino, umask, here.groups | {os.getegid()}, here.mount(cwd))


def judge_first(what: str, desk: Desk, answer: Answer, nonce: str) -> Iterator[Finding]:
    """Did a job run there, and did it find the file that was made for it?"""
    if answer.status is None:
        yield Finding("fail", what, "a small job had no end in time", "look at its state (dwrapctl agents), and at the file server")
    elif answer.status != 0:
        said = (answer.error.strip().splitlines() or [f"a small job ended with status {answer.status}"])[-1].removeprefix("dwrap: ")
        yield Finding("fail", what, *_split(said, "look at the log of that agent"))
    elif answer.facts().get("nonce") != nonce:
        inode = (answer.facts().get("inode", "").split() or [""])[0]
        if inode != str(desk.inode):
            yield Finding(
                "fail", what, f"another directory is at {desk.cwd} there", "mount the same export at the same path on all machines"
            )
        else:
            yield _unseen(what, answer, desk, "it does not see a file that was just made here")


def judge_reply(what: str, path: str, word: str) -> Iterator[Finding]:
    """Did its answer arrive through the tree?"""
    try:
        found = Path(path).read_text("utf-8", "replace").strip()
    except OSError as error:
        found = str(error.strerror).lower()
    if found != word:
        remedy = "look at how the tree is mounted on both machines (docs/coherence.md), and at the agent's --views"
        yield Finding("fail", what, f"what it wrote is not seen here at once ({found or 'empty'})", remedy)


def judge_second(what: str, desk: Desk, answer: Answer, nonce: str) -> Iterator[Finding]:
    """Did it find what it had not found before, and what had been something else?"""
    facts = answer.facts()
    remedy = "start it without --views never; look at how it mounts the tree"
    if answer.status != 0:
        yield from judge_first(what, desk, answer, nonce)
    elif facts.get("nonce") != nonce:
        yield Finding("fail", what, "it does not see at once what it once had looked for in vain", remedy)
    elif facts.get("again") != nonce:
        yield Finding("fail", what, "it reads a file that was replaced here as it was before", remedy)


def judge_surroundings(what: str, desk: Desk, answer: Answer) -> Iterator[Finding]:
    """Its clock, the job's identity, and how it mounts the tree."""
    facts = answer.facts()
    clock = facts.get("clock", "").removesuffix("N").rstrip(".%")
    if clock.replace(".", "", 1).isdigit():
        for defect in mounts.skew_defects(skew(answer.before, float(clock), answer.after), "its clock"):
            yield Finding("fail" if defect.fatal else "warn", what, defect.what, defect.remedy)
    theirs = {int(word) for word in facts.get("groups", "").split() if word.isdigit()}
    if theirs and theirs != desk.groups:
        missing = " ".join(map(str, sorted(desk.groups - theirs))) or "none"
        more = " ".join(map(str, sorted(theirs - desk.groups))) or "none"
        yield Finding("warn", what, f"your groups differ there: {missing} missing, {more} more", "give all machines one user database")
    umask = facts.get("umask", "")
    if umask.isdigit() and int(umask, 8) != desk.umask:
        yield Finding("warn", what, f"umask is {umask} there, {desk.umask:04o} here", "report this: it should arrive")
    mount = answer.mount(desk.cwd)
    if mount and desk.mount and mount.is_shared and desk.mount.is_shared:
        ours, its = (f"{one.kind} {one.option('vers') or ''}".strip() for one in (desk.mount, mount))
        if ours != its:
            yield Finding("warn", what, f"it mounts the tree as {its}, this machine as {ours}", "mount it alike on all machines")


def _replace(path: str, text: str) -> None:
    """As editors save: a new file takes the name."""
    Path(path + "~").write_text(text)
    os.replace(path + "~", path)


def _unseen(what: str, answer: Answer, desk: Desk, text: str) -> Finding:
    mount = answer.mount(desk.cwd)
    return Finding("fail", what, text, f"look at how it mounts the tree ({mount.line() if mount else 'unknown'}), and at its --views")


def _split(text: str, otherwise: str = "") -> tuple[str, str]:
    """Text and remedy of one of our own lines."""
    what, _, remedy = text.partition("; ")
    return what, remedy or otherwise
