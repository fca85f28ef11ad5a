"""Find every activation of a network, one site a call.

The network runs once on an example under a torch function mode, which sees each call of an activation whatever its
spelling: a module, a functional, a method, in place, a clamp at zero. Forward hooks say which module was running. A
dispatch mode counts, one level below, the ReLUs that torch really computed; if the two counts differ, something was
hidden from the first (a TorchScript function, say) and the network is refused rather than linearized in part.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from reluctant.calls import Call, Naming, OwnerStack, activation_modules, calling_line, is_zero
from reluctant.errors import SiteError
from reluctant.registry import unknown

#: Images in the batch that sites are found with; two, so that a dimension that is not the batch shows.
BATCH = 2

#: Module class and functional name of each activation that :func:`swap_activations` knows.
_MODULES: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "mish": nn.Mish,
    "hardswish": nn.Hardswish,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "hardtanh": nn.Hardtanh,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}


@dataclass(frozen=True)
class ActivationSite:
    """One call of a ReLU in a network's forward pass.

    Args:
        name: stable: the path of the ReLU module, or ``path:relu`` of the module whose forward calls a function; a
            second call of the same is ``...#2``.
        owner: path of the module that was running.
        shape: of one sample, without the batch.
        order: place in the forward pass, from 0.
        line: file and line of the call in the user's code.
        inplace: whether the call overwrites its input.
    """

    name: str
    owner: str
    shape: tuple[int, ...]
    order: int
    line: str = ""
    inplace: bool = False

    @property
    def relus(self) -> int:
        """ReLUs an image: the product of ``shape``."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class OtherActivation:
    """One call of a non-linear function that is not a ReLU: SiLU, ReLU6, max-pooling, a comparison, ..."""

    name: str
    kind: str
    shape: tuple[int, ...]
    line: str = ""

    @property
    def elements(self) -> int:
        """Outputs an image."""
        return math.prod(self.shape)


class Sites(Mapping[str, ActivationSite]):
    """The ReLU sites of one network at one input shape, in the order of its forward pass. Immutable.

    Attributes:
        input_shape: of one sample.
        other: the non-linear calls that are no ReLU; methods leave them alone.
    """

    def __init__(
        self,
        sites: tuple[ActivationSite, ...],
        *,
        input_shape: tuple[int, ...] = (),
        other: tuple[OtherActivation, ...] = (),
    ) -> None:
        self._by_name = {site.name: site for site in sites}
        self.input_shape = input_shape
        self.other = other

    def __getitem__(self, name: str) -> ActivationSite:
        if name not in self._by_name:
            raise unknown("site", name, list(self._by_name))
        return self._by_name[name]

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    def __repr__(self) -> str:
        return f"Sites({len(self)} sites, {self.total:,} ReLUs)"

    @property
    def total(self) -> int:
        """ReLUs of one inference with one image."""
        return sum(site.relus for site in self.values())


class _Finder(TorchFunctionMode):
    """Writes down every activation call of one forward pass."""

    def __init__(self, stack: OwnerStack, naming: Naming) -> None:
        super().__init__()
        self.stack, self.naming = stack, naming
        self.sites: list[ActivationSite] = []
        self.other: list[OtherActivation] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        call = Call.read(func, args, kwargs)
        if call is None or not call.input.is_floating_point():
            return func(*args, **kwargs)
        owner, line = self.stack.top, calling_line()
        name, shape = self.naming.name(owner, call.kind), tuple(call.input.shape[1:])
        if call.kind != "relu":
            output = func(*args, **kwargs)
            if isinstance(output, Tensor):
                shape = tuple(output.shape[1:])
            self.other.append(OtherActivation(name, call.kind, shape, line))
            return output
        if not torch.is_grad_enabled():
            raise SiteError(
                f"the ReLU at {line} (in {owner or 'the model'}) runs without gradients, inside torch.no_grad or an "
                "autograd.Function; a linearized one could not be trained: call the ReLU outside of it"
            )
        if call.input.dim() < 2 or len(call.input) != BATCH:
            raise SiteError(
                f"the ReLU at {line} (in {owner or 'the model'}) has an input of shape {tuple(call.input.shape)} for a "
                f"batch of {BATCH}: its first dimension must be the image, or ReLUs an image cannot be counted"
            )
        self.sites.append(ActivationSite(name, owner, shape, len(self.sites), line, call.inplace))
        return func(*args, **kwargs)


