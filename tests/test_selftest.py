"""The self-test passes where all is well, and names what isn't."""

import inspect
import json
import os
import subprocess
import sys
from typing import get_type_hints

import numpy as np
import pytest

from minicst.backend import Backend, cpu_backend
from minicst.cli import main
from minicst.selftest import (
    OPERATIONS,
    PlainBackend,
    SelftestSettings,
    check_operations,
    command,
    largest_error,
    print_selftest,
    run_selftest,
)
from minicst.selftest import networks as selftest_networks
from minicst.selftest.check import Tolerance, checked
from minicst.selftest.networks import CASES, check_cut, check_networks
from minicst.selftest.operations import ROUNDING, TF32, Operation
from minicst.selftest.runs import check_repeated, check_training
from minicst.tables import console

NAMES = [operation.name for operation in OPERATIONS]
PARTS = ["operations", "networks", "cut == masked", "20 training steps", "repeated runs"]
# On a GPU these are made of another operation, so they fail with it.
MADE_OF = {"gather": {"take_channels"}, "scatter": {"place_channels"}}
# What an operation changes in place: number of the argument.
IN_PLACE = {"gather": 2, "scatter": 0, "sgd_update": 0, "adam_update": 0, "batch_norm_track": 0}


def report(capsys, *arguments):
    code = main(["selftest", "--json", *arguments])
    return code, json.loads(capsys.readouterr().out, parse_constant=pytest.fail)


def broken(name, real, change):
    """The operation, its first result put through `change`."""

    def operation(*arguments, **options):
        result = real(*arguments, **options)
        if name in IN_PLACE:
            changed = arguments[IN_PLACE[name]]
            changed = changed[0] if isinstance(changed, tuple) else changed
            changed[...] = change(changed)
            return None
        if isinstance(result, tuple):
            return change(result[0]), *result[1:]
        return change(result)

    return operation


def first_parts(monkeypatch, n):
    """Leave out the parts behind the first n."""
    real = command._parts
    monkeypatch.setattr(command, "_parts", lambda *given: dict(list(real(*given).items())[:n]))


def only_operations(monkeypatch):
    """Leave out the parts that run whole networks."""
    first_parts(monkeypatch, 1)


def failed(results):
    return {result.name for result in results if not result.passed}


# The command.


@pytest.mark.parametrize("options", [[], ["--precision", "tf32"]])
def test_it_passes_on_the_stand_in(options, gpu, capsys):
    code, found = report(capsys, "--device", "cuda", *options)
    assert found["failed"] == []
    assert found["passed"]
    assert code == 0
    assert found["device"] == "cuda"
    assert found["reference"] == "minicst on the CPU"
    assert "stand-in" in found["name"]
    assert (found["driver"], found["runtime"], found["cupy"]) == ("13.0", "13.0", "14.2.0")
    assert found["peak_bytes"] > 1 << 20
    assert list(found["seconds"]) == PARTS
    checks = {(check["name"], check["dtype"]): check for check in found["checks"]}
    assert len(checks) == len(found["checks"])
    assert checks.keys() >= {(name, d) for name in NAMES for d in ("float32", "float64")}
    assert {check["part"] for check in found["checks"]} == set(PARTS)
    products = {name for name, d in checks if checks[name, d]["tolerance"] == TF32.value}
    wanted = {"conv2d", "conv2d_grad_weight", "conv2d_grad_input"} if options else set()
    assert products == wanted
    gradients = {d for name, d in checks if name.endswith("gradients")}
    assert gradients == ({"float64"} if options else {"float32", "float64"})
    assert gpu.precision == "float32"
    assert gpu.workspace_bytes == 256 << 20


def test_it_passes_on_the_cpu_as_a_program(tmp_path):
    """JSON on stdout alone, progress on stderr."""
    program = [sys.executable, "-m", "minicst.cli", "selftest", "--device", "cpu", "--json"]
    done = subprocess.run(
        program, capture_output=True, text=True, timeout=300, cwd=tmp_path, env=dict(os.environ)
    )
    found = json.loads(done.stdout, parse_constant=pytest.fail)
    assert found["failed"] == []
    assert found["passed"]
    assert done.returncode == 0
    assert done.stderr.split("\n")[: len(PARTS)] == PARTS
    assert (found["device"], found["reference"]) == ("cpu", "plain NumPy")
    assert "peak_bytes" not in found
    names = {check["name"] for check in found["checks"]}
    # The CPU takes these from Backend as they are: there is nothing to compare.
    assert set(NAMES) - names == {"batch_norm_fold", "batch_norm_track", "cross_entropy"}
    assert "one thread and two" in names


