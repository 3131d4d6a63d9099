"""Compute the items of a sequence ahead of their use, in background threads."""

import queue
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

THREAD_NAME = "minicst-prefetch"


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error


def prefetch(
    make: Callable[[int], T], start: int, stop: int, depth: int = 2
) -> Generator[T, None, None]:
    """Yield `make(start)`, ..., `make(stop - 1)` in order, computed in one background thread.

    The thread starts with the first item asked for and ends with the last item, with an error,
    or when the generator is closed, which `break`, an exception in the consumer's loop and
    dropping the last reference all do.

    Args:
        make: Computes one item from its index; called in the background thread only.
        start: First index.
        stop: One past the last index.
        depth: Most items that are ready or being computed, and not yet taken, at least 1.

    Yields:
        The items in the order of their indices.

    Raises:
        BaseException: Whatever `make` raised, after the items before it.
    """
    items: queue.SimpleQueue[T | _Failure] = queue.SimpleQueue()
    # A slot is taken before an item is computed; closing releases one, which wakes the thread
    # at once without a poll.
    slots = threading.Semaphore(depth)
    closed = threading.Event()

    def work() -> None:
        try:
            for index in range(start, stop):
                slots.acquire()
                if closed.is_set():
                    return
                items.put(make(index))
        except BaseException as error:
            items.put(_Failure(error))

    # A daemon, because the interpreter waits for other threads before it closes generators.
    thread = threading.Thread(target=work, name=THREAD_NAME, daemon=True)
    # Held locally: a module's globals may be gone by the time a generator is closed at exit.
    is_finalizing, current_thread = sys.is_finalizing, threading.current_thread
    thread.start()
    try:
        for _ in range(start, stop):
            item = items.get()
            if isinstance(item, _Failure):
                try:
                    raise item.error
                finally:
                    # The traceback holds this frame: else error and frame keep each other alive.
                    del item
            slots.release()
            yield item
            # The consumer may still hold the item; this frame need not keep it alive too.
            del item
    finally:
        closed.set()
        slots.release()
        # At exit a daemon thread is frozen and cannot be waited for; and the garbage collector
        # may close this generator in the very thread that it started.
        if not is_finalizing() and current_thread() is not thread:
            thread.join()


def prefetch_parts(
    begin: Callable[[int], tuple[T, int, Callable[[int], None]]],
    start: int,
    stop: int,
    workers: int,
    ahead: int = 2,
) -> Generator[T, None, None]:
    """Yield items `start`, ..., `stop - 1` in order, each filled part by part in many threads.

    `begin(index)` gives an item that isn't filled yet, its number of parts, and a function that
    fills one part. Parts of several items are in work at once, so no thread waits for the slowest
    part of an item. The threads start with the first item asked for and end with the last item,
    with an error, or when the generator is closed; parts not begun then never are.

    Args:
        begin: Called where the generator runs; quick.
        start: First index.
        stop: One past the last index.
        workers: Number of threads, at least 1.
        ahead: Most items that are filled or in work while the consumer has control, 0 or more;
            with 0 nothing is done then.

    Yields:
        The items in the order of their indices, filled.

    Raises:
        BaseException: What `begin`, or the first part of an item that failed, raised, after the
            items before it.
    """
    own: set[int] = set()
    pool = ThreadPoolExecutor(workers, THREAD_NAME, lambda: own.add(threading.get_ident()))
    get_ident = threading.get_ident  # a module's globals may be gone at exit
    waiting: deque[tuple[T, list[Future[None]]]] = deque()
    following = start

    def top_up(count: int) -> None:
        nonlocal following
        while len(waiting) < count and following < stop:
            item, parts, fill = begin(following)
            following += 1
            waiting.append((item, [pool.submit(fill, part) for part in range(parts)]))

    try:
        for _ in range(start, stop):
            top_up(max(ahead, 1))
            item, futures = waiting.popleft()
            while futures:
                # Taken out at once: a future holds its error, whose traceback holds this frame.
                futures.pop(0).result()
            top_up(ahead)
            yield item
            del item  # the consumer may be done with it
    finally:
        waiting.clear()
        # The garbage collector may close this generator in a thread of the pool.
        pool.shutdown(wait=get_ident() not in own, cancel_futures=True)
