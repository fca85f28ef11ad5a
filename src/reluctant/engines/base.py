"""What an engine is: it runs a program between parties, says what that promises, and measures what it cost."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from reluctant.errors import ShapeError, UsageError
from reluctant.program.operations import Shape
from reluctant.program.ops import Program

Images = NDArray[np.float32]
Outputs = NDArray[np.float32]

#: ``progress(stage, done, total)``; more is passed by keyword to those who want it.
Progress = Callable[..., None]


@dataclass(frozen=True)
class Security:
    """What an engine promises.

    Args:
        adversary: against whom (``semi-honest``: follows the protocol, looks at everything it sees; ``honest
            majority``: no two of three work together), or ``none``.
        parties: how many compute.
        dealer: who hands out correlated randomness, or ``none``.
        private: whether inputs and weights are hidden from the other party at all.
        offline_included: whether the measured cost includes all preparatory work of the protocol.
        statement: the same in sentences, for a report.
        public: what a run tells all parties.
    """

    adversary: str
    parties: int
    dealer: str
    private: bool
    offline_included: bool
    statement: str
    public: tuple[str, ...] = (
        "architecture",
        "masks of kept ReLUs",
        "shapes",
        "fixed-point format and range of inputs",
        "number of images",
    )

    @property
    def label(self) -> str:
        """What stands beside every number: against whom it is private, or that it is not."""
        return self.adversary if self.private else "NOT PRIVATE"


@dataclass(frozen=True)
class SiteCost:
    """What the activation step of one site cost over all images; both directions together.

    Args:
        kept: ReLUs an image.
        comparisons: secure comparisons that were executed, over all images.
        comparison_bytes, surrogate_bytes: of the kept ReLUs, and of what stands in for the dropped ones.
        messages: send actions of both parties.
        seconds: wall time at the client; at the server where the client takes no part in it.
    """

    name: str
    kept: int
    comparisons: int
    comparison_bytes: int
    surrogate_bytes: int
    messages: int
    seconds: float


@dataclass(frozen=True, eq=False)
class EngineRun:
    """What a run gave and cost, set-up apart.

    Args:
        outputs: float32 ``[N, K]``, the program's first output for each image; ``[0, K]`` at a server on its own.
        more_outputs: the program's other outputs, ``[N, ...]`` each.
        comparisons: secure comparisons of ReLUs that were executed, counted from the compiled program that ran.
        pool_comparisons: those of max-pooling.
        bytes: both directions together, for all images.
        messages: send actions of both parties.
        seconds: wall time at the client from the first image's share to the last answer.
        setup_bytes, setup_seconds: connecting, compiling, agreeing, and the protocol's one-time preparation.
        memory: bytes that a party's process held at most, of the one that held most; 0 where it was not measured.
        by_site: every activation site, in order.
        processes: operating-system processes that computed.
        batch: images in one run of the program.
        fraction_bits: of the fixed-point numbers.
        transfers: how oblivious transfers were made; empty where the protocol has none.
    """

    outputs: Outputs
    images: int
    comparisons: int
    pool_comparisons: int
    bytes: int
    messages: int
    seconds: float
    setup_bytes: int
    setup_seconds: float
    by_site: tuple[SiteCost, ...]
    processes: int
    batch: int
    fraction_bits: int
    memory: int = 0
    transfers: str = ""
    more_outputs: tuple[Outputs, ...] = ()


class Engine(ABC):
    """Runs programs. Settings are the fields of the dataclass that implements it."""

    name: ClassVar[str]
    security: ClassVar[Security]
    #: Whether it computes on the fixed-point numbers of the twin, which then answers what it should.
    has_twin: ClassVar[bool] = True
    #: Of those numbers; an engine without a twin has none.
    fraction_bits: int

    @abstractmethod
    def check(self, program: Program) -> None:
        """Raise if this engine cannot run ``program``; nothing is started.

        Raises:
            UsageError: something is not installed.
            UnsupportedOperation: the program has what this engine has not.
        """

    @abstractmethod
    def run(
        self, program: Program, images: Images, *, batch: int | None = None, progress: Progress | None = None
    ) -> EngineRun:
        """Return the outputs of ``program`` for ``images`` (float32 ``[N, C, H, W]``), and what they cost.

        Args:
            batch: images in one run of the program; the engine's own choice if not given.
            progress: called with a stage, images done, images in all.

        Raises:
            ShapeError: images of another shape; nothing is started.
            EngineError: a party or the link broke.
        """


def check_images(
    shape: Shape, images: NDArray[Any], batch: int, *, input_range: tuple[float, float] | None = None
) -> Images:
    """Return ``images`` as contiguous float32.

    Args:
        shape: of one image, as the program takes it.
        input_range: least and largest value for which the program's fixed point was checked.

    Raises:
        ShapeError: they do not fit the program, there are none, or some number is not finite.
        UsageError: ``batch`` is not positive, or a value lies outside of ``input_range``. The message says
            no more of the images, since the client sends it to the server.
    """
    if images.ndim != 1 + len(shape) or images.shape[1:] != shape or not len(images):
        raise ShapeError(f"images have the shape {images.shape}, the program takes one or more of {shape}")
    if not np.isfinite(images).all():
        raise ShapeError("images hold numbers that are not finite; normalise them first")
    if input_range is not None:
        low, high = input_range
        if images.min() < low or images.max() > high:
            raise UsageError(
                f"an image holds values outside of [{low:.4g}, {high:.4g}], for which the network's fixed point was "
                "checked; normalise images as its task does"
            )
    if batch < 1:
        raise UsageError(f"batch is {batch}, expected 1 or more")
    return np.ascontiguousarray(images, dtype=np.float32)