def test_auto_takes_the_gpu_where_there_is_one(gpu, monkeypatch, capsys):
    monkeypatch.setattr("minicst.selftest.command._parts", lambda *_: {})
    assert report(capsys)[1]["device"] == "cuda"
    assert report(capsys, "--device", "cpu")[1]["device"] == "cpu"


def test_auto_says_why_it_took_the_cpu(monkeypatch, capsys):
    monkeypatch.setattr("minicst.selftest.command._parts", lambda *_: {})
    monkeypatch.setattr("minicst.selftest.command.why_no_gpu", lambda: "no card [at all]")
    monkeypatch.setattr("minicst.selftest.command.get_backend", lambda _: cpu_backend())
    assert report(capsys)[1]["no_gpu"] == "no card [at all]"
    assert main(["selftest"]) == 0
    assert "no GPU: no card [at all]" in capsys.readouterr().out


def test_the_report(capsys):
    assert main(["selftest", "--device", "cpu"]) == 0
    shown = capsys.readouterr()
    for text in (*PARTS, "conv2d_grad_input", "resnet20, independent, shortcuts A", "equal", "ok"):
        assert text in shown.out
    assert "checks passed in" in shown.out
    assert "FAILED" not in shown.out
    assert shown.err.split("\n")[: len(PARTS)] == PARTS
    assert max(map(len, shown.out.splitlines())) <= 120


def test_one_broken_operation_is_named_and_the_exit_code_is_1(gpu, monkeypatch, capsys):
    wrong = broken("conv2d", gpu.conv2d, lambda out: out * 1.001)
    monkeypatch.setattr(gpu, "conv2d", wrong)
    first_parts(monkeypatch, 2)
    code, found = report(capsys, "--device", "cuda")
    assert code == 1
    assert not found["passed"]
    assert [name for name in found["failed"] if name.startswith("operations")] == [
        "operations: conv2d"
    ]
    assert "networks: vgg-small: logits" in found["failed"]
    print_selftest(console(), found)
    out = capsys.readouterr().out
    assert "operations: conv2d (float32): error 1e-03, at most 1e-05\n" in out
    assert "FAILED" in out
    assert "conv2d_grad_weight (" not in out


