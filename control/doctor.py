"""Checks that a build on this desktop can use the farm. Each check gives one finding: what is so, and what to do about it.

Knows what goes wrong in practice with programs, settings and the distributor; doctor_tree.py has what goes wrong with the tree,
doctor_fleet.py asks the agents. Does not repair anything, and does not print. `Surroundings`, the question and the fleet are the seams.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from dwrap.control import address, alike, doctor_tree
from dwrap.control.errors import ControlError
from dwrap.control.farm import processors
from dwrap.control.findings import Finding, Surroundings
from dwrap.protocol.dial import by_environment
from dwrap.protocol.endpoint import parse_endpoint
from dwrap.protocol.keys import KeysError

SLOW_SECONDS = 0.5
FEW_DESCRIPTORS = 1024
_SHARED_PLACE = "/tmp"  # noqa: S108 # nosec B108 # where wrappers look, and what runtime_directory is about


Agents = Sequence[Mapping[str, Any]]


class Question(Protocol):
    """Asks the distributor. Raises ControlError."""

    def __call__(self, what: str, fields: Sequence[tuple[str, str]] = ()) -> Any: ...


Fleet = Callable[[Surroundings, Agents], Iterator[Finding]]


def nobody(_here: Surroundings, _agents: Agents) -> Iterator[Finding]:
    """A fleet that is not asked."""
    yield from ()


def examine(here: Surroundings, ask: Question, host: str | None = None, fleet: Fleet = nobody) -> list[Finding]:
    """All findings, in the order in which a person would look. `ask` is a query by its kind, and raises ControlError.

    `fleet` tries the agents that take this user's jobs from this directory.
    """
    findings = [wrapper_program(here), *switches(here), local_slots(here), runtime_directory(here), descriptors(here)]
    findings += doctor_tree.examine(here)
    configured = configuration(here, host)
    findings.append(configured)
    if configured.level != "fail":
        findings += protection(here, host)
        findings += farm(here, ask, fleet)
    return findings


def wrapper_program(here: Surroundings) -> Finding:
    """Is there a wrapper on PATH, of this version?"""
    path = shutil.which("dwrap", path=here.environment.get("PATH", os.defpath))
    if path is None:
        return Finding("fail", "wrapper", "dwrap is not on PATH", "add the directory of dwrapctl to PATH")
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=5, check=False)  # noqa: S603 # nosec B603 # the wrapper
        said = done.stdout.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("fail", "wrapper", f"{path} does not run ({error})", "install dwrap again")
    if said.split(" ")[-1:] != [here.version]:
        return Finding("warn", "wrapper", f"{path} says {said!r}, dwrapctl is {here.version}", "put one installation first on PATH")
    return Finding("ok", "wrapper", f"{path}, version {here.version}")


def switches(here: Surroundings) -> Iterator[Finding]:
    """Settings that keep everything here."""
    for name in ("DWRAP_LOCAL", "FORCE_INLINE", "FORCE_LOCAL"):
        if here.environment.get(name):
            yield Finding("warn", "settings", f"{name} is set: every command runs here", f"unset {name}")
    if here.environment.get("DWRAP_VIEWS") == "never":
        yield Finding("warn", "settings", "DWRAP_VIEWS=never: on NFS, files are seen late and old ones are read", "unset DWRAP_VIEWS")
    if here.environment.get("DWRAP_JOB"):
        yield Finding("warn", "settings", "this shell is itself a job: commands run in place", "run dwrapctl outside of the farm")


def local_slots(here: Surroundings) -> Finding:
    """How many commands may run here at once when they must."""
    written = here.environment.get("DWRAP_LOCAL_SLOTS", "")
    if not written:
        return Finding("ok", "local slots", f"{processors()}, one for each processor")
    if not written.isascii() or not written.isdigit() or int(written) < 1:
        return Finding("fail", "local slots", f"DWRAP_LOCAL_SLOTS={written!r} is not a number above 0", "set a number, or unset it")
    if int(written) > 4 * processors():
        return Finding("warn", "local slots", f"{written} on {processors()} processors: a fallback would swamp this machine", "lower it")
    return Finding("ok", "local slots", written)


def runtime_directory(here: Surroundings) -> Finding:
    """The directory in which wrappers remember silent distributors: ours alone, else they ignore it."""
    base = here.environment.get("XDG_RUNTIME_DIR")
    path = Path(base, "dwrap") if base else Path(_SHARED_PLACE, f"dwrap-{here.uid}")
    try:
        found = path.lstat()
    except FileNotFoundError:
        parent = path.parent
        if os.access(parent, os.W_OK):
            return Finding("ok", "runtime directory", f"{path} is made when it is needed")
        return Finding("warn", "runtime directory", f"{parent} cannot be written", "set XDG_RUNTIME_DIR to a directory of yours")
    except OSError as error:
        return Finding("warn", "runtime directory", f"{path}: {error.strerror}", "set XDG_RUNTIME_DIR to a directory of yours")
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != here.uid or found.st_mode & 0o077:
        return Finding(
            "warn", "runtime directory", f"{path} is not a directory of yours alone, and is ignored", f"remove it, or chmod 700 {path}"
        )
    return Finding("ok", "runtime directory", str(path))


def descriptors(here: Surroundings) -> Finding:
    """A build tool needs about three descriptors for each command that it waits for."""
    if 0 <= here.descriptors < FEW_DESCRIPTORS:
        return Finding(
            "warn", "open files", f"the limit is {here.descriptors}: enough for about -j{here.descriptors // 4}", "raise it: ulimit -n 4096"
        )
    return Finding("ok", "open files", f"the limit is {here.descriptors}")


def configuration(here: Surroundings, host: str | None) -> Finding:
    """Is a distributor configured?"""
    try:
        return Finding("ok", "distributor", "configured: " + ", ".join(address.addresses(host, here.environment, here.conf_files)))
    except ControlError as error:
        what, _, remedy = str(error).partition("; ")
        return Finding("fail", "distributor", what, remedy)


def protection(here: Surroundings, host: str | None) -> Iterator[Finding]:
    """Is what goes to another machine, or asks for keys, protected on its way?"""
    for written in address.addresses(host, here.environment, here.conf_files):
        endpoint = parse_endpoint(written)
        try:
            dial = by_environment(endpoint, here.environment)
        except KeysError as error:
            what, _, remedy = str(error).partition("; ")
            yield Finding("fail", "keys", what, remedy)
            continue
        if dial.pair is not None:
            yield Finding("ok", "keys", f"{written} is spoken to by its key, encrypted, with your key {dial.pair.public}")
        elif not endpoint.is_local:
            remedy = "ask its operator for an invitation (dwrapctl join)"
            yield Finding("warn", "keys", f"DWRAP_INSECURE=1: everyone on the way to {written} can read and change your commands", remedy)


def farm(here: Surroundings, ask: Question, fleet: Fleet) -> Iterator[Finding]:
    """What a distributor that answers says of itself and its agents."""
    started = time.monotonic()
    try:
        status = ask("status")
    except ControlError as error:
        what, _, remedy = str(error).partition("; ")
        yield Finding("fail", "answer", what, remedy)
        return
    took = time.monotonic() - started
    slow = took > SLOW_SECONDS
    yield Finding(
        "warn" if slow else "ok", "answer", f"after {took * 1000:.0f} ms", "look at the distributor's load and the network" if slow else ""
    )
    if status.get("version") != here.version:
        yield Finding(
            "warn",
            "version",
            f"the distributor is {status.get('version')}, this is {here.version}",
            "upgrade the older: one release apart works",
        )
    else:
        yield Finding("ok", "version", here.version)
    known = [agent for agent in status.get("agents", []) if isinstance(agent, dict)]
    strict = status.get("environment") != "warn"
    yield from alike.examine(alike.own(here), known, strict, lambda name: ask("environment", [("agent", name)]))
    yield from agents(here, known, fleet)


def agents(here: Surroundings, known: Agents, fleet: Fleet) -> Iterator[Finding]:
    """Is there an agent that takes this user's jobs from this directory?"""
    if not known:
        yield Finding("fail", "agents", "none is registered", "start dwrap-agent DISTRIBUTOR --root DIR on other machines")
        return
    mine = [agent for agent in known if serves(agent, here.uid)]
    if not mine:
        remedy = "start agents with --allow-root, or build as another user" if here.uid == 0 else "start agents as root, or as yourself"
        yield Finding("fail", "agents", f"none of {len(known)} takes jobs of uid {here.uid} now", remedy)
        return
    yield Finding("ok", "agents", f"{len(mine)} of {len(known)} take your jobs, {sum(int(agent.get('slots', 0)) for agent in mine)} slots")
    yield under_roots("directory", here.cwd, mine, "build under one of the roots, or start agents with --root for this one")
    yield from compiler_cache(here, mine)
    yield from fleet(here, [agent for agent in mine if is_under(here.cwd, agent.get("roots", []))])


