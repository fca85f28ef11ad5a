"""How a program lies in CKKS ciphertexts, as matrices and products, and which parameters it needs.

*Packing.* A ciphertext holds a vector of ``width`` values, a power of two, for ``slots / width`` images at once: value
i of image j lies in slot ``i * images + j``. A rotation by ``images`` slots moves all images' vectors by one value,
cyclically, so a batch costs what one image does. A matrix is multiplied by its diagonals (Halevi and Shoup, CRYPTO
2014), those that are zero left out, in baby and giant steps: with ``k = giant * stride + baby``,

    M x = sum over giant of rot(sum over baby of rot(diag_k, -giant * stride) * rot(x, baby), giant * stride).

The babies are made one from the other, the giants by Horner's rule, so that two Galois keys do. A matrix with no more
rows than a giant step, as the last one has, takes babies only, and giants to sum what they made.

*Levels.* Each matrix and each product of ciphertexts takes one prime of the modulus away. A dropped site computes
``c0 + c1 z + c2 z^2 = c0 + c2 z (z + c1 / c2)``: adding a plaintext takes no level, and c2 and c0 go into the matrix
that follows. Where ``c1 / c2`` is too large for that (or c2 is zero) the line goes into that matrix on its own. So k
sites in a row take 2 k + 1 levels.

*Scale.* Numbers are held times ``2 ** SCALE_BITS``; primes have as many bits. A matrix is encoded at the very scale
that brings the sum back to ``2 ** SCALE_BITS`` when it is divided by the prime, so terms from different levels can be
added and nothing drifts.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluctant.costs.ckks import END_BITS, MOST_BITS, SCALE_BITS, modulus_bits
from reluctant.errors import UnsupportedOperation, UsageError
from reluctant.program.operations import INPUT, Activation, Add, Linear, Reshape
from reluctant.program.ops import Program

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

#: Where c1 / c2 is larger, an activation's line is computed apart: the product would lose too many bits.
_LARGEST_SHIFT = 1 << 10


@dataclass(frozen=True)
class Parameters:
    """What both parties must know of the encryption; nothing in it is secret.

    Args:
        ring: degree of the polynomials; there are half as many slots.
        levels: products one after the other that ciphertexts can take.
        width: slots that one image takes, a power of two.

    Raises:
        UsageError: they contradict each other, or are not secure.
    """

    ring: int
    levels: int
    width: int

    def __post_init__(self) -> None:
        if self.ring not in MOST_BITS or self.bits > MOST_BITS[self.ring] or self.levels < 1:
            raise UsageError(f"CKKS with ring degree {self.ring} and {self.bits} bits of modulus is not 128-bit secure")
        if not 2 <= self.width <= self.ring // 2 or self.width & (self.width - 1):
            raise UsageError(f"CKKS vectors of width {self.width} do not fit {self.ring // 2:,} slots")

    @classmethod
    def smallest(cls, levels: int, width: int) -> "Parameters":
        """Return those of the smallest ring that holds so many levels and vectors of ``width`` values.

        Raises:
            UnsupportedOperation: there is none.
        """
        if 2 * width > (largest := max(MOST_BITS)):
            raise UnsupportedOperation(
                f"the network has {width:,} values at a place; CKKS has at most {largest // 2:,} slots: take a "
                "narrower network or smaller images"
            )
        power = max(2, 1 << (width - 1).bit_length())
        for ring, most in MOST_BITS.items():
            if modulus_bits(levels) <= most and 2 * power <= ring:
                return cls(ring, levels, power)
        deepest = (MOST_BITS[largest] - modulus_bits(0)) // SCALE_BITS
        raise UnsupportedOperation(
            f"the network takes {levels} levels, CKKS has at most {deepest} here without bootstrapping, two a site "
            "with squares: take a shallower network, or identities at some sites"
        )

    @property
    def bits(self) -> int:
        """Bits of the whole modulus, the special prime included."""
        return modulus_bits(self.levels)

    @property
    def primes(self) -> list[int]:
        """Bits of each prime of the modulus."""
        return [END_BITS, *[SCALE_BITS] * self.levels, END_BITS]

    @property
    def images(self) -> int:
        """Images in one ciphertext."""
        return self.ring // 2 // self.width

    @property
    def stride(self) -> int:
        """Diagonals from one giant step to the next."""
        return 1 << self.width.bit_length() // 2

    @property
    def steps(self) -> tuple[int, int]:
        """Slots of a baby and of a giant step."""
        return self.images, self.images * self.stride

    @property
    def elements(self) -> list[int]:
        """The Galois elements of the steps."""
        return [pow(3, step, 2 * self.ring) for step in self.steps]


@dataclass(frozen=True, eq=False)
class Layer:
    """A sum of matrices, and a product that follows it.

    Args:
        name: of what it makes.
        site: the activation that follows; empty at an output.
        terms: names of what it reads, each with its matrix.
        offset: added to the sum.
        shift: the layer makes ``z (z + shift)`` of its sum z; ``None`` at an output.
    """

    name: str
    site: str
    terms: tuple[tuple[str, Matrix], ...]
    offset: Vector
    shift: Vector | None

    @property
    def line(self) -> str:
        """The name of z itself, which a later layer may read, too."""
        return f"{self.name}.line"


#: A value as a sum of matrices (or, where it is what a layer made, of factors) times what layers made, and a constant.
_Sum = tuple[tuple[tuple[str, Matrix], ...], Vector]


def layers(program: Program) -> list[Layer]:
    """Return the layers of a program that is straight (:func:`reluctant.program.collapse.straighten`).

    Raises:
        UnsupportedOperation: it keeps a ReLU, or has max-pooling.
    """
    check_polynomial(program)
    assert program.arrays is not None
    arrays = {name: array.astype(np.float64) for name, array in program.arrays.items()}
    made: list[Layer] = []
    size = math.prod(program.input_shape)
    sums: dict[str, _Sum] = {INPUT: (((INPUT, np.ones(size)),), np.zeros(size))}
    for op in program.ops:
        before = [sums[name] for name in op.inputs]
        if isinstance(op, Activation):
            layer, sums[op.output] = _activation(op, *before[0], arrays)
            made.append(layer)
        elif isinstance(op, Linear):
            (terms, constant), weight = before[0], arrays[op.weight]
            bias = 0.0 if op.bias is None else arrays[op.bias]
            sums[op.output] = tuple((name, weight * factors) for name, factors in terms), weight @ constant + bias
        elif isinstance(op, Add):
            sums[op.output] = before[0][0] + before[1][0], before[0][1] + before[1][1]
        elif isinstance(op, Reshape):
            sums[op.output] = before[0]
        else:
            raise UnsupportedOperation(f"{op.kind} {op.output!r} is left in a program that should be matrices only")
    return made + [Layer(name, "", *sums[name], None) for name in program.outputs]


def _activation(op: Activation, terms: Any, offset: Vector, arrays: Mapping[str, Vector]) -> tuple[Layer, _Sum]:
    """Return the layer that ends in ``op``, and the output of ``op`` as a sum of what that layer makes."""
    size = len(op.keep)
    c0, c1, c2 = (None if name is None else arrays[name] for name in (op.c0, op.c1, op.c2))
    slope = np.full(size, 1.0 if op.unit_slope else 0.0) if c1 is None else c1
    c2 = np.full(size, float(op.unit_square)) if c2 is None else c2
    inside = np.abs(slope) <= _LARGEST_SHIFT * np.abs(c2)
    shift = np.divide(slope, c2, out=np.zeros(size), where=inside & (c2 != 0))
    layer = Layer(op.output, op.site, terms, offset, shift)
    line = np.where(inside, 0.0, slope)
    read = [(layer.name, c2)] + ([(layer.line, line)] if line.any() else [])
    return layer, (tuple(read), np.zeros(size) if c0 is None else c0)


def check_polynomial(program: Program) -> None:
    """Raise unless ``program`` is a polynomial.

    Raises:
        UnsupportedOperation: the first site that is none is named.
    """
    for op in program.ops:
        if isinstance(op, Activation) and len(op.kept):
            raise UnsupportedOperation(
                f"site {op.site} keeps {len(op.kept):,} ReLUs; CKKS evaluates polynomials only: linearize with "
                "--budget 0 --set method.surrogate=hermite"
            )
        if op.kind == "maxpool":
            raise UnsupportedOperation(
                f"{op.output!r} is max-pooling; CKKS evaluates polynomials only: average instead"
            )


def parameters_of(found: Sequence[Layer]) -> Parameters:
    """Return what the layers need.

    Raises:
        UnsupportedOperation: more than there is.
    """
    level = {INPUT: 0}
    width = 1
    for layer in found:
        level[layer.line] = 1 + max(level[name] for name, _ in layer.terms)
        level[layer.name] = level[layer.line] + (layer.shift is not None)
        width = max(width, *(side for _, matrix in layer.terms for side in matrix.shape))
    return Parameters.smallest(max(level.values()), width)


def diagonals(matrix: Matrix, width: int) -> dict[int, Vector]:
    """Return the diagonals of ``matrix`` that are not all zeros, padded to ``width``: ``[k][i] = matrix[i, i + k]``."""
    rows, columns = np.nonzero(matrix)
    found: dict[int, Vector] = {}
    numbers = (columns - rows) % width
    for k in np.unique(numbers):
        found[int(k)] = np.zeros(width)
        found[int(k)][rows[numbers == k]] = matrix[rows[numbers == k], columns[numbers == k]]
    return found


def stacked(matrix: Matrix, width: int, rows: int) -> Matrix:
    """Return a matrix of ``width`` rows with ``rows`` diagonals, whose parts of ``rows`` rows sum up to ``matrix``.

    ``[i, i + k]`` of it is ``matrix[i % rows, i + k]``, for k under ``rows`` and columns counted modulo ``width``.
    """
    padded = np.zeros((rows, width))
    padded[: matrix.shape[0], : matrix.shape[1]] = matrix
    i, k = np.arange(width)[:, None], np.arange(rows)
    stacked = np.zeros((width, width))
    stacked[i, (i + k) % width] = padded[i % rows, (i + k) % width]
    return stacked
