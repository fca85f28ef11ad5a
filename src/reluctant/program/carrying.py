"""Let scales vanish: what they scale is carried, so many times as large, to where a product is anyway.

A site whose surrogate is ``z / n + b`` is lowered to ``w = n relu(z)`` or ``w = z + n b``, both free on shares, and a
public scale of ``1 / n``. That scale need not be computed: the program may hold ``s v`` in the place of any value
``v``, with its own positive ``s`` for each channel, as long as the weights that make and take ``s v`` know it.

    Conv2d, Linear, private Scale    any s before and after: weights become W s_after / s_before, biases b s_after
    Add, Activation, pools, ...      the same s before and after; c0 becomes s c0, and c2 becomes c2 / s
    public Scale of f                vanishes if s_before = f s_after
    private factor of a square       vanishes if s_before = n c2 and s_after = n^2 c2 for a public whole number n
    input, outputs                   s = 1

The last but one is for parabolas ``c2 z^2 + c1 z + c0`` a channel with a positive c2. Held as ``x = n c2 z``, n^2 c2
times the parabola is ``(x + n c1) x + n^2 c2 c0``, and n^2 c2 times a kept ReLU is ``n relu(x)``: of two products, each
truncated, one is left, that of two shares. The n is one a site, the least power of two that leaves no s too small; the
weights after the site lose log2 n bits. Here s is private, but it only goes into private weights: told are n, and which
sites are rid of their factor.

So channels fall into groups within which each s is a known multiple of the others: a stage of a residual network is one
group, in which the n multiply from site to site. A public scale that contradicts its group (two sums of the same
streams, say) stays, which costs a truncation an element. Then all s are made of public numbers only, and so are the
scales that stay: a program with public scales keeps the factors of its squares. Of the sites in one stage's residual
stream one alone can be rid of its factor: the largest, or the first of them.

How large s may get is bounded, by :data:`LARGEST`. Values are numbers of 64 bits, 18 of them behind the binary point;
a product has 36 before it is truncated, which leaves 27 bits for a layer's outputs: s may take five. Weights lose more:
W s_after / s_before has log2 n of its 18 bits less in the ordinary case; where a site's c2 is far below that of the
site before it, up to those of :data:`FAINTEST`. Where a bound is reached, a square keeps its factor, and a public scale
stays and brings s down as far as it may: it is made a power of two, which fixed point holds exactly.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from reluctant.program.draft import Draft, Numbers, aligned
from reluctant.program.operations import (
    INPUT,
    Activation,
    Concat,
    Conv2d,
    Linear,
    Op,
    Pad,
    Reshape,
    Scale,
    Shape,
    Slice,
)

#: No value is held more than so many times as large as it is, and the product of the n that are carried at once through
#: values whose scale is free is at most the square of it.
LARGEST = 32

#: No value is held less than so many times as large as it is. Between this and twice as much the scores of two networks
#: with parabolas were nearest to those in floating point: a smaller s costs the values bits, a larger n the weights.
SMALLEST = 1 / 64

#: No weight is held less than so many times as large as it is for the sake of a square. Measured with the twin on
#: AutoReP's ResNet-20 for CIFAR-100, 2 % and 25 % kept: without this bound weights went down to 1/830 and 1/240, scores
#: (of deviations 3 and 4) were off by 0.02 in the mean, and 3 of 160 answers changed; with it by 0.007 and 0.010, and
#: none did. With no factor carried it was 0.001.
FAINTEST = 1 / 128

#: So many bits a public scale may take at once: two fewer than there are behind the binary point.
_MOST_BITS = 16

_ONE = 0

Nodes = NDArray[np.int64]


def carry(draft: Draft, *, squares: bool = True) -> None:
    """Rewrite ``draft``, which is folded, so that as few scales a channel are left in it as possible.

    Args:
        squares: whether the factors of squares are carried, too.
    """
    public = any(isinstance(op, Scale) and op.factors is not None for op in draft.ops)
    parabolas = _squares(draft) if squares and not public else {}
    if not public and not parabolas:
        return
    shapes = draft.shapes()
    scales = _solve(draft, shapes, parabolas)
    for old in list(draft.ops):
        op = next(op for op in draft.ops if op.output == old.output)  # it may read what stands before one dropped since
        _rewrite(draft, op, shapes[op.output], [scales[name] for name in old.inputs], scales[op.output])


class _Groups:
    """Nodes whose scales hang together: ``scale = ratio * scale of the group's root``. Node ``_ONE`` has scale 1."""

    def __init__(self) -> None:
        self.parent, self.ratio = [_ONE], [1.0]
        self.low, self.high = [1.0], [1.0]  # of the ratios in the group, at its root

    def copy(self) -> "_Groups":
        """Return groups of their own that are the same so far."""
        other = _Groups()
        other.parent, other.ratio = self.parent.copy(), self.ratio.copy()
        other.low, other.high = self.low.copy(), self.high.copy()
        return other

    def add(self, count: int) -> Nodes:
        """Return so many new nodes, each a group of its own."""
        first = len(self.parent)
        self.parent += range(first, first + count)
        for values in (self.ratio, self.low, self.high):
            values += [1.0] * count
        return np.arange(first, first + count)

    def root(self, node: int) -> int:
        """Return the root of the group of ``node``; from then on it is its parent."""
        path = []
        while self.parent[node] != node:
            path.append(node)
            node = self.parent[node]
        for below in reversed(path):
            self.ratio[below] *= self.ratio[self.parent[below]]
            self.parent[below] = node
        return node

    def tie(self, one: int, other: int, ratio: float = 1.0) -> None:
        """Let the scale of ``one`` be ``ratio`` times that of ``other``, which :meth:`fits`."""
        first, second, factor, low, high = self._joined(one, other, ratio)
        if first != second:
            self.parent[first], self.ratio[first] = second, factor
            self.low[second], self.high[second] = low, high

    def fits(self, one: int, other: int, ratio: float) -> bool:
        """Return whether the scale of ``one`` is, or may be, ``ratio`` times that of ``other``."""
        first, second, factor, low, high = self._joined(one, other, ratio)
        if first == second:
            return math.isclose(factor, 1)
        if second == _ONE:
            return high <= LARGEST * (1 + 1e-9) and low >= SMALLEST * (1 - 1e-9)
        return math.sqrt(high / low) <= LARGEST * (1 + 1e-9)

    def _joined(self, one: int, other: int, ratio: float) -> tuple[int, int, float, float, float]:
        """Return the root to hang up, the root to hang it to, their ratio, and the bounds of the ratios then."""
        first, second = self.root(one), self.root(other)
        factor = ratio * self.ratio[other] / self.ratio[one]
        if first == _ONE:
            first, second, factor = second, first, 1 / factor
        low, high = (factor * bound[first] for bound in (self.low, self.high))
        return first, second, factor, min(low, self.low[second]), max(high, self.high[second])

    def scale(self, node: int) -> float:
        """Return the scale of ``node``; a group that holds no fixed one is as far above 1 as below."""
        root = self.root(node)
        return self.ratio[node] * (1.0 if root == _ONE else 1 / math.sqrt(self.low[root] * self.high[root]))


