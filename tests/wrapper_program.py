"""The wrapper under test, as it is shipped and with the sanitizers, and an environment in which only we speak.

A test file takes the fixture by `dwrap = wrapper_program.dwrap`. Does not know the protocol.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
WARNINGS = ["-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-Wshadow", "-Wvla", "-Wstrict-prototypes", "-Wmissing-prototypes"]
SANITIZE = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
SODIUM = ["-lsodium"]  # after the sources
SECONDS = 30


def build(compiler: str, output: Path, sources: list[str], *flags: str) -> Path:
    """Compiles C sources of the tree into one program."""
    command = [compiler, *WARNINGS, *flags, "-I.", *sources, "-o", str(output)]
    subprocess.run(command, cwd=ROOT, check=True)
    return output


class Wrapper:
    """The program, and runs of it in a private directory with a known environment."""

    def __init__(self, program: Path, directory: Path) -> None:
        self.program = program
        self.directory = directory
        self.state = directory / "state"
        self.runtime = directory / "runtime"
        self.runtime.mkdir(mode=0o700, exist_ok=True)
        self.prefix: list[str] = []  # a program that starts it in another surrounding
        self.env = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(directory),
            "XDG_STATE_HOME": str(self.state),
            "XDG_RUNTIME_DIR": str(self.runtime),
            "ASAN_OPTIONS": "abort_on_error=0:exitcode=99",
        }

    def popen(self, *words: str | bytes, env: Mapping[str, str] | None = None, **rest: Any) -> subprocess.Popen[bytes]:
        rest.setdefault("stdin", subprocess.DEVNULL)
        rest.setdefault("stdout", subprocess.PIPE)
        rest.setdefault("stderr", subprocess.PIPE)
        rest.setdefault("cwd", self.directory)
        return subprocess.Popen([*self.prefix, self.program, *words], env={**self.env, **(env or {})}, **rest)

    def run(self, *words: str | bytes, env: Mapping[str, str] | None = None, **rest: Any) -> subprocess.CompletedProcess[bytes]:
        """Runs it to its end. `data` is what it finds on stdin."""
        data = rest.pop("data", None)
        if data is not None:
            rest["stdin"] = subprocess.PIPE
        with self.popen(*words, env=env, **rest) as process:
            try:
                out, err = process.communicate(data, timeout=SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def log(self) -> list[list[str]]:
        """The lines of here.log as fields."""
        path = self.state / "dwrap" / "here.log"
        return [line.split("\t") for line in path.read_text("utf-8", "surrogateescape").splitlines()] if path.exists() else []


def has_sanitizers(directory: Path) -> bool:
    """Can this compiler build with them at all?"""
    (directory / "empty.c").write_text("int main(void) { return 0; }")
    return subprocess.run(["cc", *SANITIZE, directory / "empty.c", "-o", directory / "empty"], capture_output=True).returncode == 0


@pytest.fixture(scope="session", params=["shipped", "sanitized"])
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "shipped":
        subprocess.run(["make", "-s", "build/bin/dwrap"], cwd=ROOT, check=True)
        return ROOT / "build" / "bin" / "dwrap"
    sources = sorted(str(path.relative_to(ROOT)) for room in ("wrapper", "coherence", "environment") for path in (ROOT / room).glob("*.c"))
    if not has_sanitizers(tmp_path_factory.mktemp("try")):
        pytest.skip("this compiler has no address sanitizer")
    return build("cc", tmp_path_factory.mktemp("sanitized") / "dwrap", [*sources, *SODIUM], *SANITIZE)


@pytest.fixture
def dwrap(program: Path, tmp_path: Path) -> Wrapper:
    return Wrapper(program, tmp_path)


@pytest.fixture
def capped(dwrap: Wrapper) -> Iterator[Wrapper]:
    """The wrapper with semaphores of its own: the cap is machine-wide, and other tests run beside this one."""
    with subprocess.Popen(["unshare", "--ipc", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as holder:
        assert holder.stdin
        assert holder.stdout
        try:
            holder.stdin.write(b"x")
            holder.stdin.flush()
        except BrokenPipeError:
            pytest.skip("semaphores of its own need root")
        if holder.stdout.read(1) != b"x":
            pytest.skip("semaphores of its own need root")
        dwrap.prefix = ["nsenter", f"--ipc=/proc/{holder.pid}/ns/ipc"]
        yield dwrap
        holder.stdin.close()


def clang() -> str:
    """The path of clang. Skips the test when there is none."""
    found = shutil.which("clang", path=os.defpath + ":/usr/bin:/usr/local/bin")
    if not found:
        pytest.skip("clang is not installed, and libFuzzer comes with it")
    return found


def coverage(directory: Path, fuzzer: list[str], files: list[str], corpora: list[Path]) -> str:
    """llvm-cov's table for these files after a fuzzer has run over corpora; or why there is none."""
    profdata, cov = shutil.which("llvm-profdata"), shutil.which("llvm-cov")
    if not profdata or not cov:
        return "(llvm-cov is not installed)"
    program = build(clang(), directory / "covered", fuzzer, "-g", "-fsanitize=fuzzer", "-fprofile-instr-generate", "-fcoverage-mapping")
    raw = directory / "raw"
    subprocess.run([program, "-runs=0", *corpora], env={**os.environ, "LLVM_PROFILE_FILE": str(raw)}, capture_output=True, check=True)
    subprocess.run([profdata, "merge", raw, "-o", directory / "data"], check=True)
    command = [cov, "report", program, f"-instr-profile={directory / 'data'}", *files]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
