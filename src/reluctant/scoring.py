"""How many images each of many candidates for a mask gets right, and which candidate gets most.

A candidate is a masked network with other masks at some sites. Two things make scoring fast, and neither changes what
is counted:

* Up to the first site that it changes, a candidate computes what the network does. So one walk through the network, on
  a batch of images, branches off at every site that a candidate changes first (:class:`Branching`). The walk goes
  through the graph of aten operations that a traced pass leaves, with in-place operations made functional: so whatever
  is alive at a site stays as it is, and what nothing later reads is let go.
* Images come in the order of the network's own margins, the lowest first: those that a candidate may lose. One that
  could not win even with all images to come is left where it is (:class:`Race`).
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg

from reluctant.distillation import logits
from reluctant.markers import Marker
from reluctant.masked import MaskedActivation, MaskedModel
from reluctant.sites import evaluating
from reluctant.task import Split

if TYPE_CHECKING:
    from lightning_fabric import Fabric

log = logging.getLogger(__name__)

#: What a candidate keeps at the sites that it changes.
Change = Mapping[str, Bool[Tensor, "..."]]


@contextmanager
def changed(model: MaskedModel, change: Change) -> Iterator[None]:
    """Let ``model`` keep what ``change`` says while inside."""
    activations = [a for a in model.masked() if a.site.name in change]
    before = [activation.keep for activation in activations]
    try:
        for activation in activations:
            activation.keep = change[activation.site.name].to(activation.keep.device)
        yield
    finally:
        for activation, keep in zip(activations, before, strict=True):
            activation.keep = keep


class Branching:
    """One evaluation pass of a masked network on batches of one shape, which can branch off at any site.

    Weights, running statistics and masks are those that the network has when a walk is made.

    Args:
        model: on the device of ``images``; it must stay there.
        images: ``[B, C, H, W]``; only their shape counts.

    Raises:
        Exception: whatever torch raises where the pass depends on the values in a tensor.
    """

    def __init__(self, model: MaskedModel, images: Float[Tensor, "B C H W"], fabric: "Fabric") -> None:
        self.activations: list[MaskedActivation] = model.masked()
        self.batch = len(images)
        index = {activation.site.name: number for number, activation in enumerate(self.activations)}
        with evaluating(model), model.gates(lambda a: Marker(index[a.site.name])), torch.no_grad(), fabric.autocast():
            # The clone is for networks that overwrite their input.
            pure = torch.func.functionalize(lambda images: logits(model(images.clone())))
            self.graph: GraphModule = make_fx(pure)(images)
        self.graph.graph.eliminate_dead_code()
        nodes = list(self.graph.graph.nodes)
        varying: set[Node] = set()
        for node in nodes:
            if node.op == "placeholder" or varying.intersection(node.all_input_nodes):
                varying.add(node)
        self.fixed = [node for node in nodes if node not in varying and node.op != "output"]
        self.nodes = [node for node in nodes if node in varying and node.op not in ("placeholder", "output")]
        (self.input,) = (node for node in nodes if node.op == "placeholder")
        self.output: Node = nodes[-1].all_input_nodes[0]
        self.varying = varying
        names = list(index)
        self.sites = {names[_number(node)]: k for k, node in enumerate(self.nodes) if _is_branch(node)}
        last = {argument: node for node in self.nodes for argument in node.all_input_nodes}
        self.dead = {
            node: [a for a in node.all_input_nodes if last[a] is node and a in varying and a is not self.output]
            for node in self.nodes
        }

    @torch.no_grad()
    def walk(self, images: Float[Tensor, "B C H W"], changes: Sequence[Change]) -> list[Float[Tensor, "B K"]]:
        """Return the class scores of each of ``changes`` for ``images``: one pass, and from each first site the rest.

        A change of nothing is the network itself.
        """
        first = [min((self.sites[name] for name in change), default=len(self.nodes)) for change in changes]
        found: dict[int, Tensor] = {}
        values: dict[Node, Any] = {}
        for node in self.fixed:
            values[node] = self._value(node, values, {})
        values[self.input] = images
        for position in range(max(first, default=-1) + 1):
            for number, change in enumerate(changes):
                if first[number] == position:
                    found[number] = self._rest(values, position, change)
            if position < len(self.nodes):
                self._step(self.nodes[position], values, {})
        return [found[number] for number in range(len(changes))]

    def _rest(self, values: dict[Node, Any], start: int, change: Change) -> Tensor:
        values = dict(values)
        for node in self.nodes[start:]:
            self._step(node, values, change)
        scores: Tensor = values[self.output]
        return scores.float()

    def _step(self, node: Node, values: dict[Node, Any], change: Change) -> None:
        values[node] = self._value(node, values, change)
        for argument in self.dead[node]:
            del values[argument]

    def _value(self, node: Node, values: dict[Node, Any], change: Change) -> Any:
        if node.op == "get_attr":
            return getattr(self.graph, str(node.target))
        args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
        if not _is_branch(node):
            return node.target(*args, **kwargs)  # type: ignore[operator]
        activation = self.activations[_number(node)]
        before = activation.keep
        try:
            activation.keep = change.get(activation.site.name, before)
            return activation(args[0])
        finally:
            activation.keep = before


def _is_branch(node: Node) -> bool:
    return node.target is torch.ops.reluctant.site.default


def _number(node: Node) -> int:
    """Return the number of the site that the branch ``node`` stands for."""
    number = node.args[1]
    assert isinstance(number, int), "a marker is made with a number"
    return number


class Scorer:
    """Counts the images that variants of one masked network get right, in evaluation mode and training precision.

    Args:
        images: all that there are, un-augmented; every count is over the same.
        batch: images a walk. On a CPU small batches stay in its cache.
        branching: ``False`` runs every candidate from its first operation, as the network itself does: the same
            counts, for comparison and for networks that cannot be traced.

    Attributes:
        order: of the images.
        known: how many the network got right when they were put in order; those come last.
    """

    def __init__(
        self, model: MaskedModel, images: Split, fabric: "Fabric", *, batch: int = 64, branching: bool = True
    ) -> None:
        self.model, self.images, self.fabric, self.batch = model, images.to(fabric.device), fabric, batch
        self.branching = branching
        self.order = torch.arange(len(images), device=fabric.device)
        self.known = len(images)
        self._traced: dict[int, Branching] = {}

    def __len__(self) -> int:
        return len(self.images)

    @property
    def chunks(self) -> int:
        """Batches that the images are counted in."""
        return -(-len(self) // self.batch)

    def chunk(self, number: int) -> tuple[Float[Tensor, "B C H W"], Int64[Tensor, "B"]]:
        """Return the images and labels of batch ``number`` in the order of now."""
        index = self.order[number * self.batch : (number + 1) * self.batch]
        return self.images.inputs(index), self.images.labels[index]

    def rank(self) -> int:
        """Put the images that the network is least sure of first; return how many it gets right.

        How sure: by the score of an image's class over the highest of the others.
        """
        self.order = torch.arange(len(self), device=self.order.device)
        margins, right = [], 0
        for number in range(self.chunks):
            images, labels = self.chunk(number)
            scores = self.scores(images, [{}])[0]
            mine = scores.gather(1, labels[:, None])[:, 0]
            margins.append(mine - scores.scatter(1, labels[:, None], -torch.inf).amax(1))
            right += int((scores.argmax(1) == labels).sum())
        self.order = torch.cat(margins).argsort(stable=True)
        self.known = right
        return right

    def right(self, changes: Sequence[Change], chunk: int | None = None) -> list[int]:
        """Return how many images of batch ``chunk``, or of all, the network gets right under each of ``changes``."""
        if chunk is None:
            parts = [self.right(changes, number) for number in range(self.chunks)]
            return [sum(counts) for counts in zip(*parts, strict=True)]
        images, labels = self.chunk(chunk)
        return torch.stack([(s.argmax(1) == labels).sum() for s in self.scores(images, changes)]).tolist()

    @torch.no_grad()
    def scores(self, images: Float[Tensor, "B C H W"], changes: Sequence[Change]) -> list[Float[Tensor, "B K"]]:
        """Return the class scores of ``images`` under each of ``changes``."""
        if self.branching and len(images) not in self._traced:
            try:
                self._traced[len(images)] = Branching(self.model, images, self.fabric)
            except Exception as error:
                self.branching, reason = False, str(error).strip().split("\n")[0]
                log.warning("candidates are scored by whole passes: the network cannot be traced (%s)", reason)
        if self.branching:
            return self._traced[len(images)].walk(images, changes)
        found = []
        with self.fabric.autocast(), evaluating(self.model):
            for change in changes:
                with changed(self.model, change):
                    found.append(logits(self.model(images.clone())).float())
        return found


class Race:
    """Candidates of which one is wanted: each is scored, a batch of images at a time, only as far as that needs.

    Attributes:
        right: images that each got right so far.
        done: batches that each was scored on.
    """

    def __init__(self, scorer: Scorer, changes: Sequence[Change]) -> None:
        self.scorer, self.changes = scorer, changes
        self.right, self.done = [0] * len(changes), [0] * len(changes)

    def most(self, number: int) -> int:
        """Return how many images candidate ``number`` may get right in the end."""
        return self.right[number] + self._left(number)

    def likely(self, number: int) -> int:
        """Return how many it gets right in the end if it does as the network itself from here on."""
        return self.right[number] + min(self._left(number), self.scorer.known)

    def _left(self, number: int) -> int:
        return max(0, len(self.scorer) - self.done[number] * self.scorer.batch)

    def is_done(self, number: int) -> bool:
        """Return whether candidate ``number`` was scored on all images."""
        return self.done[number] == self.scorer.chunks

    def best(self) -> int:
        """Return the candidate that gets most images right, the first of equals; it alone is surely scored on all."""
        numbers = range(len(self.changes))
        while True:
            leader = max(numbers, key=lambda number: (self.most(number), -number))
            if self.is_done(leader):
                return leader
            # With the leader go all that will have to, most likely: a walk together is shorter than two.
            mark, place = max(map(self.likely, numbers)), self.done[leader]
            self._go_on([n for n in numbers if self.done[n] == place and (n == leader or self.most(n) > mark)])

    def first(self, enough: int) -> int | None:
        """Return the first candidate that gets at least ``enough`` images right, scored on all; ``None`` if none does.

        They are scored in groups: one by itself, as the first mostly is good enough, then twice as many at a time.
        """
        begin, size = 0, 1
        while begin < len(self.changes):
            group = range(begin, min(begin + size, len(self.changes)))
            while running := [n for n in group if not self.is_done(n) and self.most(n) >= enough]:
                self._go_on([n for n in running if self.done[n] == self.done[running[0]]])
            good = [number for number in group if self.is_done(number) and self.right[number] >= enough]
            if good:
                return good[0]
            begin, size = begin + size, 2 * size
        return None

    def finish(self, number: int) -> int:
        """Return how many of all images candidate ``number`` gets right."""
        while not self.is_done(number):
            self._go_on([number])
        return self.right[number]

    def _go_on(self, numbers: Sequence[int]) -> None:
        """Score ``numbers``, all as far as each other, on one more batch."""
        counts = self.scorer.right([self.changes[number] for number in numbers], self.done[numbers[0]])
        for number, count in zip(numbers, counts, strict=True):
            self.right[number] += count
            self.done[number] += 1
