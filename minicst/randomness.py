"""Random streams that are named by a key instead of being passed around.

A stream depends on nothing but its key, so work that stops and resumes draws the same numbers
as work that ran through, and one consumer drawing more numbers never shifts another's.
"""

import operator
import zlib

import numpy as np

_WORD = 0xFFFFFFFF


def _words(value: int, what: str) -> tuple[int, int]:
    number = operator.index(value)
    if not 0 <= number < 2**64:
        raise ValueError(f"{what} must lie in 0..2**64-1, got {number}")
    return number & _WORD, number >> 32


def rng_for(seed: int, *key: int | str) -> np.random.Generator:
    """Return a fresh generator for the stream named by a seed and a key.

    The same arguments always give the same stream, on every machine and in every process;
    different arguments give statistically independent streams. An integer and a string never
    name the same stream, nor do `(seed,)` and `(seed, 0)`.

    Args:
        seed: Run seed, 0..2**64-1.
        *key: Parts of the stream's name, for example `"order", epoch`. Integers lie in
            0..2**64-1; strings are hashed with CRC-32, which, unlike `hash`, is the same in
            every process.

    Returns:
        A `numpy.random.Generator` over a Philox bit generator, at the start of its stream.

    Raises:
        ValueError: The seed or an integer of the key lies outside 0..2**64-1.
        TypeError: The seed is not an integer, or a part of the key is neither integer nor string.
    """
    # SeedSequence concatenates variable-length integers and pads with zeros, so that [1], [1, 0]
    # and [1, 0, 0] are one stream to it. Fixed-width, tagged and counted words keep keys apart.
    entropy = [len(key), *_words(seed, "seed")]
    for part in key:
        if isinstance(part, str):
            data = part.encode()
            entropy += [2, zlib.crc32(data), len(data)]
        else:
            entropy += [1, *_words(part, "an integer of the key")]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy=entropy)))
