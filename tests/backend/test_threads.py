"""The number of threads changes no bit; BLAS stays on one thread."""

import gc
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from minicst.backend import get_backend
from minicst.backend.chunks import STREAM_BYTES

THREADS = (1, 2, 3, 5)


def conv(backend, rng, dtype, kernel, stride, padding):
    x = rng.normal(size=(23, 16, 16, 32)).astype(dtype)
    weight = rng.normal(size=(24, kernel, kernel, 32)).astype(dtype)
    bias = rng.normal(size=24).astype(dtype)
    out = backend.conv2d(x, weight, bias, stride, padding)
    g = rng.normal(size=out.shape).astype(dtype)
    return (
        out,
        backend.conv2d_grad_weight(x, g, weight.shape, stride, padding),
        backend.conv2d_grad_input(g, weight, x.shape, stride, padding),
    )


def large_weight(backend, rng, dtype):
    x = rng.normal(size=(9, 8, 8, 128)).astype(dtype)
    g = rng.normal(size=(9, 8, 8, 256)).astype(dtype)
    return (backend.conv2d_grad_weight(x, g, (256, 3, 3, 128), 1, 1),)


def batch_norm(backend, rng, dtype, c):
    x = rng.normal(2, 3, size=(96, 24, 24, c)).astype(dtype)
    g = rng.normal(size=x.shape).astype(dtype)
    gamma, beta = (rng.normal(size=c).astype(dtype) for _ in range(2))
    assert x.nbytes > 3 * STREAM_BYTES
    mean, variance = backend.batch_norm_statistics(x)
    inv_std = 1 / np.sqrt(variance + dtype(1e-5))
    out = backend.scale_shift(x, gamma * inv_std, beta - mean * gamma * inv_std, True)
    back = [
        backend.batch_norm_backward(g, x, relu_out, mean, inv_std, gamma, training)
        for relu_out in (None, out)
        for training in (False, True)
    ]
    return (mean, variance, out, *(grad for grads in back for grad in grads))


def pooling(backend, rng, dtype, kernel, stride, padding):
    x = rng.normal(size=(40, 32, 32, 32)).astype(dtype)
    out, tap = backend.max_pool2d(x, kernel, stride, padding)
    g = rng.normal(size=out.shape).astype(dtype)
    return (
        out,
        tap,
        backend.max_pool2d_backward(g, tap, x.shape, kernel, stride, padding),
        backend.avg_pool2d(x, kernel, stride, padding),
        backend.avg_pool2d_backward(g, x.shape, kernel, stride, padding),
    )


def relu(backend, rng, dtype):
    x, g = (rng.normal(size=1_200_001).astype(dtype) for _ in range(2))
    out = backend.relu(x)
    return out, backend.relu_backward(g, out)


def sgd(backend, rng, dtype, nesterov):
    w, g, v = (rng.normal(size=1_200_001).astype(dtype) for _ in range(3))
    backend.sgd_update(w, g, v, 0.1, 0.9, 1e-3, nesterov)
    return w, v


def adam(backend, rng, dtype):
    w, g, m, v = (rng.uniform(0.1, 1, size=1_200_001).astype(dtype) for _ in range(4))
    backend.adam_update(w, g, m, v, 3, 0.01, (0.9, 0.999), 1e-8, 1e-3)
    return w, m, v


OPERATIONS = {
    "3x3": partial(conv, kernel=3, stride=1, padding=1),
    "3x3, stride 2": partial(conv, kernel=3, stride=2, padding=1),
    "1x1": partial(conv, kernel=1, stride=1, padding=0),
    "1x1, stride 2": partial(conv, kernel=1, stride=2, padding=0),
    "large weight": large_weight,
    "batch norm": partial(batch_norm, c=64),
    "batch norm, 33 channels": partial(batch_norm, c=33),
    "pool, tiling": partial(pooling, kernel=2, stride=2, padding=0),
    "pool, overlapping": partial(pooling, kernel=3, stride=2, padding=1),
    "relu": relu,
    "sgd": partial(sgd, nesterov=False),
    "nesterov": partial(sgd, nesterov=True),
    "adam": adam,
}


def watch_tasks(backend, monkeypatch):
    """A list of the numbers of tasks that the pool is given from now on."""
    tasks, run = [], backend.pool.run

    def watched(n_tasks, *args):
        tasks.append(n_tasks)
        run(n_tasks, *args)

    monkeypatch.setattr(backend.pool, "run", watched)
    return tasks


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", OPERATIONS)
def test_same_bits_on_any_number_of_threads(backend, monkeypatch, name, dtype):
    # Small work stays on the calling thread, which would leave nothing to compare.
    monkeypatch.setattr("minicst.backend.pool.INLINE_BYTES", 0)
    results, most_tasks = [], 0
    for threads in THREADS:
        backend.set_threads(threads)
        tasks = watch_tasks(backend, monkeypatch)
        arrays = OPERATIONS[name](backend, np.random.Generator(np.random.Philox(3)), dtype)
        results.append([a.tobytes() for a in arrays])
        most_tasks = max(most_tasks, *tasks)
    # A gradient of large weights is summed in two parts; all else has enough chunks for a race.
    assert most_tasks >= (2 if name == "large weight" else 4)
    for threads, result in zip(THREADS[1:], results[1:], strict=True):
        assert result == results[0], f"{threads} threads give other bits than 1"


def numpys_blas():
    return [
        (lib["internal_api"], lib["num_threads"])
        for lib in threadpool_info()
        if lib["user_api"] == "blas" and "numpy" in lib["filepath"]
    ]


def test_blas_is_held_to_one_thread(backend):
    gc.collect()  # the limit must not end with the object that set it
    if not numpys_blas():
        pytest.skip("numpy's BLAS is none that threadpoolctl knows")
    seen = [numpys_blas()]
    backend.set_threads(3)
    backend.pool.run(6, lambda i: seen.append(numpys_blas()))
    assert len(seen) == 7
    for libraries in seen:
        assert all(threads == 1 for _, threads in libraries)


def test_blas_is_held_to_one_thread_from_the_first_call_on():
    code = (
        "from threadpoolctl import threadpool_info\n"
        "import numpy\n"
        "from minicst.backend import get_backend\n"
        "get_backend('cpu')\n"
        "print({i['num_threads'] for i in threadpool_info() if i['user_api'] == 'blas'})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("{1}", "set()")


def test_set_threads(backend):
    backend.set_threads(3)
    assert backend.threads == 3
    assert get_backend("cpu", threads=2) is backend
    assert backend.threads == 2
    with pytest.raises(ValueError, match="threads = 0: at least 1"):
        backend.set_threads(0)
    assert backend.threads == 2
    backend.relu(np.ones(1_200_001))  # the old pool is still there


def test_unknown_devices_are_named():
    with pytest.raises(ValueError, match="unknown device 'tpu': choose one of cpu, cuda, auto"):
        get_backend("tpu")
    assert get_backend("numpy") is get_backend("cpu") is get_backend()


def test_cuda_says_why_it_can_not_be_had():
    with pytest.raises(ValueError, match=r"device 'cuda' can't be used: .*; or use --device cpu"):
        get_backend("cuda")
