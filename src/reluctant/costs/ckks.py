"""CKKS: the multiplicative depth of a network in levels, and which ring holds them without bootstrapping.

Papers:  Cheon, Kim, Kim, Song. Homomorphic Encryption for Arithmetic of Approximate Numbers. ASIACRYPT 2017.
         Lee, Lee, Lee, Kim, Kim, No, Choi. Low-Complexity Deep Convolutional Neural Networks on Fully Homomorphic
         Encryption Using Multiplexed Parallel Convolutions. ICML 2022: a ReLU is x (1 + sign x) / 2 with a composite
         of minimax polynomials for the sign, of degrees 15, 15 and 27 (recalled).
Numbers: bits of a modulus by ring degree, for 128 bits of security against classical attacks with a ternary secret:
         Homomorphic Encryption Security Standard (HomomorphicEncryption.org, 2018), table 1. Rings of more than
         32,768 are left out, as SEAL has none.
Ours:    all affine operations between two others are one matrix and one level, and a square stands between two
         matrices, as in the engine ``ckks``; codes that keep convolutions apart take more. How many ReLUs a site keeps
         does not matter here: the one that keeps none takes no polynomial. Whether a network's values fit into the
         slots of that ring is not asked.

A ciphertext can be multiplied so often as its modulus has primes to lose. Each product takes a level; where they are
used up, it must be bootstrapped, which takes longer than all the rest.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from reluctant.program.operations import INPUT, Activation, AvgPool, Conv2d, Linear, MaxPool, Op, Scale
from reluctant.program.ops import Program

#: Bits of the scale, of the primes that levels take, and of the first and the last prime: the first one leaves room for
#: values up to 2 ** 19, the last is the special one of key switching.
SCALE_BITS, END_BITS = 40, 60

#: The most bits of a modulus by ring degree. SEAL holds the same and refuses.
MOST_BITS = {8192: 218, 16384: 438, 32768: 881}

#: Degrees of the polynomials that make a sign.
SIGN_DEGREES = (15, 15, 27)

#: Levels of a ReLU: those of the polynomials, and the product with x.
RELU_LEVELS = sum(math.ceil(math.log2(degree + 1)) for degree in SIGN_DEGREES) + 1


def modulus_bits(levels: int) -> int:
    """Return the bits of the modulus for so many levels, the special prime included."""
    return 2 * END_BITS + SCALE_BITS * levels


@dataclass(frozen=True)
class Levels:
    """What a program takes under CKKS.

    Args:
        total: products one after the other, from the image to the scores.
        relus: how many of them are for approximated ReLUs and maxima.
    """

    total: int
    relus: int

    @property
    def ring(self) -> int | None:
        """The smallest ring degree that holds them at 128 bits of security; ``None``: none without bootstrapping."""
        bits = modulus_bits(self.total)
        return next((ring for ring, most in MOST_BITS.items() if bits <= most), None)

    def to_json(self) -> dict[str, Any]:
        """Return ``levels``, ``relu_levels``, ``ring`` and ``modulus_bits``; the last two may be ``None``."""
        ring = self.ring
        bits = None if ring is None else modulus_bits(self.total)
        return {"levels": self.total, "relu_levels": self.relus, "ring": ring, "modulus_bits": bits}


class _Depth(NamedTuple):
    """Levels that lead to a value, as (all, those of ReLUs): as it is, and once a matrix is multiplied.

    Both are the same where a matrix stands before it already, or must come next: the two become one.
    """

    plain: tuple[int, int]
    times_matrix: tuple[int, int]


def levels(program: Program) -> Levels:
    """Return the levels of ``program``, along its longest way."""
    depths = {INPUT: _source((0, 0))}
    for op in program.ops:
        read = [depths[name] for name in op.inputs]
        depth = _Depth(max(one.plain for one in read), max(one.times_matrix for one in read))
        if isinstance(op, Activation) and not len(op.kept) and op.squares:
            total, for_relus = depth.times_matrix
            squared = _source((total + 1, for_relus))
            if op.c2 is not None:  # in the matrix that follows
                squared = _Depth(squared.times_matrix, squared.times_matrix)
            depths[op.output] = squared
        elif relus := _relu_levels(op):
            total, for_relus = depth.plain
            depths[op.output] = _source((total + relus, for_relus + relus))
        elif _multiplies(op):
            depths[op.output] = _Depth(depth.times_matrix, depth.times_matrix)
        else:
            depths[op.output] = depth
    return Levels(*max(depths[name].plain for name in program.outputs))


def _source(taken: tuple[int, int]) -> _Depth:
    return _Depth(taken, (taken[0] + 1, taken[1]))


def _relu_levels(op: Op) -> int:
    """Return the levels of the ReLUs and maxima in ``op``, one after the other; a maximum is a ReLU of a difference."""
    if isinstance(op, MaxPool):
        return RELU_LEVELS * math.ceil(math.log2(math.prod(op.kernel)))
    return RELU_LEVELS if isinstance(op, Activation) and len(op.kept) else 0


def _multiplies(op: Op) -> bool:
    """Whether an affine ``op`` goes into a matrix."""
    if isinstance(op, Activation):
        return op.c1 is not None or op.factors is not None or not op.unit_slope
    return isinstance(op, Conv2d | Linear | Scale | AvgPool)