class _Square(NamedTuple):
    """A parabola whose factor c2 may vanish: elements of its site, c2 a channel (0 if none is dropped), and its n."""

    elements: int
    c2: Numbers
    times: int


def _squares(draft: Draft) -> dict[str, _Square]:
    """Return the parabolas of ``draft`` that have one positive c2 a channel, by the value they make, large sites first.

    Which of them compete for a stream, and which comes first there, does not depend on the mask as long as each drops
    something in every channel.
    """
    found = {}
    for op in draft.ops:
        if isinstance(op, Activation) and op.c2 is not None:
            channels = draft.shapes()[op.output][0]
            c2 = np.zeros(len(op.keep))
            c2[op.rest] = draft.arrays[op.c2]
            c2, dropped = c2.reshape(channels, -1), ~op.keep.reshape(channels, -1)
            lowest, highest = np.where(dropped, c2, np.inf).min(1), c2.max(1)
            if (np.where(dropped, c2, 1) > 0).all() and (lowest >= highest * (1 - 1e-9)).all():
                n = 1
                while n < LARGEST and n * highest[highest > 0].min() < SMALLEST:
                    n *= 2
                found[op.output] = _Square(len(op.keep), highest, n)
    return dict(sorted(found.items(), key=lambda item: -item[1].elements))