class _Computed(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the ReLUs that torch computes, however they were called."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__.rstrip("_")
        bounds = dict(zip(("min", "max"), args[1:], strict=False)) | dict(kwargs)
        zero = is_zero(bounds.get("min")) and bounds.get("max") is None
        if (name == "relu" or (name in ("clamp", "clamp_min") and zero)) and args[0].is_floating_point():
            self.count += 1
        return func(*args, **kwargs)


def copied(model: nn.Module) -> nn.Module:
    """Return a deep copy of ``model``.

    Raises:
        SiteError: it holds what cannot be copied, with torch's reason.
    """
    try:
        return copy.deepcopy(model)
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise SiteError(
            f"the network cannot be copied: {reason}; do not keep activations on the module, and use "
            "torch.nn.utils.parametrizations in place of the older weight_norm"
        ) from error


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode while inside; every module's own mode back on exit."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def find_sites(model: nn.Module, example: Tensor) -> Sites:
    """Return every ReLU call of ``model`` on ``example``, as sites, and the other non-linear calls beside them.

    A copy of the model is run once, in evaluation mode, on the example twice over. A hand-made ReLU, ``x * (x > 0)``,
    is no site; its comparison is listed in ``other``.

    Args:
        model: any network; compiled and scripted ones are refused.
        example: one input with its batch dimension, for instance ``[1, 3, 32, 32]``.

    Raises:
        SiteError: the model does not run on ``example``, hides ReLUs from Python, runs them without gradients, or has
            none.
    """
    _refuse_opaque(model)
    model, stack = copied(model), OwnerStack()
    images = torch.cat([example[:1]] * BATCH)
    finder, computed = _Finder(stack, Naming(activation_modules(model))), _Computed()
    device = next((p.device for p in model.parameters()), example.device)
    stack.watch(model)
    try:
        with evaluating(model), torch.enable_grad(), computed, finder:
            model(images.to(device))
    except SiteError:
        raise
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise SiteError(
            f"the model does not run on a batch of shape {tuple(images.shape)}: {type(error).__name__}: {reason}"
        ) from error
    if computed.count != len(finder.sites):
        raise SiteError(
            f"the model computes {computed.count} ReLUs on its example but only {len(finder.sites)} can be seen from "
            "Python; the others sit in a TorchScript or C++ function: call torch.relu from Python there"
        )
    if not finder.sites:
        kinds = sorted({call.kind for call in finder.other})
        hint = f"; it has {', '.join(kinds)}: see swap_activations" if kinds else ""
        raise SiteError(f"the model has no ReLU{hint}")
    return Sites(tuple(finder.sites), input_shape=tuple(example.shape[1:]), other=tuple(finder.other))


def _refuse_opaque(model: nn.Module) -> None:
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise SiteError(f"{path or 'the model'} is TorchScript, whose calls cannot be seen; pass the Python module")
        if hasattr(module, "_orig_mod"):
            raise SiteError(f"{path or 'the model'} is compiled; pass the module that was given to torch.compile")


def swap_activations(model: nn.Module, old: str, new: str) -> nn.Module:
    """Return a copy of ``model`` whose ``old`` activation modules are ``new`` ones, untrained for the change.

    Only modules are swapped (``nn.SiLU``); a functional call (``F.silu``) stays, and stays listed by
    :func:`find_sites`.

    Args:
        old, new: ``relu``, ``silu``, ``gelu``, ``hardswish``, ``relu6``, ...

    Raises:
        UnknownName: a name that is none of these.
        SiteError: the model has no module of the old kind.
    """
    for name in (old, new):
        if name not in _MODULES:
            raise unknown("activation", name, list(_MODULES))
    swapped = copy.deepcopy(model)
    places = [
        (parent, name)
        for parent in swapped.modules()
        for name, child in parent.named_children()
        if type(child) is _MODULES[old]
    ]
    if not places:
        raise SiteError(f"the model has no {_MODULES[old].__name__} module to swap")
    for parent, name in places:
        setattr(parent, name, _MODULES[new]())
    return swapped
