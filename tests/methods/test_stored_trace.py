"""A stored run of 20 steps, so that a change of results can't slip in unseen.

To store it anew, after a change that is meant to affect results, run this file as a script.
"""

import json
from pathlib import Path

import pytest

from minicst.job import prepare
from minicst.settings import TrainSettings

STORED = Path(__file__).with_name("stored_trace.json")


def trace_of_20_steps():
    job = prepare(
        TrainSettings(
            network="vgg-tiny",
            data="digits",
            width=0.5,
            epochs=1,
            seed=0,
            lr=0.05,
            keep_prob_lr=0.02,
            keep_rate=0.5,
            batch_size=64,
            dense_probes=0,
            fine_tune=0.0,
        )
    )
    rows = []
    for batch, _ in zip(job.loader.epoch(0), range(20), strict=False):
        trace = job.method.train_step(batch)
        rows.append(
            {
                "loss_a": trace.loss_a,
                "loss_b": trace.loss_b,
                "keep_prob_squares": float((trace.keep_prob**2).sum()),
                "live": int(trace.mask_used_a.sum()),
                "executed_macs": trace.executed_macs,
            }
        )
    return rows


@pytest.mark.cpu  # stored there; its job is of --device cpu
def test_twenty_steps_are_as_stored():
    # Another CPU's BLAS rounds differently; a change of the method moves far more than this.
    for now, stored in zip(trace_of_20_steps(), json.loads(STORED.read_text()), strict=True):
        assert now == pytest.approx(stored, rel=1e-5)


if __name__ == "__main__":
    STORED.write_text(json.dumps(trace_of_20_steps(), indent=1) + "\n")
