"""Which file systems under the agent's roots are shared with other hosts, and what is wrong with them there.

Knows what the distributor is told of it (REGISTER). What mounts are and how they go wrong is in protocol/mounts.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from dwrap.protocol import mounts
from dwrap.protocol.messages import one_line
from dwrap.protocol.mounts import Mount
from dwrap.protocol.probe import Probe, probe

MOST_TOLD: Final = 64


@dataclass(frozen=True)
class Found:
    """`views`: jobs here need the views of others. `mounts` and `flaws` are REGISTER's fields `mount` and `flaw`.

    `refusal` is not empty when wrong bytes are to be expected: what is so, why that is wrong, what to do.
    """

    views: bool = False
    mounts: tuple[str, ...] = ()
    flaws: tuple[str, ...] = ()
    refusal: str = ""


def find(roots: Sequence[str], text: str | None = None, look: Callable[[str], Probe | None] = probe) -> Found:
    """What lies under these roots. `text` is the kernel's list (mounts.read) where the caller has it already.

    Makes a directory for an instant on each shared file system, to see its clock: ask when the list has changed, not each second.
    """
    known = mounts.parse(mounts.read() if text is None else text)
    shared: dict[str, tuple[Mount, str]] = {}
    for root in map(os.path.realpath, roots):
        for mount in mounts.around(known, root):
            if mount.is_shared:
                shared.setdefault(mount.point, (mount, root if len(root) > len(mount.point) else mount.point))
    wrong = [(mount, defect) for mount, place in shared.values() for defect in _defects(mount, place, look)]
    lines = [(one_line(f"{mount.name()}: {defect}"), defect.fatal) for mount, defect in wrong]
    return Found(
        views=bool(shared),
        mounts=tuple(one_line(mount.line()) for mount, _ in shared.values())[:MOST_TOLD],
        flaws=tuple(line for line, _ in lines)[:MOST_TOLD],
        refusal=next((line for line, fatal in lines if fatal), ""),
    )


def _defects(mount: Mount, place: str, look: Callable[[str], Probe | None]) -> Iterator[mounts.Defect]:
    yield from mounts.defects(mount)
    if mount.kind == "autofs":  # looking would mount it
        return
    seen = look(place)
    if seen is None:
        return
    yield from mounts.skew_defects(seen.skew_seconds, "its server's clock")
    yield from mounts.owner_defects(seen.owner, os.geteuid())
