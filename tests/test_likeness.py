"""likeness.py: how differences between environments are told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dwrap.protocol.likeness import difference, few, nearness, packages, unlike

HERE = "x86_64 debian/12 g++=12.2.0-14 gcc=12.2.0-14 libc=2.36-9 #1111111111111111"


@pytest.mark.parametrize(
    ("theirs", "told"),
    [
        (HERE, ""),
        ("", "does not say what is installed there"),
        (HERE.replace("x86_64", "aarch64"), "is aarch64, you are on x86_64"),
        (HERE.replace("g++=12.2.0-14", "g++=13.2.0-1"), "has g++ 13.2.0-1, you have 12.2.0-14"),
        (HERE.replace("g++=12.2.0-14", "g++=11.4.0,12.2.0-14"), "has g++ 11.4.0 and 12.2.0-14, you have 12.2.0-14"),
        (HERE.replace(" g++=12.2.0-14", ""), "has no g++, you have 12.2.0-14"),
        (HERE.replace(" libc", " clang=14.0 libc"), "has clang 14.0, you have none"),
        (HERE.replace("debian/12 g++=12", "debian/13 g++=14"), "has g++ 14.2.0-14, you have 12.2.0-14"),
        (HERE.replace("debian/12", "ubuntu/22.04"), "runs ubuntu 22.04, you run debian 12"),
        (HERE.replace("#1", "#2"), "has other packages than you; dwrapctl doctor names them"),
        ("\x1b[2J nonsense", "is \x1b[2J, you are on x86_64"),  # whoever shows it makes it safe
    ],
)
def test_difference(theirs: str, told: str) -> None:
    assert difference(theirs, HERE) == told


@given(st.text(), st.text())
def test_a_difference_is_told_exactly_where_there_is_one(theirs: str, ours: str) -> None:
    assert bool(difference(theirs, ours)) == (theirs != ours)


def test_the_nearest_is_of_the_same_architecture() -> None:
    near, far = HERE.replace("g++=12", "g++=13"), HERE.replace("x86_64", "aarch64")
    assert nearness(near, HERE) > nearness(far, HERE)
    assert nearness(HERE, HERE) > nearness(near, HERE)


def test_packages_by_name() -> None:
    theirs = packages(["a 1", "b 2", "k 1", "k 2"])
    assert theirs == {"a": "1", "b": "2", "k": "1 and 2"}
    assert list(unlike(theirs, packages(["a 1", "b 3", "c 4", "k 1", "k 2"]))) == ["b 2 (you: 3)", "c missing (you: 4)"]
    assert few(map(str, range(7))) == "0, 1, 2, 3, 4, and 2 more"
    assert few(["x"]) == "x"
