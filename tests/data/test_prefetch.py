import gc
import subprocess
import sys
import threading
import time
import weakref

import numpy as np
import pytest

from minicst.data import load_dataset, train_loader
from minicst.data.prefetch import THREAD_NAME, prefetch, prefetch_parts


def _threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith(THREAD_NAME)]


@pytest.fixture(autouse=True)
def _no_thread_left():
    assert _threads() == []
    yield
    assert _threads() == []


def _wait_for(condition):
    end = time.monotonic() + 5
    while not condition() and time.monotonic() < end:
        time.sleep(0.001)
    assert condition()


def test_gives_all_items_in_order():
    assert list(prefetch(lambda index: index * index, 2, 50)) == [i * i for i in range(2, 50)]
    assert list(prefetch(lambda index: index, 3, 3)) == []


def test_runs_in_one_background_thread():
    names = list(prefetch(lambda _: threading.current_thread(), 0, 20))
    assert len(set(names)) == 1
    assert names[0] is not threading.current_thread()


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_never_runs_further_ahead_than_its_depth(depth):
    made = []
    items = prefetch(lambda index: made.append(index), 0, 100, depth)
    for taken in range(1, 6):
        next(items)
        _wait_for(lambda taken=taken: len(made) == taken + depth)
        time.sleep(0.005)
        assert len(made) == taken + depth
    items.close()


def test_nothing_starts_before_the_first_item():
    made = []
    items = prefetch(lambda index: made.append(index), 0, 3)
    assert _threads() == []
    assert made == []
    items.close()


def test_error_comes_after_the_items_before_it():
    def make(index):
        if index == 3:
            raise OSError("disk gone")
        return index

    items = prefetch(make, 0, 10)
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="disk gone"):
        next(items)
    assert _threads() == []
    with pytest.raises(StopIteration):
        next(items)


def test_error_is_freed_without_the_garbage_collector():
    class Mine(Exception):
        pass

    def make(index):
        raise Mine

    gc.disable()
    try:
        try:
            next(prefetch(make, 0, 1))
        except Mine as error:
            reference = weakref.ref(error)
        assert reference() is None
    finally:
        gc.enable()


def test_error_in_the_loader_reaches_the_consumer(monkeypatch):
    loader = train_loader(load_dataset("digits"), 64, augment="crop-flip")

    def broken(images, rng):
        raise RuntimeError("broken augmentation")

    monkeypatch.setattr("minicst.data.loader.crop_flip", broken)
    with pytest.raises(RuntimeError, match="broken augmentation"):
        list(loader.epoch(0))


def test_close_stops_the_thread():
    items = train_loader(load_dataset("digits"), 16).epoch(0)
    next(items)
    assert len(_threads()) == 1
    start = time.monotonic()
    items.close()
    assert time.monotonic() - start < 1
    assert _threads() == []


def test_break_stops_the_thread():
    for batch in train_loader(load_dataset("digits"), 16).epoch(0):
        if batch.index == 3:
            break
    assert _threads() == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_error_in_the_consumer_stops_the_thread(error):
    def consume():
        for batch in train_loader(load_dataset("digits"), 16).epoch(0):
            if batch.index == 3:
                raise error

    with pytest.raises(error):
        consume()
    assert _threads() == []


def test_dropping_the_generator_stops_the_thread_and_frees_the_items():
    class Item:
        pass

    alive = weakref.WeakSet()

    def make(index):
        item = Item()
        alive.add(item)
        return item

    items = prefetch(make, 0, 100)
    next(items)
    _wait_for(lambda: len(alive) >= 2)
    del items
    assert _threads() == []
    assert len(alive) == 0


def test_collector_may_close_the_generator_in_its_own_thread():
    # The generator sits in a reference cycle, and its own thread runs the collector.
    class Holder:
        pass

    dropped = threading.Event()
    collected = threading.Event()

    def make(index):
        if index == 1:
            dropped.wait(5)
            gc.collect()
            collected.set()
        return index

    gc.disable()
    try:
        holder = Holder()
        holder.items, holder.itself = prefetch(make, 0, 10), holder
        next(holder.items)
        reference = weakref.ref(holder)
        del holder
        dropped.set()
        assert collected.wait(5)
        _wait_for(lambda: reference() is None and not _threads())
    finally:
        gc.enable()


def test_many_abandoned_epochs_leave_nothing():
    loader = train_loader(load_dataset("digits"), 32, augment="crop-flip")
    for epoch in range(50):
        batch = next(loader.epoch(epoch))
        assert np.isfinite(batch.images).all()
    assert _threads() == []


