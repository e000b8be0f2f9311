"""The manual pages: each option of each program's --help is in its page, each in the page is an option, and man reads them without
a word.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import click
import pytest
from wrapper_program import ROOT

from dwrap.agent.cli import main as agent
from dwrap.control.cli import commands as control
from dwrap.distributor.cli import main as distributor

DOCS = ROOT / "docs"
PAGES = sorted(page for section in "18" for page in DOCS.glob(f"*.{section}"))
LINE = re.compile(r"\.(?:B|BI|BR|IR)\b")
OPTION = re.compile(r"(?<![\w-])--?[A-Za-z][\w-]*")
HELP = {"-h", "--help"}


def in_page(page: str) -> dict[str, set[str]]:
    """The options that a page has entries for, by the heading under which they stand."""
    found: dict[str, set[str]] = {}
    heading, before = "", ""
    for line in (DOCS / page).read_text().replace(r"\-", "-").splitlines():
        if line.startswith((".SH", ".SS")):
            heading = line.split(" ", 1)[1].strip('"')
            found[heading] = set()
        elif before == ".TP" and LINE.match(line):
            found[heading] |= set(OPTION.findall(line))
        before = line
    return found


def of_click(command: click.Command) -> set[str]:
    """Those that --help shows."""
    context = click.Context(command)
    return {name for option in command.get_params(context) if isinstance(option, click.Option) for name in option.opts} | HELP


def of_help(*program: str) -> set[str]:
    """Those at the beginning of a line of what --help prints."""
    text = subprocess.run([*program, "--help"], capture_output=True, text=True, check=True, timeout=30).stdout
    return {option for line in text.splitlines() if line.startswith("  -") for option in OPTION.findall(line.split("  ")[1])}


def subcommands(group: click.Group, prefix: str = "") -> dict[str, click.Command]:
    found: dict[str, click.Command] = {}
    for name, command in group.commands.items():
        found |= subcommands(command, f"{name} ") if isinstance(command, click.Group) else {f"{prefix}{name}": command}
    return found


@pytest.mark.parametrize(("page", "command"), [("dwrap-distributor.8", distributor), ("dwrap-agent.8", agent)])
def test_options_of_the_daemons(page: str, command: click.Command) -> None:
    assert in_page(page)["OPTIONS"] == of_click(command) == of_help(page.removesuffix(".8"))


def test_commands_and_options_of_dwrapctl() -> None:
    told = in_page("dwrapctl.1")
    known = subcommands(control)
    assert told.pop("OPTIONS") == {name for option in control.params for name in option.opts} | HELP
    assert {heading for heading in told if heading.islower()} == known.keys()
    for name, command in known.items():
        assert told[name] == of_click(command) - HELP, f"dwrapctl {name}"
        assert of_help("dwrapctl", *name.split()) == of_click(command), f"dwrapctl {name} --help"


def test_options_of_the_wrapper() -> None:
    assert in_page("dwrap.1")["OPTIONS"] == of_help("dwrap")


def test_options_of_the_links_keeper() -> None:
    assert in_page("update-dwrap-symlinks.8")["OPTIONS"] == of_help(str(ROOT / "deploy/update-dwrap-symlinks"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_are_read_without_a_word(page: Path) -> None:
    if not shutil.which("man"):
        pytest.skip("man-db is not installed")
    command = ["man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", str(page)]
    settings = {**os.environ, "LC_ALL": "C.UTF-8", "MANROFFSEQ": "", "MANWIDTH": "80"}
    done = subprocess.run(command, env=settings, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_are_linted(page: Path) -> None:
    if not shutil.which("mandoc"):
        pytest.skip("mandoc is not installed")
    said = subprocess.run(["mandoc", "-T", "lint", "-W", "warning", str(page)], capture_output=True, text=True).stdout
    assert [line for line in said.splitlines() if "missing date" not in line] == []  # a page has the release's number


def test_pages_are_of_this_release() -> None:
    version = re.search(r'(?m)^version = "(.*)"', (ROOT / "pyproject.toml").read_text())
    assert version
    for page in PAGES:
        assert f'"dwrap {version[1]}"' in page.read_text().splitlines()[0], page.name
    assert re.match(r"dwrap \((\S+)\)", (ROOT / "debian/changelog").read_text())[1] == version[1]  # type: ignore[index]
