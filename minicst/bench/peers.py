"""Other frameworks in processes of their own: they are asked, and answer, in lines of JSON.

A process of its own because two thread pools in one disturb each other. minicst and its peers take
turns, so that whatever else the machine does meanwhile hits all of them. On a GPU each process has
its memory pool, and keeps what it freed: all of them must fit beside one another. Peers return
theirs to the device when they forget a network.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minicst.backend import Backend

Says = Callable[[str], None]

# OpenMP threads spin for some milliseconds after their last task; the next one to be timed waits.
PAUSE = 0.03
TORCH = {"pytorch-nchw": False, "pytorch-channels-last": True}  # label: channels_last
JAX = "jax"


class PeerError(ValueError):
    """A peer can't be started, refused a request, or died."""


class Peer:
    """One process.

    Args:
        label: names it in tables.
        python: its interpreter.
        script: file beside this one, or a path.
        options: given to the script as JSON.

    Attributes:
        version: what it says it is.

    Raises:
        PeerError: if it doesn't start; gives the last line of its errors.
    """

    def __init__(self, label: str, python: str, script: str, options: dict[str, Any]) -> None:
        self.label = label
        # Not a pipe: nobody reads while the peer writes, and a full pipe would stop it.
        with tempfile.NamedTemporaryFile("w", delete=False) as errors:
            self._errors = Path(errors.name)
            command = [python, str(Path(__file__).parent / script), json.dumps(options)]
            try:
                self.process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
                )
            except OSError as error:
                self._errors.unlink()
                raise PeerError(f"{label}: {python}: {error.strerror or error}") from None
        self.version: str = self._read()["ready"]

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request; return the answer.

        Raises:
            PeerError: if it fails, in one line.
        """
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except (OSError, ValueError):
            pass  # it died, or was closed; _read says why
        reply = self._read()
        if "error" in reply:
            raise PeerError(f"{self.label}: {reply['error']}")
        return reply

    def time(self, name: str, what: str, repeats: int = 1) -> float:
        """Seconds of one pass of a network that was built, mean over so many in a row."""
        return float(self.ask(do="time", name=name, what=what, repeats=repeats)["seconds"])

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = "" if self.process.stdout.closed else self.process.stdout.readline()
        try:
            reply = json.loads(line)
        except json.JSONDecodeError:
            said = self.close()
            why = said[-1] if said else f"exit code {self.process.returncode}"
            raise PeerError(f"{self.label}: {why}") from None
        return dict(reply)

    def close(self) -> list[str]:
        """End the process, which stops when its input ends; return the lines of its errors."""
        try:
            self.process.communicate(timeout=10)
        except (subprocess.TimeoutExpired, OSError, ValueError):
            self.process.kill()
            self.process.wait()
        if not self._errors.exists():  # closed before
            return []
        said = [text.strip() for text in self._errors.read_text(errors="replace").splitlines()]
        self._errors.unlink()
        return [text for text in said if text]


class Peers:
    """The peers that could be started.

    Attributes:
        found: {label: peer}.
        left_out: a line for each that is left out, and why.
    """

    def __init__(self, says: Says) -> None:
        self.found: dict[str, Peer] = {}
        self.left_out: list[str] = []
        self._says = says

    def start(
        self, labels: tuple[str, ...], torch: str, jax: str, threads: int, **options: Any
    ) -> None:
        """Start the peers of these labels, with these options besides."""
        missing: dict[str, str] = {}
        for label in labels:
            of_torch = label in TORCH
            framework = "PyTorch" if of_torch else "JAX"
            if framework in missing:
                continue
            script = "torch_peer.py" if of_torch else "jax_peer.py"
            options |= {"threads": threads, "channels_last": TORCH.get(label, True)}
            try:
                self.found[label] = Peer(label, torch if of_torch else jax, script, options)
            except PeerError as error:
                missing[framework] = str(error).split(": ", 1)[1]
        for framework, why in missing.items():
            option = f"--{'torch' if framework == 'PyTorch' else 'jax'}-python"
            self.leave_out(f"no {framework}, its rows are left out ({why}); {option} names another")

    @property
    def torch(self) -> dict[str, Peer]:
        """The PyTorch peers."""
        return {label: peer for label, peer in self.found.items() if label in TORCH}

    def version(self, framework: str) -> str | None:
        """What a framework's peers say they are: "PyTorch 2.13.0", or None."""
        versions = {peer.version for peer in self.found.values()}
        return next((text for text in versions if text.startswith(framework)), None)

    def drop(self, label: str, error: Exception) -> None:
        """Go on without a peer."""
        self.found.pop(label).close()
        self.leave_out(f"{error}; its rows are left out from here on")

    def build(self, labels: list[str], **request: Any) -> list[str]:
        """Have these peers build a network; return the labels of those that could."""
        built = []
        for label in labels:
            if label not in self.found:
                continue
            try:
                self.found[label].ask(do="build", **request)
                built.append(label)
            except PeerError as error:
                self.drop(label, error)
        return built

    def forget(self, name: str) -> None:
        """Have all peers drop a network, so that it takes no memory."""
        for label, peer in list(self.found.items()):
            try:
                peer.ask(do="drop", name=name)
            except PeerError as error:
                self.drop(label, error)

    def leave_out(self, line: str) -> None:
        """Say, and keep, that something is left out."""
        self.left_out.append(line)
        self._says(line)


@contextmanager
def started(
    labels: tuple[str, ...], torch: str, jax: str, threads: int, says: Says, **options: Any
) -> Iterator[Peers]:
    """Yield the peers that could be started; end their processes afterwards."""
    peers = Peers(says)
    try:
        peers.start(labels, torch, jax, threads, **options)
        yield peers
    finally:
        for peer in peers.found.values():
            peer.close()


Turns = dict[str, list[float]]  # {label: seconds}
Contestants = dict[str, Callable[[], float]]  # {label: takes a turn, returns its seconds}


def in_turns(contestants: Contestants, pairs: int, peers: Peers, warm: int = 1) -> Turns:
    """Time every contestant once a round; return {label: seconds of each round}.

    Every other round runs backwards, so that nobody always follows the same one. A peer that fails
    is left out.

    Args:
        contestants: {label: takes a turn, returns its seconds}. A label "peer: ..." is that peer's.
        pairs: rounds that count.
        peers: for the labels.
        warm: rounds before them.
    """
    took: Turns = {label: [] for label in contestants}
    for number in range(-warm, pairs):
        labels = list(took)
        for label in labels if number % 2 == 0 else reversed(labels):
            time.sleep(PAUSE)
            try:
                seconds = contestants[label]()
            except PeerError as error:
                del took[label]
                if (name := label.split(": ")[0]) in peers.found:
                    peers.drop(name, error)
                continue
            if number >= 0:
                took[label].append(seconds)
    return took


def medians(took: Turns) -> dict[str, float]:
    """{label: median seconds}."""
    return {label: statistics.median(seconds) for label, seconds in took.items()}


def median_ratio(one: list[float], other: list[float]) -> float:
    """Median of the ratios of each pair; not the ratio of the medians."""
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


def seconds_of(run: Callable[[], Any], backend: Backend, repeats: int = 1) -> float:
    """Seconds that a call takes, the backend's device waited for; mean over so many in a row.

    Before several there is one that isn't timed: a GPU that slept between turns wakes up.
    """
    if repeats > 1:
        run()
    backend.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    backend.synchronize()
    return (time.perf_counter() - start) / repeats
