"""Work on the next things on threads, while the caller is at work on one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(
    work: Callable[[Item], Result], items: Iterable[Item], count: int = 2
) -> Iterator[tuple[Item, Future[Result]]]:
    """Yield each item and what ``work`` makes of it, ``count`` items ahead.

    The future's ``result()`` waits, and raises what ``work`` raised.
    """
    with ThreadPoolExecutor(count) as pool:
        waiting: deque[tuple[Item, Future[Result]]] = deque()
        for item in items:
            waiting.append((item, pool.submit(work, item)))
            if len(waiting) > count:
                yield waiting.popleft()
        yield from waiting
