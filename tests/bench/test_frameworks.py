"""PyTorch's and JAX's peers compute what minicst does, from the same arrays."""

import base64
import subprocess
from pathlib import Path

import numpy as np
import pytest

import minicst.bench
import minicst.functional as F
from minicst.autograd import Tensor
from minicst.bench.cut import draw_cut
from minicst.bench.peers import Peer
from minicst.models import build

FOLDER = Path(minicst.bench.__file__).parent
CASES = {
    "chain": ("vgg-tiny", {}),
    "option A": ("resnet20", {"width": 0.5, "shortcut": "A"}),
    "option B": ("resnet20", {"width": 0.5}),
    "cut, tied": ("resnet20", {"width": 0.5, "cut": 0.5}),
    "cut, option A": ("resnet20", {"width": 0.5, "cut": 0.5, "shortcut": "A"}),
    "cut, unions": ("resnet20", {"cut": 0.3, "residual": "independent"}),
    "cut, unions and option A": (
        "resnet20",
        {"cut": 0.3, "residual": "independent", "shortcut": "A"},
    ),
    "pre-activation": ("wrn-28-10", {"width": 0.025, "cut": 0.6}),
    "depthwise": ("mobilenetv1", {"width": 0.125, "cut": 0.6}),
    "max pooling with a border": ("resnet50", {"width": 0.0625}),
    "flatten, batch norm of vectors": ("mlp", {"cut": 0.5}),
}


def packed(array, dtype="float32"):
    data = base64.b64encode(np.ascontiguousarray(array, dtype).tobytes()).decode()
    return {"data": data, "dtype": dtype, "shape": list(array.shape)}


def unpacked(value):
    data = np.frombuffer(base64.b64decode(value["data"]), value["dtype"])
    return data.reshape(value["shape"])


def network_of(name, options):
    options = dict(options)
    rate = options.pop("cut", None)
    network = build(name, **options)
    return network if rate is None else draw_cut(network, rate, 3, 0)


def compare(peer, name, options, rng):
    network = network_of(name, options)
    state = network.state()
    for key, array in state.items():  # so that no gradient and no statistic is trivial
        if key.endswith(("gamma", "beta", "bias")):
            array += rng.uniform(-0.3, 0.3, array.shape).astype(np.float32)
    images = rng.standard_normal((6, 32, 32, 3)).astype(np.float32)
    labels = rng.integers(0, 10, 6)
    request = {"name": "x", "spec": network.spec(), "images": [6, 32, 32, 3]}
    peer.ask(do="build", **request)
    arrays = {key: packed(array) for key, array in state.items()}
    given = {"arrays": arrays, "images": packed(images), "labels": packed(labels, "int64")}
    theirs = peer.ask(do="compute", name="x", **given)
    peer.ask(do="drop", name="x")
    logits = network(Tensor(images), training=True)
    loss = F.cross_entropy(logits, labels)
    loss.backward()
    # Batch norm of six numbers, fifty layers deep: the order of additions alone moves the logits.
    tolerance = 1e-3 if name == "resnet50" else 1e-4
    close(unpacked(theirs["logits"]), logits.numpy(), tolerance)
    assert theirs["loss"] == pytest.approx(loss.item(), rel=tolerance)
    gradients = {key: p.grad for key, p in network.named_parameters() if p.grad is not None}
    assert gradients.keys() == theirs["gradients"].keys()
    for key, grad in gradients.items():
        close(unpacked(theirs["gradients"][key]), grad, 5e-3 if tolerance < 1e-3 else 2e-2)
    for key, packed_array in theirs.get("statistics", {}).items():
        close(unpacked(packed_array), network.state()[key], tolerance)


def close(theirs, ours, tolerance):
    assert theirs.shape == ours.shape
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=tolerance * max(np.abs(ours).max(), 1e-3))


@pytest.fixture(scope="module", params=[False, True], ids=["NCHW", "channels last"])
def torch_peer(request, torch_python):
    options = {"threads": 1, "channels_last": request.param}
    peer = Peer("torch", torch_python, "torch_peer.py", options)
    yield peer
    peer.close()


@pytest.fixture(scope="module")
def jax_peer(jax_python):
    peer = Peer("jax", jax_python, "jax_peer.py", {"threads": 2})
    yield peer
    peer.close()


@pytest.mark.parametrize("case", CASES)
def test_pytorch_computes_the_same(case, torch_peer, rng):
    compare(torch_peer, *CASES[case], rng)


@pytest.mark.parametrize("case", ["chain", "cut, unions and option A"])
def test_jax_computes_the_same(case, jax_peer, rng):
    compare(jax_peer, *CASES[case], rng)


def test_every_pass_of_pytorch_takes_time_and_unknown_ones_are_refused(torch_peer):
    network = build("vgg-tiny")
    request = {"spec": network.spec(), "images": [4, 32, 32, 3]}
    torch_peer.ask(do="build", name="x", **request)
    torch_peer.ask(do="build", name="y", keep_prob=0.5, **request)
    for name, what in (("x", "forward"), ("x", "forward_backward"), ("x", "step")):
        assert torch_peer.time(name, what) > 0
    assert torch_peer.time("y", "masked_step") > 0
    with pytest.raises(ValueError, match="torch: ValueError: unknown request time nonsense"):
        torch_peer.time("x", "nonsense")
    with pytest.raises(ValueError, match="torch: KeyError: 'z'"):
        torch_peer.time("z", "forward")


