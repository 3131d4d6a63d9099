import subprocess
import sys

import numpy as np
import pytest

from minicst.randomness import rng_for


def _draw(*key):
    return rng_for(*key).integers(0, 2**63, size=4).tolist()


def test_same_key_gives_the_same_stream():
    assert _draw(3, "order", 7) == _draw(3, "order", 7)
    assert _draw(np.int64(3), "order", np.int32(7)) == _draw(3, "order", 7)


def test_different_keys_give_different_streams():
    keys = [
        (0,),
        (1,),
        (2**32,),
        (0, 0),
        (0, 0, 0),
        (0, 1),
        (0, 2**32),
        (1, 0),
        (0, "order"),
        (0, "augment"),
        (0, "order", 0),
        (0, "order", 1),
        (0, "1"),
        (0, ""),
        (0, "", ""),
        (0, 1, 2),
        (0, 2, 1),
        (0, 1 + 2 * 2**32),
    ]
    streams = {tuple(_draw(*key)) for key in keys}
    assert len(streams) == len(keys)


def test_streams_of_neighboring_keys_are_uncorrelated():
    draws = np.stack([rng_for(0, "augment", i).standard_normal(4000) for i in range(8)])
    correlation = np.corrcoef(draws) - np.eye(8)
    assert np.abs(correlation).max() < 5 / np.sqrt(4000)


def test_stream_is_philox_and_pinned():
    rng = rng_for(0, "order", 0)
    assert isinstance(rng.bit_generator, np.random.Philox)
    assert int(rng.bit_generator.random_raw()) == 2653013169722391139


def test_stream_is_the_same_in_another_process():
    code = "from minicst.randomness import rng_for; print(rng_for(5, 'a').integers(0, 2**63))"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert int(output) == rng_for(5, "a").integers(0, 2**63)


@pytest.mark.parametrize("key", [(-1,), (2**64,), (0, -1), (0, "a", 2**64)])
def test_out_of_range_is_an_error(key):
    with pytest.raises(ValueError, match=r"must lie in 0\.\.2\*\*64-1"):
        rng_for(*key)


@pytest.mark.parametrize("key", [(1.5,), (0, 1.0), (0, None), ("a",)])
def test_wrong_type_is_an_error(key):
    with pytest.raises(TypeError):
        rng_for(*key)
