"""What the engines on SPU have in common: their parties are processes of this machine, joined by some network."""

from dataclasses import dataclass

from reluctant.costs.networks import NETWORKS, Network
from reluctant.engines.base import Engine, EngineRun, Images, Progress, check_images
from reluctant.engines.memory import check_memory
from reluctant.engines.parties import run_locally
from reluctant.engines.session import suitable_batch
from reluctant.engines.settings import Settings
from reluctant.engines.spu import FRACTION_BITS, require_spu
from reluctant.errors import UsageError
from reluctant.program.ops import Program


@dataclass(frozen=True, kw_only=True)
class SpuEngine(Engine):
    """SPU between a server with the weights, a client with the images, and whoever else the protocol needs.

    Args:
        fraction_bits: bits after the binary point of the 64-bit fixed-point numbers.
        connect_timeout: seconds that a party waits for the others.
        patience: seconds of silence after which a party counts as stalled.
        network: the link between any two parties; any but loopback is imitated by a relay.
    """

    fraction_bits: int = FRACTION_BITS
    connect_timeout: float = 60.0
    patience: float = 60.0
    network: Network = NETWORKS["loopback"]

    def settings(self) -> Settings:
        """Return what the parties must have set alike."""
        return Settings(self.fraction_bits, self.name.upper())

    def check(self, program: Program) -> None:
        require_spu()
        if program.arrays is None:
            raise UsageError("the program has no arrays; the server needs its numbers")

    def run(
        self, program: Program, images: Images, *, batch: int | None = None, progress: Progress | None = None
    ) -> EngineRun:
        self.check(program)
        images = check_images(
            program.input_shape, images, 1 if batch is None else batch, input_range=program.input_range
        )
        together = min(len(images), batch or suitable_batch(program))
        check_memory(self.name, program, together, self.security.parties)
        return run_locally(
            program,
            images,
            settings=self.settings(),
            batch=batch,
            connect_timeout=self.connect_timeout,
            patience=self.patience,
            network=self.network,
            progress=progress,
        )
