"""What test_bad_input.py and test_commands.py leave open: odd values, paths, presets, help."""

import ast
import inspect
import json
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

from minicst import settings as settings_module
from minicst.cli import main
from minicst.display import LiveDisplay
from minicst.settings import PRESETS, TrainSettings

SMALL = ["train", "--data", "digits", "--network", "vgg-tiny", "--width", ".25"]
SMALL += ["--batch-size", "128", "--dense-probes", "0", "--recalibration-batches", "2"]


@pytest.fixture(autouse=True)
def inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def error_of(arguments, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("minicst: error: ")
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ("--keep-rate .001", ["0.001", "3 groups", "vgg-tiny"]),
        ("--width 0", ["width=0.0"]),
        ("--width nan", ["width=nan"]),
        ("--lr nan", ["learning rate nan"]),
        ("--lr -1", ["learning rate -1.0"]),
        ("--momentum 5", ["momentum 5.0"]),
        ("--weight-decay -1", ["-1.0", "weight decay"]),
        ("--keep-prob-lr nan", ["--keep-prob-lr nan"]),
        ("--keep-prob-floor .5", ["--keep-prob-floor 0.5", "[0, 0.5)"]),
        ("--alpha 2", ["--precondition-power 2.0", "[0, 1]"]),
        ("--clip-norm nan", ["--clip-norm nan"]),
        ("--label-smoothing 1", ["--label-smoothing 1.0", "[0, 1)"]),
        ("--warmup 1", ["--warmup 1.0", "[0, 1)"]),
        ("--threads 0", ["--threads 0", "at least 1"]),
        ("--seed -1", ["--seed -1"]),
        ("--out file", ["file exists already"]),
        ("--out file/run", ["file/run", "--out"]),
        ("--resume file", ["no run folder file"]),
    ],
)
def test_train_names_what_came(arguments, names, capsys, tmp_path):
    (tmp_path / "file").touch()
    error = error_of([*SMALL, "--epochs", "1", *arguments.split()], capsys)
    for name in names:
        assert name in error
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_checkpoint_cut_short_is_damaged(capsys, tmp_path):
    assert main([*SMALL, "--epochs", "1", "--out", "run"]) == 0
    capsys.readouterr()
    (tmp_path / "run" / "summary.json").unlink()
    checkpoint = tmp_path / "run" / "checkpoint.npz"
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[: len(whole) // 2])
    error = error_of(["train", "--resume", "run"], capsys)
    assert "checkpoint.npz" in error
    assert "damaged" in error


@pytest.mark.parametrize(
    ("arguments", "raised"),
    [
        (["train", "--resume", "nowhere"], (ValueError, OSError)),
        (["macs", "vgg16", "--input", "3x8x8"], ValueError),
        (["step", "--after", "-1"], ValueError),
        (["planted", "--seeds", "0"], ValueError),
    ],
)
def test_debug_raises_in_every_command(arguments, raised):
    with pytest.raises(raised, match=r"nowhere|pool4|--after|0 seeds"):
        main([*arguments, "--debug"])


@pytest.mark.parametrize("arguments", ["train --epochs x", "train --momentum", "tarin", "macs"])
def test_what_tyro_cannot_parse_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments.split())
    assert stopped.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a[b]c", "a[/b]c", "long-" + "x" * 140])
def test_the_folder_is_printed_as_it_is(name, capsys, tmp_path):
    assert main([*SMALL, "--epochs", "1", "--out", name]) == 0
    assert f"run folder: {name}\n" in capsys.readouterr().out
    assert (tmp_path / name / "summary.json").exists()
    assert main(["train", "--resume", name]) == 0
    assert f"{name} is finished already:\n" in capsys.readouterr().out


def test_a_run_prints_its_epochs_and_the_table_and_resume_prints_the_same_table(capsys):
    assert main([*SMALL, "--epochs", "2", "--out", "run"]) == 0
    out = capsys.readouterr().out
    assert [line[:10] for line in out.splitlines() if line.startswith("epoch ")] == [
        *("epoch 1/2,", "epoch 2/2,")
    ]
    start = "completely-sparse: vgg-tiny on digits"
    table = out[out.rindex(start) : out.index("run folder: ")]
    assert "MACs left" in table
    assert main(["train", "--resume", "run"]) == 0
    again = capsys.readouterr().out
    assert again[again.index(start) :] == table


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_a_preset_sets_all_its_values(preset, tmp_path):
    options = ["--preset", preset, "--epochs", "1", "--out", "run"]
    assert main([*SMALL, *options]) == 0
    saved = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert saved["preset"] == preset
    assert {name: saved[name] for name in PRESETS[preset]} == PRESETS[preset]
    plain = TrainSettings()
    given = {"data", "network", "width", "batch_size", "dense_probes", "recalibration_batches"}
    for name in saved.keys() - PRESETS[preset].keys() - given - {"preset", "epochs", "out"}:
        assert saved[name] == getattr(plain, name) or name == "augment"


