"""From a masked PyTorch model to a program; nothing after this sees PyTorch."""

import operator
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from reluctant.errors import UnsupportedOperation
from reluctant.mask import Mask
from reluctant.masked import MaskedActivation, MaskedModel
from reluctant.program.aten import CONVERTERS
from reluctant.program.carrying import carry
from reluctant.program.channels import drop_channels
from reluctant.program.collapse import collapse
from reluctant.program.conversion import BATCH, HINTS, Refused, Value, emit
from reluctant.program.draft import Draft, Numbers
from reluctant.program.factors import factorize
from reluctant.program.folding import fold
from reluctant.program.operations import INPUT, Activation, Scale
from reluctant.program.ops import Program, ProgramSite
from reluctant.program.tracing import place, trace
from reluctant.registry import unknown

#: Rewrites that depend on values of weights: dropping channels, factors of low-rank layers, carrying the factors of
#: squares. What they gain is not there for sure where training is still to come.
BY_WEIGHTS = ("channels", "factors", "squares")

#: All rewrites that a program can do without: also merging neighbours, collapsing linear stretches, carrying scales.
REWRITES = ("merge", *BY_WEIGHTS, "collapse", "carry")


def lower(masked: MaskedModel, without: Collection[str] = ()) -> Program:
    """Return the program of ``masked``: what it computes in evaluation mode, on the CPU, in float32.

    Batch norms are folded, masks become index lists, and linear operations with nothing between them are merged where
    that is exact and no dearer. A site that keeps nothing and lets everything through vanishes, and so do slopes that
    are reciprocals of whole numbers, wherever the scaled channel can be carried on (:mod:`reluctant.program.carrying`).
    A stretch of linear operations becomes one matrix where that is cheaper (:mod:`reluctant.program.collapse`).
    Channels that no one reads are dropped (:mod:`reluctant.program.channels`), and layers of low rank become two
    smaller ones (:mod:`reluctant.program.factors`).

    Args:
        without: rewrites to leave out, to see what they gain or to tell nothing of the weights by them.

    Raises:
        UnknownName: no such rewrite.
        UnsupportedOperation: the model does something that no program has, or depends on the values in a tensor. The
            line of the model's code is named.
    """
    return lowering(masked, without)(masked.mask)


def lowering(masked: MaskedModel, without: Collection[str] = ()) -> Callable[[Mask], Program]:
    """Return what lowers ``masked`` as it is now under any mask: traced once, for those who try many.

    Raises:
        UnknownName, UnsupportedOperation: as :func:`lower`.
    """
    for name in without:
        if name not in REWRITES:
            raise unknown("rewrite", name, list(REWRITES))
    graph, activations = trace(masked)

    def lowered(mask: Mask) -> Program:
        for activation in activations:
            activation.keep.copy_(mask[activation.site.name])
        return _lower(graph, activations, tuple(masked.sites.input_shape), without)

    return lowered


def _lower(
    graph: GraphModule, activations: list[MaskedActivation], input_shape: tuple[int, ...], without: Collection[str]
) -> Program:
    draft = Draft(input_shape)
    _Lowering(graph, activations, draft).run()
    merging = "merge" not in without
    fold(draft, merging=merging)
    if "channels" not in without:
        drop_channels(draft)
        fold(draft, merging=merging)
    if "factors" not in without:
        factorize(draft)
    if "collapse" not in without:
        collapse(draft)
    if "carry" not in without:
        carry(draft, squares="squares" not in without)
    fold(draft, merging=merging)
    arrays = {name: np.ascontiguousarray(array, np.float32) for name, array in draft.arrays.items()}
    kept = {op.site: len(op.kept) for op in draft.ops if isinstance(op, Activation)}
    sites = (ProgramSite(a.site.name, kept.get(a.site.name, 0), a.site.relus, a.surrogate.name) for a in activations)
    return Program(
        ops=tuple(draft.ops),
        input_shape=draft.input_shape,
        outputs=draft.outputs,
        array_shapes={name: array.shape for name, array in arrays.items()},
        sites=tuple(sites),
        arrays=arrays,
    )


