"""Troubles that come about again and again while something runs: daemons killed, frozen, cut off.

Knows threads and intervals. Does not know what the troubles are, nor what runs meanwhile.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from farm import Farm

Trouble = tuple[Callable[[], float] | float, Callable[[], object]]
"""How many seconds until it comes about, each time, and what does."""


@contextmanager
def chaos(*troubles: Trouble) -> Iterator[list[int]]:
    """Meanwhile each trouble comes about again and again. Yields how often each has. Raises what one of them raised."""
    over = threading.Event()
    counts = [0] * len(troubles)
    raised: list[BaseException] = []

    def trouble(index: int, seconds: Callable[[], float] | float, what: Callable[[], object]) -> None:
        try:
            while not over.wait(seconds() if callable(seconds) else seconds):
                what()
                counts[index] += 1
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=trouble, args=(index, *one)) for index, one in enumerate(troubles)]
    for thread in threads:
        thread.start()
    try:
        yield counts
    finally:
        over.set()
        for thread in threads:
            thread.join()
    if raised:
        raise raised[0]


def kill_an_agent(farm: Farm, chance: random.Random) -> None:
    """One of its agents, by SIGKILL; another of that name starts at once."""
    farm.restart_agent(chance.choice(sorted(farm.agents)))
