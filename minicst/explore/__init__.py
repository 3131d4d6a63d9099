"""A 2-channel problem to play with: gradient, estimates, their variance, the projection."""

from minicst._lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "minicst.explore.command": ("ExploreSettings", "run_explore"),
        "minicst.explore.problem": ("Ellipse", "Frame", "Spread", "State", "frame"),
    },
)
