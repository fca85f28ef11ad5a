"""Two-party private inference with CKKS: the client encrypts, the server computes on ciphertexts, one round trip.

Paper: Cheon, Kim, Kim, Song. Homomorphic Encryption for Arithmetic of Approximate Numbers. ASIACRYPT 2017. As
implemented in Microsoft SEAL, which TenSEAL brings. How a program lies in ciphertexts stands in
:mod:`reluctant.engines.packing`.

Only polynomials can be computed: a network without any ReLU, its sites squares or lines.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from reluctant.costs.networks import NETWORKS, Network
from reluctant.engines.base import Engine, EngineRun, Images, Progress, Security, check_images
from reluctant.engines.ckks_session import images_together
from reluctant.engines.homomorphic import require_tenseal
from reluctant.engines.packing import Parameters, check_polynomial, layers, parameters_of
from reluctant.engines.parties import run_locally
from reluctant.errors import UsageError
from reluctant.program.collapse import straighten
from reluctant.program.ops import Program

#: What each party does once it has met the other.
SESSION = "reluctant.engines.ckks_session:take_part"


@dataclass(frozen=True, kw_only=True)
class CKKS(Engine):
    """SEAL's CKKS between a server with the weights and a client with images and secret key, two processes here.

    Args:
        connect_timeout: seconds that a party waits for the other.
        patience: seconds of silence after which the other counts as stalled.
        network: the link between the parties; any but loopback is imitated by a relay.
    """

    name: ClassVar[str] = "ckks"
    has_twin: ClassVar[bool] = False
    security: ClassVar[Security] = Security(
        adversary="semi-honest",
        parties=2,
        dealer="none",
        private=True,
        offline_included=True,
        statement=(
            "Private against semi-honest parties. The server computes on ciphertexts and learns nothing of image or "
            "answer; the secret key never leaves the client's process. Parameters have 128 bits of security by the "
            "table of HomomorphicEncryption.org (2018), against classical attacks. This holds only as long as the "
            "client tells nobody the scores that it decrypted, bit for bit: they carry the encryption's noise, from "
            "which the key can be computed (Li and Micciancio, EUROCRYPT 2021). The client gets encrypted class scores "
            "and no weight, but CKKS has no circuit privacy: the noise in what it decrypts depends on the weights, and "
            "none is added to hide that. Public to both: ring degree, number of levels (and so the depth), vector "
            "width, shapes of image and outputs, number of images. A party that deviates from the protocol is not "
            "caught: a malicious server can answer anything. The link is plain TCP, on loopback by default."
        ),
        public=(
            "encryption parameters: ring degree, primes, scale",
            "number of levels, and so the depth",
            "vector width",
            "shapes of image and outputs",
            "number of images",
        ),
    )

    connect_timeout: float = 60.0
    patience: float = 60.0
    network: Network = NETWORKS["loopback"]

    def check(self, program: Program) -> None:
        require_tenseal()
        if program.arrays is None:
            raise UsageError("the program has no arrays; the server needs its numbers")
        _prepare(program)

    def run(
        self, program: Program, images: Images, *, batch: int | None = None, progress: Progress | None = None
    ) -> EngineRun:
        self.check(program)
        straight, parameters = _prepare(program)
        images = check_images(program.input_shape, images, 1 if batch is None else batch)
        return run_locally(
            straight,
            images,
            settings=None,
            batch=images_together(parameters, len(images), batch),
            connect_timeout=self.connect_timeout,
            patience=self.patience,
            network=self.network,
            progress=progress,
            session=SESSION,
        )


@lru_cache(maxsize=1)
def _prepare(program: Program) -> tuple[Program, Parameters]:
    """Return ``program`` as matrices and squares, and the parameters that it needs."""
    check_polynomial(program)
    straight = straighten(program)
    return straight, parameters_of(layers(straight))
