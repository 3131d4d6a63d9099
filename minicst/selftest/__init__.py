"""`minicst selftest`: the essential equalities, computed on the user's own device."""

from minicst._lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "minicst.selftest.command": ("SelftestSettings", "print_selftest", "run_selftest"),
        "minicst.selftest.check": ("Result", "Tolerance", "largest_error"),
        "minicst.selftest.operations": ("OPERATIONS", "check_operations"),
        "minicst.selftest.networks": ("check_networks",),
        "minicst.selftest.runs": ("check_training",),
        "minicst.selftest.plain": ("PlainBackend",),
    },
)
