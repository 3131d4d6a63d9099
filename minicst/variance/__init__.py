"""Measured variance: estimators, V and Vmax of a real network from sampled masks, with errors."""

from minicst._lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "minicst.variance.command": ("Measurer", "VarianceSettings", "run_variance"),
        "minicst.variance.point": ("Sizes", "measure"),
        "minicst.variance.monte_carlo": (
            "draw_pairs",
            "draw_pool",
            "gradient_moments",
            "loss_moments",
        ),
        "minicst.variance.vmax": ("conditional_v", "forced_flips", "largest_v"),
    },
)
