"""Training methods of the one loop."""

from minicst._lazy import lazy_exports

METHODS = ("completely-sparse", "ste", "gumbel", "dense", "fixed-mask", "narrow")

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "minicst.methods.base": (
            "Hyper",
            "Method",
            "Plan",
            "TrainingError",
            "evaluate",
            "recalibrate",
        ),
        "minicst.methods.chain_rule": (
            "ChainRule",
            "GatedNetwork",
            "GumbelSoftmax",
            "StraightThrough",
            "gated",
            "relaxed_mask",
        ),
        "minicst.methods.completely_sparse": ("CompletelySparse", "checked_budget"),
        "minicst.methods.dense": ("Dense", "FixedMask", "Narrow"),
        "minicst.methods.trace": ("StepTrace",),
    },
)
__all__.append("METHODS")
