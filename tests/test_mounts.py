"""Mounts: the kernel's list as text, what is shared under a root, what is wrong with it; the probe on a real directory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dwrap.agent import mounts as agent_mounts
from dwrap.protocol import mounts
from dwrap.protocol.mounts import Mount
from dwrap.protocol.probe import Probe, probe, skew

ROOT = "1 0 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
NFS_OPTIONS = "rw,vers=4.2,rsize=262144,hard,proto=tcp,sec=sys,local_lock=none,addr=10.0.0.1"


def entry(number: int, parent: int, point: str, kind: str, source: str = "none", options: str = "rw", device: str = "0:50") -> str:
    return f"{number} {parent} {device} / {point} rw,relatime shared:{number} - {kind} {source} {options}\n"


def nfs(options: str = NFS_OPTIONS, point: str = "/srv") -> str:
    return ROOT + entry(2, 1, point, "nfs4", "box:/srv", options)


def at_noon(seconds: float = 0.0, owner: int | None = None) -> Probe:
    return Probe(seconds, os.geteuid() if owner is None else owner)


def find(roots: list[str], text: str, seen: Probe | None = None) -> agent_mounts.Found:
    return agent_mounts.find(roots, text, lambda directory: seen)


# ---- the list ----


def test_a_line_is_read_with_its_escapes() -> None:
    only = mounts.parse(entry(7, 1, r"/with\040space\134and\011tab", "nfs", r"box:/a\040b", "rw,vers=3"))
    assert only == [Mount("/with space\\and\ttab", "nfs", r"box:/a\040b", ("rw", "relatime", "vers=3"))]
    assert only[0].line() == r"/with\040space\134and\011tab nfs box:/a\040b rw,relatime,vers=3"


def test_optional_fields_may_be_none_or_many() -> None:
    text = "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 0:9 / /a rw shared:1 master:2 propagate_from:3 unbindable - nfs4 s:/ rw\n"
    assert [(mount.point, mount.kind) for mount in mounts.parse(text)] == [("/", "ext4"), ("/a", "nfs4")]


@pytest.mark.parametrize(
    "line", ["", "nonsense", "1 0 8:1 / / rw", "x 0 8:1 / / rw - ext4 d rw", "1 0 8:1 / / rw - ext4", "1 0 8:1 / p rw - e d rw"]
)
def test_lines_that_make_no_sense_are_left_out(line: str) -> None:
    assert mounts.parse(line + "\n" + ROOT.replace("1 0 ", "9 0 ", 1)) == [Mount("/", "ext4", "/dev/sda1", ("rw", "relatime"), True)]


@pytest.mark.parametrize(
    ("lines", "seen"),
    [
        ([(2, 1, "/a", "nfs4"), (3, 2, "/a", "tmpfs")], {"/": "ext4", "/a": "tmpfs"}),  # over it, at the same point
        ([(2, 1, "/a", "nfs4"), (3, 1, "/a", "tmpfs")], {"/": "ext4", "/a": "tmpfs"}),
        ([(2, 1, "/a/b", "nfs4"), (3, 1, "/a", "tmpfs")], {"/": "ext4", "/a": "tmpfs"}),  # over a directory above it
        ([(2, 1, "/a", "tmpfs"), (3, 2, "/a/b", "nfs4")], {"/": "ext4", "/a": "tmpfs", "/a/b": "nfs4"}),
        ([(2, 1, "/a", "nfs4"), (3, 2, "/a/b", "nfs4"), (4, 2, "/a", "tmpfs")], {"/": "ext4", "/a": "tmpfs"}),  # with what is on it
        ([(2, 1, "/", "overlay"), (3, 2, "/a", "nfs4")], {"/": "overlay", "/a": "nfs4"}),
    ],
)
def test_what_is_mounted_over_does_not_count(lines: list[tuple[int, int, str, str]], seen: dict[str, str]) -> None:
    text = ROOT + "".join(entry(*line) for line in lines)
    assert {mount.point: mount.kind for mount in mounts.parse(text)} == seen


def test_a_list_without_a_root_is_read_too() -> None:
    """In a chroot that is no mount point the kernel leaves out what lies above."""
    assert [mount.point for mount in mounts.parse(entry(5, 4, "/a", "nfs4") + entry(6, 5, "/a/b", "tmpfs"))] == ["/a", "/a/b"]


def test_the_real_list_is_understood() -> None:
    known = mounts.parse(mounts.read())
    at = mounts.covering(known, os.path.realpath("/proc/self"))
    assert at is not None
    assert (at.point, at.kind) == ("/proc", "proc")


def test_the_longest_point_covers() -> None:
    known = mounts.parse(ROOT + entry(2, 1, "/srv", "nfs4") + entry(3, 2, "/srv/src", "tmpfs"))
    for path, point in {"/srv/src/a": "/srv/src", "/srv/src": "/srv/src", "/srv/srcs": "/srv", "/srv": "/srv", "/x": "/"}.items():
        found = mounts.covering(known, path)
        assert found is not None
        assert found.point == point, path


# ---- what an agent makes of it ----


@pytest.mark.parametrize(
    ("kind", "device", "views"),
    [
        ("ext4", "8:2", False), ("fuseblk", "8:2", False), ("whoknows", "8:2", False), ("xfs", "8:2", False), ("btrfs", "0:40", False),
        ("tmpfs", "0:40", False), ("overlay", "0:40", False), ("zfs", "0:40", False), ("ceph", "0:40", False), ("lustre", "0:40", False),
        ("fuse.lxcfs", "0:40", False), ("fuse.fuse-overlayfs", "0:40", False),
        ("nfs", "0:40", True), ("nfs4", "0:40", True), ("cifs", "0:40", True), ("smb3", "0:40", True), ("9p", "0:40", True),
        ("fuse.sshfs", "0:40", True), ("fuse.glusterfs", "0:40", True), ("virtiofs", "0:40", True), ("afs", "0:40", True),
        ("autofs", "0:40", True), ("whoknows", "0:40", True),
    ],
)  # fmt: skip
def test_which_file_systems_need_views(kind: str, device: str, views: bool) -> None:
    text = ROOT + entry(2, 1, "/srv", kind, device=device)
    assert find(["/srv/src"], text).views is views
    assert find(["/"], text).views is views
    assert not find(["/home"], text).views


@pytest.mark.parametrize("point", ["/proc/sys/fs/binfmt_misc", "/run/user/1000/doc", "/sys/x", "/dev/x", "/boot/efi"])
def test_what_the_system_mounts_for_itself_is_no_build_tree(point: str) -> None:
    text = ROOT + entry(2, 1, point, "autofs")
    assert not find(["/"], text).views
    assert find([point], text).views, "unless the operator names it"


def test_each_shared_mount_is_told_once_with_its_options() -> None:
    text = nfs() + entry(3, 2, "/srv/deep", "nfs4", "box:/deep")
    found = find(["/srv", "/srv/deep", "/"], text)
    assert found.mounts == (f"/srv nfs4 box:/srv rw,relatime,{NFS_OPTIONS.removeprefix('rw,')}", "/srv/deep nfs4 box:/deep rw,relatime")
    assert (found.flaws, found.refusal) == ((), "")


def test_a_root_that_is_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    text = ROOT + entry(2, 1, str(tmp_path / "real"), "nfs4")
    assert find([str(tmp_path / "link")], text).views


@pytest.mark.parametrize(
    ("kind", "options", "word", "fatal"),
    [
        ("nfs4", "vers=4.2,nocto", "nocto", True), ("nfs", "vers=3", "vers=3", False), ("nfs4", "vers=4.2,soft", "soft", False),
        ("nfs4", "vers=4.2,softerr", "softerr", False), ("nfs", "vers=4.2,nolock", "nolock", False),
        ("nfs", "vers=4.2,local_lock=all", "nolock", False), ("nfs4", "vers=4.2,noac", "noac", False),
        ("nfs4", "vers=4.2,acregmin=0,acregmax=0,acdirmin=0,acdirmax=0", "noac", False),
        ("nfs4", "vers=4.2,lookupcache=none", "lookupcache", False), ("9p", "cache=loose", "cache=loose", True),
        ("9p", "cache=fscache", "cache=fscache", True), ("9p", "cache=f", "cache=f", True),
        ("cifs", "vers=3.1.1,cache=loose", "cache", True),
        ("fuse.sshfs", "rw", "entry_timeout=0", False), ("virtiofs", "rw", "virtiofs", False),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_mount_is_told(kind: str, options: str, word: str, fatal: bool) -> None:
    found = find(["/srv"], ROOT + entry(2, 1, "/srv", kind, "box:/srv", options))
    assert len(found.flaws) == 1, found.flaws
    what, _, remedy = found.flaws[0].partition("; ")
    assert word in found.flaws[0]
    assert what.startswith(f"/srv ({kind} box:/srv): ")
    assert remedy
    assert found.refusal == (found.flaws[0] if fatal else "")


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("nfs4", NFS_OPTIONS),
        ("nfs4", "vers=4.1,acregmin=3600,acregmax=3600,acdirmin=3600,acdirmax=3600"),
        ("nfs4", "lookupcache=positive"),
        ("9p", "trans=virtio"), ("9p", "cache=mmap"), ("9p", "cache=5"), ("cifs", "cache=strict,soft"), ("autofs", "rw"),
    ],
)  # fmt: skip
def test_what_is_right_is_not_complained_of(kind: str, options: str) -> None:
    assert find(["/srv"], ROOT + entry(2, 1, "/srv", kind, "box:/srv", options)).flaws == ()


@pytest.mark.parametrize(
    ("seconds", "flaws", "word", "refused"),
    [(0.0, 0, "", False), (0.9, 0, "", False), (-0.9, 0, "", False), (1.5, 1, "1.5 s ahead of", False), (-30, 1, "30.0 s behind", False),
     (61, 1, "ahead of", True), (-61, 1, "behind", True)],
)  # fmt: skip
def test_a_clock_that_differs_is_told_and_at_last_refused(seconds: float, flaws: int, word: str, refused: bool) -> None:
    found = find(["/srv/src"], nfs(), at_noon(seconds))
    assert len(found.flaws) == flaws
    assert all(word in flaw and "chrony" in flaw for flaw in found.flaws)
    assert bool(found.refusal) is refused


def test_files_that_become_nobodys_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "idmapd" in find(["/srv"], nfs(), at_noon(owner=65534)).flaws[0]
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert find(["/srv"], nfs(), at_noon(owner=65534)).flaws == (), "root is squashed: every job runs as its user"


def test_the_clock_is_looked_at_where_jobs_will_be() -> None:
    looked: list[str] = []
    text = nfs() + entry(3, 2, "/srv/src/deep", "nfs4") + entry(4, 2, "/srv/src/auto", "autofs")
    agent_mounts.find(["/srv/src"], text, lambda directory: looked.append(directory))
    assert looked == ["/srv/src", "/srv/src/deep"], "an automounter is not made to mount"


def test_paths_that_are_no_text_are_told_as_text() -> None:
    found = find(["/srv"], ROOT + entry(2, 1, "/srv/\udcff\x1b[2J", "nfs4", options="vers=3"))
    assert "".join(found.mounts + found.flaws).isprintable()
    assert "".join(found.mounts + found.flaws).encode("utf-8")


# ---- the probe ----


def test_a_probe_of_a_local_directory_finds_our_clock_and_us_and_leaves_nothing(tmp_path: Path) -> None:
    assert probe(str(tmp_path)) == Probe(0.0, os.geteuid())
    assert list(tmp_path.iterdir()) == []


def test_a_probe_sees_a_clock_that_differs(tmp_path: Path) -> None:
    seen = probe(str(tmp_path), lambda: 1000.0)
    assert seen is not None
    assert seen.skew_seconds > 1e8


def test_where_no_directory_can_be_made_nothing_is_said(tmp_path: Path) -> None:
    assert probe("/proc/self") is None
    assert probe(str(tmp_path / "missing")) is None


@pytest.mark.parametrize(("stamp", "found"), [(10.5, 0.0), (10.0, 0.0), (11.0, 0.0), (9.995, 0.0), (13.0, 2.0), (8.0, -1.99)])
def test_skew_is_what_lies_outside_of_the_interval(stamp: float, found: float) -> None:
    assert skew(10.0, stamp, 11.0) == pytest.approx(found)
