"""Circa's stochastic ReLU, simulated in the clear: what its faults do to a network, and what it would save.

Paper:    Ghodsi, Jha, Reagen, Garg. Circa: Stochastic ReLUs for Private Deep Learning. NeurIPS 2021, arXiv:2106.08475.
          Read: its abstract and introduction. A ReLU is x times its sign; only the sign needs a garbled circuit, and
          that circuit shrinks if it may be wrong sometimes.
Deviates: the algebra of the shares is our reconstruction, checked by simulation: the field, the two comparisons, the
          fault probabilities, the count of gates. The fixed point (16 fraction bits where the sign is taken: 8 of an
          activation, 8 of a weight) is ours. A truncation is sought for each site, not one for the network, and
          finetuning with faults in the loop is an extension. Nothing runs between parties: no engine here speaks Circa.
Symbols:  x a field element, t the client's random share, s = x + t mod p; k -> truncation, p -> field

The sign is taken to be positive if s > t, with both shifted right by k bits: at a tie ``poszero`` says negative, so
small positive numbers may become 0, and ``negpass`` says positive, so small negative ones may pass.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from reluctant.errors import UsageError
from reluctant.masked import MaskedActivation, MaskedModel
from reluctant.progress import Progress, silent
from reluctant.task import Task
from reluctant.training import Training, evaluate, finetune

if TYPE_CHECKING:
    from lightning_fabric import Fabric

MODES = ("poszero", "negpass")


@dataclass(frozen=True, kw_only=True)
class Circa:
    """How signs are taken.

    Args:
        mode: what a tie counts as: ``poszero`` or ``negpass``.
        field: the prime p; numbers up to p / 2 in magnitude have a sign.
        fraction_bits: of the fixed-point numbers whose sign is taken.

    Raises:
        UsageError: no such mode, or a field or fraction that leaves no number.
    """

    mode: str = "poszero"
    field: int = 2138816513
    fraction_bits: int = 16

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UsageError(f"Circa's mode is {self.mode!r}, expected {' or '.join(MODES)}")
        if not 2 < self.field < 2**62 or not 0 <= self.fraction_bits < self.bits:
            raise UsageError(
                f"Circa's field is {self.field} with {self.fraction_bits} fraction bits; expected a prime under 2^62 "
                "and fewer fraction bits than it has"
            )

    @property
    def bits(self) -> int:
        """Width of a circuit's inputs: a bit more than a field element has."""
        return self.field.bit_length() + 1

    def fixed(self, z: Float[Tensor, "..."]) -> Int64[Tensor, "..."]:
        """Return ``z`` in fixed point."""
        return (z.double() * (1 << self.fraction_bits)).round().long()

    def signs(
        self, x: Int64[Tensor, "..."], truncation: int, generator: torch.Generator | None = None
    ) -> Bool[Tensor, "..."]:
        """Return whether each x counts as positive, from shares as the two parties would have them."""
        t = torch.randint(0, self.field, x.shape, generator=generator, device=x.device)
        s = (x + t) % self.field
        s, t = s >> truncation, t >> truncation
        return s > t if self.mode == "poszero" else s >= t

    def fault_probability(self, x: Float[Tensor, "..."], truncation: int) -> Float[Tensor, "..."]:
        """Return how likely the sign of each x, a whole number, is wrong so that the ReLU is.

        |x| / p that the sum of the shares wraps, and where a tie is wrong 1 - |x| / 2^k that there is one.
        """
        size = x.abs()
        wraps = (size / self.field).clamp(max=1)
        hurt = x > 0 if self.mode == "poszero" else x < 0
        ties = (1 - size / (1 << truncation)).clamp(min=0) * hurt
        return wraps + (1 - wraps) * ties

    def gates(self, truncation: int | None) -> int:
        """Return the AND gates of one ReLU: of the whole ReLU in a circuit for ``None``.

        8 n - 3 and 2 n - k for n bits: counted from DELPHI's circuit, which has 328 by that count and by measurement.
        """
        return 8 * self.bits - 3 if truncation is None else 2 * self.bits - truncation


