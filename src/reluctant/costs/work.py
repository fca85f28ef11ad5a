"""What a program makes the parties of CHEETAH do, operation by operation, as ``engines/steps.py`` has them run."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from reluctant.costs.cheetah import TRANSFERS_A_COMPARISON, TRIED_COMPARISONS, Stocks, Work
from reluctant.costs.model import Part
from reluctant.program.operations import INPUT, Activation, AvgPool, Conv2d, Linear, MaxPool, Op, Scale
from reluctant.program.ops import Program

#: Who knows a value: one party alone, which then computes with it for nothing, or neither.
Holder = Literal["shared", "client", "server"]


def stocks_of(program: Program, batch: int, processors: int, stock: int) -> Stocks:
    """Return the stocks that set-up for ``program`` in batches of ``batch`` images leaves.

    Args:
        processors: streams that a long tensor falls into.
        stock: comparisons for which one fetched stock of oblivious transfers lasts, a stream.
    """
    return Stocks.after_set_up(
        processors,
        stock * TRANSFERS_A_COMPARISON,
        longest=batch * max(math.prod(shape) for shape in program.shapes.values()),
        largest=batch * _most_comparisons(program),
        squares=any(op.squares for op in program.activations()),
    )


def set_up_work(program: Program, batch: int, processors: int, stock: int) -> tuple[list[str], Work]:
    """Return what is done once before the images come: parts of the set-up, and the work that runs in it.

    As ``engines/preparation.py`` has it.

    Args:
        processors, stock: as for :func:`stocks_of`.
    """
    stocks = Stocks(processors, stock * TRANSFERS_A_COMPARISON, [1 << 60] * processors)
    compared = batch * _most_comparisons(program)
    done = stocks.truncate(batch * max(math.prod(shape) for shape in program.shapes.values()))
    parts = ["connection", "product"]
    if compared:
        parts.append("comparison")
        done += stocks.compare(max(compared, TRIED_COMPARISONS))
    activations = list(program.activations())
    if any(isinstance(op, Scale) and op.scale for op in program.ops) or any(op.scales for op in activations):
        parts.append("slope")
    if any(op.squares for op in activations):
        parts.append("square")
    return parts + ["operation"] * len(program.ops), done


def work(program: Program, batch: int, stocks: Stocks) -> Iterator[tuple[Op | None, Part, Work]]:
    """Yield the work of ``program`` on one batch: for which operation (none for the answers), as which part of it."""
    for op, part, done in _work(program, batch, stocks):
        yield op, part, done + Work({"step": 1})


def _work(program: Program, batch: int, stocks: Stocks) -> Iterator[tuple[Op | None, Part, Work]]:
    held = holders(program)
    for op in program.ops:
        if isinstance(op, Activation):
            yield from activation_work(op, held[op.inputs[0]], batch, stocks)
        elif held[op.output] != "shared":
            continue
        elif isinstance(op, MaxPool):
            compared = maxima(op, program.shapes[op.inputs[0]])
            yield op, "pooling", _sum_of(stocks.compare(batch * n) for n in compared)
        else:
            yield op, "linear", _linear(op, program, batch, held[op.inputs[0]], stocks)
    for name in program.outputs:
        yield None, "answer", Work({"result": 1, "result element": batch * math.prod(program.shapes[name])})


def holders(program: Program) -> dict[str, Holder]:
    """Return who holds each value of ``program``; what one party holds alone it computes with for nothing."""
    held: dict[str, Holder] = {INPUT: "client"}
    for op in program.ops:
        held[op.output] = _holder(op, [held[name] for name in op.inputs])
    return held


def _holder(op: Op, reads: Iterable[Holder]) -> Holder:
    """Return who holds what ``op`` makes from values of the holders ``reads`` and from arrays of the server."""
    constant = isinstance(op, Activation) and not (len(op.kept) or op.unit_slope or op.c1 or op.squares)
    found: set[Holder] = set() if constant else set(reads)
    if op.arrays() or not found:
        found.add("server")
    return found.pop() if len(found) == 1 else "shared"


def _linear(op: Op, program: Program, batch: int, holder: Holder, stocks: Stocks) -> Work:
    size = batch * math.prod(program.shapes[op.output])
    if isinstance(op, Conv2d):
        return _convolution(op, program, batch, size, stocks)
    if isinstance(op, Linear):
        outputs, inputs = program.array_shapes[op.weight]
        return stocks.product(batch, inputs, outputs)
    if isinstance(op, Scale):
        public = (abs(op.factor) != 1) + (op.factors is not None) if holder == "shared" else 0
        found = _sum_of(stocks.truncate(size) for _ in range(public))
        return found if op.scale is None else found + _times(size, holder, "server", stocks)
    return stocks.truncate(size) if isinstance(op, AvgPool) else Work()


def _convolution(op: Conv2d, program: Program, batch: int, size: int, stocks: Stocks) -> Work:
    """One matrix product of all windows and the kernel, which is dense: its groups are zeros.

    XLA exchanges image and kernel if the kernel is larger. A kernel that is dilated, or padded after such an exchange,
    is private no more.
    """
    channels, *image = program.shapes[op.inputs[0]]
    outputs, _, *kernel = program.array_shapes[op.weight]
    reach = [1 + dilation * (k - 1) for dilation, k in zip(op.dilation, kernel, strict=True)]
    padding = (op.padding[:2], op.padding[2:])
    plain = [stride == dilation == 1 for stride, dilation in zip(op.stride, op.dilation, strict=True)]
    covering = [
        k == n and whole and not any(pads) for k, n, whole, pads in zip(kernel, image, plain, padding, strict=True)
    ]
    pairs = [(k, n) for k, n, covers in zip(kernel, image, covering, strict=True) if not covers]
    private = max(op.dilation) == 1
    if math.prod(k for k, _ in pairs) <= math.prod(n for _, n in pairs):
        dims = (size // outputs, channels * math.prod(reach), outputs)
    else:
        dims = (size // batch, channels * math.prod(image), batch)
        private &= all(n + pad == far for n, pads, far in zip(image, padding, reach, strict=True) for pad in pads)
    copied = Work({"window element": dims[0] * dims[1]})
    return copied + (stocks.product(*dims) if private else stocks.shared_product(*dims))


def activation_work(op: Activation, holder: Holder, batch: int, stocks: Stocks) -> Iterator[tuple[Op, Part, Work]]:
    """Yield the work of an activation whose input ``holder`` has, on ``batch`` images."""
    if len(op.kept) and holder == "shared":
        yield op, "comparison", stocks.compare(batch * len(op.kept))
    size = batch * len(op.rest)
    if not size and op.factors is None:
        return
    done = Work({"gathered element": batch * len(op.keep)})
    if op.scales:
        done += _times(size, holder, "server", stocks)
    if op.squares:  # by Horner, as the executable has it
        alone = holder == "server" or (op.c1 is None and op.c2 is None)
        done += _times(size, holder if alone else "shared", holder, stocks)
    yield op, "surrogate", done


def _times(size: int, first: Holder, second: Holder, stocks: Stocks) -> Work:
    """A product of two values, element by element; one of a party's own numbers costs nothing."""
    if first == second:
        return stocks.multiply(size) if first == "shared" else Work()
    return stocks.scale(size) if "shared" in (first, second) else stocks.multiply(size)


def maxima(op: MaxPool, shape: Sequence[int]) -> Iterator[int]:
    """Yield the elements of each maximum that the executable takes for one sample: rows first, in pairs of slices."""
    channels, *sizes = shape
    for axis in (0, 1):
        reach = op.dilation[axis] * (op.kernel[axis] - 1)
        sizes[axis] = (sizes[axis] + 2 * op.padding[axis] - reach - 1) // op.stride[axis] + 1
        yield from [channels * math.prod(sizes)] * (op.kernel[axis] - 1)


def _most_comparisons(program: Program) -> int:
    """Return the comparisons of the step that makes most of them, for one image."""
    counts = [len(op.kept) for op in program.activations()]
    counts += [sum(maxima(op, program.shapes[op.inputs[0]])) for op in program.ops if isinstance(op, MaxPool)]
    return max(counts, default=0)


def _sum_of(items: Iterable[Work]) -> Work:
    return sum(items, Work())
