"""CrypTFlow2: comparisons by oblivious transfer, of which the bytes and rounds are known, and nothing else.

Paper:   Rathee, Rathee, Kumar, Chandran, Gupta, Rastogi, Sharma. CrypTFlow2: Practical 2-Party Secure Inference.
         CCS 2020.
Numbers: counted in the code of its library, SCI, as published with OpenCheetah: a comparison in leaves of four bits
         (1-of-16 transfers by KKOT), AND gates on bit triples in a tree, a multiplexer. No measured seconds: what a
         comparison computes has to be measured, and was not. The sum lies just below the paper's bound for a ReLU in a
         ring of l bits, 128 l + 18 l bits, as we recall it.
Ours:    nothing. Layers, truncations and squares have no prices here, so no sum of a whole network has one.
"""

import math
from dataclasses import dataclass

from reluctant.costs.model import UNKNOWN, Cost, Spent
from reluctant.costs.profile import Layer, Profile

#: Bits of security and of a leaf, and the values that a leaf can have.
SECURITY, LEAF_BITS, LEAF_VALUES = 128, 4, 16

_UNKNOWN = Spent(Cost(UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN))


@dataclass(frozen=True)
class CrypTFlow2(Profile):
    """Says what the ReLUs of a program send under CrypTFlow2, and how many round trips they wait for.

    Args:
        bits: of the ring.
    """

    bits: int = 37  # what OpenCheetah compares the two protocols with

    engine = "cryptflow2"
    source = "bytes and rounds of a comparison, counted in the code of SCI (CrypTFlow2, CCS 2020) as in OpenCheetah"
    omitted = ("layers and truncations, and so all sums", "the seconds of computing")

    @property
    def rounds(self) -> int:
        """Round trips of a step of ReLUs: leaves, the tree of ANDs, the multiplexer."""
        return self._levels + 2

    @property
    def relu_bits(self) -> int:
        """Bits that a ReLU sends, both directions together."""
        leaves, levels = self._leaves, self._levels
        ands = 2 * (leaves - 1) - levels
        compared = leaves * (2 * SECURITY + 2 * LEAF_VALUES) - LEAF_VALUES
        triples = (leaves - 1 - levels) * (2 * SECURITY + 16) + levels * (2 * SECURITY + 32) // 2
        multiplexed = 2 * (SECURITY + 2 * self.bits)
        return compared + triples + 4 * ands + multiplexed

    def relus(self, count: int) -> Spent:
        """See :meth:`Profile.relus`."""
        return Spent(Cost(count * self.relu_bits / 8, seconds=UNKNOWN, trips=self.rounds))

    def linear(self, layer: Layer) -> Spent:
        """See :meth:`Profile.linear`; not known."""
        return _UNKNOWN

    def squares(self, count: int) -> Spent:
        """See :meth:`Profile.squares`; not known."""
        return _UNKNOWN

    def ends(self, elements: int) -> Spent:
        """See :meth:`Profile.ends`: shares of the ring."""
        return Spent(Cost(elements * self.bits / 8, trips=1))

    def once(self) -> Cost:
        """See :meth:`Profile.once`; not known."""
        return _UNKNOWN.online

    @property
    def _leaves(self) -> int:
        return -(-(self.bits - 1) // LEAF_BITS)

    @property
    def _levels(self) -> int:
        return math.ceil(math.log2(self._leaves))
