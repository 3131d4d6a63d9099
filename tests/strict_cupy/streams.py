"""Order of work on streams: late copies, and races found by vector clocks.

What is computed is computed at once, but a copy from or to pinned memory happens as late as it may:
when its stream goes on, or when somebody waits for it. So whoever overwrites the source too early,
or reads the target too early, gets wrong numbers here, always, and not once in a while.

Every stream counts its pieces of work (ticks) and knows how far the work of the others was done
when its own goes on (its clock). Two uses of one piece of memory by two streams, one of them
writing, without an order between them raise RaceError.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from .counting import count_synchronisation

Clock = dict[int, int]  # stream's number -> tick up to which its work is done


class RaceError(RuntimeError):
    """Two streams use one piece of memory and nothing says in which order."""


def _join(clock: Clock, other: Clock) -> None:
    for number, tick in other.items():
        clock[number] = max(clock.get(number, 0), tick)


_host_clock: Clock = {}
_all_streams: dict[int, _BaseStream] = {}
_numbers = itertools.count(1)  # of streams: none twice, so that old uses are never mixed up
_epochs = itertools.count(1)
_epoch = 0  # number of reset() calls
_here = threading.local()


class _BaseStream:
    """What Stream.null and other streams share."""

    def __init__(self, number: int, waits_for_null: bool) -> None:
        self._number = number
        self._waits_for_null = waits_for_null
        self._clock: Clock = {number: 0}
        self._pending: deque[tuple[int, Callable[[], None]]] = deque()
        self._freed: list[tuple[int, int, int]] = []  # stream, tick and epoch of a use of memory
        _all_streams[number] = self

    @property
    def ptr(self) -> int:
        return self._number

    def use(self) -> _BaseStream:
        """Make this the current stream of the thread."""
        _here.stream = self
        return self

    def __enter__(self) -> _BaseStream:
        if not hasattr(_here, "outer"):
            _here.outer = []
        _here.outer.append(get_current_stream())
        return self.use()

    def __exit__(self, *_: object) -> None:
        _here.stream = _here.outer.pop()

    @property
    def done(self) -> bool:
        return _host_clock.get(self._number, 0) >= self._clock[self._number]

    def synchronize(self) -> None:
        """Let the host wait for all work on the stream."""
        count_synchronisation()
        self._wait_on_host()

    def _wait_on_host(self) -> None:
        self._begin()
        _join(_host_clock, self._clock)

    def record(self, event: Event | None = None) -> Event:
        """Make (or move) an event to this point of the stream."""
        event = Event() if event is None else event
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        """Let what comes next on this stream wait for an event."""
        if not isinstance(event, Event):
            raise TypeError(f"wait_event takes an Event, not {type(event).__name__}")
        if event._stream is None:
            return  # as in CUDA: an event that was never recorded is no reason to wait
        stream, mark = event._stream, event._mark
        _join(self._clock, event._clock)
        self._pending.append((self._clock[self._number], lambda: stream._flush(mark)))

    def _begin(self) -> int:
        """Begin a piece of work: everything before it on this stream is done. Return its tick."""
        _all_streams[self._number] = self  # if it was forgotten
        for other in list(_all_streams.values()):
            # CUDA's null stream waits for the others and they for it, non-blocking ones excepted.
            null_waits = self._number == 0 and other._waits_for_null
            if null_waits or (other._number == 0 and self._waits_for_null):
                other._flush()
                _join(self._clock, other._clock)
        self._flush()
        _join(self._clock, _host_clock)
        self._clock[self._number] += 1
        return self._clock[self._number]

    def _free_memory(self, uses: Uses) -> None:
        """Take memory back that streams may still use."""
        self._freed += [(number, tick, uses._epoch) for *_, number, tick, _ in uses._uses]

    def _take_memory(self) -> None:
        """Hand memory out again: what was freed here must no longer be used by other streams."""
        if self._freed and self._in_use():
            self._begin()  # waits for streams that need no event
        if self._freed and (numbers := self._in_use()):
            self._freed = []
            raise RaceError(
                f"stream {self._number} gets memory that stream {numbers[0]} may still use: let it "
                "wait for an event there before the array is freed, or keep the array"
            )

    def _in_use(self) -> list[int]:
        """Streams whose use of memory that was freed here needn't be over."""
        self._freed = [
            (number, tick, epoch)
            for number, tick, epoch in self._freed
            if epoch == _epoch and self._clock.get(number, 0) < tick
        ]
        return [number for number, _, _ in self._freed]

    def _later(self, action: Callable[[], None]) -> None:
        """Do this when the stream goes on."""
        self._pending.append((self._clock[self._number], action))

    def _flush(self, mark: int | None = None) -> None:
        """Do what is pending, up to a tick."""
        while self._pending and (mark is None or self._pending[0][0] <= mark):
            self._pending.popleft()[1]()


