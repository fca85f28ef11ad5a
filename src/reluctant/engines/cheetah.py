"""Two-party private inference with CHEETAH: homomorphic products, oblivious-transfer comparisons, no dealer.

Paper: Huang, Lu, Hong, Ding. Cheetah: Lean and Fast Secure Two-Party Deep Neural Network Inference. USENIX Security
2022. As implemented in SPU (SecretFlow): 64-bit ring, Ferret OT.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from reluctant.costs.table import cheaper_transfers
from reluctant.engines.base import EngineRun, Images, Progress, Security, check_images
from reluctant.engines.on_spu import SpuEngine
from reluctant.engines.session import suitable_batch
from reluctant.engines.settings import Settings
from reluctant.errors import UsageError
from reluctant.program.ops import Program

#: The two kinds of oblivious transfer that SPU has for it, and what chooses between them.
TRANSFERS = ("ferret", "softspoken", "auto")


@dataclass(frozen=True, kw_only=True)
class Cheetah(SpuEngine):
    """SPU's CHEETAH between a server with the weights and a client with the images, two processes on this machine.

    Args:
        transfers: how the oblivious transfers of comparisons and truncations are made. ``ferret`` (Yang et al., CCS
            2020): 98.5 bytes a comparison after a set-up of 3 to 5 seconds and 2 MB. ``softspoken`` (Roy, CRYPTO 2022):
            858 bytes a comparison, half a second of set-up, and half the memory. ``auto``: what is predicted to be done
            sooner, set-up included (:func:`reluctant.costs.table.cheaper_transfers`).
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
            "masks), the whole numbers of slopes that are reciprocals of such, and what shapes tell of pruned "
            "channels, low ranks and squares. There is no dealer and no third party. A party that deviates from the "
            "protocol is not caught. The link is plain TCP, on loopback by default."
        ),
    )

    transfers: str = "ferret"

    def __post_init__(self) -> None:
        if self.transfers not in TRANSFERS:
            raise UsageError(f"unknown transfers {self.transfers!r} for cheetah; expected {' or '.join(TRANSFERS)}")

    def settings(self) -> Settings:
        return replace(super().settings(), transfers="ferret" if self.transfers == "auto" else self.transfers)

    def run(
        self, program: Program, images: Images, *, batch: int | None = None, progress: Progress | None = None
    ) -> EngineRun:
        if self.transfers != "auto":
            return super().run(program, images, batch=batch, progress=progress)
        self.check(program)
        together = suitable_batch(program) if batch is None else batch
        count = len(check_images(program.input_shape, images, together, input_range=program.input_range))
        chosen = replace(self, transfers=cheaper_transfers(program, count, together, self.network))
        return chosen.run(program, images, batch=batch, progress=progress)
