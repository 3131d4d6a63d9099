"""`minicst ... | head`: when nobody reads on, every command ends, and says nothing."""

import os
import subprocess
import sys

import pytest

TINY = "--network vgg-tiny --width .25 --data digits"
COMMANDS = [
    *("macs resnet20", "macs resnet20 --json", "recipes", "recipes table2-vgg16", "recipes --json"),
    *("info", "--help", "train --help", "graph vgg-tiny --out graph.svg"),
    *(f"step {TINY}", f"step {TINY} --json"),
    f"train {TINY} --epochs 1 --dense-probes 0 --recalibration-batches 1 --out run",
]


def ended(folder, arguments, **environment):
    """Exit code and errors of a command whose output has no reader."""
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "minicst.cli", *arguments.split()],
            cwd=folder,
            stdout=write,
            stderr=subprocess.PIPE,
            text=True,
            timeout=300,
            env=os.environ | environment,
        )
    finally:
        os.close(write)
    return done.returncode, done.stderr


@pytest.mark.parametrize("arguments", COMMANDS)
def test_a_closed_pipe_ends_a_command_quietly(arguments, tmp_path):
    assert ended(tmp_path, arguments, PYTHONUNBUFFERED="") == (141, "")


@pytest.mark.parametrize("arguments", ["macs resnet20", "recipes --json", "train --help"])
def test_unbuffered_too(arguments, tmp_path):
    """The error then comes from the write itself, not when the buffer is flushed."""
    assert ended(tmp_path, arguments, PYTHONUNBUFFERED="1") == (141, "")


def test_an_error_is_told_all_the_same(tmp_path):
    code, said = ended(tmp_path, "macs nonet")
    assert code == 2
    assert said.startswith("minicst: error: unknown network 'nonet'")


def test_with_debug_too(tmp_path):
    assert ended(tmp_path, "macs resnet20 --debug") == (141, "")
