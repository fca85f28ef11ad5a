"""Two-party private inference with CHEETAH: homomorphic products, oblivious-transfer comparisons, no dealer.

Paper: Huang, Lu, Hong, Ding. Cheetah: Lean and Fast Secure Two-Party Deep Neural Network Inference. USENIX Security
2022. As implemented in SPU (SecretFlow): 64-bit ring, Ferret OT.
"""

from dataclasses import dataclass
from typing import ClassVar

from reluctant.costs.networks import NETWORKS, Network
from reluctant.engines.base import Engine, EngineRun, Images, Progress, Security, check_images
from reluctant.engines.memory import check_memory
from reluctant.engines.parties import run_locally
from reluctant.engines.session import suitable_batch
from reluctant.engines.spu import FRACTION_BITS, require_spu
from reluctant.errors import UsageError
from reluctant.program.ops import Program


@dataclass(frozen=True, kw_only=True)
class Cheetah(Engine):
    """SPU's CHEETAH between a server with the weights and a client with the images, two processes on this machine.

    Args:
        fraction_bits: bits after the binary point of the 64-bit fixed-point numbers.
        connect_timeout: seconds that a party waits for the other.
        patience: seconds of silence after which a party counts as stalled.
        network: the link between the parties; any but loopback is imitated by a relay.
    """

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

    fraction_bits: int = FRACTION_BITS
    connect_timeout: float = 60.0
    patience: float = 60.0
    network: Network = NETWORKS["loopback"]

    def check(self, program: Program) -> None:
        require_spu()
        if program.arrays is None:
            raise UsageError("the program has no arrays; the server needs its numbers")

    def run(
        self, program: Program, images: Images, *, batch: int | None = None, progress: Progress | None = None
    ) -> EngineRun:
        self.check(program)
        images = check_images(program.input_shape, images, 1 if batch is None else batch)
        check_memory(self.name, program, min(len(images), batch or suitable_batch(program)), parties=2)
        return run_locally(
            program,
            images,
            batch=batch,
            fraction_bits=self.fraction_bits,
            connect_timeout=self.connect_timeout,
            patience=self.patience,
            network=self.network,
            progress=progress,
        )
