"""Checks of the tree in which a build lies, as this machine sees it: how it is mounted, its server, and what tools make of it.

Knows what network file systems do to builds (docs/coherence.md). Does not ask any other machine.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator

from dwrap.control.findings import Finding, Surroundings
from dwrap.protocol import mounts
from dwrap.protocol.mounts import Mount

NFS_GROUPS = 16
_SETTING = re.compile(r"\([^)]*\) (\w+) = ?(.*)")


def examine(here: Surroundings) -> Iterator[Finding]:
    """What there is to say of the working directory; on a disk of this machine that is little."""
    mount = here.mount(here.cwd)
    if mount is None:
        yield Finding("warn", "tree", f"the mount of {here.cwd} is not known", "look at /proc/self/mountinfo")
        return
    yield from how_mounted(mount)
    if mount.is_shared:
        yield from server(here)
        yield from groups(here, mount)
        yield from ninja(here, mount)
    yield from compiler_cache(here, mount)


def how_mounted(mount: Mount) -> Iterator[Finding]:
    """File system, version, options."""
    if not mount.is_shared:
        yield Finding("ok", "tree", f"{mount.name()}: all on this machine see one truth")
        return
    defects = list(mounts.defects(mount))
    for defect in defects:
        yield Finding("fail" if defect.fatal else "warn", "tree", f"{mount.name()}: {defect.what}", defect.remedy)
    if not defects:
        version = mount.option("vers")
        yield Finding("ok", "tree", mount.name() + (f", version {version}" if version else ""))


def server(here: Surroundings) -> Iterator[Finding]:
    """The server's clock, and whom it takes us for."""
    seen = here.probe(here.cwd)
    if seen is None:
        yield Finding("warn", "server's clock", f"not known: nothing can be made in {here.cwd}", "run doctor where you build")
        return
    defects = list(mounts.skew_defects(seen.skew_seconds, "its clock"))
    for defect in defects:
        yield Finding("fail" if defect.fatal else "warn", "server's clock", defect.what, defect.remedy)
    if not defects:
        yield Finding("ok", "server's clock", "agrees with this machine's")
    for defect in mounts.owner_defects(seen.owner, here.uid):
        yield Finding("warn", "identity", defect.what, defect.remedy)
    if here.uid == 0 and seen.owner != 0:
        yield Finding("ok", "identity", f"root is uid {seen.owner} for the server (root_squash): right, but build as a user")


def groups(here: Surroundings, mount: Mount) -> Iterator[Finding]:
    """NFS without Kerberos carries 16 supplementary groups; the others do not count, which ones is not told."""
    if mount.kind in mounts.NFS and (mount.option("sec") or "sys") == "sys" and len(here.groups) > NFS_GROUPS:
        yield Finding(
            "warn",
            "groups",
            f"you are in {len(here.groups)}, NFS with sec=sys carries {NFS_GROUPS}: files of the others may be refused",
            "set manage-gids=y in [mountd] of the server's /etc/nfs.conf, if that is not done yet",
        )


def ninja(here: Surroundings, mount: Mount) -> Iterator[Finding]:
    """ninja 1.12 and 1.13 empty an already empty file to learn the server's time; NFS 4 leaves its time as it was."""
    path = shutil.which("ninja", path=here.environment.get("PATH", os.defpath))
    if path is None:
        return
    said = here.output_of([path, "--version"], here.environment).strip()
    numbers = [int(digits) for digits in re.findall(r"\d+", said)[:2]]
    if mount.kind in mounts.NFS and not (mount.option("vers") or "").startswith("3") and [1, 12] <= numbers < [1, 14]:
        yield Finding(
            "warn",
            "ninja",
            f"{path} is {said}, which on NFS 4 takes several runs to find that there is no work left (ninja issue 2762)",
            "use 1.11.1, or a release after 1.13 that has the fix",
        )
    else:
        yield Finding("ok", "ninja", f"{path}, version {said or 'unknown'}")


def ccache_settings(here: Surroundings) -> dict[str, str]:
    """The settings of the ccache on PATH, as it reads its files and the environment; nothing when there is none."""
    path = shutil.which("ccache", path=here.environment.get("PATH", os.defpath))
    if path is None:
        return {}
    lines = here.output_of([path, "--show-config"], here.environment).splitlines()
    return {match[1]: match[2].strip() for line in lines if (match := _SETTING.match(line))}


def compiler_cache(here: Surroundings, mount: Mount) -> Iterator[Finding]:
    """ccache settings that are right on a disk and wrong on a tree that others change."""
    settings = ccache_settings(here)
    if not settings:
        return
    cache = here.mount(settings.get("cache_dir", "/"))
    cache_is_shared = cache is not None and cache.is_shared
    if (mount.is_shared or cache_is_shared) and settings.get("inode_cache") == "true":
        yield Finding(
            "fail",
            "ccache",
            "inode_cache is on: it trusts times that the file system caches, and gives the object of a header as it was",
            "ccache --set-config inode_cache=false (agents do so by themselves)",
        )
    if not cache_is_shared:
        return
    for name in ("hard_link", "file_clone"):
        if settings.get(name) == "true":
            yield Finding("warn", "ccache", f"{name} is on in a cache that is shared: objects and cache can change each other",
                          f"ccache --set-config {name}=false")  # fmt: skip
    scratch = here.mount(settings.get("temporary_dir", "/"))
    if scratch is not None and scratch.is_shared:
        yield Finding("warn", "ccache", f"temporary_dir {settings['temporary_dir']} is on the file server, which costs time",
                      "ccache --set-config temporary_dir=/tmp/ccache-$USER, or any disk of each machine")  # fmt: skip
