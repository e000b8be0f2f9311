"""survey.py: what is mounted is told at the start, and again when it has changed, without ever waiting for it."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import unittest.mock
from collections.abc import Iterator
from pathlib import Path

import pytest

from dwrap.agent import mounts, survey
from dwrap.agent.events import Mounted
from dwrap.agent.mounts import Found
from dwrap.agent.survey import Survey

SECONDS = 10.0


class Kernel:
    """Stands in for the list of mounts and for the look at them."""

    def __init__(self) -> None:
        self.found = Found()
        self.has_changed = False
        self.answers = threading.Event()
        self.answers.set()

    def poll(self, _: int) -> list[int]:
        changed, self.has_changed = self.has_changed, False
        return [1] if changed else []

    def register(self, *_: object) -> None:
        return None

    def find(self, _: object) -> Found:
        assert self.answers.wait(SECONDS)
        return self.found


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    made = Kernel()
    monkeypatch.setattr(survey.select, "poll", lambda: made)
    monkeypatch.setattr(mounts, "find", made.find)
    yield made
    made.answers.set()


def news_of(surveyed: Survey) -> Mounted | None:
    """What it says once it has looked."""
    deadline = time.monotonic() + SECONDS
    first = surveyed.news()
    assert first is None, "the look is made in a thread"
    while surveyed._looking is not None and surveyed._looking.is_alive():
        assert time.monotonic() < deadline
    return surveyed.news()


def test_it_tells_when_the_mounts_have_changed(kernel: Kernel) -> None:
    surveyed = Survey(("/srv",), "auto")
    assert surveyed.first(accept_flaws=False) == Mounted(False)
    assert surveyed.news() is None
    kernel.has_changed, kernel.found = True, Found(True, ("/srv nfs4 s:/x rw",), ("s:/x: soft",))
    assert news_of(surveyed) == Mounted(True, ("/srv nfs4 s:/x rw",), ("s:/x: soft",))
    kernel.has_changed = True
    assert news_of(surveyed) is None, "another mount, of no concern"


def test_a_file_server_that_is_silent_holds_nothing_up(kernel: Kernel) -> None:
    surveyed = Survey(("/srv",), "auto")
    surveyed.first(accept_flaws=False)
    kernel.answers.clear()
    kernel.has_changed, kernel.found = True, Found(True)
    assert surveyed.news() is None
    assert surveyed.news() is None
    kernel.answers.set()
    assert surveyed._looking is not None
    surveyed._looking.join(SECONDS)
    assert surveyed.news() == Mounted(True)


def test_jobs_that_use_up_the_threads_put_a_look_off(kernel: Kernel) -> None:
    surveyed = Survey(("/srv",), "auto")
    surveyed.first(accept_flaws=False)
    kernel.has_changed, kernel.found = True, Found(True)
    with unittest.mock.patch("threading.Thread.start", side_effect=RuntimeError("can't start new thread")):
        assert surveyed.news() is None
    assert news_of(surveyed) == Mounted(True), "the kernel says it once only"


@pytest.mark.parametrize(("views", "told"), [("auto", True), ("always", True), ("never", False)])
def test_what_the_operator_says_goes_first(kernel: Kernel, views: str, told: bool) -> None:
    kernel.found = Found(True)
    assert Survey(("/srv",), views).first(accept_flaws=False).views == told
    kernel.found = Found(False)
    assert Survey(("/srv",), views).first(accept_flaws=False).views == (views == "always")


def test_an_agent_that_does_not_look_again_says_so(kernel: Kernel) -> None:
    kernel.found = Found(True, ("m",), ("f",))
    assert Survey(("/srv",), "auto").first(accept_flaws=False).flaws == ("f",)
    first, blind = Survey(("/srv",), "never").first(accept_flaws=False).flaws
    assert (first, "--views never" in blind, "; " in blind) == ("f", True, True)
    kernel.found = Found(False)
    assert Survey(("/srv",), "never").first(accept_flaws=False).flaws == ()


def test_wrong_bytes_are_refused_unless_accepted(kernel: Kernel) -> None:
    kernel.found = Found(True, (), ("s:/x: nocto",), "s:/x: nocto")
    with pytest.raises(ValueError, match="nocto"):
        Survey(("/srv",), "auto").first(accept_flaws=False)
    assert Survey(("/srv",), "auto").first(accept_flaws=True).flaws == ("s:/x: nocto",)


SCRIPT = """
import subprocess, sys
from dwrap.agent.survey import Survey
surveyed = Survey(("/proc",), "auto")
surveyed.first(accept_flaws=True)
assert not surveyed._poll.poll(0), "nothing was mounted since"
subprocess.run(["mount", "-t", "tmpfs", "none", sys.argv[1]], check=True)
assert surveyed._poll.poll(0), "something was"
assert not surveyed._poll.poll(0), "it is said once"
"""


def test_the_kernel_says_when_a_list_has_changed(tmp_path: Path) -> None:
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("only root may make a mount namespace here")
    subprocess.run(["unshare", "-m", sys.executable, "-c", SCRIPT, tmp_path], check=True, timeout=SECONDS)
