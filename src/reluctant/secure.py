"""The other verb: run a network as private inference, and compare the answer with what it should be."""

from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from reluctant.costs import PROTOCOLS
from reluctant.costs.networks import parse_network
from reluctant.distillation import logits
from reluctant.engines import ENGINES
from reluctant.engines.base import Engine, EngineRun
from reluctant.errors import ShapeError, UsageError
from reluctant.masked import MaskedModel, attach
from reluctant.program.certificate import Certificate, certify
from reluctant.program.lower import REWRITES, lower
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
        certificate: whether its numbers fit the fixed point; ``None`` for an engine without one.
        without: rewrites that were left out of the program, in the order of :data:`reluctant.program.lower.REWRITES`.
    """

    engine: Engine
    network: str
    run: EngineRun
    twin: Outputs | None
    floats: Outputs
    input_shape: tuple[int, ...]
    model: nn.Module
    certificate: Certificate | None
    without: tuple[str, ...] = ()

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
    input_range: tuple[float, float] | None = None,
    without: Collection[str] = (),
    progress: Progress = silent,
) -> SecureRun:
    """Return the private inference of ``model`` on ``images``, run by ``engine`` and checked.

    It is compared with torch, and with the fixed-point twin if the engine computes on the twin's numbers.

    Before anything is started it is shown that the numbers fit the engine's fixed point, if it has one, for every image
    in ``input_range`` or, where that cannot be proven, for these images.

    Args:
        model: any network; a dense one keeps all its ReLUs.
        images: normalised, as the network reads them.
        engine: a name, or an engine with settings of its own.
        network: the link between the parties: ``loopback``, or imitated on it ``lan``, ``wan``, ``mobile`` or
            ``400mbps/20ms``.
        batch: images that travel together; the engine's own choice if not given.
        input_range: least and largest value that an image may hold; that of ``images`` if not given.
        without: rewrites of the program to leave out, see :func:`reluctant.program.lower.lower`: each of ``channels``,
            ``factors`` and ``squares`` tells something of the weights.

    Raises:
        UnknownName: no such engine or rewrite.
        UsageError: the images overflow the fixed point, or lie outside of ``input_range``.
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
    program, left_out = lower(masked, without), tuple(name for name in REWRITES if name in without)
    chosen.check(program)
    array = np.ascontiguousarray(images.numpy(), dtype=np.float32)
    certificate = None
    if chosen.has_twin:
        box = input_range or (float(array.min()), float(array.max()))
        certificate = certify(program, box, fraction_bits=chosen.fraction_bits, images=array)
        certificate.check()
    program = replace(program, input_range=input_range)  # public, so not one that was seen on the images
    run = chosen.run(program, array, batch=batch, progress=progress)
    twin = run.outputs if chosen.name == "twin" else None
    if twin is None and chosen.has_twin:
        twin = twin_outputs(program, array, progress=progress)
    with torch.no_grad(), evaluating(masked):
        floats = logits(masked(images.clone())).numpy()
    return SecureRun(chosen, network, run, twin, floats, masked.sites.input_shape, model, certificate, left_out)


def make_engine(name: str, network: str = "loopback", transfers: str | None = None) -> Engine:
    """Return the engine called ``name`` with its parties joined by ``network``.

    Args:
        transfers: how it makes oblivious transfers; its default if not given.

    Raises:
        UnknownName: no such engine.
        UsageError: no such network, an engine that has no parties to join or makes no oblivious transfers, or a
            protocol that can only be priced.
    """
    if name in PROTOCOLS and name not in ENGINES:
        raise UsageError(
            f"{name} cannot be run here, only priced by an analytic profile (reluctant cost --engine {name}); engines "
            f"that run: {', '.join(ENGINES)}"
        )
    link = parse_network(network)
    kind = ENGINES[name]
    known = {field.name for field in fields(kind)}
    if link.emulated and "network" not in known:
        raise UsageError(f"engine {name} runs in one process; a network is for engines with several parties")
    if transfers is not None and "transfers" not in known:
        raise UsageError(f"engine {name} makes no oblivious transfers; leave out how")
    settings = {"network": link, "transfers": transfers}
    return kind(**{key: v for key, v in settings.items() if key in known and v is not None})  # type: ignore[no-any-return]


def twin_outputs(program: Program, images: Outputs, *, progress: Progress = silent) -> Outputs:
    """Return the class scores ``[N, K]`` of the fixed-point twin: the same program, one process, no cryptography."""
    twin: Engine = ENGINES["twin"]()
    return twin.run(program, images, progress=progress).outputs
