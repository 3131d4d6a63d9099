"""`minicst bench`: dense and sparse training timed beside peers and beside the machine's peak."""

from minicst._lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "minicst.bench.settings": ("BenchSettings", "Workload", "workloads"),
        "minicst.bench.run": ("run_bench",),
        "minicst.bench.report": ("print_bench",),
        "minicst.bench.layers": ("hot_operations", "operation_times"),
        "minicst.bench.roofline": ("Roofline",),
    },
)
