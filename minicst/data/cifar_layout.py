"""CIFAR-10 and CIFAR-100 as published: names, sizes and checksums of their files."""

from dataclasses import dataclass

SIDE, CHANNELS = 32, 3
PIXELS = CHANNELS * SIDE * SIDE  # values of an image


@dataclass(frozen=True)
class Version:
    """The files of one published version, binary or python.

    Attributes:
        folder: Folder that the archive unpacks to.
        archive: File name of the archive.
        checksum: The archive's, `"algorithm:hex digits"`.
        train: Training files, in order, and how many images each holds.
        test: The test file and how many images it holds.
        names: File of the class names.
        sums: Checksums of the unpacked files.
    """

    folder: str
    archive: str
    checksum: str
    train: dict[str, int]
    test: dict[str, int]
    names: str
    sums: dict[str, str]

    @property
    def files(self) -> tuple[str, ...]:
        """All file names: training, test, names."""
        return (*self.train, *self.test, self.names)


@dataclass(frozen=True)
class Layout:
    """What there is to know about one of the two data sets.

    Attributes:
        title: Its name in prose.
        classes: Number of classes.
        label_bytes: Bytes before the pixels of a binary record; the last of them is the label.
        label_key: Key of the labels in a python batch.
        names_key: Key of the class names in the python file of names.
        binary: The binary version.
        python: The python version.
    """

    title: str
    classes: int
    label_bytes: int
    label_key: str
    names_key: str
    binary: Version
    python: Version

    @property
    def record_bytes(self) -> int:
        """Bytes of one image with its label in the binary version."""
        return self.label_bytes + PIXELS


# Archives' md5: the publisher's page. The python files' md5: torchvision's list. The binary
# files': no list of the publisher's is known, these are from loaders that check them after
# unpacking his archive (MXNet's sha1 for CIFAR-100).
LAYOUTS = {
    "cifar10": Layout(
        title="CIFAR-10",
        classes=10,
        label_bytes=1,
        label_key="labels",
        names_key="label_names",
        binary=Version(
            folder="cifar-10-batches-bin",
            archive="cifar-10-binary.tar.gz",
            checksum="md5:c32a1d4ab5d03f1284b67883e8d87530",
            train={f"data_batch_{number}.bin": 10_000 for number in range(1, 6)},
            test={"test_batch.bin": 10_000},
            names="batches.meta.txt",
            sums={
                "data_batch_1.bin": "md5:5dd7e06a14cb22eb9f671a540d1b7c25",
                "data_batch_2.bin": "md5:5ea93a67294ea407fff1d09f752e9692",
                "data_batch_3.bin": "md5:942cd6a4bcdd0dd3c604fbe906cb4421",
                "data_batch_4.bin": "md5:ae636b3ba5c66a11e91e8cb52e771fcb",
                "data_batch_5.bin": "md5:53f37980c15c3d472c316c40844f3f0d",
                "test_batch.bin": "md5:803d5f7f4d78ea53de84dbe85f74fb6d",
            },
        ),
        python=Version(
            folder="cifar-10-batches-py",
            archive="cifar-10-python.tar.gz",
            checksum="md5:c58f30108f718f92721af3b95e74349a",
            train={f"data_batch_{number}": 10_000 for number in range(1, 6)},
            test={"test_batch": 10_000},
            names="batches.meta",
            sums={
                "data_batch_1": "md5:c99cafc152244af753f735de768cd75f",
                "data_batch_2": "md5:d4bba439e000b95fd0a9bffe97cbabec",
                "data_batch_3": "md5:54ebc095f3ab1f0389bbae665268c751",
                "data_batch_4": "md5:634d18415352ddfa80567beed471001a",
                "data_batch_5": "md5:482c414d41f54cd18b22e5b47cb7c3cb",
                "test_batch": "md5:40351d587109b95175f43aff81a1287e",
                "batches.meta": "md5:5ff9c542aee3614f3951f8cda6e48888",
            },
        ),
    ),
    "cifar100": Layout(
        title="CIFAR-100",
        classes=100,
        label_bytes=2,
        label_key="fine_labels",
        names_key="fine_label_names",
        binary=Version(
            folder="cifar-100-binary",
            archive="cifar-100-binary.tar.gz",
            checksum="md5:03b5dce01913d631647c71ecec9e9cb8",
            train={"train.bin": 50_000},
            test={"test.bin": 10_000},
            names="fine_label_names.txt",
            sums={
                "train.bin": "sha1:e207cd2e05b73b1393c74c7f5e7bea451d63e08e",
                "test.bin": "sha1:8fb6623e830365ff53cf14adec797474f5478006",
            },
        ),
        python=Version(
            folder="cifar-100-python",
            archive="cifar-100-python.tar.gz",
            checksum="md5:eb9058c3a382ffc7106e4002c42a8d85",
            train={"train": 50_000},
            test={"test": 10_000},
            names="meta",
            sums={
                "train": "md5:16019d7e3df5f24257cddd939b257f8d",
                "test": "md5:f0ef6b0ae62326f3e7ffdfab6717acfc",
                "meta": "md5:7973b15100ade9c7d40fb424638fde48",
            },
        ),
    ),
}
