"""WRN-28-10, ResNet-50 and MobileNetV1: counts from the papers' tables, wiring, PyTorch.

The counters below are written from the tables of the papers that the networks come from, in plain
Python: they never look at a network of ours.
"""

import numpy as np
import pytest
from arrays import to_device

from minicst.autograd import no_grad
from minicst.models import ARCHITECTURES, build
from minicst.nn import Add, GlobalPool, Norm, Pool
from minicst.sparse.accounting import count_macs
from minicst.sparse.liveness import propagate


class Counter:
    """Adds up parameters and multiply-adds of layers that are told one by one."""

    def __init__(self):
        self.params = self.macs = 0

    def conv(self, c_in, c_out, kernel, side, norm=True):
        """A convolution without bias to side x side pixels, and its batch norm if it has one."""
        self.params += kernel * kernel * c_in * c_out + 2 * c_out * norm
        self.macs += side * side * kernel * kernel * c_in * c_out

    def linear(self, c_in, c_out):
        self.params += c_in * c_out + c_out
        self.macs += c_in * c_out


def times(channels, width):
    return max(1, round(channels * width))


def wide_resnet(side, c_in, classes, width=1.0, depth=28, k=10):
    """Zagoruyko and Komodakis, Table 1: n = (depth - 4) / 6 blocks a group, B(3, 3)."""
    count, at = Counter(), times(16, width)
    count.conv(c_in, at, 3, side, norm=False)
    for group, base in enumerate((16, 32, 64)):
        out = times(base * k, width)
        for block in range((depth - 4) // 6):
            count.params += 2 * at  # the norm before the first convolution
            if block == 0:
                side = -(-side // (1 if group == 0 else 2))
                count.conv(at, out, 1, side, norm=False)
            count.conv(at, out, 3, side)  # with the norm before the second one
            count.conv(out, out, 3, side, norm=False)
            at = out
    count.params += 2 * at
    count.linear(at, classes)
    return count.params, count.macs


def resnet50(side, c_in, classes, width=1.0):
    """He et al. 2016, Table 1, column "50-layer", the stride in the 3x3."""
    count, at = Counter(), times(64, width)
    side = -(-side // 2)
    count.conv(c_in, at, 7, side)
    side = -(-side // 2)
    for stage, (narrow, wide, blocks) in enumerate(
        [(64, 256, 3), (128, 512, 4), (256, 1024, 6), (512, 2048, 3)]
    ):
        narrow, wide = times(narrow, width), times(wide, width)
        for block in range(blocks):
            count.conv(at, narrow, 1, side)
            if block == 0 and stage > 0:
                side = -(-side // 2)
            count.conv(narrow, narrow, 3, side)
            count.conv(narrow, wide, 1, side)
            if block == 0:
                count.conv(at, wide, 1, side)
            at = wide
    count.linear(at, classes)
    return count.params, count.macs


# Howard et al. 2017, Table 1: filters of each 1x1 convolution, stride of the depthwise one before.
# The last stride is printed as 2, but between images of 7x7 and 7x7: it is 1.
MOBILENET = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *((512, 1),) * 5,
    *((1024, 2), (1024, 1)),
)


def mobilenet(side, c_in, classes, width=1.0):
    count, at = Counter(), times(32, width)
    side = -(-side // 2)
    count.conv(c_in, at, 3, side)
    for filters, stride in MOBILENET:
        side = -(-side // stride)
        count.conv(1, at, 3, side)  # depthwise: each filter reads one channel
        out = times(filters, width)
        count.conv(at, out, 1, side)
        at = out
    count.linear(at, classes)
    return count.params, count.macs


COUNTERS = {"wrn-28-10": wide_resnet, "resnet50": resnet50, "mobilenetv1": mobilenet}


def test_the_counters_give_the_published_numbers():
    assert wide_resnet(32, 3, 10) == (36_479_194, 5_243_328_768)
    assert resnet50(224, 3, 1000) == (25_557_032, 4_089_184_256)
    assert mobilenet(224, 3, 1000) == (4_231_976, 568_740_352)


@pytest.mark.cpu  # sizes alone
@pytest.mark.parametrize(
    ("name", "side", "c_in", "classes", "width"),
    [
        ("wrn-28-10", 32, 3, 100, 0.25),
        ("wrn-28-10", 20, 1, 7, 0.1),
        ("resnet50", 224, 3, 1000, 0.25),
        ("resnet50", 224, 3, 10, 0.5),
        ("resnet50", 64, 1, 7, 0.0625),
        ("resnet50", 97, 3, 7, 0.1),
        ("mobilenetv1", 224, 3, 1000, 1.0),
        ("mobilenetv1", 160, 3, 1000, 0.5),
        ("mobilenetv1", 32, 3, 10, 0.25),
        ("mobilenetv1", 45, 1, 7, 0.1),
    ],
)
def test_counts_against_plain_python(name, side, c_in, classes, width):
    network = build(name, classes, in_channels=c_in, width=width)
    count = count_macs(network, (side, side, c_in))
    assert (count.params, count.macs) == COUNTERS[name](side, c_in, classes, width)
    assert network.n_parameters() == count.params


def test_what_is_known_before_a_network_is_built():
    for name in COUNTERS:
        image, classes = ((32, 32, 3), 10) if name == "wrn-28-10" else ((224, 224, 3), 1000)
        assert ARCHITECTURES[name].image == image
        assert ARCHITECTURES[name].num_classes == classes
        assert ARCHITECTURES[name].any_size == (name != "wrn-28-10")


# Wiring


def wiring(network):
    """{unit: (kernel, stride, padding, c_in, c_out, what it reads)}."""
    return {
        name: (
            *(t.kernel, t.stride, t.padding, t.c_in, t.c_out),
            network.inputs[name][0],
        )
        for name, t in ((n, u.transform) for n, u in network.units().items() if u.is_conv)
    }


def test_wrn_order_strides_and_what_is_read():
    network = build("wrn-28-10", width=0.1)  # stem 2, stages 16, 32, 64
    order = ["stem"]
    for stage in (1, 2, 3):
        for block in (1, 2, 3, 4):
            parts = ["norm", "conv1", "conv2", *(["shortcut"] if block == 1 else []), "add"]
            order += [f"stage{stage}.block{block}.{part}" for part in parts]
    assert list(network.nodes) == [*order, "norm", "mean", "classifier"]
    found, stream, c_in = wiring(network), "stem", 2
    assert found["stem"] == (3, 1, 1, 3, 2, "input")
    for stage, c in ((1, 16), (2, 32), (3, 64)):
        for block in (1, 2, 3, 4):
            at = f"stage{stage}.block{block}"
            stride = 2 if block == 1 and stage > 1 else 1
            assert network.inputs[f"{at}.norm"] == (stream,)
            assert found[f"{at}.conv1"] == (3, stride, 1, c_in, c, f"{at}.norm")
            assert found[f"{at}.conv2"] == (3, 1, 1, c, c, f"{at}.conv1")
            if block == 1:  # from the norm, not from the stream
                assert found[f"{at}.shortcut"] == (1, stride, 0, c_in, c, f"{at}.norm")
                reads = (f"{at}.conv2", f"{at}.shortcut")
            else:  # the stream as it came in
                assert f"{at}.shortcut" not in network.nodes
                reads = (f"{at}.conv2", stream)
            assert network.inputs[f"{at}.add"] == reads
            stream, c_in = f"{at}.add", c
    assert network.inputs["norm"] == (stream,)
    assert network.inputs["mean"] == ("norm",)
    assert network.inputs["classifier"] == ("mean",)


def test_wrn_norms_and_clipping():
    """Nothing clips or normalizes what is written to the stream."""
    network = build("wrn-28-10", width=0.05)
    for node in network.nodes.values():
        if isinstance(node, Add):
            assert not node.relu
            assert node.places is None
    for name, unit in network.units().items():
        inside = name.endswith("conv1")
        assert unit.relu == inside
        assert (unit.norm is not None) == inside
        assert (unit.transform.bias is not None) == (name == "classifier")
    norms = {name for name, node in network.nodes.items() if isinstance(node, Norm)}
    assert norms == {name for name in network.nodes if name.split(".")[-1] == "norm"}
    assert len(norms) == 13
    inner = {name for name in network.nodes if name.endswith("conv1")}
    assert set(network.norms()) == norms | inner


def test_resnet50_order_strides_and_what_is_read():
    network = build("resnet50", width=0.0625)  # 4; 4 and 16, 8 and 32, 16 and 64, 32 and 128
    order = ["stem", "pool"]
    for stage, blocks in ((1, 3), (2, 4), (3, 6), (4, 3)):
        for block in range(1, blocks + 1):
            parts = ["conv1", "conv2", "conv3", *(["shortcut"] if block == 1 else []), "add"]
            order += [f"stage{stage}.block{block}.{part}" for part in parts]
    assert list(network.nodes) == [*order, "mean", "classifier"]
    found, stream, c_in = wiring(network), "pool", 4
    assert found["stem"] == (7, 2, 3, 3, 4, "input")
    pool = network.nodes["pool"]
    assert (pool.how, pool.kernel, pool.stride, pool.padding) == ("max", 3, 2, 1)
    for stage, narrow, blocks in ((1, 4, 3), (2, 8, 4), (3, 16, 6), (4, 32, 3)):
        for block in range(1, blocks + 1):
            at = f"stage{stage}.block{block}"
            stride = 2 if block == 1 and stage > 1 else 1
            assert found[f"{at}.conv1"] == (1, 1, 0, c_in, narrow, stream)
            assert found[f"{at}.conv2"] == (3, stride, 1, narrow, narrow, f"{at}.conv1")
            assert found[f"{at}.conv3"] == (1, 1, 0, narrow, 4 * narrow, f"{at}.conv2")
            reads = (f"{at}.conv3", stream)
            if block == 1:
                assert found[f"{at}.shortcut"] == (1, stride, 0, c_in, 4 * narrow, stream)
                reads = (f"{at}.conv3", f"{at}.shortcut")
            assert network.inputs[f"{at}.add"] == reads
            stream, c_in = f"{at}.add", 4 * narrow
    for name, unit in network.units().items():
        assert (unit.norm is None) == (name == "classifier")
        assert unit.relu == (not name.endswith(("conv3", "shortcut", "classifier")))
    assert all(node.relu for node in network.nodes.values() if isinstance(node, Add))
    assert not any(isinstance(node, Norm) for node in network.nodes.values())


def test_mobilenet_order_strides_and_groups():
    network = build("mobilenetv1", width=0.25)
    found, before, group = wiring(network), "stem", "stem"
    assert found["stem"] == (3, 2, 1, 3, 8, "input")
    assert network.nodes["stem"].group == "stem"
    c_in = 8
    for block, (filters, stride) in enumerate(MOBILENET, 1):
        depthwise, pointwise = f"block{block}.depthwise", f"block{block}.pointwise"
        assert found[depthwise] == (3, stride, 1, c_in, c_in, before)
        assert network.nodes[depthwise].transform.groups == c_in
        assert network.nodes[depthwise].is_depthwise
        assert network.nodes[depthwise].group == group  # its producer's
        assert found[pointwise] == (1, 1, 0, c_in, filters // 4, depthwise)
        assert network.nodes[pointwise].transform.groups == 1
        before, group, c_in = pointwise, f"block{block}", filters // 4
        assert network.nodes[pointwise].group == group
    assert list(network.groups) == ["stem", *(f"block{block}" for block in range(1, 14))]
    for name, unit in network.units().items():
        assert unit.relu == (unit.norm is not None) == (name != "classifier")
    for name in ("stem", "block3"):  # an absent channel's depthwise filter is absent too
        mask = np.ones(network.n_maskable, bool)
        mask[network.groups[name].start] = False
        live = propagate(network, mask)
        reader = next(n for n, reads in network.inputs.items() if reads[0].startswith(name))
        assert not live[reader][0]
        assert live[reader][1:].all()


@pytest.mark.parametrize("name", ["wrn-28-10", "resnet50"])
def test_groups_tied_and_independent(name):
    tied = build(name, width=0.05, residual="tied")
    independent = build(name, width=0.05, residual="independent")
    assert list(tied.nodes) == list(independent.nodes)
    assert tied.inputs == independent.inputs
    other = independent.host_state()
    for key, array in tied.host_state().items():
        np.testing.assert_array_equal(array, other[key], key)
    last = "conv2" if name == "wrn-28-10" else "conv3"
    stages = 3 if name == "wrn-28-10" else 4
    for stage in range(1, stages + 1):
        writers = {n for n, node in tied.nodes.items() if node.group == f"stage{stage}"}
        wanted = {
            n
            for n in tied.units()
            if n.startswith(f"stage{stage}") and n.endswith((last, "shortcut"))
        }
        assert writers == wanted
    own = [node.group for node in independent.nodes.values() if node.group]
    assert len(set(own)) == len(own) == len(independent.units()) - 1
    for network in (tied, independent):
        assert network.nodes["classifier"].group is None
        assert network.nodes["stem"].group == "stem"
        for n, unit in network.units().items():
            inside = n.endswith("conv1") or (n.endswith("conv2") and last == "conv3")
            if inside:
                assert unit.group == n
        for node in network.nodes.values():
            if isinstance(node, Norm | Add | Pool | GlobalPool):
                assert node.group is None


SHAPES = {
    ("wrn-28-10", 32): {"stem": 32, "stage1": 32, "stage2": 16, "stage3": 8},
    ("resnet50", 224): {"stem": 112, "pool": 56, "stage1": 56, "stage2": 28, "stage3": 14},
    ("resnet50", 32): {"stem": 16, "pool": 8, "stage1": 8, "stage2": 4, "stage3": 2, "stage4": 1},
    ("mobilenetv1", 224): {"stem": 112, "block1": 112, "block2": 56, "block4": 28, "block6": 14},
    ("mobilenetv1", 32): {"stem": 16, "block1": 16, "block2": 8, "block4": 4, "block6": 2},
}


@pytest.mark.parametrize(("name", "side"), SHAPES)
def test_shapes(name, side):
    network = build(name, 9, width=0.05)
    shapes = network.shapes((side, side, 3))
    last = {}
    for node, shape in shapes.items():
        last[node.split(".")[0]] = shape
    for part, wanted in SHAPES[name, side].items():
        assert last[part][:2] == (wanted, wanted), part
    final = {("resnet50", 224): "stage4", ("mobilenetv1", 224): "block13"}.get((name, side))
    if final:
        assert last[final][:2] == (7, 7)
    assert shapes["classifier"] == (9,)


# PyTorch, where it is installed


def torch_twin(torch, network, name):
    """Return a forward pass written with torch.nn.functional, reading our arrays."""
    nn = torch.nn.functional
    state = {key: torch.from_numpy(array.copy()) for key, array in network.host_state().items()}

    def norm(x, at, training):
        keys = ("running_mean", "running_var", "gamma", "beta")
        mean, var, gamma, beta = (state[f"{at}.norm.{key}"] for key in keys)
        return nn.batch_norm(x, mean, var, gamma, beta, training, 0.1, 1e-5)

    def conv(x, at, stride=1, groups=1):
        weight = state[f"{at}.transform.weight"].permute(0, 3, 1, 2)
        return nn.conv2d(x, weight, None, stride, weight.shape[2] // 2, 1, groups)

    def head(x):
        weight, bias = (state[f"classifier.transform.{key}"] for key in ("weight", "bias"))
        return nn.linear(x.mean(dim=(2, 3)), weight, bias)

    def wrn(x, training):
        x = conv(x, "stem")
        for stage in (1, 2, 3):
            for block in (1, 2, 3, 4):
                at, stride = f"stage{stage}.block{block}", 2 if stage > 1 and block == 1 else 1
                y = nn.relu(norm(x, f"{at}.norm", training))
                z = conv(y, f"{at}.conv1", stride)
                z = conv(nn.relu(norm(z, f"{at}.conv1", training)), f"{at}.conv2")
                x = z + (conv(y, f"{at}.shortcut", stride) if block == 1 else x)
        return head(nn.relu(norm(x, "norm", training)))

    def bottlenecks(x, training):
        x = nn.relu(norm(conv(x, "stem", 2), "stem", training))
        x = nn.max_pool2d(x, 3, 2, 1)
        for stage, blocks in ((1, 3), (2, 4), (3, 6), (4, 3)):
            for block in range(1, blocks + 1):
                at, stride = f"stage{stage}.block{block}", 2 if stage > 1 and block == 1 else 1
                z = nn.relu(norm(conv(x, f"{at}.conv1"), f"{at}.conv1", training))
                z = nn.relu(norm(conv(z, f"{at}.conv2", stride), f"{at}.conv2", training))
                z = norm(conv(z, f"{at}.conv3"), f"{at}.conv3", training)
                if block == 1:
                    x = norm(conv(x, f"{at}.shortcut", stride), f"{at}.shortcut", training)
                x = nn.relu(z + x)
        return head(x)

    def separable(x, training):
        x = nn.relu(norm(conv(x, "stem", 2), "stem", training))
        for block, (_, stride) in enumerate(MOBILENET, 1):
            at = f"block{block}.depthwise"
            x = nn.relu(norm(conv(x, at, stride, x.shape[1]), at, training))
            at = f"block{block}.pointwise"
            x = nn.relu(norm(conv(x, at), at, training))
        return head(x)

    return {"wrn-28-10": wrn, "resnet50": bottlenecks, "mobilenetv1": separable}[name]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    ("name", "width", "side"), [("wrn-28-10", 0.05, 16), ("resnet50", 0.1, 64),
                                ("mobilenetv1", 0.25, 64)]
)  # fmt: skip
def test_forward_against_pytorch(name, width, side, training):
    torch = pytest.importorskip("torch")
    network = build(name, 6, width=width).astype(np.float64)
    rng = np.random.default_rng(0)
    for norm in network.norms().values():
        norm.gamma.data[...] = to_device(rng.uniform(0.5, 1.5, norm.gamma.shape))
        norm.beta.data[...] = to_device(rng.normal(0.2, 0.5, norm.beta.shape))
        norm.running_mean[...] = to_device(rng.normal(0, 0.5, norm.gamma.shape))
        norm.running_var[...] = to_device(rng.uniform(0.5, 1.5, norm.gamma.shape))
    x = rng.normal(size=(3, side, side, 3))
    twin = torch_twin(torch, network, name)
    with no_grad(), torch.no_grad():
        ours = network(x, training=training, track=False).numpy()
        theirs = twin(torch.from_numpy(x.transpose(0, 3, 1, 2)), training).numpy()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9 * np.abs(theirs).max())
    assert np.ptp(theirs) > 1e-3
