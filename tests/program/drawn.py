"""Random programs, of every operation there is."""

import numpy as np

from reluctant.program.operations import (
    Activation,
    Add,
    AvgPool,
    Concat,
    Conv2d,
    Linear,
    MaxPool,
    Pad,
    Reshape,
    Scale,
    Slice,
)
from reluctant.program.ops import Program, ProgramSite


def draw_program(seed: int, length: int = 5) -> Program:
    """Return a program of ``length`` random operations on maps, then a linear one; every value is an output."""
    rng = np.random.default_rng(seed)
    ops, arrays, sites, shape, last = [], {}, [], (2, 6, 6), "input"

    def array(name, *shape):
        arrays[name] = rng.normal(scale=rng.choice([0.1, 1.0, 4.0]), size=shape).astype(np.float32)
        return name

    def maybe(name, *shape):
        return array(name, *shape) if rng.random() < 0.6 else None

    def activation(n, shape):
        keep = rng.random(int(np.prod(shape))) < rng.choice([0.0, 0.5, 1.0])
        dropped = int((~keep).sum())
        sites.append(ProgramSite(f"s{n}", int(keep.sum()), keep.size, "any"))
        c = {name: maybe(f"{n}.{name}", dropped) if dropped else None for name in ("c0", "c1", "c2")}
        unit_square = bool(dropped and c["c2"] is None and rng.random() < 0.3)
        factors = tuple(int(f) for f in rng.integers(1, 5, shape[0])) if rng.random() < 0.5 else None
        units = {"unit_slope": bool(rng.random() < 0.5), "unit_square": unit_square}
        return {"site": f"s{n}", "keep": keep, "factors": factors, **units, **c}

    def of_kind(kind, n, shape):
        if kind is Conv2d:
            weight = array(f"{n}.weight", 4, shape[0], 3, 3)
            return {"weight": weight, "bias": maybe(f"{n}.bias", 4), "padding": (1, 1, 0, 2)}
        if kind is Scale:
            factors = tuple(rng.normal(size=shape[0]).tolist()) if rng.random() < 0.5 else None
            scale, bias = maybe(f"{n}.scale", *shape), maybe(f"{n}.bias", shape[0])
            return {"scale": scale, "bias": bias, "factor": float(rng.choice([1.0, -1.0, -1.7])), "factors": factors}
        if kind is Activation:
            return activation(n, shape)
        if kind is Pad:
            return {"low": (0, 1, 0), "high": (1, 0, 1)}
        if kind is Slice:
            return {"start": (0, 0, 1), "stop": shape, "step": (1, 2, 1)}
        return {AvgPool: {"kernel": (2, 2), "stride": (1, 1), "padding": (1, 0, 0, 1)},
                MaxPool: {"kernel": (2, 2), "stride": (1, 1)}}.get(kind, {})  # fmt: skip

    kinds = [Conv2d, Scale, Activation, Activation, Pad, Slice, AvgPool, MaxPool, Add, Concat]
    for n in range(length):
        kind = kinds[rng.integers(len(kinds))]
        if kind in (Slice, AvgPool, MaxPool) and min(shape[1:]) < 3:
            kind = Pad
        inputs = (last, last) if kind in (Add, Concat) else (last,)
        op = kind(output=f"v{n}", inputs=inputs, **of_kind(kind, n, shape))
        shape = op.infer([shape] * len(inputs), {name: a.shape for name, a in arrays.items()})
        ops.append(op)
        last = op.output
    size = int(np.prod(shape))
    ops.append(Reshape(output="flat", inputs=(last,), shape=(size,)))
    ops.append(Linear(output="fc", inputs=("flat",), weight=array("fc.weight", 3, size), bias=maybe("fc.bias", 3)))
    return Program(
        ops=tuple(ops),
        input_shape=(2, 6, 6),
        outputs=("fc", *(op.output for op in ops[:-1])),
        array_shapes={name: a.shape for name, a in arrays.items()},
        sites=tuple(sites),
        arrays=arrays,
    )
