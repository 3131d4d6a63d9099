"""Compute the items of a sequence one step ahead, in a background thread."""

import queue
import sys
import threading
from collections.abc import Callable, Generator
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
