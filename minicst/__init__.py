"""minicst: completely sparse training of channel-sparse networks, from scratch on NumPy."""

from minicst._lazy import lazy_exports

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "minicst.autograd": ("Function", "Parameter", "Tensor", "gradcheck", "no_grad"),
        "minicst.backend": ("get_backend",),
        "minicst.checkpoint": ("load", "save"),
        "minicst.data": (),
        "minicst.functional": (),
        "minicst.methods": (),
        "minicst.models": (),
        "minicst.nn": (),
        "minicst.optim": (),
        "minicst.sparse": (),
    },
)
