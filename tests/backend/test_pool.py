"""The pool of threads and the scratch arrays."""

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from minicst.backend.base import Backend
from minicst.backend.pool import INLINE_BYTES, WorkerPool, Workspace


@pytest.fixture
def pool():
    pool = WorkerPool(3)
    yield pool
    pool.close()


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("n_tasks", [0, 1, 2, 5, 200])
def test_every_task_runs_once(threads, n_tasks):
    pool = WorkerPool(threads)
    calls = []
    pool.run(n_tasks, calls.append)
    pool.close()
    assert sorted(calls) == list(range(n_tasks))


def test_tasks_are_shared_out(pool):
    # All three wait for each other, so they end only if three threads work at once.
    barrier = threading.Barrier(3, timeout=20)
    names = []

    def task(i):
        barrier.wait()
        names.append(threading.current_thread().name)

    pool.run(3, task)
    assert len(set(names)) == 3
    assert threading.current_thread().name in names


@pytest.mark.parametrize("where", ["caller", "worker"])
def test_an_exception_comes_out_of_run(pool, where):
    caller = threading.current_thread()
    barrier = threading.Barrier(3, timeout=20)

    def task(i):
        barrier.wait()
        if (threading.current_thread() is caller) == (where == "caller"):
            raise KeyError(f"task {i}")

    with pytest.raises(KeyError, match="task"):
        pool.run(3, task)
    calls = []
    pool.run(50, calls.append)
    assert sorted(calls) == list(range(50))


def test_run_returns_after_all_tasks_even_if_one_failed(pool):
    caller, running = threading.current_thread(), []
    barrier = threading.Barrier(3, timeout=20)

    def task(i):
        barrier.wait()
        if threading.current_thread() is caller:
            raise ValueError("early")
        running.append(i)
        time.sleep(0.05)
        running.remove(i)

    with pytest.raises(ValueError, match="early"):
        pool.run(3, task)
    assert running == []


def test_no_further_tasks_are_drawn_after_a_failure(pool):
    calls = []

    def task(i):
        calls.append(i)
        raise ValueError(f"task {i}")

    with pytest.raises(ValueError, match="task"):
        pool.run(1000, task)
    assert len(calls) <= 3


def test_run_inside_a_task(pool):
    calls = []
    pool.run(6, lambda i: pool.run(4, lambda j: calls.append((i, j))))
    assert sorted(calls) == [(i, j) for i in range(6) for j in range(4)]


def test_two_callers_at_once(pool):
    calls = [[], []]
    others = [
        threading.Thread(target=lambda k=k: [pool.run(20, calls[k].append) for _ in range(50)])
        for k in (0, 1)
    ]
    for thread in others:
        thread.start()
    for thread in others:
        thread.join(20)
    assert [sorted(c) for c in calls] == [sorted(list(range(20)) * 50)] * 2


def test_close_ends_the_threads_and_run_starts_them_again(pool):
    before = threading.active_count()
    pool.run(9, lambda i: None)
    assert threading.active_count() == before + 2
    pool.close()
    assert threading.active_count() == before
    pool.close()
    calls = []
    pool.run(9, calls.append)
    assert sorted(calls) == list(range(9))


def test_small_work_stays_on_the_calling_thread(pool):
    names = []
    pool.run(30, lambda i: names.append(threading.current_thread().name), INLINE_BYTES - 1)
    assert names == [threading.current_thread().name] * 30
    barrier = threading.Barrier(3, timeout=20)
    pool.run(3, lambda i: barrier.wait(), INLINE_BYTES)  # ends only if three threads meet


def test_no_threads_is_an_error():
    with pytest.raises(ValueError, match="threads = 0: at least 1 is needed"):
        WorkerPool(0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_starts_threads_of_its_own():
    code = (
        "import os, signal\n"
        "from minicst.backend.pool import WorkerPool\n"
        "pool, calls = WorkerPool(3), []\n"
        "pool.run(9, calls.append)\n"
        "if (child := os.fork()) == 0:\n"
        "    signal.alarm(10)\n"
        "    pool.run(9, calls.append)\n"
        "    os._exit(0 if sorted(calls) == sorted([*range(9)] * 2) else 1)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "pool.run(9, calls.append)\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)


def test_workspace_reuses_its_memory():
    workspace = Workspace()
    first = workspace.get("a", (3, 4), np.float32)
    assert first.shape == (3, 4)
    assert first.dtype == np.float32
    assert first.flags.c_contiguous
    assert np.shares_memory(first, workspace.get("a", (2, 3), np.float64))
    assert not np.shares_memory(first, workspace.get("b", (3, 4), np.float32))
    assert workspace.get("a", (5, 4), np.float32).shape == (5, 4)
    assert workspace.get("empty", (0, 4), np.float32).shape == (0, 4)


def test_every_thread_has_its_own_workspace(pool):
    workspace, arrays = Workspace(), []
    barrier = threading.Barrier(3, timeout=20)

    def task(i):
        barrier.wait()
        arrays.append(workspace.get("a", (8,), np.float32))

    pool.run(3, task)
    assert not any(np.shares_memory(arrays[i], arrays[j]) for i in range(3) for j in range(i))


def test_get_zeroed_clears_when_the_shape_is_new():
    workspace = Workspace()
    image = workspace.get_zeroed("padded", (4, 4), np.float32)
    image[1:-1, 1:-1] = 7
    again = workspace.get_zeroed("padded", (4, 4), np.float32)
    assert again[0].tolist() == [0.0] * 4
    assert again[1, 1] == 7  # spared: its user writes there anyway
    assert not workspace.get_zeroed("padded", (2, 8), np.float32).any()
    assert not workspace.get_zeroed("padded", (2, 8), np.float64).any()


def test_no_tasks_are_shared_out_without_a_pool(backend):
    done = []
    Backend.share_out(backend, 3, done.append, 0)
    assert done == [0, 1, 2]
    backend.share_out(4, done.append, 1 << 30)
    assert sorted(done[3:]) == [0, 1, 2, 3]
