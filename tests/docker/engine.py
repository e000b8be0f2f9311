"""A Docker engine for tests, and images that come from no registry: a base by debootstrap from the machine's own mirror, compilers by apt.

Everything made here is called dwrapt-…, and removed at the end. `toolchain` makes bases that differ, `build` any target of the Dockerfile
from one. Knows the docker command and Debian. Does not know what is proved in the containers.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from farm import eventually

TOP = Path(__file__).resolve().parent.parent.parent
PREFIX = "dwrapt"
START_SECONDS = 60
BUILD_SECONDS = 600
_APT = "DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends"
_TOOLCHAIN = f"ARG BASE\nFROM ${{BASE}}\nARG PACKAGES\nRUN apt-get update && {_APT} $PACKAGES && rm -rf /var/lib/apt/lists/*\n"


class EngineError(Exception):
    """A command of the engine failed; the text is what it said last."""


def missing() -> str:
    """Why there can be no engine here; empty when there can."""
    if os.getuid() != 0:
        return "containers need root: dockerd and debootstrap do"
    wanting = [package for program, package in PROGRAMS.items() if not shutil.which(program)]
    return f"needs {' '.join(sorted(set(wanting)))}: apt-get install" if wanting else ""


PROGRAMS = {"docker": "docker.io", "dockerd": "docker.io", "debootstrap": "debootstrap", "docker-compose": "docker-compose"}


def docker(*words: str, given: str | None = None, seconds: float = 120) -> str:
    """What the command prints. Raises EngineError."""
    environment = {**os.environ, "DOCKER_BUILDKIT": "0"}  # the builder that every engine has
    done = subprocess.run(["docker", *words], input=given, capture_output=True, text=True, timeout=seconds, env=environment)
    if done.returncode:
        raise EngineError(f"docker {' '.join(words)[:200]}: {(done.stdout + done.stderr)[-3000:].strip()}")
    return done.stdout.strip()


def answers() -> bool:
    """Is there an engine?"""
    return subprocess.run(["docker", "version"], capture_output=True, timeout=30).returncode == 0


@contextlib.contextmanager
def running() -> Iterator[None]:
    """An engine: the machine's, or one that ends with us. Nothing of ours is left in it. Raises EngineError."""
    with contextlib.ExitStack() as stack:
        if not answers():
            stack.enter_context(_own())
        remove_all()
        try:
            yield
        finally:
            if not os.environ.get("DWRAPT_KEEP"):
                remove_all(images=True)


@contextlib.contextmanager
def _own() -> Iterator[None]:
    with tempfile.TemporaryDirectory(prefix="dwrapt-") as folder:
        log = Path(folder) / "dockerd.log"
        with log.open("wb") as out, subprocess.Popen(["dockerd"], stdout=out, stderr=out, stdin=subprocess.DEVNULL) as daemon:
            try:
                eventually(lambda: answers() or daemon.poll() is not None, START_SECONDS, "dockerd answers")
                if daemon.poll() is not None:
                    raise EngineError(f"dockerd does not start: {log.read_text(errors='replace')[-2000:]}")
                yield
            finally:
                daemon.terminate()
                daemon.wait(START_SECONDS)


def remove_all(images: bool = False) -> None:
    """Whatever has our name, as far as it can be removed."""
    kinds = {"ps": ("rm", "-fv"), "network": ("network", "rm"), "volume": ("volume", "rm")}
    for kind, remove in kinds.items():
        ask = [kind, "-aq"] if kind == "ps" else [kind, "ls", "-q"]
        for name in docker(*ask, "--filter", f"name={PREFIX}").split():
            with contextlib.suppress(EngineError):
                docker(*remove, name)
    for _ in range(2 if images else 0):  # what others are made from goes after them
        for image in docker("images", "-q", f"{PREFIX}-*").split():
            with contextlib.suppress(EngineError):
                docker("rmi", "-f", image)


# ---- images ----


def has(tag: str) -> bool:
    return bool(docker("images", "-q", tag))


def base(suite: str) -> str:
    """A Debian with nothing but apt, as debian:SUITE-slim is. Raises EngineError."""
    tag = f"{PREFIX}-base:{suite}"
    if has(tag):
        return tag
    with tempfile.TemporaryDirectory(prefix="dwrapt-") as folder:
        root = Path(folder) / suite
        argv = ["debootstrap", "--variant=minbase", suite, str(root), mirror()]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=BUILD_SECONDS)
        if done.returncode:
            raise EngineError(f"debootstrap {suite}: {(done.stdout + done.stderr)[-1000:]}")
        with subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE) as packed:
            subprocess.run(["docker", "import", "-c", 'CMD ["bash"]', "-", tag], stdin=packed.stdout, check=True, capture_output=True)
    return tag


def mirror() -> str:
    """Where this machine has its packages from: the archive of its own release. Raises EngineError."""
    argv = ["apt-get", "indextargets", "--format", "$(RELEASE) $(REPO_URI)", "Created-By: Packages"]
    told = subprocess.run(argv, capture_output=True, text=True, timeout=30).stdout
    release = platform.freedesktop_os_release().get("VERSION_CODENAME")
    for line in told.splitlines():
        name, _, uri = line.partition(" ")
        if name == release:
            return uri
    raise EngineError("this machine's apt knows no archive of its release: see /etc/apt")


def toolchain(name: str, of: str, *packages: str) -> str:
    """An image with these packages beside those of `of`. Raises EngineError."""
    tag = f"{PREFIX}-toolchain:{name}"
    if not has(tag):
        words = ["--network=host", "--build-arg", f"BASE={of}", "--build-arg", f"PACKAGES={' '.join(packages)}", "-t", tag, "-"]
        docker("build", *words, given=_TOOLCHAIN, seconds=BUILD_SECONDS)
    return tag


def build(target: str, of: str, tag: str, maker: str, source: Path = TOP) -> str:
    """One target of docker/Dockerfile, made from the image `of`; `maker` is where the tree is made. Raises EngineError."""
    image = f"{PREFIX}-{target}:{tag}"
    arguments = ["--network=host", "--target", target, "--build-arg", f"BASE={of}", "--build-arg", f"BUILD={maker}", "-t", image]
    docker("build", *arguments, "-f", str(source / "docker" / "Dockerfile"), str(source), seconds=BUILD_SECONDS)
    return image


def size(image: str) -> int:
    """In bytes, its base included."""
    return int(docker("image", "inspect", "-f", "{{.Size}}", image))
