"""What networks of adjusted widths take of a resource, layer by layer, and widths that take as much as others."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

from reluctant.candidates import Candidate, Pricing, Target, describe
from reluctant.designs.adjusted import Adjusted
from reluctant.errors import UsageError
from reluctant.task import Task

#: What :class:`Meter` knows.
RESOURCES = ("macs", "relus", "bytes", "seconds")

#: No layer becomes narrower.
MIN_WIDTH = 4

#: How near a network is brought to the resource of another, as a share of its own.
TOLERANCE = 0.01

Widths = tuple[int, ...]


@dataclass(frozen=True)
class Meter:
    """What networks take of a resource.

    Args:
        target: whose unit is the resource.
        classes, shape: of the task; the shape of one image.
        described: what one inference of the network of that name consists of.
    """

    target: Target
    classes: int
    shape: tuple[int, int, int]
    described: Callable[[str], Candidate]

    @classmethod
    def of(cls, resource: str, task: Task, engine: str, network: str, table: Path | None = None) -> "Meter":
        """Return what measures ``resource`` for ``task``; bytes and seconds under ``engine`` over ``network``.

        Args:
            table: of prices, see :meth:`Pricing.load`.

        Raises:
            UnknownName, UsageError: no such engine or link.
        """
        where, text = None, resource
        if resource in ("bytes", "seconds"):
            where, text = Pricing.load(engine, network, table), f"in {resource}@{engine}"
        classes, shape = len(task.classes), task.input_shape
        described = cache(partial(describe, classes=classes, shape=shape, pricing=where))
        return cls(Target(text, 0.0, resource, where), classes, shape, described)

    def price(self, design: Adjusted) -> float:
        """Return what one inference takes.

        Raises:
            BudgetError: the source of prices does not say.
        """
        return self.target.measure(self.described(design.spec))

    def of_widths(self, design: Adjusted, widths: Widths) -> float:
        """Return what one inference with other ``widths`` takes; errors as :meth:`price`."""
        return self.price(with_widths(design, widths))

    def takes(self, design: Adjusted) -> dict[str, float]:
        """Return ReLUs, multiply-adds and the resource of one inference."""
        found = self.described(design.spec)
        counted = {"relus": sum(found.relus.values()), "macs": sum(found.macs.values())}
        return {**counted, self.target.unit: self.target.measure(found)}

    def weights(self, design: Adjusted) -> list[float]:
        """Return of each layer what its channels take: its width times what a channel more takes.

        Multiply-adds are those of the convolutions that write or read them; where several layers are added up, whoever
        reads the sum reads the widest one, the first of equals. ReLUs are those at the layer's own outputs, also where
        it is added to a wider one. Bytes and seconds go in steps, since ciphertexts are filled: theirs is the mean
        slope from a quarter of the width less to a quarter more.
        """
        side = min(self.shape[1:])
        if self.target.unit == "relus":
            return [float(c * (side >> stage) ** 2) for c, stage in zip(design.layers, design.stages, strict=True)]
        if self.target.unit == "macs":
            return _multiply_adds(design, self.classes, side)
        return [self._slope(design, layer) * width for layer, width in enumerate(design.layers)]

    def _slope(self, design: Adjusted, layer: int) -> float:
        widths = design.layers
        by = max(1, widths[layer] // 4)
        ends = [max(1, widths[layer] - by), widths[layer] + by]
        less, more = (self.of_widths(design, (*widths[:layer], end, *widths[layer + 1 :])) for end in ends)
        return max(more - less, 0.0) / (ends[1] - ends[0])


def _multiply_adds(design: Adjusted, classes: int, side: int) -> list[float]:
    """Return the multiply-adds that scale with each layer's width."""
    weights = [0.0] * len(design.layers)
    owner: int | None = None  # the widest layer added up in a block's input; none for the stem
    for layer, (width, stage) in enumerate(zip(design.layers, design.stages, strict=True)):
        inner = layer % 2 == 1
        read, reads = (layer - 1, design.layers[layer - 1]) if inner else (owner, design.streams[layer // 2])
        macs = 9 * reads * width * (side >> stage) ** 2
        weights[layer] += macs
        if read is not None:
            weights[read] += macs
        if inner and width > design.streams[layer // 2]:
            owner = layer
    if owner is not None:
        weights[owner] += design.streams[-1] * classes
    return weights


def match_resource(widths: Sequence[int], price: Callable[[Widths], float], wanted: float) -> Widths:
    """Return ``widths`` times one factor, so that their price is within :data:`TOLERANCE` of ``wanted``.

    The factor is found by bisection. Where two neighbours are left, since widths are whole, the first layers take the
    larger one and the others the smaller one, as near as it goes and no further above than that.

    Args:
        price: grows with the widths.

    Raises:
        UsageError: even the narrowest network takes more.
    """

    def excess(tried: Widths) -> float:
        return (price(tried) - wanted) / price(tried)

    if abs(excess(tuple(widths))) <= TOLERANCE:
        return tuple(widths)
    if excess(_scaled(widths, 0.0)) > TOLERANCE:
        raise UsageError(f"layers cannot be narrow enough: with {MIN_WIDTH} channels each they take more than wanted")
    low, high = 0.0, 1.0
    while price(_scaled(widths, high)) < wanted:
        low, high = high, 2 * high
    under, over = _scaled(widths, low), _scaled(widths, high)
    while max(b - a for a, b in zip(under, over, strict=True)) > 1:
        middle = (low + high) / 2
        tried = _scaled(widths, middle)
        if abs(excess(tried)) <= TOLERANCE:
            return tried
        if price(tried) < wanted:
            low, under = middle, tried
        else:
            high, over = middle, tried
    mixed = [over[:layer] + under[layer:] for layer in range(len(under) + 1)]
    above = max(1, bisect_left(mixed, wanted, key=price))
    return min(mixed[above - 1 : above + 1], key=lambda tried: (excess(tried) > TOLERANCE, abs(excess(tried))))


def _scaled(widths: Sequence[int], factor: float) -> Widths:
    return tuple(max(MIN_WIDTH, round(width * factor)) for width in widths)


def with_widths(design: Adjusted, widths: Sequence[int]) -> Adjusted:
    """Return ``design`` with other widths, each as it is given."""
    return replace(design, widths=tuple(widths), base=design.width)
