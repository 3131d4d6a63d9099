import sys

import pytest

from minicst.bench.peers import Peer, PeerError, Peers, in_turns, median_ratio, medians, started

ECHO = """
import json, sys
print(json.dumps({"ready": "Echo 1.0"}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    if request["do"] == "die":
        sys.exit("out of memory, says the kernel")
    reply = {"error": "ValueError: no"} if request["do"] == "fail" else request
    print(json.dumps(reply), flush=True)
"""


def test_a_peer_answers_refuses_and_dies_in_one_line(script):
    peer = Peer("echo", sys.executable, script(ECHO), {})
    assert peer.version == "Echo 1.0"
    assert peer.ask(do="say", text="a\nb") == {"do": "say", "text": "a\nb"}
    with pytest.raises(PeerError, match=r"^echo: ValueError: no$"):
        peer.ask(do="fail")
    assert peer.ask(do="say") == {"do": "say"}  # it goes on
    with pytest.raises(PeerError, match=r"^echo: out of memory, says the kernel$"):
        peer.ask(do="die")
    with pytest.raises(PeerError, match="echo: "):
        peer.ask(do="say")
    peer.close()


def test_a_peer_that_cannot_start_says_why(script):
    with pytest.raises(PeerError, match="No module named 'nothing'"):
        Peer("x", sys.executable, script("import nothing"), {})


def test_absent_frameworks_are_left_out_with_a_line_each(tmp_path):
    nothing = tmp_path / "python"
    nothing.write_text("#!/bin/sh\nexit 1\n")
    nothing.chmod(0o755)
    said = []
    labels = ("pytorch-nchw", "pytorch-channels-last", "jax")
    with started(labels, str(nothing), str(nothing), 1, said.append) as peers:
        assert peers.found == {}
        assert peers.version("PyTorch") is None
    assert len(said) == 2
    assert "no PyTorch" in said[0]
    assert "--torch-python" in said[0]
    assert "no JAX" in said[1]
    assert peers.left_out == said


def test_turns_alternate_and_warm_up_does_not_count():
    order = []

    def turn(name, value):
        def run():
            order.append(name)
            return value

        return run

    took = in_turns({"a": turn("a", 1.0), "b": turn("b", 2.0)}, 2, Peers(print), warm=1)
    assert took == {"a": [1.0, 1.0], "b": [2.0, 2.0]}
    assert "".join(order) == "baabba"
    assert medians(took) == {"a": 1.0, "b": 2.0}


def test_a_peer_that_fails_is_left_out_and_the_others_go_on(script):
    peers = Peers(said := lambda text: None)
    peers.found["echo"] = Peer("echo", sys.executable, script(ECHO), {})
    peer = peers.found["echo"]

    def fails():
        return peer.time("x", "y") if peer.ask(do="fail") else 0.0

    took = in_turns({"own": lambda: 1.0, "echo": fails, "echo: 5": fails}, 3, peers)
    assert took == {"own": [1.0, 1.0, 1.0]}
    assert peers.found == {}
    assert len(peers.left_out) == 1
    assert peers._says is said


def test_the_ratio_is_of_pairs():
    assert median_ratio([1.0, 4.0, 9.0], [1.0, 2.0, 3.0]) == 2.0
    assert median_ratio([1.0, 10.0, 1.0], [2.0, 10.0, 0.5]) == 1.0  # of the medians: 1 / 2
