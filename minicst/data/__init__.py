"""Data sets, and the loader that cuts them into batches."""

from minicst.data.dataset import Dataset
from minicst.data.datasets import DATASETS, load_dataset
from minicst.data.loader import Batch, Loader, test_loader, train_loader

__all__ = [
    "DATASETS",
    "Batch",
    "Dataset",
    "Loader",
    "load_dataset",
    "test_loader",
    "train_loader",
]