def _solve(draft: Draft, shapes: Mapping[str, Shape], squares: Mapping[str, _Square]) -> dict[str, Numbers]:
    """Return the scale of each channel of each value."""
    groups = _Groups()
    nodes = {INPUT: np.full(shapes[INPUT][0], _ONE)}
    parabolas = []
    for op in draft.ops:
        nodes[op.output] = _nodes(groups, op, [nodes[name] for name in op.inputs], shapes)
        if op.output in squares:
            nodes[op.output] = groups.add(shapes[op.output][0])
            parabolas.append((op.output, nodes[op.output].tolist(), nodes[op.inputs[0]].tolist()))
    for name in draft.outputs:
        _tie(groups, nodes[name], np.full(len(nodes[name]), _ONE))
    layers = [_layer(op, nodes) for op in draft.ops if isinstance(op, Conv2d | Linear) or _is_private(op)]
    groups = _rid_of_factors(groups, squares, parabolas, layers)
    for op in draft.ops:  # only now: everything above must hold, and does, being all ratios of 1
        if isinstance(op, Scale) and op.scale is None and op.factors is not None:
            ends = (nodes[name].tolist() for name in (op.output, op.inputs[0]))
            _vanish(groups, [(*tie, 1 / factor) for *tie, factor in zip(*ends, op.factors, strict=True)])
    return {name: np.array([groups.scale(node) for node in found.tolist()]) for name, found in nodes.items()}


def _rid_of_factors(
    groups: _Groups,
    squares: Mapping[str, _Square],
    parabolas: Sequence[tuple[str, list[int], list[int]]],
    layers: Sequence[tuple[Nodes, Nodes]],
) -> _Groups:
    """Return ``groups`` with the nodes after and before each parabola tied; its factor vanishes wherever it may.

    Args:
        parabolas: the value that each makes, and its nodes after and before.
        layers: see :func:`_layer`.
    """
    chosen: set[str] = set()

    def tied() -> _Groups | None:
        trial = groups.copy()
        for name, after, before in parabolas:
            n, c2 = (squares[name].times, squares[name].c2.tolist()) if name in chosen else (1, [0.0] * len(after))
            fixed = [(two, _ONE, n * factor) for two, factor in zip(before, c2, strict=True) if factor]
            across = [(one, two, float(n)) for one, two in zip(after, before, strict=True)]
            for tie in dict.fromkeys((*fixed, *across)):
                if not trial.fits(*tie):
                    return None
                trial.tie(*tie)
        return trial if all(_faintest(trial, *layer) >= FAINTEST * (1 - 1e-9) for layer in layers) else None

    best = tied()
    assert best is not None  # all ratios are 1
    for name in squares:
        chosen.add(name)
        trial = tied()
        if trial is None:
            chosen.remove(name)
        best = trial or best
    return best


def _is_private(op: Op) -> bool:
    """Return whether ``op`` is a scale with private factors."""
    return isinstance(op, Scale) and op.scale is not None


def _layer(op: Op, nodes: Mapping[str, Nodes]) -> tuple[Nodes, Nodes]:
    """Return the nodes before and after what has weights, a row for each group of its channels."""
    groups = op.groups if isinstance(op, Conv2d) else len(nodes[op.output]) if isinstance(op, Scale) else 1
    return nodes[op.inputs[0]].reshape(groups, -1), nodes[op.output].reshape(groups, -1)


def _faintest(groups: _Groups, before: Nodes, after: Nodes) -> float:
    """Return how many times as large as it is the weight of a layer is held that is held least so."""
    largest, smallest = (
        np.array([end(groups.scale(node) for node in set(row)) for row in side.tolist()])
        for end, side in ((max, before), (min, after))
    )
    return float((smallest / largest).min())


def _tie(groups: _Groups, some: Nodes, others: Nodes) -> None:
    """Let scales be the same, node by node."""
    for one, other in dict.fromkeys(zip(some.tolist(), others.tolist(), strict=True)):
        groups.tie(one, other)


