"""Modules, layers and networks."""

from minicst.nn.layers import BatchNorm, Conv2d, Linear, SparseLinear, he_normal
from minicst.nn.module import Module
from minicst.nn.network import INPUT, Network, clone
from minicst.nn.node import Context, Node
from minicst.nn.nodes import Add, Flatten, GlobalPool, Norm, Pool, Shortcut
from minicst.nn.noise import ChannelNoise
from minicst.nn.unit import Unit

__all__ = [
    "INPUT",
    "Add",
    "BatchNorm",
    "ChannelNoise",
    "Context",
    "Conv2d",
    "Flatten",
    "GlobalPool",
    "Linear",
    "Module",
    "Network",
    "Node",
    "Norm",
    "Pool",
    "Shortcut",
    "SparseLinear",
    "Unit",
    "clone",
    "he_normal",
]
