"""Figure 4 of the paper: E L^2(m), V(s) and Vmax(s) over the epochs of a training run.

Draw from the JSON files:       python figures/fig4_properties.py
Small default network:          python figures/fig4_properties.py --quick
ResNet-32 (doubled), CIFAR-10:  python figures/fig4_properties.py --run --data-dir DIR
"""

from over_training import Plan, script

from minicst.settings import TrainSettings
from minicst.variance.plots import plot_properties
from minicst.variance.point import Sizes

WHOLE = Plan(
    TrainSettings(
        network="resnet32",
        width=2.0,
        residual="tied",
        data="cifar10",
        limit=8000,
        # The paper's 12e-3 is for some 59,000 steps. Adam's noise moves keep_prob by
        # lr sqrt(steps), so the same way in 3,000 steps takes 12e-3 sqrt(59,000 / 3,000).
        keep_prob_lr=0.05,
        epochs=24,
        dense_probes=0,
    ),
    epochs=(0, 1, 2, 4, 8, 12, 16, 20, 24),
    sizes=Sizes(draws=128, pairs=0, flip_entries=6, flip_draws=12),
)
QUICK = Plan(
    TrainSettings(epochs=16, dense_probes=0),
    epochs=(0, 1, 2, 4, 8, 12, 16),
    sizes=Sizes(draws=160, pairs=0, flip_entries=8, flip_draws=16),
)

if __name__ == "__main__":
    script(__doc__, "fig4_properties", WHOLE, QUICK, plot_properties)
