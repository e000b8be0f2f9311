"""What REGISTER says: the agent's own properties, the incarnations before it, and every attempt that it answers for.

Pure. Knows REGISTER's fields. Does not know when it is sent.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from dwrap.agent.attempt import Attempt
from dwrap.agent.events import Installed, Mounted, News, Send
from dwrap.protocol import messages
from dwrap.protocol.messages import Value

MAX_FORMER: Final = 64  # handed down from one incarnation to the next
MAX_TOLD: Final = 4 * MAX_FORMER
_ALL_LOCAL: Final = Mounted(views=False)
_UNKNOWN: Final = Installed("", "", "")


@dataclass(frozen=True, slots=True)
class Registration:
    """What REGISTER says of this agent. Required fields are in PROTOCOL.md; `extra` are the optional ones."""

    name: str
    slots: int
    roots: tuple[str, ...]
    serves: str
    extra: tuple[tuple[str, Value], ...] = ()
    records: bool = True  # whether runners record what commands write, where the distributor asks for it
    mounted: Mounted = _ALL_LOCAL
    installed: Installed = _UNKNOWN
    incarnation: str = ""  # what this process is called among those that use the same work directory


@dataclass(slots=True)
class Ancestry:
    """The incarnations before this one, as far as their ends are known."""

    former: deque[str] = field(default_factory=lambda: deque(maxlen=MAX_TOLD))
    leftover: int = 0

    def learn(self, news: News) -> bool:
        """False when nothing of it is new."""
        is_new = bool(news.former or news.results or news.leftover != self.leftover)
        self.former.extend(name for name in news.former if name not in self.former)
        self.leftover = news.leftover
        return is_new


def register(known: Registration, ancestry: Ancestry, running: Iterable[Attempt], kept: Iterable[Attempt], draining: bool) -> Send:
    """The message."""
    pairs: list[tuple[str, Value]] = [("version", messages.VERSION), ("name", known.name), ("slots", known.slots)]
    pairs += [("root", root) for root in known.roots]
    pairs += [("serves", known.serves), *known.extra, *([("views", 1)] if known.mounted.views else [])]
    told = known.installed
    pairs += [("identity", told.environment), ("cpu", told.cpu), ("packages", told.packages)]
    pairs += [*(("mount", mount) for mount in known.mounted.mounts), *(("flaw", flaw) for flaw in known.mounted.flaws)]
    pairs += [("incarnation", known.incarnation)] if known.incarnation else []
    pairs += [*(("former", former) for former in ancestry.former), ("leftover", ancestry.leftover)]
    pairs += [*(("running", attempt.name) for attempt in running), *(("kept", attempt.name) for attempt in kept)]
    pairs += [("draining", 1)] if draining else []
    return Send(tuple(messages.encode("REGISTER", pairs)))
