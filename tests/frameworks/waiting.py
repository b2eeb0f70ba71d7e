"""Waiting for what a server does by itself."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

WITHIN_S = 120


def wait_until(look: Callable[[], T], wanted: Callable[[T], bool]) -> T:
    """What `look` finds as soon as it is wanted."""
    deadline = time.monotonic() + WITHIN_S
    while not wanted(found := look()):
        assert time.monotonic() < deadline, f"after {WITHIN_S} s: {found}"
        time.sleep(0.05)  # sleep: between two polls, within a deadline
    return found
