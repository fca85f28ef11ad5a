"""What a call of a torch function is to us, who made it, and what it is called.

Everything that knows how torch spells an activation stands here: :mod:`reluctant.sites` finds calls with it,
:mod:`reluctant.masked` intercepts them.
"""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jaxtyping
import torch
import torch.nn.functional as F
from torch import Tensor, nn

_RELU = {F.relu: False, torch.relu: False, Tensor.relu: False, torch.relu_: True, Tensor.relu_: True}
_CLAMP = {torch.clamp: False, torch.clip: False, Tensor.clamp: False, Tensor.clip: False}
_CLAMP |= {torch.clamp_: True, torch.clip_: True, Tensor.clamp_: True, Tensor.clip_: True}
_CLAMP_MIN = {torch.clamp_min: False, Tensor.clamp_min: False, torch.clamp_min_: True, Tensor.clamp_min_: True}

#: Functions that a secure run would pay for, or could not run at all, and that are no ReLU.
_OTHER: dict[Callable[..., Any], str] = {
    F.relu6: "relu6",
    F.silu: "silu",
    F.gelu: "gelu",
    F.mish: "mish",
    F.hardswish: "hardswish",
    F.hardsigmoid: "hardsigmoid",
    F.hardtanh: "hardtanh",
    F.leaky_relu: "leaky_relu",
    F.elu: "elu",
    F.selu: "selu",
    F.celu: "celu",
    F.prelu: "prelu",
    F.rrelu: "rrelu",
    F.glu: "glu",
    F.softplus: "softplus",
    F.softsign: "softsign",
    F.logsigmoid: "logsigmoid",
    F.threshold: "threshold",
    F.softmax: "softmax",
    F.sigmoid: "sigmoid",
    F.tanh: "tanh",
    F.max_pool1d: "max_pool1d",
    F.max_pool2d: "max_pool2d",
    F.max_pool3d: "max_pool3d",
    F.adaptive_max_pool2d: "adaptive_max_pool2d",
}
_SPELLED = ("sigmoid", "tanh", "maximum", "minimum", "fmax", "fmin", "abs", "sign", "where", "gt", "lt", "ge", "le")
for _name in (*_SPELLED, "softmax", "exp"):
    for _spelling in (_name, f"{_name}_"):
        for _owner in (torch, Tensor):
            if hasattr(_owner, _spelling):
                _OTHER[getattr(_owner, _spelling)] = _name
for _name in ("max_pool1d", "max_pool2d", "max_pool3d", "prelu", "celu", "selu", "threshold"):
    _OTHER[getattr(torch, _name)] = _name

_HERE = Path(__file__).parent
_MACHINERY = (Path(torch.__file__).parent, Path(jaxtyping.__file__).parent)


class Call:
    """What a torch function call is to us: a ReLU (``kind == "relu"``), another activation, or nothing."""

    __slots__ = ("inplace", "input", "kind")

    def __init__(self, kind: str, tensor: Tensor, inplace: bool) -> None:
        self.kind, self.input, self.inplace = kind, tensor, inplace

    @classmethod
    def read(cls, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> "Call | None":
        """Return how the call ``func(*args, **kwargs)`` counts, or ``None`` if it is no activation at all."""
        if func in _RELU:
            inplace = _RELU[func] or bool(kwargs.get("inplace", len(args) > 1 and args[1]))
            return cls("relu", args[0] if args else kwargs["input"], inplace)
        if func in _CLAMP:
            bounds = dict(zip(("min", "max"), args[1:], strict=False)) | dict(kwargs)
            zero = is_zero(bounds.get("min")) and bounds.get("max") is None
            return cls("relu" if zero else "clamp", args[0] if args else kwargs["input"], _CLAMP[func])
        if func in _CLAMP_MIN:
            bound = args[1] if len(args) > 1 else kwargs.get("min")
            return cls("relu" if is_zero(bound) else "clamp", args[0] if args else kwargs["input"], _CLAMP_MIN[func])
        if func in (torch.max, torch.min, Tensor.max, Tensor.min) and len(args) > 1 and isinstance(args[1], Tensor):
            return cls("maximum" if "max" in func.__name__ else "minimum", args[0], False)
        if func is F.hardtanh:
            bounds = dict(zip(("min_val", "max_val"), args[1:], strict=False)) | dict(kwargs)
            kind = "relu6" if (bounds.get("min_val"), bounds.get("max_val")) == (0, 6) else "hardtanh"
            return cls(kind, args[0], False)
        if func in _OTHER:
            tensor = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
            return None if tensor is None else cls(_OTHER[func], tensor, False)
        return None


def is_zero(bound: object) -> bool:
    return isinstance(bound, int | float) and bound == 0


class OwnerStack:
    """The paths of the modules that are running, innermost last; kept by two hooks a module.

    The hooks are objects, not closures, so a deep copy of the model carries a stack of its own.
    """

    def __init__(self) -> None:
        self.paths: list[str] = []

    @property
    def top(self) -> str:
        return self.paths[-1] if self.paths else ""

    def watch(self, model: nn.Module) -> list[Any]:
        """Hook every module of ``model``; return the handles that take the hooks off again."""
        handles: list[Any] = []
        for path, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(_Enter(self, path)))
            handles.append(module.register_forward_hook(_Leave(self), always_call=True))
        return handles


class _Enter:
    def __init__(self, stack: OwnerStack, path: str) -> None:
        self.stack, self.path = stack, path

    def __call__(self, module: nn.Module, args: Any) -> None:
        self.stack.paths.append(self.path)


class _Leave:
    def __init__(self, stack: OwnerStack) -> None:
        self.stack = stack

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        self.stack.paths.pop()


def activation_modules(model: nn.Module) -> frozenset[str]:
    """Return the paths of torch's own activation modules (``nn.ReLU``, ...), whose path names their calls."""
    return frozenset(p for p, m in model.named_modules() if p and type(m).__module__ == nn.ReLU.__module__)


class Naming:
    """Gives each activation call of one forward pass its name, the same in every pass."""

    def __init__(self, leaves: frozenset[str]) -> None:
        self.leaves = leaves
        self.seen: dict[str, int] = {}

    def name(self, owner: str, kind: str) -> str:
        """Return the name of the next call of ``kind`` in ``owner``."""
        base = owner if owner in self.leaves else f"{owner}:{kind}"
        self.seen[base] = count = self.seen.get(base, 0) + 1
        return base if count == 1 else f"{base}#{count}"


def calling_line() -> str:
    """Return ``file.py:12`` of the nearest caller that is neither torch nor this package's machinery."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_back is not None:
        path = Path(frame.f_code.co_filename)
        ours = path.parent == _HERE or any(path.is_relative_to(place) for place in _MACHINERY)
        if not ours and not path.name.startswith("<@"):
            return f"{path.name}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"