def serves(agent: Mapping[str, Any], uid: int) -> bool:
    """Whether `agent`, as the distributor tells of it, takes jobs of `uid` now."""
    if agent.get("is_draining") or (uid == 0 and not agent.get("allow_root")):
        return False
    return str(agent.get("serves", "any")) in ("any", str(uid))


def under_roots(what: str, path: str, known: Agents, remedy: str) -> Finding:
    """Is `path` under a shared root of some of these agents?"""
    roots = sorted({str(root) for agent in known for root in agent.get("roots", [])})
    real = os.path.realpath(path)
    if is_under(path, roots):
        return Finding("ok", what, f"{real} is shared")
    return Finding(
        "fail" if what == "directory" else "warn", what, f"{real} is under none of the shared roots ({', '.join(roots)})", remedy
    )


def is_under(path: str, roots: Sequence[Any]) -> bool:
    """Whether a path lies under one of these roots."""
    real = os.path.realpath(path)
    return any(os.path.commonpath([real, root]) == root for root in map(str, roots) if root.startswith("/"))


def compiler_cache(here: Surroundings, known: Agents) -> Iterator[Finding]:
    """ccache behind the wrapper works on the agents: what they are to have in common has to be one for all."""
    settings = doctor_tree.ccache_settings(here)
    remote = here.environment.get("CCACHE_REMOTE_STORAGE") or settings.get("remote_storage", "")
    directory = here.environment.get("CCACHE_DIR")
    if remote.startswith("file:"):
        shared = remote.partition("|")[0].removeprefix("file:").replace("//", "/", 1)
        yield under_roots("ccache", shared, known, "let remote_storage name a directory under a shared root")
    elif remote:
        yield Finding("ok", "ccache", f"agents share {remote.partition('|')[0]}")
    elif directory:
        yield under_roots("ccache", directory, known, "set CCACHE_DIR to a directory under a shared root, or use remote_storage")
    elif settings or shutil.which("ccache", path=here.environment.get("PATH", os.defpath)):
        yield Finding("ok", "ccache", "installed, CCACHE_DIR is not set: its directory is the default one of each home")
    if "dwrap" in here.environment.get("CCACHE_PREFIX", "") and here.environment.get("CCACHE_PREFIX_CPP"):
        yield Finding("warn", "ccache", "CCACHE_PREFIX_CPP sends the preprocessor away as well", "unset CCACHE_PREFIX_CPP")