def test_an_operation_that_raises_is_named_and_the_others_run(gpu, monkeypatch, capsys):
    def raises(*arguments):
        raise RuntimeError("CUDA_ERROR_ILLEGAL_ADDRESS: an illegal\nmemory access [here]")

    monkeypatch.setattr(gpu, "avg_pool2d", raises)
    only_operations(monkeypatch)
    code, found = report(capsys, "--device", "cuda")
    assert code == 1
    checks = [check for check in found["checks"] if check["part"] == "operations"]
    wrong = [check for check in checks if not check["passed"]]
    assert [(check["name"], check["dtype"]) for check in wrong] == [
        *(("avg_pool2d", "float32"), ("avg_pool2d", "float64"))
    ]
    assert wrong[0]["error"] is None
    said = "RuntimeError: CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access [here]"
    assert wrong[0]["raised"] == said
    assert len(checks) == 2 * len(NAMES)
    assert main(["selftest", "--device", "cuda"]) == 1
    assert f"operations: avg_pool2d (float64): {said}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["--device", "cpu", "--precision", "tf32"], "--precision tf32"),
        (["--device", "cuda"], "no card"),
    ],
)
def test_what_cannot_be_had_is_one_line(arguments, name, monkeypatch, capsys):
    monkeypatch.setattr("minicst.backend.why_no_gpu", lambda: "no card")
    monkeypatch.setattr("minicst.backend._cuda_backend", _fresh_cuda_backend())
    assert main(["selftest", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("minicst: error: ")
    assert error.count("\n") == 1
    assert name in error


def _fresh_cuda_backend():
    """get_backend keeps what it found; this one asks again."""
    return inspect.unwrap(sys.modules["minicst.backend"]._cuda_backend)


@pytest.mark.parametrize("arguments", ["--device gpu", "--precision float16", "--fast"])
def test_what_cannot_be_parsed_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["selftest", *arguments.split()])
    assert stopped.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_the_device_is_set_back_where_a_check_ends_the_program(gpu, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu, "conv2d", stop)
    assert main(["selftest", "--device", "cuda"]) == 130
    assert gpu.workspace_bytes == 256 << 20


# The checks.


def test_every_hot_operation_is_checked():
    declared = {name for name in get_type_hints(Backend) if name not in ("name", "xp")}
    declared -= {"exact_times"}
    written = {
        *("im2col", "col2im", "gather", "scatter", "take_channels", "place_channels"),
        *("depthwise_conv2d", "depthwise_conv2d_grad_weight", "depthwise_conv2d_grad_input"),
        *("batch_norm_fold", "batch_norm_track", "cross_entropy"),
    }
    assert declared | written == set(NAMES)
    assert len(NAMES) == len(set(NAMES))


@pytest.mark.parametrize("name", NAMES)
def test_a_thousandth_too_much_is_found_in_that_operation_alone(name, gpu, monkeypatch):
    monkeypatch.setattr(gpu, name, broken(name, getattr(gpu, name), lambda out: out * 1.001))
    results = check_operations(gpu, cpu_backend())
    wrong = {name} | MADE_OF.get(name, set())
    for dtype in ("float32", "float64"):
        assert failed(result for result in results if result.dtype == dtype) == wrong


@pytest.mark.parametrize("name", ["im2col", "gather", "take_channels", "max_pool2d", "conv2d"])
def test_a_channel_that_is_off_by_one_is_found(name, gpu, monkeypatch):
    def shifted(out):
        return gpu.asarray(np.roll(gpu.to_numpy(out), 1, axis=-1))

    monkeypatch.setattr(gpu, name, broken(name, getattr(gpu, name), shifted))
    assert failed(check_operations(gpu, cpu_backend())) == {name} | MADE_OF.get(name, set())


def test_one_wrong_bit_is_found_where_results_must_be_equal(gpu, monkeypatch):
    def nudged(out):
        numbers = gpu.to_numpy(out).copy()
        numbers.flat[-1] = np.nextafter(numbers.flat[-1], np.inf, dtype=numbers.dtype)
        return gpu.asarray(numbers)

    for name in ("scale_shift", "add", "col2im"):
        with monkeypatch.context() as patch:
            patch.setattr(gpu, name, broken(name, getattr(gpu, name), nudged))
            assert failed(check_operations(gpu, cpu_backend())) == {name}
    monkeypatch.setattr(gpu, "conv2d", broken("conv2d", gpu.conv2d, nudged))
    assert not failed(check_operations(gpu, cpu_backend()))  # a product may differ so much


def test_a_wrong_dtype_or_shape_is_found(gpu, monkeypatch):
    monkeypatch.setattr(gpu, "add", broken("add", gpu.add, lambda out: out.astype(np.float64)))
    results = check_operations(gpu, cpu_backend())
    assert {(r.name, r.dtype) for r in results if not r.passed} == {("add", "float32")}
    monkeypatch.setattr(gpu, "relu", broken("relu", gpu.relu, lambda out: out.reshape(-1)))
    assert failed(check_operations(gpu, cpu_backend())) == {"add", "relu"}


@pytest.mark.parametrize("many", [1, 3])
def test_as_many_results_must_come(many):
    def results(d):
        for _ in range(many if d.backend.name == "plain" else 2):
            yield d.normal(3)

    operation = Operation("relu", results, exact=True, product=False)
    assert failed(check_operations(PlainBackend(), cpu_backend(), operations=[operation])) == {
        "relu"
    }


def test_convolutions_run_in_chunks(gpu, monkeypatch):
    """With the command's workspace, in each dtype, every product meets columns larger than it."""
    seen = {}
    real = gpu._chunks

    def look(n, bytes_per_image):
        chunks = real(n, bytes_per_image)
        caller = inspect.currentframe().f_back
        operand = caller.f_locals["x" if "x" in caller.f_locals else "grad_out"]
        key = caller.f_code.co_name, operand.dtype.name
        seen[key] = max(seen.get(key, 0), len(chunks))
        return chunks

    monkeypatch.setattr(gpu, "_chunks", look)
    only_operations(monkeypatch)
    assert run_selftest(SelftestSettings(device="cuda"))["passed"]
    products = ("conv2d", "conv2d_grad_weight", "conv2d_grad_input")
    assert seen.keys() == {(name, d) for name in products for d in ("float32", "float64")}
    assert min(seen.values()) >= 2


@pytest.mark.parametrize(
    ("method", "names"),
    [
        ("batch_norm_backward", {"vgg-small: gradients"}),
        ("conv2d_grad_weight", {"vgg-small: gradients"}),
        ("scale_shift", {"vgg-small: logits", "vgg-small: gradients"}),
        ("max_pool2d_backward", {"vgg-small: gradients"}),
    ],
)
def test_a_network_with_a_wrong_operation_is_found(method, names):
    wrong = PlainBackend()
    setattr(wrong, method, broken(method, getattr(wrong, method), lambda out: out * 1.02))
    results = check_networks(wrong, cpu_backend(), cases=CASES[:1])
    assert failed(results) == names
    assert all(not result.passed for result in results if result.name in names)


@pytest.mark.parametrize("which", ["plain", "numpy"])
def test_a_gradient_that_is_missing_is_found(which, monkeypatch):
    real = selftest_networks._gradients

    def fewer(network):
        gradients = real(network)
        if network.backend.name == which:
            del gradients["conv2.transform.weight"]
        return gradients

    monkeypatch.setattr(selftest_networks, "_gradients", fewer)
    results = check_networks(PlainBackend(), cpu_backend(), cases=CASES[:1])
    assert failed(results) == {"vgg-small: gradients"}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_a_paste_to_the_wrong_place_is_found(case):
    class Shifted(PlainBackend):
        def scatter(self, full, entries, small):
            super().scatter(full, entries, np.roll(small, 1))

    assert failed(check_cut(PlainBackend(), [case])) == set()
    assert failed(check_cut(Shifted(), [case])) == {case.title}


def test_updates_of_what_is_absent_are_found(monkeypatch):
    """An optimizer step of all entries in place of the live ones."""
    monkeypatch.setattr(
        "minicst.sparse.masked_form.MaskedNetwork.update", lambda self: self.optimizer.step()
    )
    assert failed(check_cut(cpu_backend(), CASES[:1])) == {"vgg-small"}


def test_training_that_drifts_is_found():
    class Drifts(PlainBackend):
        def sgd_update(self, weight, *rest):
            super().sgd_update(weight, *rest)
            weight *= 1 + 1e-7

    wrong = failed(check_training(Drifts(), cpu_backend(), steps=4))
    assert wrong == {"losses L(m) and L(m')", "keep_prob", "weights and statistics"}
    assert failed(check_training(PlainBackend(), cpu_backend(), steps=4)) == set()


def test_a_run_that_does_not_repeat_is_found():
    class Restless(PlainBackend):
        calls = 0

        def conv2d(self, *arguments):
            self.calls += 1
            out = super().conv2d(*arguments)
            return out if self.calls % 1000 else np.nextafter(out, np.float32(np.inf))

    assert failed(check_repeated(PlainBackend(), steps=2)) == set()
    restless = Restless()
    restless.calls = (
        990  # a run of 2 steps, each of 2 passes through 3 convolutions, makes 12 calls
    )
    assert failed(check_repeated(restless, steps=2)) == {"the same run twice"}


# Errors and tolerances.


@pytest.mark.parametrize(
    ("actual", "wanted", "error"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.0], [1.0, 4.0], 0.5),
        ([1.0, -2.0], [1.0, -4.0], 0.5),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([1e-300, 0.0], [0.0, 0.0], np.inf),
        ([np.nan, 1.0], [np.nan, 2.0], 0.5),
        ([np.nan, 1.0], [1.0, np.nan], np.inf),
        ([np.nan, 1.0], [0.0, 1.0], np.inf),
        ([1.0, 1.0], [np.inf, 1.0], np.inf),
        ([-np.inf, 1.0], [np.inf, 1.0], np.inf),
        ([np.inf, 1.0], [np.inf, 1.0], 0.0),
        ([1.0], [1.0, 1.0], np.inf),
        ([], [], 0.0),
    ],
)
def test_largest_error(actual, wanted, error):
    assert largest_error(np.array(actual), np.array(wanted)) == error


def test_largest_error_of_other_dtypes():
    ones = np.ones(2, np.float32)
    assert largest_error(ones, ones.astype(np.float64)) == np.inf
    assert largest_error(np.uint8([3, 255]), np.uint8([3, 0])) == 85.0
    assert largest_error(np.array([True]), np.array([True])) == 0.0
    assert largest_error(ones * 1.5, ones, floor=10.0) == pytest.approx(0.05)


def test_the_worst_pair_decides():
    good, bad = (np.ones(2), np.ones(2)), (np.ones(2), 2 * np.ones(2))
    for pairs in ([good, bad], [bad, good]):
        assert (
            checked("part", "name", "float64", Tolerance(0.1, "why"), lambda p=pairs: p).error
            == 0.5
        )


def test_a_check_without_anything_to_compare_fails():
    nothing = checked("part", "name", "float32", Tolerance(1.0, "why"), lambda: [])
    assert not nothing.passed
    assert nothing.as_json()["error"] is None


def test_the_tolerances_are_what_the_readme_says():
    assert ROUNDING["float64"].value == 1e-10
    assert ROUNDING["float32"].value == 1e-5
    assert TF32.value == 1e-3