def _nodes(groups: _Groups, op: Op, inputs: Sequence[Nodes], shapes: Mapping[str, Shape]) -> Nodes:
    """Return the nodes of the channels that ``op`` puts out: its inputs', where their scales must be the same."""
    channels = shapes[op.output][0]
    if isinstance(op, Conv2d | Linear) or _is_private(op) or (isinstance(op, Scale) and op.factors is not None):
        return groups.add(channels)
    first, *others = inputs
    if isinstance(op, Concat):
        return np.concatenate(inputs)
    if isinstance(op, Slice):
        return first[op.start[0] : op.stop[0] : op.step[0]]
    if isinstance(op, Pad):
        low, high = op.low[0], op.high[0]
        return np.concatenate([groups.add(low), first, groups.add(high)]) if low or high else first
    if isinstance(op, Reshape):
        elements = np.repeat(first, math.prod(op.shape) // len(first)).reshape(channels, -1)
        for column in elements.T[1:]:
            _tie(groups, elements[:, 0], column)
        return elements[:, 0].copy()
    for other in others:
        _tie(groups, first, other)
    return first


def _vanish(groups: _Groups, ties: list[tuple[int, int, float]]) -> None:
    """Let all of ``ties`` hold; if not all can, a public scale stays, and every channel is brought down by it."""
    most = 0 if all(groups.fits(*tie) for tie in ties) else _MOST_BITS
    for after, before, ratio in ties:
        lowered = (ratio / 2**bits for bits in range(most, -1, -1))
        fitting = next((r for r in lowered if groups.fits(after, before, r)), None)
        if fitting is not None:
            groups.tie(after, before, fitting)


def _rewrite(draft: Draft, op: Op, shape: Shape, before: list[Numbers], after: Numbers) -> None:
    """Make ``op`` compute with the scales ``before`` of its inputs' channels and ``after`` of its output's."""
    arrays = draft.arrays
    if isinstance(op, Conv2d | Linear | Scale) and op.bias is not None:
        arrays[op.bias] = arrays[op.bias] * aligned(arrays[op.bias].shape, after)
    if isinstance(op, Conv2d | Linear):
        weight, groups = arrays[op.weight], op.groups if isinstance(op, Conv2d) else 1
        taken = np.repeat(before[0].reshape(groups, -1), len(weight) // groups, 0)
        arrays[op.weight] = (
            weight * aligned(weight.shape, after) / taken.reshape(*weight.shape[:2], *[1] * (weight.ndim - 2))
        )
    elif isinstance(op, Scale) and op.scale is not None:
        arrays[op.scale] = arrays[op.scale] * aligned(arrays[op.scale].shape, after / before[0])
    elif isinstance(op, Scale) and op.factors is not None:
        left = np.asarray(op.factors) * after / before[0]
        rest = replace(op, factors=None if np.allclose(left, 1, rtol=1e-9) else tuple(left.tolist()))
        draft.swap(op, rest)
        if rest.factors is None and not rest.arrays() and rest.factor == 1:
            draft.drop(rest)
    elif isinstance(op, Activation):
        _rewrite_activation(draft, op, shape, before[0], after)


def _rewrite_activation(draft: Draft, op: Activation, shape: Shape, before: Numbers, after: Numbers) -> None:
    arrays = draft.arrays

    def dropped(factors: Numbers) -> Numbers:
        return np.broadcast_to(aligned(shape, factors), shape).reshape(-1)[op.rest]

    if op.c0 is not None:
        arrays[op.c0] = arrays[op.c0] * dropped(after)
    if op.c2 is None:
        return
    arrays[op.c2] = arrays[op.c2] * dropped(after / before**2)
    if not np.allclose(arrays[op.c2], 1, rtol=1e-6):
        return
    times = np.rint(after / before).astype(int)
    if op.c1 is not None:
        arrays[op.c1] = arrays[op.c1] * dropped(times)
    slopes = op.c1 if op.c1 is not None or not op.unit_slope else draft.store(f"{op.output}.c1", dropped(times))
    kept = times * op.keep.reshape(shape[0], -1).any(1)
    factors = tuple(np.maximum(kept, 1).tolist()) if kept.max() > 1 else None
    draft.swap(op, replace(op, c1=slopes, c2=None, unit_square=True, factors=factors))
