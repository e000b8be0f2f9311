"""spares.py: what is set aside is whole, comes back, and is never taken for a result."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from dwrap.agent.runner import RECORD
from dwrap.agent.spares import FILE_BYTES, Spares

ALL = ["directory-0", "directory-1", "file-0", "file-1"]


def names(work: Path) -> list[str]:
    return sorted(path.name for path in (work / "spare").iterdir())


def test_as_much_as_there_may_be_at_once(tmp_path: Path) -> None:
    spares = Spares(tmp_path, 2)
    assert names(tmp_path) == ALL
    assert {(tmp_path / "spare" / name).stat().st_size for name in ("file-0", "file-1")} == {FILE_BYTES}
    assert (tmp_path / "spare").stat().st_mode & 0o777 == 0o700
    for name in ("directory-1", "file-0"):
        (tmp_path / "spare" / name).rename(tmp_path / name)
    spares.refill()
    assert names(tmp_path) == ALL
    spares.close()
    assert not (tmp_path / "spare").exists()


def test_a_file_comes_back_where_one_is_missing(tmp_path: Path) -> None:
    spares, record = Spares(tmp_path, 2), tmp_path / "job.1"
    record.write_bytes(b"x" * FILE_BYTES)
    assert not spares.take_back(record), "none is missing"
    (tmp_path / "spare" / "file-1").rename(record)
    with record.open("r+b") as file:
        file.write(RECORD.pack(1000, 5, 0) + b"s=1\0\0")
    assert spares.take_back(record)
    assert (names(tmp_path), record.exists()) == (ALL, False)
    assert RECORD.unpack_from((tmp_path / "spare" / "file-1").read_bytes()) == (0, 0, 0), "what it said is over"
    (tmp_path / "spare" / "file-1").unlink()
    record.write_bytes(b"short")
    assert not spares.take_back(record), "what was not set aside holds no room"
    assert not spares.take_back(tmp_path / "absent")


def test_a_full_disk_leaves_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spares = Spares(tmp_path, 2)
    (tmp_path / "spare" / "file-0").unlink()

    def is_full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", is_full)
        spares.refill()
        assert names(tmp_path) == ["directory-0", "directory-1", "file-1"], "not even a part of one"
    spares.refill()
    assert names(tmp_path) == ALL


def test_without_any_nothing_is_made(tmp_path: Path) -> None:
    spares, record = Spares(tmp_path, 0), tmp_path / "job.1"
    record.write_bytes(b"x" * FILE_BYTES)
    spares.refill()
    assert not spares.take_back(record)
    assert [path.name for path in tmp_path.iterdir()] == ["job.1"]
    spares.close()