AUTHORS_WAY = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from torch_peer import Contestant, MaskedConv
import json
torch.manual_seed(0)
spec = json.loads(sys.argv[2])
c = Contestant({"spec": spec, "images": [4, 32, 32, 3], "keep_prob": 0.5}, False)
assert [m.out_channels for m in c.masked] == [16, 32, 32]
passes = []
for m in c.masked:
    m.register_forward_hook(lambda m, x, out: passes.append((m, m.mask.clone(), x[0], out)))
weights = [m.weight.detach().clone() for m in c.masked]
s = c.keep_prob.detach().clone()
c.masked_step()
assert len(passes) == 6
assert not torch.equal(passes[0][1], passes[3][1])
for (m, mask, x, out), weight in zip(passes, weights * 2):
    assert set(mask.tolist()) <= {0.0, 1.0}
    expected = torch.nn.functional.conv2d(x, weight, padding=1) * mask[:, None, None]
    assert torch.allclose(out, expected, atol=1e-4), "weight * mask is the masked output"
assert all(not torch.equal(m.weight, w) for m, w in zip(c.masked, weights))
assert not torch.equal(c.keep_prob, s)
assert c.keep_prob.sum() <= c.budget + 1e-3
# A step up for all is taken back by the projection, as they are all alike.
with torch.no_grad():
    c.keep_prob += 0.2
c.masked_step()
assert abs(float(c.keep_prob.detach().sum()) - c.budget) < 1e-2
"""


def test_the_authors_way_masks_filters_twice_and_projects(torch_python):
    import json

    command = [torch_python, "-c", AUTHORS_WAY, str(FOLDER), json.dumps(build("vgg-tiny").spec())]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


ON_A_GPU = """
import json, sys, time, torch
sys.path.insert(0, sys.argv[1])
import torch_peer
from torch_peer import Contestant, answer, set_up
spec = json.loads(sys.argv[2])
request = {"do": "build", "name": "x", "spec": spec, "images": [4, 32, 32, 3], "search": False}

# The device "meta" refuses tensors of the CPU, so all are made where they shall be.
for keep_prob in (None, 0.5) if len(sys.argv) == 3 else (None,):
    c = Contestant({**request, "keep_prob": keep_prob}, True, "meta")
    assert {t.device.type for t in c.net.named().values()} == {"meta"}
    assert c.x.device.type == c.labels.device.type == "meta"
    c.forward_backward()
    if keep_prob is not None:
        assert c.keep_prob.device.type == c.masked[0].mask.device.type == "meta"

# The rest as on a GPU, with CUDA's functions in place of which others take notes.
now, held, notes, late = 0.0, [7, 7], [], 0.0
time.perf_counter = lambda: now
def synchronize():
    global now
    now += 5.0
    notes.append("wait")
def reset():
    held[1] = held[0]
    notes.append("reset")
torch.cuda.synchronize = synchronize
torch.cuda.reset_peak_memory_stats = reset
torch.cuda.memory_allocated = lambda: held[0]
torch.cuda.max_memory_allocated = lambda: held[1]
torch.cuda.empty_cache = lambda: notes.append("empty")
options = {"threads": 1, "channels_last": False, "device": "cpu", "precision": "tf32"}
set_up(options)
assert torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32
set_up({**options, "precision": "float32"})
assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32
built = {}
answer(request, built, options)
c = built["x"]
assert answer({"do": "peak", "name": "x", "what": "step"}, built, options) == {"bytes": None}
c.device = "cuda"
def step():
    global now
    now += 2.0
    notes.append("step")
    held[1] = max(held[1], held[0] + 30)
c.step = step
torch.backends.cudnn.benchmark = True
asked = {"do": "time", "name": "x", "what": "step", "repeats": 4}
assert answer(asked, built, options) == {"seconds": (4 * 2.0 + 5.0) / 4}
assert not torch.backends.cudnn.benchmark
assert notes == ["step", "wait", "step", "step", "step", "step", "wait"], notes
notes.clear()
c.search = True
assert answer({"do": "time", "name": "x", "what": "step"}, built, options) == {"seconds": 7.0}
assert torch.backends.cudnn.benchmark
assert notes == ["wait", "step", "wait"]
notes.clear()
held[:] = [7, 1000]
assert answer({"do": "peak", "name": "x", "what": "step"}, built, options) == {"bytes": 30}
assert notes == ["step", "wait", "reset", "step", "wait"], notes
notes.clear()
answer({"do": "drop", "name": "x"}, built, {**options, "device": "cuda"})
assert notes == ["empty"] and not built
if not torch.cuda.is_available():
    try:
        set_up({**options, "device": "cuda"})
    except SystemExit as stop:
        assert str(stop).endswith("sees no GPU")
    else:
        raise AssertionError("it started without a GPU")
"""


@pytest.mark.parametrize("case", ["chain", "cut, unions and option A"])
def test_what_pytorch_does_on_a_gpu(case, torch_python):
    import json

    name, options = CASES[case]
    spec = json.dumps(network_of(name, options).spec())
    command = [torch_python, "-c", ON_A_GPU, str(FOLDER), spec]
    # What a cut network's masked form is, nobody asks.
    command += [] if case == "chain" else ["without masks"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