class Stream(_BaseStream):
    """A CUDA stream."""

    null: Any = None
    is_non_blocking = False

    def __init__(
        self,
        null: bool = False,
        non_blocking: bool = False,
        ptds: bool = False,
        priority: int | None = None,
    ) -> None:
        if null or ptds:
            raise ValueError("use Stream.null: the stand-in has one null stream")
        self.is_non_blocking = non_blocking
        super().__init__(next(_numbers), waits_for_null=not non_blocking)

    def __repr__(self) -> str:
        return f"<Stream {self._number} (stand-in)>"


class _NullStream(Stream):
    def __init__(self) -> None:
        _BaseStream.__init__(self, 0, waits_for_null=False)


Stream.null = _NullStream()


class Event:
    """A point in a stream."""

    def __init__(
        self, block: bool = False, disable_timing: bool = False, interprocess: bool = False
    ) -> None:
        self._timed = not disable_timing
        self._stream: _BaseStream | None = None
        self._clock: Clock = {}
        self._mark = 0
        self._time = 0.0

    def record(self, stream: _BaseStream | None = None) -> None:
        """Move the event to the end of a stream's work (the current one's)."""
        stream = get_current_stream() if stream is None else stream
        self._stream, self._mark = stream, stream._clock[stream._number]
        self._clock = dict(stream._clock)
        self._time = time.perf_counter()

    @property
    def done(self) -> bool:
        """Whether the host has waited for it: more can't be relied on."""
        number = None if self._stream is None else self._stream._number
        return number is None or _host_clock.get(number, 0) >= self._mark

    def synchronize(self) -> None:
        """Let the host wait for it."""
        count_synchronisation()
        if self._stream is not None:
            self._stream._flush(self._mark)
            _join(_host_clock, self._clock)


def get_elapsed_time(start_event: Event, end_event: Event) -> float:
    """Milliseconds between two events that the host has waited for."""
    for event in (start_event, end_event):
        if event._stream is None or not event._timed:
            raise RuntimeError("cudaErrorInvalidResourceHandle: record an event that takes times")
        if not event.done:
            raise RuntimeError("cudaErrorNotReady: synchronize with the event first")
    return (end_event._time - start_event._time) * 1000


def get_current_stream(device_id: int = -1) -> _BaseStream:
    """The stream of this thread on which work is put."""
    return getattr(_here, "stream", Stream.null)


def wait_for_everything() -> None:
    """Let the host wait for all streams."""
    count_synchronisation()
    for stream in list(_all_streams.values()):
        stream._wait_on_host()


def forget_streams() -> None:
    """Back to the null stream alone, with nothing left to do on it; all that was done is done."""
    global _epoch
    _epoch = next(_epochs)
    for stream in list(_all_streams.values()):
        stream._flush()
    null = Stream.null
    _all_streams.clear()
    _all_streams[0] = null
    null._clock = {0: null._clock[0]}
    _host_clock.clear()
    _host_clock[0] = null._clock[0]
    _here.stream, _here.outer = null, []


class Uses:
    """Who used a piece of memory last: finds uses that no order keeps apart."""

    def __init__(self) -> None:
        self._uses: list[tuple[int, int, int, int, bool]] = []  # from, to, stream, tick, wrote
        self._epoch = _epoch

    def add(self, start: int, stop: int, stream: _BaseStream, tick: int, writes: bool) -> None:
        """Note a use of bytes start to stop; raise RaceError if it races with an earlier one."""
        if self._epoch != _epoch:  # of before a reset()
            self._uses, self._epoch = [], _epoch
        kept = []
        for use in self._uses:
            begin, end, number, when, wrote = use
            apart = end <= start or stop <= begin
            ordered = number == stream._number or stream._clock.get(number, 0) >= when
            if not (apart or ordered) and (wrote or writes):
                raise RaceError(
                    f"stream {stream._number} {'writes' if writes else 'reads'} what stream "
                    f"{number} {'wrote' if wrote else 'read'}, and doesn't wait for it: record an "
                    "event there and wait for it here"
                )
            inside = start <= begin and end <= stop
            if not (inside and ordered and (writes or not wrote)):
                kept.append(use)
        self._uses = [*kept, (start, stop, stream._number, tick, writes)]
