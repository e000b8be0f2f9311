"""May this job run on agents like these, and if not, why: uid, labels, the root rules, then environment and processor.

Knows the rule table and the two descriptions. Does not know load, slots, or how many agents there are: it is asked once
for each *pool* of agents that are alike. Paths are compared by component and without looking at any file system.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

from dwrap.distributor.events import ANY_UID, AgentSpec, JobSpec
from dwrap.protocol import likeness
from dwrap.protocol.rules import image_prefixes

AGENT_LABEL: Final = "agent="  # every agent has it, with its own name; none may claim it


class Pool(NamedTuple):
    """What agents that can take the same jobs have in common. A tuple, for it is hashed several times for each job."""

    labels: frozenset[str]
    roots: tuple[str, ...]
    serves: int
    identity: str
    allow_root: bool
    cpu: str = ""


def pool_of(spec: AgentSpec) -> Pool:
    """The pool that an agent belongs to."""
    roots = tuple(sorted({posixpath.normpath(root) for root in spec.roots}))
    return Pool(spec.labels, roots, spec.serves, spec.identity, spec.allow_root, spec.cpu)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The pools that may take a job; when there is none, the answer (HERE, UNAVAILABLE, REFUSED) and its reason.

    HERE holds at once. The other two say what will be answered unless an agent comes in time.
    """

    pools: tuple[Pool, ...]
    verb: str = ""
    reason: str = ""


def _unnamed(_: Pool) -> str:
    return "an agent"


def judge(spec: JobSpec, uid: int | None, pools: Iterable[Pool], name: Callable[[Pool], str] = _unnamed, strict: bool = True) -> Verdict:
    """Which of these pools may take the job. For one that asks for an agent by name they are that agent's.

    `name` gives an agent of a pool, for the reason. Unless it is `strict`, another environment will do where there is no equal one;
    another processor never will for a job that asks for one.
    """
    able: list[Pool] = []
    others: list[Pool] = []
    strange: list[Pool] = []
    elsewhere = unlike = unserved = ""
    for pool in pools:
        if unserved_here := why_not_served(uid, pool):
            unserved = unserved_here
        elif unlike_here := why_unlike(spec, pool):
            unlike = unlike_here
        elif outside := why_here(spec, pool):
            elsewhere = outside
        elif spec.cpu and spec.cpu != pool.cpu:
            strange.append(pool)
        elif spec.identity and spec.identity != pool.identity:
            others.append(pool)
        else:
            able.append(pool)
    if able or (others and not strict):
        return Verdict(tuple(able or others))
    is_chosen = bool(spec.labels or spec.agent)  # then no other machine will do, this one neither
    if others or strange:
        remedy = "; DWRAP_ENVIRONMENT=any allows it" if is_chosen and others else ""
        return Verdict((), "REFUSED" if is_chosen else "UNAVAILABLE", why_other(spec, others, strange, name) + remedy)
    if elsewhere:
        return Verdict((), "HERE", elsewhere)
    if unlike:
        return Verdict((), "REFUSED" if is_chosen else "UNAVAILABLE", unlike)
    if spec.agent and not unserved:
        return Verdict((), "REFUSED", f"no agent has the label {AGENT_LABEL}{spec.agent}")
    return Verdict((), "UNAVAILABLE", unserved or "no agent is connected; start one with dwrap-agent")


def why_not_served(uid: int | None, pool: Pool) -> str:
    """Why these agents cannot run anything for this uid; empty when they can.

    A job that nobody vouches for (None) runs only as an agent's own user, and never as root.
    """
    if uid is None:
        return "" if pool.serves > 0 else "agents that run as root take no job from a connection without an identity"
    if pool.serves not in (ANY_UID, uid):
        return f"no agent serves uid {uid}; start one as that user, or one as root"
    if uid == 0 and not pool.allow_root:
        return "root's jobs run only on agents started with --allow-root"
    return ""


def why_unlike(spec: JobSpec, pool: Pool) -> str:
    """Why these agents are not the kind that the job asks for; empty when they are."""
    missing = [label for label in spec.labels if label not in pool.labels]
    if missing:
        return f"no agent has the label {missing[0]}"
    return ""


def why_other(spec: JobSpec, others: Sequence[Pool], strange: Sequence[Pool], name: Callable[[Pool], str]) -> str:
    """How the environment of these agents, or the processor of those, is not what the job needs."""
    if not others:
        has = f"{name(strange[0])} has {strange[0].cpu or 'an unknown one'}, you have {spec.cpu}"
        return f"no agent has your processor, on which its result depends: {has}"
    nearest = max(others, key=lambda pool: likeness.nearness(pool.identity, spec.identity))
    return f"no agent has your environment: {name(nearest)} {likeness.difference(nearest.identity, spec.identity)}"


def why_here(spec: JobSpec, pool: Pool) -> str:
    """The root rule: why the job must run where it was submitted; empty when these agents see what it needs."""
    if spec.remote:
        return ""
    if not is_under(spec.cwd, pool.roots):
        return f"the working directory {spec.cwd} is under no shared root"
    for path in spec.paths:
        if not is_under(path, pool.roots) and not is_under(path, image_prefixes()):
            return f"{path} is under no shared root"
    return ""


@lru_cache(maxsize=8_192)
def is_under(path: str, roots: tuple[str, ...]) -> bool:
    """Whether an absolute path lies under one of the roots, by component; `..` and `//` are resolved first."""
    if not path.startswith("/"):
        return False
    clean = "/" + posixpath.normpath(path).lstrip("/")
    return any(root == "/" or clean == root or clean.startswith(root + "/") for root in roots)