class _Lowering:
    """Walks a graph once: what does not depend on the images is computed, the rest becomes operations."""

    def __init__(self, graph: GraphModule, activations: list[MaskedActivation], draft: Draft) -> None:
        self.graph, self.activations, self.draft = graph, activations, draft
        self.known: dict[Node, Any] = {}

    def run(self) -> None:
        for node in self.graph.graph.nodes:
            try:
                self.known[node] = self._convert(node)
            except Refused as refusal:
                raise UnsupportedOperation(self._message(node, str(refusal))) from refusal

    def _message(self, node: Node, reason: str) -> str:
        where = place(node)
        name = str(node.target).removesuffix(".default")
        hint = next((hint for part, hint in HINTS.items() if part in name), HINTS[""])
        return f"{name}{' at ' + where if where else ''}: {reason or 'no secure program has it'}; {hint}"

    def _convert(self, node: Node) -> Any:
        if node.op == "placeholder":
            return Value(INPUT, self.draft.input_shape)
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self.graph)
        args, kwargs = pytree.tree_map_only(Node, lambda n: self.known[n], (node.args, node.kwargs))
        if node.op == "output":
            return self._finish(args[0])
        if node.target is operator.getitem:
            return args[0][args[1]]
        inner = pytree.tree_leaves((args, kwargs))
        target: Any = node.target
        if not any(isinstance(item, Value) for item in inner):
            if torch.Tag.nondeterministic_seeded in target.tags:
                raise Refused("it draws random numbers")
            return target(*args, **kwargs)
        name = target.name().partition(".")[0]
        if name == "reluctant::site":
            return self._activation(node.name, args[0], self.activations[args[1]])
        if name not in CONVERTERS:
            raise Refused("")
        result = CONVERTERS[name](self.draft, node.name, node.meta.get("val"), *args, **kwargs)
        self._check_shape(node, result)
        return result

    def _check_shape(self, node: Node, result: Any) -> None:
        expected = node.meta.get("val")
        if isinstance(result, Value) and isinstance(expected, Tensor):
            wanted = tuple(expected.shape)
            if (BATCH, *result.shape) != wanted:
                raise Refused(f"its result of shape {wanted} is not one of {BATCH} images apart")

    def _activation(self, name: str, z: Value, activation: MaskedActivation) -> Value:
        terms, shape = activation.surrogate.terms, activation.site.shape
        keep = activation.keep.numpy().reshape(-1)
        if activation.divisor is not None:
            return self._reciprocal(name, z, activation, keep)
        trained = [
            None if term in ("zero", "one") else c.numpy().astype(np.float64)
            for term, c in zip(terms, activation.coefficients(), strict=True)
        ]
        if not keep.any() and terms[1] != "zero" and terms[2] == "zero":
            return self._affine(name, z, trained[0], trained[1])
        if keep.all():
            trained = [None, None, None]
        dropped = [None if c is None else np.broadcast_to(c, shape).reshape(-1)[~keep] for c in trained]
        c0, c1, c2 = (self.draft.store(f"{name}.c{degree}", values) for degree, values in enumerate(dropped))
        op = Activation(
            output=name,
            inputs=(z.name,),
            site=activation.site.name,
            keep=keep,
            c0=c0,
            c1=c1,
            c2=c2,
            unit_slope=terms[1] == "one",
        )
        return emit(self.draft, op, shape)

    def _reciprocal(self, name: str, z: Value, activation: MaskedActivation, keep: NDArray[np.bool_]) -> Value:
        """A site of surrogate z / n + c0: all of it times n, which is free, and then a public scale of 1 / n.

        A channel that is kept whole has no slope, and one that keeps nothing multiplies nothing by n: no n is told.
        """
        draft, shape = self.draft, activation.site.shape
        c0 = np.broadcast_to(activation.coefficients()[0].numpy().astype(np.float64), shape).reshape(-1)
        by_channel = keep.reshape(shape[0], -1)
        n = np.where(by_channel.all(1), 1, np.asarray(activation.divisor, np.float64).reshape(-1).round())
        slopes = None if (n == 1).all() else tuple((1 / n).tolist())
        if not keep.any():
            bias = draft.store(f"{name}.bias", c0.reshape(shape))
            return emit(draft, Scale(output=name, inputs=(z.name,), bias=bias, factors=slopes), shape)
        factors = np.where(by_channel.any(1), n, 1).astype(int)
        biases = c0 * np.repeat(n, by_channel.shape[1])
        op = Activation(
            output=name if slopes is None else f"{name}.carried",
            inputs=(z.name,),
            site=activation.site.name,
            keep=keep,
            c0=None if keep.all() else draft.store(f"{name}.c0", biases[~keep]),
            factors=None if (factors == 1).all() else tuple(factors.tolist()),
        )
        carried = emit(draft, op, shape)
        if slopes is None:
            return carried
        return emit(draft, Scale(output=name, inputs=(op.output,), factors=slopes), shape)

    def _affine(self, name: str, z: Value, c0: Numbers | None, c1: Numbers | None) -> Value:
        """A site with no ReLU left whose surrogate has no square: a scale, which may be folded away."""
        scale, bias = (
            None if c is None else c.reshape(-1) if c.size == z.shape[0] else np.broadcast_to(c, z.shape)
            for c in (c1, c0)
        )
        draft = self.draft
        draft.ops.append(
            Scale(
                output=name,
                inputs=(z.name,),
                scale=draft.store(f"{name}.scale", scale),
                bias=draft.store(f"{name}.bias", bias),
            )
        )
        return Value(name, z.shape)

    def _finish(self, outputs: Any) -> None:
        found = pytree.tree_leaves(outputs)
        if not found or not all(isinstance(item, Value) for item in found):
            raise Refused("an output of the model does not depend on its input")
        self.draft.outputs = tuple(item.name for item in found)
