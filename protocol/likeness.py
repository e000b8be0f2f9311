"""How two environments differ, in words: the lines that REGISTER and SUBMIT call `identity`, and lists of packages.

Pure. Knows the form `ARCHITECTURE SYSTEM TOOL=VERSION,… … #DIGEST` (environment/environment.h). Does not know how such a line comes
about, nor what follows from a difference. Lines come from others: one of any other form is compared as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

_FEW: Final = 5


@dataclass(frozen=True, slots=True)
class _Parts:
    """A line, taken apart."""

    machine: str
    system: str
    tools: Mapping[str, str]


def _parts(line: str) -> _Parts:
    words = line.split(" ")
    tools = dict(word.split("=", 1) for word in words[2:] if "=" in word)
    return _Parts(words[0], words[1].replace("/", " ") if len(words) > 1 else "", {tool: _plain(tools[tool]) for tool in tools})


def _plain(versions: str) -> str:
    return versions.replace(",", " and ")


def difference(theirs: str, ours: str) -> str:
    """What is different there, said of them to us, as in `has g++ 12.2.0-14, you have 13.2.0-4`; empty for equal lines."""
    if theirs == ours:
        return ""
    there, here = _parts(theirs), _parts(ours)
    if not theirs:
        return "does not say what is installed there"
    if there.machine != here.machine:
        return f"is {there.machine}, you are on {here.machine}"
    for tool in dict.fromkeys([*here.tools, *there.tools]):
        has, have = there.tools.get(tool), here.tools.get(tool)
        if has and have and has != have:
            return f"has {tool} {has}, you have {have}"
        if has != have:
            return f"has {tool} {has}, you have none" if has else f"has no {tool}, you have {have}"
    if there.system != here.system:
        return f"runs {there.system or 'an unknown system'}, you run {here.system or 'an unknown system'}"
    return "has other packages than you; dwrapctl doctor names them"


def nearness(theirs: str, ours: str) -> int:
    """How much two lines have in common: the higher, the nearer."""
    return len(set(theirs.split(" ")) & set(ours.split(" "))) + 100 * (theirs.split(" ")[0] == ours.split(" ")[0])


def packages(lines: Iterable[str]) -> dict[str, str]:
    """A list of `NAME VERSION` lines as a mapping. A name that comes twice has both versions."""
    found: dict[str, str] = {}
    for name, _, version in (line.partition(" ") for line in lines):
        found[name] = f"{found[name]} and {version}" if name in found else version
    return found


def unlike(theirs: Mapping[str, str], ours: Mapping[str, str]) -> Iterator[str]:
    """Each package that is not the same there, as in `libfoo-dev:amd64 1.2 (you: 1.3)`."""
    for name in sorted(theirs.keys() | ours.keys()):
        has, have = theirs.get(name), ours.get(name)
        if has != have:
            yield f"{name} {has or 'missing'} (you: {have or 'none'})"


def few(differences: Iterable[str]) -> str:
    """The first differences, and how many more there are."""
    known = list(differences)
    more = f", and {len(known) - _FEW} more" if len(known) > _FEW else ""
    return ", ".join(known[:_FEW]) + more
