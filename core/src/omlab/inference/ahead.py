"""Work done ahead on several threads, results in order, few of them waiting."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Given, Made = TypeVar("Given"), TypeVar("Made")


def ahead(job: Callable[[Given], Made], items: Iterable[Given], *, workers: int) -> Iterator[Made]:
    """``job`` of each item, in the order of the items, made by ``workers`` threads.

    At most ``workers + 1`` results are made or waiting at a time, so memory does not grow with the number of items. An
    error comes out where its result would have; an end before the last item stops the rest.
    """
    waiting: deque[Future[Made]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="omlab-ahead")
    try:
        for item in items:
            waiting.append(pool.submit(job, item))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
