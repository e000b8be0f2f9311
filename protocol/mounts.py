"""File systems as the kernel lists them: which lie under a path, which other hosts share, what is wrong with how they are mounted.

Knows the form of /proc/self/mountinfo (proc(5)) and what mount options do to a build that spreads over hosts (docs/coherence.md
has the reasons). Works on text: opens nothing but that one file, and only in `read`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

NFS: Final = frozenset({"nfs", "nfs4"})
SMB: Final = frozenset({"cifs", "smb3"})
# File systems without a disk of this host that nevertheless show one truth to all who can see them: memory, layers over local
# disks, the kernel's own, and those whose servers call caches back.
_ONE_TRUTH: Final = frozenset([
    "btrfs", "bcachefs", "zfs", "tmpfs", "ramfs", "devtmpfs", "rootfs", "overlay", "aufs", "shiftfs", "ubifs", "jffs2", "erofs", "squashfs",
    "ecryptfs", "proc", "sysfs", "devpts", "mqueue", "hugetlbfs", "cgroup", "cgroup2", "pstore", "bpf", "securityfs", "debugfs", "tracefs",
    "configfs", "fusectl", "efivarfs", "selinuxfs", "binfmt_misc", "nsfs", "rpc_pipefs", "nfsd",
    "ceph", "fuse.ceph", "fuse.ceph-fuse", "lustre", "gpfs", "ocfs2", "gfs2",
    "fuse.lxcfs", "fuse.portal", "fuse.gvfsd-fuse", "fuse.squashfuse", "fuse.squashfuse_ll", "fuse.snapfuse", "fuse.fuse-overlayfs",
])  # fmt: skip
# Where no build lives, and where a desktop mounts much that is not for everyone.
_SYSTEM: Final = ("/proc", "/sys", "/dev", "/run", "/boot", "/efi")
SKEW_SECONDS: Final = 1.0
HOPELESS_SKEW_SECONDS: Final = 60.0
NOBODY: Final = 65534
_ESCAPED: Final = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Mount:
    """One line of the list. `point` is a path as programs use it, the other texts are as the kernel wrote them."""

    point: str
    kind: str
    source: str
    options: tuple[str, ...]
    on_disk: bool = False  #: a block device of this host

    @property
    def is_shared(self) -> bool:
        """Whether other hosts may change what is there behind this host's cache."""
        return not self.on_disk and self.kind not in _ONE_TRUTH

    def option(self, name: str) -> str | None:
        """The value of NAME=VALUE, "" for a bare NAME, None when it is not there."""
        for option in self.options:
            key, _, value = option.partition("=")
            if key == name:
                return value
        return None

    def line(self) -> str:
        """`POINT TYPE SOURCE OPTIONS`, one space between them, none in them."""
        return " ".join((_escape(self.point), self.kind, self.source, ",".join(self.options)))

    def name(self) -> str:
        """How people are told of it."""
        return f"{_printable(self.point)} ({self.kind} {_printable(self.source)})"


@dataclass(frozen=True)
class Defect:
    """Something wrong with a mount: what and why, what to do; `fatal` when wrong bytes are to be expected."""

    what: str
    remedy: str
    fatal: bool = False

    def __str__(self) -> str:
        return f"{self.what}; {self.remedy}"


def read() -> str:
    """The kernel's list for this process."""
    return Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape")


def parse(text: str) -> list[Mount]:
    """The mounts that a path can lead to: not those that another is mounted over."""
    entries = [entry for entry in map(_entry, text.splitlines()) if entry is not None]
    below: dict[int, list[_Entry]] = {}
    numbers = {entry.number for entry in entries}
    for entry in entries:
        parent = entry.parent if entry.parent in numbers and entry.parent != entry.number else 0
        below.setdefault(parent, []).append(entry)
    found: list[Mount] = []
    todo = _uncovered(below.get(0, []))
    while todo:
        entry = todo.pop()
        children = below.get(entry.number, [])
        on_top = [child for child in children if child.mount.point == entry.mount.point]
        if on_top:
            todo.append(on_top[-1])
        else:
            found.append(entry.mount)
            todo += _uncovered(children)
    return sorted(found, key=lambda mount: mount.point)


def covering(mounts: Iterable[Mount], path: str) -> Mount | None:
    """The mount on which an absolute path without links lies."""
    return max((mount for mount in mounts if _is_within(path, mount.point)), key=lambda mount: len(mount.point), default=None)


def around(mounts: Sequence[Mount], root: str) -> list[Mount]:
    """The mount on which a root lies, and those below it; without the system's own when the root is not one of these."""
    at = covering(mounts, root)
    beneath = [mount for mount in mounts if mount.point != root and _is_within(mount.point, root) and not _is_system(mount.point, root)]
    return ([at] if at else []) + beneath


