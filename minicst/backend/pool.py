"""A pool of threads that shares out numbered tasks; BLAS inside each task runs on one thread."""

from __future__ import annotations

import itertools
import math
import os
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import numpy as np

# Handing the interpreter lock over costs some 10 us a call, a core streams about 20 GB/s.
INLINE_BYTES = 2 << 20


class _Job:
    """Numbered tasks that any number of threads draw from until none is left."""

    def __init__(self, n_tasks: int, task: Callable[[int], None]) -> None:
        self.n_tasks = n_tasks
        self.task = task
        self.counter = itertools.count()  # next() is atomic, so a task is drawn once
        self.done: SimpleQueue[BaseException | None] = SimpleQueue()

    def work(self) -> None:
        while (i := next(self.counter)) < self.n_tasks:
            self.task(i)


class WorkerPool:
    """`run(n, task)` calls task(0) ... task(n - 1), each once, on up to `threads` threads.

    The calling thread works too. Which thread gets which task is open, so a task writes only to
    places that belong to its number; then results don't depend on the number of threads.
    NumPy releases the interpreter lock in products and in loops over large arrays.
    """

    def __init__(self, threads: int) -> None:
        if threads < 1:
            raise ValueError(f"threads = {threads}: at least 1 is needed")
        self.threads = threads
        self._local = threading.local()
        self._start_empty()

    def run(self, n_tasks: int, task: Callable[[int], None], n_bytes: int = 1 << 62) -> None:
        """Call task(i) for every i in range(n_tasks); return when all are done.

        Args:
            n_tasks: number of tasks.
            task: called with each number.
            n_bytes: memory that all tasks together pass over. Below INLINE_BYTES the calling thread
                does them alone, as waking others would cost more than they take off.

        Raises:
            The first exception that a task raised.
        """
        helpers = min(self.threads, n_tasks) - 1
        if helpers <= 0 or n_bytes < INLINE_BYTES or getattr(self._local, "is_worker", False):
            for i in range(n_tasks):
                task(i)
            return
        if self._process != os.getpid():
            self._start_empty()
        while len(self._workers) < self.threads - 1:
            self._workers.append(threading.Thread(target=self._serve, daemon=True))
            self._workers[-1].start()
        job = _Job(n_tasks, task)
        for _ in range(helpers):
            self._queue.put(job)
        errors: list[BaseException] = []
        try:
            job.work()
        except BaseException as error:
            # Ctrl-C included: the helpers still write into this job's arrays, so wait for them.
            errors.append(error)
            job.n_tasks = 0
        for _ in range(helpers):
            if (result := job.done.get()) is not None:
                errors.append(result)
        if errors:
            raise errors[0]

    def _start_empty(self) -> None:
        # A forked child has the list of its parent's threads, but not the threads.
        self._process = os.getpid()
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        self._workers: list[threading.Thread] = []

    def _serve(self) -> None:
        self._local.is_worker = True
        # Overflow is reported by whoever looks at the loss, not by a warning from a thread.
        np.seterr(over="ignore", invalid="ignore", divide="ignore")
        while (job := self._queue.get()) is not None:
            done, result = job.done, None
            try:
                job.work()
            except BaseException as error:
                job.n_tasks = 0
                result = error
            del job  # while it waits for the next one, its arrays would stay alive
            done.put(result)
            del done, result

    def close(self) -> None:
        """Stop the threads; a later `run` starts them again."""
        for _ in self._workers:
            self._queue.put(None)
        for worker in self._workers:
            worker.join()
        self._workers.clear()


class Workspace(threading.local):
    """Scratch arrays, a set for each thread, kept and reused from call to call."""

    def __init__(self) -> None:
        self._buffers: dict[str, np.ndarray] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}

    def get_zeroed(self, tag: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Return an array that was zero when its shape or dtype was new for this tag.

        What its user never writes to, the border of a padded image, stays zero. Cleared only then:
        the next chunk of the same shape is spared a pass. The tag must not be given to `get`.
        """
        array = self.get(tag, shape, dtype)
        key = (*shape, array.dtype.num)
        if self._shapes.get(tag) != key:
            array.fill(0)
            self._shapes[tag] = key
        return array

    def get(self, tag: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Return an uninitialised contiguous array; the next `get` of the same tag reuses it."""
        dtype = np.dtype(dtype)
        size = math.prod(shape) * dtype.itemsize
        buffer = self._buffers.get(tag)
        if buffer is None or buffer.nbytes < size:
            buffer = self._buffers[tag] = np.empty(max(size, 1), np.uint8)
        return buffer[:size].view(dtype).reshape(shape)
