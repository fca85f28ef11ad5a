"""The other verb: run a network as private inference, and compare the answer with what it should be."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from reluctant.costs.networks import parse_network
from reluctant.distillation import logits
from reluctant.engines import ENGINES
from reluctant.engines.base import Engine, EngineRun
from reluctant.errors import ShapeError, UsageError
from reluctant.masked import MaskedModel, attach
from reluctant.program.lower import lower
from reluctant.program.ops import Program
from reluctant.progress import Progress, silent
from reluctant.sites import evaluating, find_sites

Outputs = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True, eq=False)
class SecureRun:
    """A private inference that was run, and how it compares.

    Attributes:
        run: what the engine measured.
        twin, floats: class scores ``[N, K]`` of the fixed-point twin and of torch on the same images; no twin for an
            engine that computes on other numbers.
        model: the network that was run, as it was given.
    """

    engine: Engine
    network: str
    run: EngineRun
    twin: Outputs | None
    floats: Outputs
    input_shape: tuple[int, ...]
    model: nn.Module

    @property
    def answers(self) -> list[int]:
        """The class of each image, as the client learned it."""
        return [int(k) for k in self.run.outputs.argmax(1)]

    @property
    def argmax_equal_twin(self) -> int | None:
        """Images whose answer is the twin's; ``None`` without one."""
        return None if self.twin is None else int((self.run.outputs.argmax(1) == self.twin.argmax(1)).sum())

    @property
    def argmax_equal_float(self) -> int:
        """Images whose answer is the one of torch in float32."""
        return int((self.run.outputs.argmax(1) == self.floats.argmax(1)).sum())

    @property
    def max_abs_error_twin(self) -> float | None:
        """Largest difference of a class score from the twin's; ``None`` without one."""
        return None if self.twin is None else float(np.abs(self.run.outputs - self.twin).max())

    @property
    def max_abs_error_float(self) -> float:
        """Largest difference of a class score from torch in float32."""
        return float(np.abs(self.run.outputs - self.floats).max())


def as_masked(model: nn.Module, example: Float[Tensor, "1 ..."]) -> MaskedModel:
    """Return ``model`` itself if it is masked, else a copy with a full mask."""
    return model if isinstance(model, MaskedModel) else attach(model, find_sites(model, example))


def secure_run(
    model: nn.Module,
    images: Float[Tensor, "N C H W"],
    *,
    engine: str | Engine = "cheetah",
    network: str = "loopback",
    batch: int | None = None,
    progress: Progress = silent,
) -> SecureRun:
    """Return the private inference of ``model`` on ``images``, run by ``engine`` and checked.

    It is compared with torch, and with the fixed-point twin if the engine computes on the twin's numbers.

    Args:
        model: any network; a dense one keeps all its ReLUs.
        images: normalised, as the network reads them.
        engine: a name, or an engine with settings of its own.
        network: the link between the parties: ``loopback``, or imitated on it ``lan``, ``wan``, ``mobile`` or
            ``400mbps/20ms``.
        batch: images that travel together; the engine's own choice if not given.

    Raises:
        UnsupportedOperation: the network has something that no secure program has; nothing was started.
        EngineError: a party or the link broke.

    Example::

        run = rl.secure_run(small, task.images(8), engine="cheetah")
    """
    masked = as_masked(model, images[:1])
    if tuple(images.shape[1:]) != masked.sites.input_shape:
        raise ShapeError(
            f"images have the shape {tuple(images.shape[1:])}, the network was made for {masked.sites.input_shape}"
        )
    chosen = make_engine(engine, network) if isinstance(engine, str) else engine
    program = lower(masked)
    chosen.check(program)
    array = np.ascontiguousarray(images.numpy(), dtype=np.float32)
    run = chosen.run(program, array, batch=batch, progress=progress)
    twin = run.outputs if chosen.name == "twin" else None
    if twin is None and chosen.has_twin:
        twin = twin_outputs(program, array, progress=progress)
    with torch.no_grad(), evaluating(masked):
        floats = logits(masked(images.clone())).numpy()
    return SecureRun(chosen, network, run, twin, floats, masked.sites.input_shape, model)


def make_engine(name: str, network: str = "loopback") -> Engine:
    """Return the engine called ``name`` with its parties joined by ``network``.

    Raises:
        UnknownName: no such engine.
        UsageError: no such network, or an engine that has no parties to join.
    """
    link = parse_network(network)
    kind = ENGINES[name]
    if "network" in {field.name for field in fields(kind)}:
        return kind(network=link)  # type: ignore[no-any-return]
    if link.emulated:
        raise UsageError(f"engine {name} runs in one process; a network is for engines with several parties")
    return kind()  # type: ignore[no-any-return]


def twin_outputs(program: Program, images: Outputs, *, progress: Progress = silent) -> Outputs:
    """Return the class scores ``[N, K]`` of the fixed-point twin: the same program, one process, no cryptography."""
    twin: Engine = ENGINES["twin"]()
    return twin.run(program, images, progress=progress).outputs
