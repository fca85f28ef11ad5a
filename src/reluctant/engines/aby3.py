"""Three-party private inference with ABY3: replicated shares, no homomorphic encryption and no oblivious transfer.

Paper: Mohassel, Rindal. ABY3: A Mixed Protocol Framework for Machine Learning. CCS 2018. As implemented in SPU
(SecretFlow): 64-bit ring, semi-honest.
"""

from dataclasses import dataclass
from typing import ClassVar

from reluctant.engines.base import Security
from reluctant.engines.on_spu import SpuEngine


@dataclass(frozen=True, kw_only=True)
class Aby3(SpuEngine):
    """SPU's ABY3 between a server with the weights, a client with the images, and a helper with nothing.

    Three processes on this machine. The weights are shared among the three once, which counts as set-up; a batch then
    costs its image, comparisons, products and truncations of shares.
    """

    name: ClassVar[str] = "aby3"
    security: ClassVar[Security] = Security(
        adversary="semi-honest, honest majority",
        parties=3,
        dealer="none",
        private=True,
        offline_included=True,
        statement=(
            "Private against one semi-honest party of three: each follows the protocol and learns nothing more than it "
            "is meant to, as long as no two join what they saw. The client learns the class scores, the server learns "
            "nothing of image or answer. The helper has neither image nor network and learns nothing: its shares are "
            "random numbers, unless it colludes. Any two of the three together learn image, weights and answer. Public "
            "to all three: the architecture, all shapes, which ReLUs are kept (the masks), the whole numbers of slopes "
            "that are reciprocals of such, and what shapes tell of pruned channels, low ranks and squares. There is no "
            "dealer. A party that deviates from the protocol is not "
            "caught. The links are plain TCP, on loopback by default: whoever reads all of them learns everything."
        ),
    )
