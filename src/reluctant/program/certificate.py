"""Whether the numbers of a program fit into the fixed point of a secure run: proven, or measured on some images."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from reluctant.errors import UsageError
from reluctant.program.ops import Program
from reluctant.program.ranges import LARGEST_BITS, Reach, bounds, seen

#: Images that are measured together; float64 and all their values take memory.
_TOGETHER = 16


@dataclass(frozen=True)
class Certificate:
    """How far each operation of a program goes into the ring of an engine, and for which images that was found.

    Args:
        input_range: least and largest value that an image may hold.
        fraction_bits: of the fixed-point numbers.
        reaches: of the images and of every operation, in order.
        images: that were measured; 0 if the reaches are bounds for every image in ``input_range``.
    """

    input_range: tuple[float, float]
    fraction_bits: int
    reaches: tuple[Reach, ...]
    images: int = 0

    @property
    def worst(self) -> Reach:
        """The operation with the least margin."""
        return max(self.reaches, key=lambda reach: reach.bits)

    @property
    def margin(self) -> float:
        """Bits between the largest number and the first that could be wrong; below zero it does not fit."""
        return self.worst.margin

    @property
    def certified(self) -> bool:
        """Whether no image in ``input_range`` can overflow."""
        return self.images == 0 and self.margin >= 0

    def check(self) -> None:
        """Raise if a number that was measured does not fit.

        Raises:
            UsageError: the operation is named. Bounds that are too wide to prove anything raise nothing.
        """
        if self.images and self.margin < 0:
            raise UsageError(
                f"these images overflow the fixed point: {_named(self.worst)} reaches 2^{self.worst.bits:.1f} in the "
                f"ring with {self.fraction_bits} fraction bits, which is right below 2^{LARGEST_BITS}; normalise the "
                "images, or take fewer fraction bits"
            )

    def __str__(self) -> str:
        low, high = self.input_range
        box = f"inputs in [{low:.2f}, {high:.2f}]"
        if self.certified:
            return f"certified for {box}, {self.margin:.1f} bits of margin"
        if self.images:
            count = f"{self.images} image{'s' if self.images > 1 else ''}"
            return f"not certified: measured margin of {self.margin:.1f} bits over {count}"
        return f"not certified for {box}: the bounds of {_named(self.worst)} are {-self.margin:.1f} bits too wide"


def certify(
    program: Program,
    input_range: tuple[float, float],
    *,
    fraction_bits: int,
    images: NDArray[np.float32] | None = None,
) -> Certificate:
    """Return the proof that ``program`` fits its fixed point, or what was measured on ``images`` where there is none.

    Bounds are intervals, which widen from layer to layer. Where they prove nothing it does not follow that anything
    overflows, so then ``images`` (float32 ``[N, C, H, W]``) are computed in float64; without any, the certificate says
    how much too wide the bounds are.

    Args:
        input_range: least and largest value of an image; the proof holds for all images between.

    Raises:
        UsageError: the program has no arrays, or the range is empty.
    """
    low, high = input_range
    if not -np.inf < low <= high < np.inf:
        raise UsageError(f"input range is {low} to {high}, expected two finite numbers, the smaller one first")
    reaches = tuple(reach for _, _, reach in bounds(program, input_range, fraction_bits))
    proven = Certificate(input_range, fraction_bits, reaches)
    if proven.certified or images is None:
        return proven
    parts = [torch.from_numpy(images[start : start + _TOGETHER]) for start in range(0, len(images), _TOGETHER)]
    by_part = [[reach for _, _, reach in seen(program, part.double(), fraction_bits)] for part in parts]
    largest = tuple(max(same, key=lambda reach: reach.bits) for same in zip(*by_part, strict=True))
    return Certificate(input_range, fraction_bits, largest, len(images))


def _named(reach: Reach) -> str:
    return "the input" if reach.kind == "input" else f"{reach.kind} {reach.output!r}"