class FaultyActivation(nn.Module):
    """Stands in for the module at a site: the signs of its kept ReLUs are sometimes wrong, in training as well.

    Gradients are those of x times the sign that was taken, so a ReLU that was passed by mistake passes its gradient.

    Args:
        activation: the module that it stands for; dropped elements go through it as ever.
        truncation: bits; ``None`` for no fault at all.

    Attributes:
        seen, faults: kept ReLUs that were computed, and wrong ones among them.
    """

    def __init__(self, activation: MaskedActivation, circa: Circa, truncation: int | None) -> None:
        super().__init__()
        self.activation, self.circa, self.truncation = activation, circa, truncation
        self.seen = self.faults = 0

    def forward(self, z: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        y: Tensor = self.activation(z)
        if self.truncation is None:
            return y
        with torch.no_grad():
            x = (z.float() * (1 << self.circa.fraction_bits)).round()
            faulty = torch.rand(z.shape, device=z.device) < self.circa.fault_probability(x, self.truncation)
            faulty &= self.activation.keep
            self.seen += len(z) * int(self.activation.keep.sum())
            self.faults += int(faulty.sum())
        return torch.where(faulty, z - y, y)  # the other one of 0 and z


@dataclass(frozen=True)
class SiteTruncation:
    """What Circa makes of one site.

    Args:
        kept: ReLUs an image.
        truncation: bits that the sign test leaves out.
        alone: accuracy on the held-out split with faults at this site only, a share of 1.
        fault_share: of its ReLUs, with faults everywhere.
    """

    name: str
    kept: int
    truncation: int
    alone: float
    fault_share: float


@dataclass(frozen=True)
class Truncations:
    """The largest truncation a site, and the network with all of them at once; accuracies are of the held-out split.

    Args:
        exact: accuracy without a fault.
        accuracy: with faults everywhere, a mean over draws.
        gates, gates_before: AND gates of an inference: Circa's, and of whole ReLUs in circuits.
    """

    circa: Circa
    sites: tuple[SiteTruncation, ...]
    exact: float
    accuracy: float
    n: int
    gates: int
    gates_before: int

    def to_json(self) -> dict[str, Any]:
        """Return all of it as a JSON object, marked as a simulation."""
        return {"simulation": True, **asdict(self)}


def largest_truncations(
    model: MaskedModel,
    task: Task,
    circa: Circa | None = None,
    *,
    points: float = 0.5,
    draws: int = 3,
    progress: Progress = silent,
) -> Truncations:
    """Return for each site with a ReLU the most bits whose truncation costs under ``points`` on the held-out split.

    Each is sought with faults at that site alone. All together may cost more; then every one is lowered by a bit until
    they do not.

    Args:
        points: percentage points of accuracy.
        draws: over which accuracies are averaged; the same ones each time.

    Raises:
        UsageError: signs are wrong too often even without truncation, since the numbers are large for the field.
    """
    circa = circa or Circa()
    least = (exact := _accuracy(model, task, circa, {}, 1)[0]) - points / 100
    kept = {activation.site.name: int(activation.keep.sum()) for activation in model.masked()}
    kept = {name: count for name, count in kept.items() if count}
    found: dict[str, int] = {}
    alone: dict[str, float] = {}
    for number, name in enumerate(kept):
        progress("truncation", number, len(kept))
        found[name], alone[name] = _largest(model, task, circa, name, least, draws)
    accuracy, shares = _accuracy(model, task, circa, found, draws)
    while accuracy <= least and any(found.values()):
        found = {name: max(0, bits - 1) for name, bits in found.items()}
        accuracy, shares = _accuracy(model, task, circa, found, draws)
    progress("truncation", len(kept), len(kept))
    if kept and accuracy <= least:
        raise UsageError(
            f"Circa's signs cost {100 * (exact - accuracy):.2f} points even without truncation: the numbers are large "
            f"for a field of {circa.field} with {circa.fraction_bits} fraction bits; take fewer"
        )
    rows = tuple(SiteTruncation(name, kept[name], found[name], alone[name], shares[name]) for name in kept)
    gates = sum(row.kept * circa.gates(row.truncation) for row in rows)
    before = sum(row.kept * circa.gates(None) for row in rows)
    return Truncations(circa, rows, exact, accuracy, len(task.val), gates, before)


def _largest(model: MaskedModel, task: Task, circa: Circa, site: str, least: float, draws: int) -> tuple[int, float]:
    """Return by bisection the most bits at ``site`` alone that leave more than ``least``, and the accuracy there."""
    low, high = 0, circa.bits - 2  # a shift by more leaves nothing of a field element
    accuracy = _accuracy(model, task, circa, {site: low}, draws)[0]
    while low < high:
        middle = (low + high + 1) // 2
        reached = _accuracy(model, task, circa, {site: middle}, draws)[0]
        if reached > least:
            low, accuracy = middle, reached
        else:
            high = middle - 1
    return low, accuracy


def _accuracy(
    model: MaskedModel, task: Task, circa: Circa, truncations: Mapping[str, int], draws: int
) -> tuple[float, dict[str, float]]:
    """Return the accuracy on the held-out split, a mean over ``draws``, and the share of faults a site."""
    with torch.random.fork_rng(), with_faults(model, circa, truncations) as gates:
        found = []
        for draw in range(draws):
            torch.manual_seed(draw)
            found.append(evaluate(model, task, "val").accuracy)
    return sum(found) / draws, {name: gate.faults / max(1, gate.seen) for name, gate in gates.items()}


@contextmanager
def with_faults(
    model: MaskedModel, circa: Circa, truncations: Mapping[str, int]
) -> Iterator[dict[str, FaultyActivation]]:
    """Let signs be wrong at the sites of ``truncations`` while inside; yield the modules there and at all other sites.

    The faults are drawn from torch's own generator.

    Raises:
        UsageError: a site that the model does not have.
    """
    strange = sorted(set(truncations) - set(model.sites))
    if strange:
        raise UsageError(f"{strange[0]!r} is no site of the model; its sites are {', '.join(model.sites)}")
    with model.gates(lambda a: FaultyActivation(a, circa, truncations.get(a.site.name))) as gates:
        yield gates


def finetune_with_faults(
    model: MaskedModel,
    task: Task,
    circa: Circa,
    truncations: Mapping[str, int],
    training: Training | None = None,
    *,
    teacher: nn.Module,
    seed: int = 0,
    fabric: "Fabric | None" = None,
    directory: Path | None = None,
    progress: Progress = silent,
) -> MaskedModel:
    """Return a copy of ``model`` finetuned while its signs are sometimes wrong, its epoch chosen with faults as well.

    What comes back has no faults in it: :func:`with_faults` puts them there again.

    Args:
        truncations: bits by site; sites without one make no faults.
        teacher: the dense network.
    """
    with with_faults(model, circa, truncations):
        tuned = finetune(
            model, task, training, teacher=teacher, seed=seed, fabric=fabric, directory=directory, progress=progress
        )
    gates = [gate for gate in tuned.activations if isinstance(gate, FaultyActivation)]
    tuned.activations = nn.ModuleList([gate.activation for gate in gates])
    return tuned
