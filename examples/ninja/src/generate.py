"""generate.py TABLE HEADER SOURCE: a state machine in C from a table of `state event next` lines."""

import sys
from pathlib import Path


def enum(name: str, words: list[str]) -> str:
    return f"enum {name} {{ " + ", ".join(f"{name.upper()}_{word.upper()}" for word in words) + f", {name.upper()}_COUNT }};\n"


def main(table: Path, header: Path, source: Path) -> None:
    name = table.stem
    rows = [line.split() for line in table.read_text().splitlines() if line and not line.startswith("#")]
    states = list(dict.fromkeys(word for row in rows for word in (row[0], row[2])))
    events = list(dict.fromkeys(row[1] for row in rows))
    header.write_text(
        f"/* Made from {table.name}. */\n#pragma once\n"
        + enum(f"{name}_state", states)
        + enum(f"{name}_event", events)
        + "/* The next state, or -1 where the event means nothing. */\n"
        + f"int {name}_next(enum {name}_state state, enum {name}_event event);\n"
        + f"extern const char *const {name}_names[];\n"
    )
    upper = name.upper()
    cells = "".join(
        f"    [{upper}_STATE_{state.upper()}][{upper}_EVENT_{event.upper()}] = {upper}_STATE_{then.upper()} + 1,\n"
        for state, event, then in rows
    )
    source.write_text(
        f'#include "{header.name}"\n'
        f"static const int table[{upper}_STATE_COUNT][{upper}_EVENT_COUNT] = {{\n{cells}}};\n"
        f"int {name}_next(enum {name}_state state, enum {name}_event event)\n{{\n    return table[state][event] - 1;\n}}\n"
        f"const char *const {name}_names[] = {{{', '.join(chr(34) + state + chr(34) for state in states)}}};\n"
    )


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