def defects(mount: Mount) -> Iterator[Defect]:
    """What is wrong with how a shared file system is mounted."""
    if mount.kind in NFS:
        yield from _nfs_defects(mount)
    elif mount.kind in SMB and mount.option("cache") == "loose":
        yield Defect("cache=loose: what others write is not seen", "mount it with cache=strict", fatal=True)
    elif mount.kind == "9p" and _loose_9p(mount.option("cache") or ""):
        yield Defect(f"cache={mount.option('cache')}: what others write is never seen", "mount it with cache=none", fatal=True)
    elif mount.kind.startswith("fuse.") or mount.kind in ("fuse", "virtiofs"):
        yield Defect(
            "how long it trusts its cache cannot be seen from here",
            "mount it with entry_timeout=0,negative_timeout=0,attr_timeout=0 (virtiofs: cache=never), or use NFS",
        )


def skew_defects(seconds: float, whose: str) -> Iterator[Defect]:
    """What follows from another clock that is so far ahead of this host's (below 0: behind)."""
    if abs(seconds) <= SKEW_SECONDS:
        return
    direction = "ahead of" if seconds > 0 else "behind"
    yield Defect(
        f"{whose} is {abs(seconds):.1f} s {direction} this host's, and build tools compare their times",
        "run chrony on both",
        fatal=abs(seconds) > HOPELESS_SKEW_SECONDS,
    )


def owner_defects(owner: int, uid: int) -> Iterator[Defect]:
    """What follows from what `uid` made belonging to `owner`. That root is nobody is as it should be: no job needs it otherwise."""
    if owner == NOBODY and uid not in (0, NOBODY):
        yield Defect("files made here belong to nobody", "look for all_squash in the server's exports, and at the domain of idmapd")


def _nfs_defects(mount: Mount) -> Iterator[Defect]:
    if mount.option("nocto") is not None:
        yield Defect("nocto: a file that another host wrote is read from the cache as it was before", "mount it without nocto", fatal=True)
    version = mount.option("vers") or ""
    if version[:1] in ("2", "3"):
        yield Defect(f"vers={version}: slower to keep coherent than version 4, and locks need a second service", "mount it with vers=4.2")
    for name in ("soft", "softerr"):
        if mount.option(name) is not None:
            yield Defect(f"{name}: a slow server makes reads and writes fail, and builds with them", "mount it with hard")
    if mount.option("nolock") is not None or mount.option("local_lock") in ("all", "flock"):
        yield Defect("nolock: two hosts can hold the same lock at once (package managers and ccache use them)", "mount it with vers=4.2")
    if mount.option("noac") is not None or mount.option("acregmax") == mount.option("acdirmax") == "0":
        yield Defect("noac: each look asks the server; builds are slow, and no more right", "mount it without noac and actimeo=0")
    if mount.option("lookupcache") == "none":
        yield Defect("lookupcache=none: each part of each path asks the server; builds are slow", "mount it without lookupcache")


def _loose_9p(cache: str) -> bool:
    """Named in kernels up to 6.3, a hexadecimal mask since, in which 8 stands for loose."""
    if cache in ("loose", "fscache"):
        return True
    try:
        return bool(int(cache, 16) & 8)
    except ValueError:
        return False


@dataclass(frozen=True)
class _Entry:
    number: int
    parent: int
    mount: Mount


def _entry(line: str) -> _Entry | None:
    """`36 35 98:0 /root /point rw,noatime master:1 - ext4 /dev/sda rw,errors=continue`; None when it makes no sense."""
    left, dash, right = line.partition(" - ")
    first, last = left.split(" "), right.split(" ")
    try:
        number, parent, major = int(first[0]), int(first[1]), int(first[2].partition(":")[0])
        options = tuple(dict.fromkeys([*first[5].split(","), *last[2].split(",")]))
        mount = Mount(_unescape(first[4]), last[0], last[1], options, on_disk=major != 0)
    except (ValueError, IndexError):
        return None
    return _Entry(number, parent, mount) if dash and mount.point.startswith("/") else None


def _uncovered(siblings: Sequence[_Entry]) -> list[_Entry]:
    """Those over whose parent directories no sibling was mounted later, and of two at one point the later."""
    latest = {entry.mount.point: entry for entry in siblings}
    return [entry for point, entry in latest.items() if not any(above in latest for above in _parents(point))]


def _parents(path: str) -> Iterator[str]:
    while path != "/":
        path = os.path.dirname(path)
        yield path


def _is_within(path: str, top: str) -> bool:
    return path == top or path.startswith(top.rstrip("/") + "/")


def _is_system(path: str, root: str) -> bool:
    return any(_is_within(path, system) and not _is_within(root, system) for system in _SYSTEM)


def _unescape(text: str) -> str:
    return _ESCAPED.sub(lambda match: chr(int(match[1], 8)), text)


def _escape(text: str) -> str:
    return "".join(f"\\{ord(c):03o}" if c in " \t\n\\" else c for c in text)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)