@pytest.mark.parametrize("ending", ["", "raise KeyboardInterrupt"])
def test_interpreter_exits_with_an_open_epoch(ending):
    code = (
        "from minicst.data import load_dataset, train_loader\n"
        "batches = train_loader(load_dataset('digits'), 16).epoch(0)\n"
        f"next(batches)\n{ending}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == (0 if not ending else -2)
    assert done.stderr == "" if not ending else "KeyboardInterrupt" in done.stderr


def _squares(parts=3, seen=None):
    """Items [i, i, ...] squared part by part."""

    def begin(index):
        item = [None] * parts

        def fill(part):
            if seen is not None:
                seen.append((index, part))
            item[part] = (index + part) ** 2

        return item, parts, fill

    return begin


@pytest.mark.parametrize("workers", [1, 2, 7])
@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_parts_come_filled_and_in_order(workers, ahead):
    items = list(prefetch_parts(_squares(), 2, 40, workers, ahead))
    assert items == [[(i + p) ** 2 for p in range(3)] for i in range(2, 40)]
    assert list(prefetch_parts(_squares(), 3, 3, workers, ahead)) == []


@pytest.mark.parametrize("ahead", [0, 1, 2, 5])
def test_parts_never_run_further_ahead(ahead):
    seen = []
    items = prefetch_parts(_squares(seen=seen), 0, 100, 2, ahead)
    assert _threads() == []
    for taken in range(1, 6):
        next(items)
        _wait_for(lambda taken=taken: len(seen) == 3 * (taken + ahead))
        time.sleep(0.005)
        assert sorted(seen) == [(i, p) for i in range(taken + ahead) for p in range(3)]
    items.close()


def test_parts_of_one_item_and_of_the_next_run_at_once():
    # Part 0 of item 0 waits for part 1, and part 1 for a part of item 1: one thread, or threads
    # that wait at the end of an item, would never end.
    meet = [threading.Event(), threading.Event()]

    def begin(index):
        def fill(part):
            if index == 0 and part == 0:
                assert meet[0].wait(5)
            elif index == 0:
                meet[0].set()
                assert meet[1].wait(5)
            elif index == 1:
                meet[1].set()

        return index, 2, fill

    assert list(prefetch_parts(begin, 0, 3, 3)) == [0, 1, 2]


def test_error_in_a_part_comes_after_the_items_before_it():
    def begin(index):
        def fill(part):
            if (index, part) == (2, 1):
                raise OSError("disk gone")

        return index, 3, fill

    items = prefetch_parts(begin, 0, 10, 2)
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(OSError, match="disk gone"):
        next(items)
    assert _threads() == []
    with pytest.raises(StopIteration):
        next(items)


def test_error_in_a_part_is_freed_without_the_garbage_collector():
    class Mine(Exception):
        pass

    def begin(index):
        def fill(part):
            raise Mine

        return index, 4, fill

    gc.disable()
    try:
        try:
            next(prefetch_parts(begin, 0, 3, 2))
        except Mine as error:
            reference = weakref.ref(error)
        assert reference() is None
    finally:
        gc.enable()


def test_closing_leaves_out_the_parts_not_begun():
    begun, go = [], threading.Event()

    def begin(index):
        def fill(part):
            if index > 0:
                begun.append(part)
                go.wait(5)

        return index, 50, fill

    items = prefetch_parts(begin, 0, 10, 2)
    next(items)
    _wait_for(lambda: len(begun) == 2)
    threading.Timer(0.05, go.set).start()
    items.close()
    assert len(begun) == 2
    _wait_for(lambda: _threads() == [])


def test_dropping_the_generator_of_parts_stops_the_threads_and_frees_the_items():
    class Item:
        pass

    alive = weakref.WeakSet()

    def begin(index):
        item = Item()
        alive.add(item)
        return item, 2, lambda part: None

    items = prefetch_parts(begin, 0, 100, 2)
    next(items)
    assert len(alive) >= 2
    del items
    assert _threads() == []
    assert len(alive) == 0


def test_item_is_let_go_before_the_next_is_waited_for():
    class Item:
        pass

    alive, freed = weakref.WeakValueDictionary(), threading.Event()

    def begin(index):
        alive[index] = item = Item()

        def fill(part):
            end = time.monotonic() + 2
            while index == 1 and 0 in alive and time.monotonic() < end:
                time.sleep(0.001)
            if 0 not in alive:
                freed.set()

        return item, int(index == 1), fill

    items = prefetch_parts(begin, 0, 3, 1)
    next(items)
    next(items)
    assert freed.is_set()
    items.close()


def test_collector_may_close_the_generator_of_parts_in_its_own_thread():
    class Holder:
        pass

    dropped, collected = threading.Event(), threading.Event()

    def begin(index):
        def fill(part):
            if index == 1:
                dropped.wait(5)
                gc.collect()
                collected.set()

        return index, 1, fill

    gc.disable()
    try:
        holder = Holder()
        holder.items, holder.itself = prefetch_parts(begin, 0, 10, 1), holder
        next(holder.items)
        reference = weakref.ref(holder)
        del holder
        dropped.set()
        assert collected.wait(5)
        _wait_for(lambda: reference() is None and not _threads())
    finally:
        gc.enable()


@pytest.mark.parametrize("ending", ["", "raise KeyboardInterrupt"])
def test_interpreter_exits_with_parts_in_work(ending):
    code = (
        "import time\n"
        "from minicst.data.prefetch import prefetch_parts\n"
        "begin = lambda index: (index, 8, lambda part: time.sleep(0.002))\n"
        "items = prefetch_parts(begin, 0, 100, 2)\n"
        f"next(items)\n{ending}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == (0 if not ending else -2)
    assert done.stderr == "" if not ending else "KeyboardInterrupt" in done.stderr
