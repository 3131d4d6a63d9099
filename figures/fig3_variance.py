"""Figure 3 (right) of the paper: variance of PGE and VR-PGE, layer by layer, and all estimators.

Draw from the JSON files:     python figures/fig3_variance.py
Small default network:        python figures/fig3_variance.py --quick
VGG-19, CIFAR-10:             python figures/fig3_variance.py --run --data-dir DIR
"""

from over_training import Plan, script

from minicst.settings import TrainSettings
from minicst.variance.plots import plot_variance
from minicst.variance.point import Sizes

WHOLE = Plan(
    TrainSettings(
        network="vgg19",
        data="cifar10",
        limit=5000,
        lr=0.02,  # at 0.1 it had not left chance level after eight epochs of 6,000 images
        # As in fig4_properties.py: the paper's 12e-3 times sqrt(59,000 / 1,250 steps).
        keep_prob_lr=0.08,
        epochs=16,
        dense_probes=0,
    ),
    epochs=(0, 1, 2, 4, 8, 16),
    sizes=Sizes(draws=128, pairs=64),
)
QUICK = Plan(
    TrainSettings(epochs=16, dense_probes=0),
    epochs=(0, 1, 2, 4, 16),
    sizes=Sizes(draws=200, pairs=200, flip_entries=4),
)

if __name__ == "__main__":
    script(__doc__, "fig3_variance", WHOLE, QUICK, plot_variance)
