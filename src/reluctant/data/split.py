"""A test split for data that is published without one."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Int64
from numpy.typing import NDArray

from reluctant.errors import DataError


def held_out_fifth(name: str, labels: Int64[NDArray[Any], "N"], classes: tuple[str, ...]) -> Bool[NDArray[Any], "N"]:
    """Return which fifth of each class is the test split: the same one for the same labels, for ever.

    It is no function of anybody's seed, because a test split that changes is none. NumPy keeps the stream of
    ``RandomState`` frozen (its NEP 19), unlike those of newer generators.

    Raises:
        DataError: a class has fewer than the 3 images that a train, a val and a test split need.
    """
    generator = np.random.RandomState(0)
    chosen = np.zeros(len(labels), dtype=bool)
    for label, title in enumerate(classes):
        members = np.flatnonzero(labels == label)
        if len(members) < 3:
            raise DataError(f"{name}: class {title!r} has {len(members)} images; train, val and test need at least 3")
        chosen[generator.permutation(members)[: max(1, round(len(members) / 5))]] = True
    return chosen
