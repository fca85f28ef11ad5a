"""Two-party private inference with CHEETAH: homomorphic products, oblivious-transfer comparisons, no dealer.

Paper: Huang, Lu, Hong, Ding. Cheetah: Lean and Fast Secure Two-Party Deep Neural Network Inference. USENIX Security
2022. As implemented in SPU (SecretFlow): 64-bit ring, Ferret OT.
"""

from dataclasses import dataclass
from typing import ClassVar

from reluctant.engines.base import Security
from reluctant.engines.on_spu import SpuEngine


@dataclass(frozen=True, kw_only=True)
class Cheetah(SpuEngine):
    """SPU's CHEETAH between a server with the weights and a client with the images, two processes on this machine."""

    name: ClassVar[str] = "cheetah"
    security: ClassVar[Security] = Security(
        adversary="semi-honest",
        parties=2,
        dealer="none",
        private=True,
        offline_included=True,
        statement=(
            "Private against semi-honest parties: each follows the protocol and learns nothing more than it is meant "
            "to, however closely it looks at what it receives. The client learns the class scores, the server learns "
            "nothing of image or answer. Public to both: the architecture, all shapes, which ReLUs are kept (the "
            "masks), and the whole numbers of slopes that are reciprocals of such. There is no dealer and no third "
            "party. A party that deviates from the protocol is not caught. The link is plain TCP, on loopback by "
            "default."
        ),
    )
