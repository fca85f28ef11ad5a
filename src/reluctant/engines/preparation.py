"""Do what a protocol does once before the images come, so that it is not counted as the cost of the first."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from reluctant.engines.settings import CLIENT, SERVER
from reluctant.engines.spu import Compiled, Machine, Traffic, compile_function, in_table
from reluctant.engines.steps import inner_shapes
from reluctant.program.operations import Scale, Shape
from reluctant.program.ops import Program

_SMALL = 8

#: So many comparisons use up the first, small stock of oblivious transfers; the second lasts for 100,000s.
_FIRST_STOCK = 512


def prepare(machine: Machine, compiled: Sequence[Compiled]) -> Iterator[tuple[str, Traffic]]:
    """Do what the protocol does once; yield what each part cost, when it is done.

    CHEETAH: one instance of each kind of work that the programs have. The first product makes homomorphic keys and the
    first comparison oblivious transfers, once for each of the parallel streams that a tensor falls into: so the largest
    comparison and the largest truncation are run, too. ABY3: the server's arrays are shared among the three, who would
    do it again for every batch otherwise. SEMI2K: nothing; whoever knows a number is its share.

    Args:
        compiled: of the programs that will run, all of one network under ABY3, whose arrays have been put.
    """
    if machine.settings.protocol == "CHEETAH":
        for part, work in _parts(compiled).items():
            yield part, sum((_run(machine, *one) for one in work), Traffic())
    elif machine.settings.protocol == "ABY3":
        yield "arrays", _share_arrays(machine, compiled[0].program)


def _share_arrays(machine: Machine, program: Program) -> Traffic:
    """Replace the server's private arrays by shares of them: SPU makes these when a shared zero is added."""
    arrays = {in_table(name, True): shape for name, shape in inner_shapes(program).items()}
    if not arrays:
        return Traffic()
    zero = "prepare:zero"
    traffic = _run(machine, lambda x, w: x + w, 1, keep=zero)

    def add(values: Mapping[str, Any]) -> dict[str, Any]:
        return {name: values[name] + values[zero] for name in arrays}

    traffic += machine.run(compile_function(add, {**arrays, zero: (1,)}, list(arrays), "arrays"))
    machine.forget(zero)
    return traffic


def _parts(compiled: Sequence[Compiled]) -> dict[str, list[tuple[Callable[[Any, Any], Any], int]]]:
    """Return what is run for each kind of work: a function of two vectors, and their size."""
    truncated = max(one.batch * math.prod(shape) for one in compiled for shape in one.program.shapes.values())
    compared = max((e.comparisons for one in compiled for e in one.executables), default=0)
    scales = [op.scale for one in compiled for op in one.program.ops if isinstance(op, Scale)]
    activations = [op for one in compiled for op in one.program.activations()]
    work: dict[str, list[tuple[Callable[[Any, Any], Any], int]]] = {
        "product": [
            (lambda x, w: x.reshape(_SMALL, -1) @ w.reshape(-1, _SMALL), _SMALL * _SMALL),
            (lambda x, w: (x + w).reshape(_SMALL, -1) @ w.reshape(-1, _SMALL), _SMALL * _SMALL),
            (lambda x, w: (x + w) * 0.3, truncated),
        ]
    }
    if compared:
        work["comparison"] = [(_relu, max(compared, _FIRST_STOCK))]
    if any((*scales, *(op.scales for op in activations))):
        work["slope"] = [(lambda x, w: (x + w) * w, _SMALL)]
    if any(op.squares for op in activations):
        work["square"] = [(lambda x, w: (x + w) * (x + w), _SMALL)]
    return work


def _relu(x: Any, w: Any) -> Any:
    import jax.numpy as jnp

    return jnp.maximum(x + w, 0)


def _run(machine: Machine, function: Callable[[Any, Any], Any], size: int, keep: str = "") -> Traffic:
    """Run ``function`` on a private vector of either party (all zeros), whose sum is shared between them.

    Args:
        keep: a name for what it made; else that is forgotten.
    """
    made = keep or "prepare:made"
    shapes: dict[str, Shape] = {"prepare:client": (size,), "prepare:server": (size,)}

    def run(values: Mapping[str, Any]) -> dict[str, Any]:
        return {made: function(values["prepare:client"], values["prepare:server"])}

    executable = compile_function(run, shapes, [made], "prepare")
    for name, owner in (("prepare:client", CLIENT), ("prepare:server", SERVER)):
        machine.put(name, None, shapes[name], owner)
    traffic = machine.run(executable)
    for name in shapes if keep else (*shapes, made):
        machine.forget(name)
    return traffic
