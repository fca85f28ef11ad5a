"""A whole program: public structure that may cross the wire, and the server's arrays, which may not."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from reluctant.errors import UsageError
from reluctant.program.operations import INPUT, LARGEST, Activation, Array, BadOperation, Op, Shape, check
from reluctant.program.wire import decode, from_json, to_json

_FORMAT = 1


@dataclass(frozen=True)
class ProgramSite:
    """An activation site as the program was made from it; one with nothing kept may have no operation left.

    Args:
        kept, total: ReLUs an image.
        surrogate: name of what runs where a ReLU was dropped.
    """

    name: str
    kept: int
    total: int
    surrogate: str


@dataclass(frozen=True, eq=False)
class Program:
    """A list of operations in the order they run, from images ``[N, C, H, W]`` to class scores.

    Args:
        ops: each reads values and arrays that were there before, and makes one new value.
        input_shape: of one image.
        outputs: names of the values that the client learns; the first holds the class scores.
        array_shapes: name and shape of each of the server's arrays.
        sites: in the order of the network's forward pass.
        arrays: the server's secret; ``None`` on the client's side.
        input_range: least and largest value of an image for which the fixed point was checked, public; a client
            refuses others. ``None`` where it was not.

    Raises:
        UsageError: the parts contradict each other.
    """

    ops: tuple[Op, ...]
    input_shape: Shape
    outputs: tuple[str, ...]
    array_shapes: Mapping[str, Shape]
    sites: tuple[ProgramSite, ...] = ()
    arrays: Mapping[str, Array] | None = field(default=None, repr=False)
    input_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        try:
            self._check()
        except BadOperation as error:
            raise UsageError(f"the program is not valid: {error}") from error

    def _check(self) -> None:
        shapes = self.shapes
        for name in self.outputs:
            if name not in shapes:
                raise BadOperation(f"its output {name!r} is made by no operation")
        if not self.outputs:
            raise BadOperation("it has no output")
        named = {name for op in self.ops for name in op.arrays()}
        for name, shape in self.array_shapes.items():
            if name not in named or min(shape, default=1) < 1 or math.prod(shape) > LARGEST:
                raise BadOperation(f"array {name!r} of shape {shape} is read by no operation, is empty or too large")
        if self.arrays is not None:
            given = {name: array.shape for name, array in self.arrays.items()}
            if given != dict(self.array_shapes):
                raise BadOperation("its arrays are not those that it names")
            for name, array in self.arrays.items():
                if array.dtype != np.float32 or not np.isfinite(array).all():
                    raise BadOperation(f"array {name!r} is not all finite float32 numbers")
        if self.input_range is not None and not -math.inf < self.input_range[0] <= self.input_range[1] < math.inf:
            raise BadOperation(f"its input range is {self.input_range}")
        known = {site.name: site for site in self.sites}
        for op in self.activations():
            if op.site not in known or known[op.site].kept != len(op.kept):
                raise BadOperation(f"activation {op.site!r} keeps {len(op.kept)} ReLUs, which its sites do not say")

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """The shape of every value, of one sample."""
        if not self.input_shape or min(self.input_shape) < 1:
            raise BadOperation(f"its input has the shape {self.input_shape}")
        shapes: dict[str, Shape] = {INPUT: self.input_shape}
        for op in self.ops:
            shapes[op.output] = check(op, shapes, self.array_shapes)
        return shapes

    def activations(self) -> Iterator[Activation]:
        """Yield the activation operations in order."""
        return (op for op in self.ops if isinstance(op, Activation))

    @property
    def kept(self) -> int:
        """ReLUs of one inference."""
        return sum(site.kept for site in self.sites)

    def macs(self) -> dict[str, int]:
        """Return the multiply-accumulates with private numbers of one inference, by the value that each op makes."""
        shapes = self.shapes
        counts = {op.output: op.macs([shapes[name] for name in op.inputs], self.array_shapes) for op in self.ops}
        return {name: count for name, count in counts.items() if count}

    def with_arrays(self, arrays: Mapping[str, Array]) -> "Program":
        """Return the same program with the server's arrays."""
        return replace(self, arrays=arrays)

    def public(self) -> dict[str, Any]:
        """Return everything that both parties know, as a JSON value: structure, shapes and masks, no array."""
        checked = {} if self.input_range is None else {"input_range": list(self.input_range)}
        return {
            "format": _FORMAT,
            "input_shape": list(self.input_shape),
            "outputs": list(self.outputs),
            "arrays": {name: list(shape) for name, shape in self.array_shapes.items()},
            "sites": [[site.name, site.kept, site.total, site.surrogate] for site in self.sites],
            "ops": [to_json(op) for op in self.ops],
            **checked,
        }

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the public part, in hexadecimal."""
        return hashlib.sha256(json.dumps(self.public(), sort_keys=True).encode()).hexdigest()

    @classmethod
    def from_public(cls, value: Any) -> "Program":
        """Return the program that ``value`` describes, without its arrays.

        Args:
            value: what :meth:`public` returned at the other party; nothing in it is taken on trust.

        Raises:
            UsageError: it is no valid program.
        """
        try:
            if not isinstance(value, dict) or value.get("format") != _FORMAT:
                raise BadOperation(f"expected format {_FORMAT}")
            missing = {"input_shape", "outputs", "arrays", "sites", "ops"} - set(value)
            if missing:
                raise BadOperation(f"key {min(missing)!r} is missing")
            if not isinstance(value["arrays"], dict) or not all(isinstance(value[k], list) for k in ("ops", "sites")):
                raise BadOperation("'arrays' is no object, or 'ops' or 'sites' is no list")
            return cls(
                ops=tuple(from_json(item) for item in value["ops"]),
                input_shape=decode(value["input_shape"], Shape, "input_shape"),
                outputs=decode(value["outputs"], tuple[str, ...], "outputs"),
                array_shapes={str(k): decode(v, Shape, "arrays") for k, v in value["arrays"].items()},
                sites=tuple(_decode_site(item) for item in value["sites"]),
                input_range=decode(value.get("input_range"), tuple[float, float] | None, "input_range"),
            )
        except BadOperation as error:
            raise UsageError(f"the other party's program is not valid: {error}") from error


def _decode_site(value: Any) -> ProgramSite:
    if not isinstance(value, list) or len(value) != 4:
        raise BadOperation("a site is not [name, kept, total, surrogate]")
    name, kept, total, surrogate = (
        decode(item, hint, "sites") for item, hint in zip(value, (str, int, int, str), strict=True)
    )
    if not 0 <= kept <= total:
        raise BadOperation(f"site {name[:40]!r} keeps {kept} of {total} ReLUs")
    return ProgramSite(name, kept, total, surrogate)
