"""What two parties would pay online under SEMI2K, whose correlated randomness one of them makes: a simulation of costs.

Papers: Cramer, Damgård, Escudero, Scholl, Xing. SPDZ2k: Efficient MPC mod 2^k for Dishonest Majority. CRYPTO 2018, its
semi-honest part. As implemented in SPU (SecretFlow) with its default source of multiplication triples.
"""

from dataclasses import dataclass
from typing import ClassVar

from reluctant.engines.base import Security
from reluctant.engines.on_spu import SpuEngine


@dataclass(frozen=True, kw_only=True)
class Semi2k(SpuEngine):
    """SPU's SEMI2K between a server with the weights and a client with the images. Not private: the server deals.

    It tells what a two-party protocol of this kind would send online if its preparation came from elsewhere.
    """

    name: ClassVar[str] = "semi2k"
    security: ClassVar[Security] = Security(
        adversary="none",
        parties=2,
        dealer="the server itself",
        private=False,
        offline_included=False,
        statement=(
            "Not private. The server makes the correlated randomness of both parties, so it can undo the client's "
            "masks and read the image: SPU's default for SEMI2K, a trusted first party. This simulates what a protocol "
            "of the kind sends online; to make the randomness safely would cost more, which is not counted."
        ),
    )
