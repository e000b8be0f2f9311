"""The rule table, rules.def, for Python: the same lines that the wrapper compiles in.

Knows how the table is written. Does not know when a rule is asked; its readers do.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

_RULE = re.compile(r'^RULE\((?P<kind>[A-Z_]+), "(?P<pattern>[^"\\]*)", "(?P<why>[^"\\]*)"\)$')
KINDS = frozenset({"NAMED", "ONLY", "NO_INPUT", "NATIVE", "IMAGE", "STAYS"})


class Rule(NamedTuple):
    """One line of the table."""

    kind: str
    pattern: str
    why: str


def parse_rules(text: str) -> tuple[Rule, ...]:
    """The rules of a table's text, in order. Raises ValueError naming the line that is not one."""
    rules: list[Rule] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.startswith("RULE("):
            continue
        found = _RULE.match(line)
        if not found or found["kind"] not in KINDS:
            raise ValueError(f'rules.def, line {number}: not of the form RULE(KIND, "pattern", "why")')
        rules.append(Rule(found["kind"], found["pattern"], found["why"]))
    return tuple(rules)


@lru_cache(maxsize=1)
def rules() -> tuple[Rule, ...]:
    """The rules of the table that was installed with this package."""
    return parse_rules((Path(__file__).parent / "rules.def").read_text(encoding="utf-8"))


@lru_cache(maxsize=1)
def image_prefixes() -> tuple[str, ...]:
    """Absolute paths under which every host of one image holds the same files."""
    return tuple(rule.pattern for rule in rules() if rule.kind == "IMAGE")
