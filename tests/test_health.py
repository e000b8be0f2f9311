"""What a probe hears of an agent: that it serves only while a distributor counts on it, and only as long as it says so itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from farm import eventually
from test_agent import Distributor, start
from test_agent import distributor as distributor  # its fixture

from dwrap.agent import health
from dwrap.agent.health import Health


def probe(file: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "dwrap.agent.health", str(file)], capture_output=True, text=True, timeout=30)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "run" / "agent"


def test_a_file_says_so_while_it_serves(file: Path) -> None:
    told = Health(file)
    assert not file.exists()
    told.tell(True)
    assert probe(file).returncode == 0
    told.tell(False)
    assert "no distributor counts on this agent" in probe(file).stderr
    told.tell(True)
    told.close()
    assert [*file.parent.iterdir()] == []


def test_what_an_agent_before_it_left_says_nothing(file: Path) -> None:
    file.parent.mkdir()
    file.write_text(f"{health.boot_clock()}\n")
    Health(file)
    assert probe(file).returncode == 1


@pytest.mark.parametrize("shape", ["everybody may write there", "it is a link"])
def test_a_directory_where_jobs_may_write_is_not_for_it(file: Path, tmp_path: Path, shape: str) -> None:
    """There a job could have the agent write over any file (`ln -s FILE .agent.new`), or keep it from saying that it lives."""
    if shape == "it is a link":
        (tmp_path / "elsewhere").mkdir()
        file.parent.symlink_to(tmp_path / "elsewhere")
    else:
        file.parent.mkdir()
        file.parent.chmod(0o1777)
    with pytest.raises(OSError, match="others may write in"):
        Health(file)
    if shape != "it is a link":
        Health(file.parent / "own" / "health").tell(True)
        assert (file.parent / "own").stat().st_mode & 0o022 == 0


@pytest.mark.parametrize(("text", "cause"), [
    ("0.0\n", "the agent has said nothing"), ("", "it holds no time"), ("nonsense", "it holds no time"), (None, "Is a directory"),
])  # fmt: skip
def test_a_probe_says_what_is_wrong(file: Path, text: str | None, cause: str) -> None:
    file.parent.mkdir()
    if text is None:
        file.mkdir()
    else:
        file.write_text(text)
    done = probe(file)
    assert (done.returncode, cause in done.stderr, done.stdout) == (1, True, ""), done.stderr


def test_a_place_that_cannot_be_written_is_said_at_the_start_and_later_once(
    file: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OSError, match="agent"):
        Health(Path("/proc/agent"))
    told = Health(file)

    def full(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    for _ in range(3):
        told.tell(True)
    assert [record.getMessage() for record in caplog.records] == [
        f"cannot write {file}: No space left on device; probes will say that this agent serves nobody"
    ]
    assert not file.exists()


def test_an_agent_is_well_only_while_its_distributor_counts_on_it(distributor: Distributor, tmp_path: Path, file: Path) -> None:
    distributor.lease_ms = 2_000
    with start(distributor.endpoint, "--health", str(file), work=tmp_path / "work") as agent:
        try:
            distributor.hear("REGISTER")
            assert probe(file).returncode == 1, "it is not welcomed yet"
            distributor.say("WELCOME", epoch=1, token="secret", lease_ms=2_000)
            eventually(lambda: not distributor.hear("HEARTBEAT") or probe(file).returncode == 0)
            distributor.renews = False  # a distributor that hangs: the connection stays, the lease ends
            eventually(lambda: probe(file).returncode == 1)
            distributor.renews = True
            eventually(lambda: not distributor.hear("HEARTBEAT") or probe(file).returncode == 0)
            distributor.close()
            eventually(lambda: not file.exists())
            distributor.open()
            distributor.welcome()
            eventually(lambda: not distributor.hear("HEARTBEAT") or probe(file).returncode == 0)
            agent.send_signal(signal.SIGTERM)
            agent.wait(15)
            assert not file.exists()
        finally:
            agent.kill()


def test_a_frozen_agent_is_not_well(distributor: Distributor, tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with start(distributor.endpoint, "--health", str(file), work=tmp_path / "work") as agent:
        try:
            distributor.welcome()
            eventually(file.exists)
            os.kill(agent.pid, signal.SIGSTOP)
            said = health.boot_clock()
            monkeypatch.setattr(health, "boot_clock", lambda: said + health.MOST_SECONDS + 1)
            monkeypatch.setattr(sys, "argv", ["health", str(file)])
            assert health.main() == 1
        finally:
            agent.kill()


def test_an_agent_that_cannot_keep_its_file_does_not_start(distributor: Distributor, tmp_path: Path) -> None:
    with start(distributor.endpoint, "--health", "/proc/agent", work=tmp_path / "work") as agent:
        assert agent.stderr is not None
        assert "dwrap: cannot start: --health /proc/agent cannot be kept: " in agent.stderr.read()
