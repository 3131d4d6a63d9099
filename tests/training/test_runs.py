import json

import pytest

from minicst import runs
from minicst.checkpoint import read_arrays, write_arrays
from minicst.job import prepare
from minicst.settings import TrainSettings
from minicst.training import Stopped, resume, train


def settings_of(**changes):
    small = {
        "network": "vgg-tiny",
        "data": "digits",
        "width": 0.25,
        "epochs": 1,
        "batch_size": 256,
        "dense_probes": 0,
        "recalibration_batches": 2,
        "threads": 1,
    }
    return TrainSettings(**(small | changes))


def test_an_existing_out_is_refused_and_left_alone(tmp_path):
    taken = tmp_path / "taken"
    taken.mkdir()
    with pytest.raises(ValueError, match=r"taken exists already.*--resume .*taken") as error:
        runs.make_folder(settings_of(out=taken))
    assert "\n" not in str(error.value)
    assert list(taken.iterdir()) == []


def test_out_below_a_file_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"can't make the run folder.*--out") as error:
        runs.make_folder(settings_of(out=tmp_path / "file" / "run"))
    assert "\n" not in str(error.value)


def test_default_folders_of_one_second_are_all_new(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs.time, "strftime", lambda _: "20260101-000000")
    settings = settings_of(seed=5)
    folders = [runs.make_folder(settings) for _ in range(3)]
    assert len(set(folders)) == 3
    for folder in folders:
        assert folder.parent == runs.RUNS
        data = json.loads((folder / "settings.json").read_text())
        assert TrainSettings.from_json(data) == settings


@pytest.mark.parametrize("method", ["completely-sparse", "dense"])
def test_curves_are_drawn_after_one_epoch(tmp_path, method):
    job = prepare(settings_of(method=method))
    train(job, tmp_path)
    runs.draw_curves(job, tmp_path)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert runs.finished(tmp_path)["method"] == method


def test_nothing_to_resume(tmp_path):
    assert runs.finished(tmp_path) is None
    for folder, message in ((tmp_path / "no", "no run folder"), (tmp_path, "there is no file")):
        with pytest.raises(ValueError, match=message) as error:
            resume(folder)
        assert "\n" not in str(error.value)
    (tmp_path / "checkpoint.npz").write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(ValueError, match="damaged") as error:
        resume(tmp_path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize("part", ["settings", "totals"])
@pytest.mark.parametrize("value", [None, [], "x", 3], ids=str)
def test_a_header_of_another_shape_is_one_line(tmp_path, part, value):
    job = prepare(settings_of())
    with pytest.raises(Stopped):
        train(job, tmp_path, stop=lambda: job.method.step == 1)
    path = tmp_path / "checkpoint.npz"
    header, arrays = read_arrays(path, "checkpoint")
    write_arrays(path, "checkpoint", header | {part: value}, arrays)
    with pytest.raises(ValueError, match="can't be resumed") as error:
        resume(tmp_path)
    assert "\n" not in str(error.value)
