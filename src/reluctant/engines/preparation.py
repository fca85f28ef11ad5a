"""Do what a protocol does once before the images come, so that it is not counted as the cost of the first."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from reluctant.engines.spu import Compiled, Machine, Traffic, compile_function
from reluctant.program.operations import Scale, Shape

_SERVER, _CLIENT = 0, 1
_SMALL = 8

#: So many comparisons use up the first, small stock of oblivious transfers; the second lasts for 100,000s.
_FIRST_STOCK = 512


def prepare(machine: Machine, compiled: Sequence[Compiled]) -> Iterator[tuple[str, Traffic]]:
    """Run one instance of each kind of work that the programs have; yield what each cost, when it is done.

    The first product makes homomorphic keys and the first comparison oblivious transfers, once for each of the
    parallel streams that a tensor falls into: so the largest comparison and the largest truncation are run, too.

    Args:
        compiled: of the programs that will run.
    """
    for part, work in _parts(compiled).items():
        yield part, sum((_run(machine, *one) for one in work), Traffic())


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
    if any((*scales, *(op.c1 or op.c2 for op in activations))):
        work["slope"] = [(lambda x, w: (x + w) * w, _SMALL)]
    if any(op.c2 for op in activations):
        work["square"] = [(lambda x, w: (x + w) * (x + w), _SMALL)]
    return work


def _relu(x: Any, w: Any) -> Any:
    import jax.numpy as jnp

    return jnp.maximum(x + w, 0)


def _run(machine: Machine, function: Callable[[Any, Any], Any], size: int) -> Traffic:
    """Run ``function`` on a private vector of either party (all zeros), whose sum is shared between them."""
    shapes: dict[str, Shape] = {"prepare:client": (size,), "prepare:server": (size,)}

    def run(values: Mapping[str, Any]) -> dict[str, Any]:
        return {"prepare:made": function(values["prepare:client"], values["prepare:server"])}

    executable = compile_function(run, shapes, ["prepare:made"], "prepare")
    for name, owner in (("prepare:client", _CLIENT), ("prepare:server", _SERVER)):
        machine.put(name, None, shapes[name], owner)
    traffic = machine.run(executable)
    for name in (*shapes, "prepare:made"):
        machine.forget(name)
    return traffic
