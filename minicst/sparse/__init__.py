"""Masks, estimators, projection (arrays only), and cut, paste and accounting of networks."""

from minicst._lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "minicst.sparse.accounting": (
            "LayerCount",
            "MacCount",
            "chain_rule_macs",
            "chain_rule_saving",
            "count_macs",
            "grow_efficient_saving",
            "train_cost_saving",
        ),
        "minicst.sparse.bias": (
            "MeanTerms",
            "RepairMeans",
            "antithetic_bias",
            "mean_terms",
            "repair_means",
        ),
        "minicst.sparse.estimators": (
            "coin_flip",
            "pge",
            "preconditioner",
            "vr_pge",
            "vr_pge_symmetric",
        ),
        "minicst.sparse.expected": (
            "expected_counts",
            "expected_macs",
            "keep_rate_for",
            "linear_macs_cost",
        ),
        "minicst.sparse.liveness": ("minimum_live", "propagate", "repair"),
        "minicst.sparse.masked_form": ("MaskedNetwork", "masked"),
        "minicst.sparse.masks": (
            "enumerate_masks",
            "log_probability",
            "sample_mask",
            "score_function",
            "top_k_mask",
        ),
        "minicst.sparse.memory": ("StepMemory", "forward_memory", "step_memory"),
        "minicst.sparse.moments": ("Moments", "enumerated_moments", "estimator_moments"),
        "minicst.sparse.projection": ("project_capped_simplex",),
        "minicst.sparse.proof": (
            "ProofStep",
            "SymmetricVariance",
            "bound_factor",
            "proof_steps",
            "symmetric_variance",
            "variance_bound",
        ),
        "minicst.sparse.subnetwork": ("Subnetwork", "cut"),
        "minicst.sparse.theory": (
            "conditional_means",
            "conditional_squared_difference",
            "expected_loss",
            "expected_loss_gradient",
            "loss_table",
            "mask_probabilities",
            "max_squared_difference",
            "squared_difference",
        ),
    },
)