@pytest.mark.parametrize("form", [["--preset", "released-code"], ["--preset=released-code"]])
@pytest.mark.parametrize("first", [True, False])
def test_options_that_equal_the_plain_default_still_win(form, first, tmp_path):
    plain = TrainSettings()
    explicit = ["--estimator", plain.estimator, "--clip-norm", str(plain.clip_norm)]
    explicit += ["--backward-masks", "1", "--final-mask", plain.final_mask, "--fine-tune", "0"]
    ordered = [*form, *explicit] if first else [*explicit, *form]
    assert main([*SMALL, *ordered, "--epochs", "1", "--out", "run"]) == 0
    saved = json.loads((tmp_path / "run" / "settings.json").read_text())
    for name in ("estimator", "clip_norm", "backward_masks", "final_mask", "fine_tune"):
        assert saved[name] == getattr(plain, name), name
    assert saved["keep_prob_lr"] == PRESETS["released-code"]["keep_prob_lr"]


def interrupt_at(monkeypatch, name, call):
    """Press Ctrl-C at one call of a method of the display."""
    real, calls = getattr(LiveDisplay, name), []

    def called(self, *args):
        calls.append(1)
        if len(calls) == call:
            signal.raise_signal(signal.SIGINT)
        real(self, *args)

    monkeypatch.setattr(LiveDisplay, name, called)


def test_an_interrupted_run_goes_on_to_the_same_end(capsys, tmp_path, monkeypatch):
    options = ["--epochs", "2", "--threads", "1"]
    assert main([*SMALL, *options, "--out", "whole"]) == 0
    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        interrupt_at(patch, "stepped", 15)
        assert main([*SMALL, *options, "--out", "a[b]c"]) == 130
    assert signal.getsignal(signal.SIGINT) is before
    assert "stopped; go on with: minicst train --resume a[b]c\n" in capsys.readouterr().out
    assert main(["train", "--resume", "a[b]c", "--threads", "1"]) == 0
    whole, resumed = (
        json.loads((tmp_path / name / "summary.json").read_text()) for name in ("whole", "a[b]c")
    )
    for name in ("test_accuracy", "macs", "executed_macs", "keep_prob_sum", "steps"):
        assert whole[name] == resumed[name], name


def test_a_second_interrupt_stops_at_once(capsys, monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    real = LiveDisplay.stepped

    def twice(self, *args):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        real(self, *args)

    monkeypatch.setattr(LiveDisplay, "stepped", twice)
    assert main([*SMALL, "--epochs", "1", "--out", "run"]) == 130
    assert capsys.readouterr().err == "minicst: interrupted\n"
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_in_the_controls_leaves_the_run_finished(capsys, tmp_path, monkeypatch):
    interrupt_at(monkeypatch, "says", 3)  # the second control is announced
    assert main([*SMALL, "--epochs", "1", "--controls", "--out", "run"]) == 130
    assert "controls stopped; the run itself is finished: run\n" in capsys.readouterr().out
    assert "controls" not in json.loads((tmp_path / "run" / "summary.json").read_text())
    assert main(["train", "--resume", "run"]) == 0


def documented_settings():
    """{field: docstring} of TrainSettings, as the source has them."""
    tree = ast.parse(inspect.getsource(settings_module))
    body = next(
        node.body
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name == "TrainSettings"
    )
    docs = {}
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign):
            is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            docs[node.target.id] = after.value.value if is_text else ""
    return docs


def test_help_explains_every_setting(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    shown = "".join(re.sub(r"[^\w.,:;()\[\]-]", "", word) for word in out.split())
    docs = documented_settings()
    assert set(docs) == set(TrainSettings.__dataclass_fields__)
    for name, text in docs.items():
        assert text, name
        words = re.sub(r"[^\w.,:;()\[\]-]", "", " ".join(text.split()).replace(" ", ""))
        assert words in shown, name


def test_info_json_has_its_keys(capsys):
    assert main(["info", "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert set(info) == {
        *("python", "platform", "versions", "cores", "threads", "blas", "devices", "cuda")
    }
    assert {"minicst", "numpy", "scipy", "matplotlib", "rich", "tyro"} <= set(info["versions"])
    assert info["versions"]["numpy"] == np.__version__
    assert info["devices"] == ["cpu"]
    assert info["threads"] >= 1
    for blas in info["blas"]:
        assert set(blas) == {"internal_api", "version", "architecture", "num_threads"}


def test_as_a_program_output_and_errors_are_apart():
    command = [sys.executable, "-m", "minicst.cli", "macs", "foo", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("minicst: error: unknown network 'foo'")
    assert done.stderr.count("\n") == 1
