"""What tells a captured graph that a network is no longer the one it went through."""

import enum

import numpy as np
import pytest
import torch
from torch import nn

from semcom_fast.receivers.graph_identity import identity, precision


class Mode(enum.Enum):
    A = 1
    B = 2


class Net:
    """A network by hand, with everything that can change under a graph."""

    def __init__(self):
        self.w = torch.arange(9.0).reshape(3, 3).to(torch.complex64)
        self.table = np.arange(4.0)
        self.names, self.named, self.part = {"a", "b"}, {"a": 1}, slice(0, 3)
        self.depth, self.mode = 2, Mode.A
        relu, tanh = nn.ReLU(), nn.Tanh()
        self.relu, self.tanh = relu, tanh
        self.layers = [relu, relu, tanh]

    def __call__(self, x):
        return x


def _view(make):
    def change(net):
        net.w = make(net.w)

    return change


CHANGES = {
    "transposed": _view(lambda w: w.mT),
    "conjugated": _view(lambda w: w.conj()),
    "negated": _view(torch._neg_view),
    "moved": _view(torch.clone),
    "another part": _view(lambda w: w[:2]),
    "another dtype": _view(lambda w: w.real),
    "wants a gradient": _view(lambda w: w.requires_grad_()),
    "array changed in place": lambda net: net.table.__setitem__(0, 7.0),
    "set": lambda net: net.names.add("c"),
    "number": lambda net: setattr(net, "depth", 3),
    "enum": lambda net: setattr(net, "mode", Mode.B),
    "order of objects met before": lambda net: setattr(net, "layers", [net.relu, net.tanh, net.relu]),
    "new attribute": lambda net: setattr(net, "extra", None),
    "another name": lambda net: setattr(net, "named", {"b": 1}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_another_network(name):
    net = Net()
    before = identity([net])
    assert before is not None and before[0] == identity([net])[0]
    hash(before[0])  # a key of a dictionary
    CHANGES[name](net)
    after = identity([net])
    assert after is not None and after[0] != before[0]


class Slots:
    __slots__ = ("gain",)

    def __init__(self):
        self.gain = 1.0


HIDDEN = {
    "a closure inside": lambda net: setattr(net, "f", lambda x: net(x)),
    "slots": lambda net: setattr(net, "part", Slots()),
    "a large array": lambda net: setattr(net, "table", np.zeros(10**5)),
    "an array of objects": lambda net: setattr(net, "table", np.array([net.relu])),
    "a sparse matrix": lambda net: setattr(net, "w", torch.eye(3).to_sparse()),
    "a set of objects": lambda net: setattr(net, "names", {net.relu}),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_what_cannot_be_told(name):
    net = Net()
    HIDDEN[name](net)
    assert identity([net]) is None and identity([lambda x: x]) is None


def test_weights_that_change_in_place_are_the_same_network():
    """A graph reads them where they lie."""
    net = nn.Sequential(nn.Linear(3, 3), nn.SiLU(), nn.BatchNorm1d(3)).eval()
    before = identity([net])
    with torch.no_grad():
        net[0].weight.mul_(2)
    assert before is not None and identity([net])[0] == before[0]
    held = {t.data_ptr() for t in before[1] if isinstance(t, torch.Tensor)}
    assert held >= {p.data_ptr() for p in net.parameters()}


@pytest.mark.parametrize("make", [lambda: nn.LSTM(2, 3), lambda: nn.GRU(2, 3), lambda: nn.MultiheadAttention(4, 2)])
def test_modules_of_torch_can_be_told(make):
    net = make()
    known = identity([net])
    assert known is not None and known[0] == identity([net])[0]


def test_a_swapped_module_is_another_network():
    """Also where the new one gets the address of the old one: what a key was made of is held."""
    net = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    before = identity([net])
    for make in (nn.Sigmoid, nn.Tanh):
        net[1] = nn.Identity()
        net[1] = make()
        assert identity([net])[0] != before[0]


@pytest.mark.parametrize("value", ["ieee", "tf32"])
def test_precision_by_either_api(value):
    """Torch's getters of the older API raise once the newer one was used."""
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    kept = matmul.fp32_precision, conv.fp32_precision
    try:
        matmul.fp32_precision = conv.fp32_precision = value
        assert precision() == (value, value)
    finally:
        matmul.fp32_precision, conv.fp32_precision = kept
