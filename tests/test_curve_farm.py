"""A wrapper with keys on a real farm: dwrapctl makes and trusts the keys, the distributor lets them in, the agent runs the command."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from farm import eventually
from keyed_farm import Keyed, keyed_farm


@pytest.fixture
def keyed(short_dir: Path) -> Iterator[Keyed]:
    with keyed_farm(short_dir) as farm:
        yield farm


def says(keyed: Keyed, words: str) -> bool:
    """Whether a command fails with these words. On a busy machine another answer may come first: none."""
    done = keyed.dwrap("echo", "hi")
    return done.returncode == 125 and words in done.stderr


def test_it_runs_once_both_keys_are_known(keyed: Keyed) -> None:
    eventually(lambda: says(keyed, "it asks for keys"), seconds=30)
    keyed.dwrapctl("key", "new", "client")
    keyed.dwrapctl("key", "trust", keyed.address, keyed.server)
    public = keyed.key()
    eventually(lambda: says(keyed, f"dwrapctl key allow NAME {public} --submit --uid {os.getuid()}"), seconds=30)

    keyed.allow("desk", public)
    eventually(lambda: keyed.dwrap("true").returncode == 0, seconds=30, saying="the key is let in")
    done = keyed.dwrap("sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
    long = keyed.dwrap("seq", "200000")
    assert long.stdout.count("\n") == 200_000


def test_one_whose_key_was_changed_gets_nothing(keyed: Keyed) -> None:
    keyed.dwrapctl("key", "new", "client")
    keyed.allow("desk", keyed.key())
    keyed.dwrapctl("key", "trust", keyed.address, "12" * 32)
    eventually(lambda: says(keyed, "its key is probably not the one"), seconds=30)
