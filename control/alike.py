"""Which agents have this machine's environment, and how the others differ.

Knows the wrapper's word for this machine (`dwrap --explain`) and the distributor's for an agent. Does not know what counts
(environment/), nor what is done about a difference: the distributor decides (--environment).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dwrap.control.errors import ControlError
from dwrap.control.findings import Finding, Surroundings
from dwrap.protocol import likeness

MOST_NAMED = 8
_REMEDY = "make both from one image (docs/docker.md), or upgrade one of them"

Agents = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Own:
    """This machine; nothing of it is known when `line` is empty, and then all agents are taken to be alike."""

    line: str = ""
    packages: Mapping[str, str] = field(default_factory=dict)

    def is_like(self, agent: Mapping[str, Any]) -> bool:
        """Whether the agent, as the distributor tells of it, has the same environment."""
        return not self.line or agent.get("identity", self.line) == self.line


def own(here: Surroundings) -> Own:
    """What the wrapper would say of this machine."""
    if here.environment.get("DWRAP_ENVIRONMENT") == "any":
        return Own()
    program = shutil.which("dwrap", path=here.environment.get("PATH", os.defpath)) or "dwrap"
    head, _, packages = here.output_of([program, "--explain"], here.environment).partition("\n\n")
    line = next((line for line in head.splitlines() if line.startswith("environment=")), "")
    return Own(line.removeprefix("environment="), likeness.packages(packages.splitlines()))


def examine(mine: Own, agents: Agents, strict: bool, packages_of: Callable[[str], Any]) -> Iterator[Finding]:
    """Are there agents like this machine, and how do the others differ? `packages_of` gives an agent's list, or raises ControlError."""
    alike = [agent for agent in agents if mine.is_like(agent)]
    others = [agent for agent in agents if not mine.is_like(agent)]
    if not mine.line:
        yield Finding("ok", "environment", "not compared")
        return
    if alike or not agents:
        yield Finding("ok", "environment", f"{len(alike)} of {len(agents)} agents are as this machine: {mine.line}")
    elif strict:
        yield Finding("fail", "environment", f"no agent is as this machine, so all commands run here: {mine.line}", _REMEDY)
    else:
        yield Finding("warn", "environment", f"no agent is as this machine; jobs go to others (--environment warn): {mine.line}", _REMEDY)
    for agent in others[:MOST_NAMED]:
        yield Finding("warn", f"agent {agent.get('name')}", _difference(mine, agent, packages_of), _REMEDY)
    if len(others) > MOST_NAMED:
        yield Finding("warn", "environment", f"{len(others) - MOST_NAMED} more agents are unlike this machine", _REMEDY)


def _difference(mine: Own, agent: Mapping[str, Any], packages_of: Callable[[str], Any]) -> str:
    """Tools first; where they are the same, the packages by name."""
    text = likeness.difference(str(agent.get("identity") or ""), mine.line)
    try:
        answer = packages_of(str(agent.get("name")))
        theirs = likeness.packages(map(str, answer.get("packages") or ()))
    except (ControlError, AttributeError, TypeError):  # it has gone meanwhile, or its distributor is older
        return text
    named = likeness.few(likeness.unlike(theirs, mine.packages)) if theirs else ""
    return f"{text.removesuffix('; dwrapctl doctor names them')}: {named}" if named else text
