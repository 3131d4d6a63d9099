import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from minicst.checkpoint import read_arrays
from minicst.cli import main

SMALL = ["--data", "digits", "--network", "vgg-tiny", "--width", ".25", "--batch-size", "256"]


@pytest.fixture(autouse=True)
def inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ("--keep-rate 0", ["keep rate 0.0", "(0, 1]"]),
        ("--keep-rate 1.5", ["keep rate 1.5", "(0, 1]"]),
        ("--keep-rate .01 --width 1", ["0.01", "3 groups", "at least"]),
        ("--keep-rate nan", ["nan", "(0, 1]"]),
        ("--network foo", ["'foo'", "vgg-small"]),
        ("--data foo", ["'foo'", "fashion"]),
        ("--method foo", ["'foo'", "dense"]),
        ("--estimator foo", ["'foo'", "vr-pge"]),
        ("--final-mask foo", ["'foo'", "top-k"]),
        ("--preset foo", ["'foo'", "paper"]),
        ("--device cuda", ["'cuda'", "--device cpu"]),
        ("--epochs 0", ["--epochs 0", "at least 1"]),
        ("--batch-size 1", ["--batch-size 1", "at least 2"]),
        ("--batch-size 5000", ["5000"]),
        ("--fine-tune 1", ["--fine-tune 1.0", "[0, 1)"]),
        ("--fine-tune .9 --epochs 1", ["--fine-tune 0.9", "none for the search"]),
        ("--lr 1e9 --epochs 1", ["nan", "--lr"]),
        ("--estimator pge --backward-masks 2", ["pge", "--backward-masks 2"]),
        ("--mask-position filter --resample-every 2", ["filter", "--resample-every"]),
        ("--limit 255", ["batch_size 256", "255 images", "--batch-size", "--limit"]),
        ("--out taken", ["taken exists already", "--resume"]),
        ("--resume nowhere", ["nowhere", "--resume"]),
        ("--resume broken", ["broken", "checkpoint.npz", "damaged"]),
        ("--resume foreign", ["foreign", "checkpoint.npz", "isn't a file of minicst"]),
        ("--resume empty", ["empty", "checkpoint.npz"]),
    ],
)
def test_train_says_one_line_and_returns_2(arguments, names, capsys, tmp_path):
    for name in ("taken", "broken", "foreign", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "broken" / "checkpoint.npz").write_bytes(b"PK\x03\x04 cut short")
    np.savez(tmp_path / "foreign" / "checkpoint.npz", weights=np.zeros(3))
    assert main(["train", *SMALL, *arguments.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith("minicst: error: ")
    assert error.count("\n") == 1
    for name in names:
        assert name in error
    runs = tmp_path / "runs"
    assert "1e9" in arguments or not runs.exists()  # nothing is made before settings are checked


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["macs", "foo"], "'foo'"),
        (["macs", "vgg16", "--input", "3x8x8"], "pool4"),
        (["macs", "vgg16", "--input", "eight"], "CxHxW"),
        (["macs", "mlp", "--input", "1x8x9"], "square"),
        (["macs", "vgg16", "--keep-rate", "0"], "(0, 1]"),
        (["step", "--keep-rate", "0"], "(0, 1]"),
        (["step", "--after", "-1"], "--after"),
        (["step", "--save", "nowhere/step.npz"], "no folder nowhere"),
        (["planted", "--methods", "foo"], "foo"),
        (["planted", "--out", "nowhere/planted.png"], "no folder nowhere"),
        (["bench", "--network", "resnet21"], "resnet21"),
    ],
)
def test_other_commands_too(arguments, name, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("minicst: error: ")
    assert error.count("\n") == 1
    assert name in error


def test_debug_shows_the_traceback():
    with pytest.raises(ValueError, match="keep rate"):
        main(["train", "--keep-rate", "0", "--debug"])


def test_what_cannot_be_parsed_exits_with_2():
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--epochs", "x"])
    assert stopped.value.code == 2


def test_a_full_disk_is_one_line_and_keeps_what_was_saved(tmp_path, capsys, monkeypatch):
    arguments = ["train", *SMALL, "--epochs", "3", "--dense-probes", "0", "--out", "run"]
    real, calls = np.savez, []

    def fills_up(file, *args, **arrays):
        calls.append(1)
        if len(calls) == 2:
            file.write(b"half a file")
            raise OSError(28, "No space left on device")
        real(file, *args, **arrays)

    monkeypatch.setattr(np, "savez", fills_up)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "No space left on device" in error
    assert error.count("\n") == 1
    header, _ = read_arrays(tmp_path / "run" / "checkpoint.npz", "checkpoint")
    assert header["totals"]["epoch"] == 1
    assert not list((tmp_path / "run").glob(".*"))
    monkeypatch.setattr(np, "savez", real)
    assert main(["train", "--resume", "run"]) == 0
    assert (tmp_path / "run" / "summary.json").exists()


@pytest.mark.skipif(os.name != "posix", reason="SIGINT")
def test_interrupt_keeps_the_checkpoint_and_returns_130(tmp_path):
    command = [sys.executable, "-m", "minicst.cli", "train", *SMALL, "--epochs", "3000"]
    command += ["--out", "run", "--threads", "1", "--dense-probes", "0"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "checkpoint.npz").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume run" in out
    assert "Traceback" not in err
    header, _ = read_arrays(tmp_path / "run" / "checkpoint.npz", "checkpoint")
    assert header["totals"]["steps"] >= 5
