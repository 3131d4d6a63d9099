"""The tape: Tensor, Function and the operations."""

from minicst.autograd.gradcheck import gradcheck
from minicst.autograd.tensor import Function, Parameter, Tensor, no_grad, saved_bytes

__all__ = ["Function", "Parameter", "Tensor", "gradcheck", "no_grad", "saved_bytes"]
