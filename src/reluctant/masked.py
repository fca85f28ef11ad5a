"""Networks some of whose ReLUs are gone.

A :class:`MaskedModel` holds a copy of the user's network, untouched and with the same weight names, and one module for
each site. Activation calls are intercepted while the network runs and handed to the module of their site, so modules,
functionals, methods, in-place calls and a module called twice are all one case. Every pass checks that exactly the
sites that were found have fired.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from reluctant.blend import BlendedReLU, KeptReLU
from reluctant.calls import Call, Naming, OwnerStack, activation_modules, calling_line
from reluctant.errors import ShapeError, SiteError
from reluctant.mask import Mask
from reluctant.recomputation import Outputs
from reluctant.sites import ActivationSite, Sites, copied, evaluating
from reluctant.surrogates import Hermite, Identity, Surrogate, Term

#: Share of a batch in running statistics, as in torch's batch norm.
_MOMENTUM = 0.1

Coefficients = tuple[Tensor | None, Tensor | None, Tensor | None]


class MaskedActivation(nn.Module):
    """The module at a site: a kept element goes through ReLU, any other through the surrogate.

    Trained coefficients are the parameters ``c0``, ``c1``, ``c2``, of shape ``[C, 1, 1]`` or of the site; those that a
    surrogate fixes are ``None``. The buffer ``divisor``, ``[C, 1, 1]``, holds the whole numbers whose reciprocals are
    c1, where a surrogate has such; the buffer ``moments``, ``[4, C, 1, 1]``, running statistics of the input, where a
    surrogate is normalised by them.
    """

    keep: Tensor
    c0: nn.Parameter | None
    c1: nn.Parameter | None
    c2: nn.Parameter | None
    divisor: Tensor | None
    moments: Tensor | None

    def __init__(self, site: ActivationSite, surrogate: Surrogate) -> None:
        super().__init__()
        self.site, self.surrogate = site, surrogate
        self.register_buffer("keep", torch.ones(site.shape, dtype=torch.bool), persistent=False)
        self.register_buffer("divisor", None)
        shape = (4, site.shape[0], *[1] * (len(site.shape) - 1))
        self.register_buffer("moments", torch.zeros(shape) if surrogate.normalised else None)
        for name, term in zip(("c0", "c1", "c2"), surrogate.terms, strict=True):
            value = self._shaped(term, torch.zeros(site.shape[0]))
            self.register_parameter(name, nn.Parameter(value) if term in ("channel", "element") else None)
            if term == "reciprocal":
                self.divisor = torch.ones_like(value)
        self.start(torch.zeros(site.shape[0]), torch.ones(site.shape[0]))

    def _shaped(self, term: Term, value: Float[Tensor, "C"]) -> Tensor:
        column = value.reshape(-1, *[1] * (len(self.site.shape) - 1))
        return column.expand(self.site.shape).clone() if term == "element" else column.clone()

    @torch.no_grad()
    def start(self, mean: Float[Tensor, "C"], std: Float[Tensor, "C"]) -> None:
        """Set the coefficients to their best fit of ReLU for an input of that mean and deviation a channel."""
        fit = self.surrogate.fit(mean, std)
        for parameter, term, value, scale in zip(
            (self.c0, self.c1, self.c2), self.surrogate.terms, fit, self.surrogate.scales, strict=True
        ):
            if parameter is not None:
                parameter.copy_(self._shaped(term, value / scale))
            elif term == "reciprocal" and self.divisor is not None:
                self.divisor.copy_(self._shaped(term, (1 / value).round()))
        if self.moments is not None:
            self.moments.copy_(Hermite.normal_moments(mean, std).reshape(self.moments.shape))

    def constants(self) -> dict[str, Tensor]:
        """Return by name the values that stand in for dropped ReLUs here: trained ones, divisors and statistics."""
        named = {"c0": self.c0, "c1": self.c1, "c2": self.c2, "divisor": self.divisor, "moments": self.moments}
        return {name: value for name, value in named.items() if value is not None}

    def coefficients(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return c0, c1, c2 as a secure program needs them, each broadcastable to the site's shape."""
        zero, one = torch.zeros((), device=self.keep.device), torch.ones((), device=self.keep.device)
        c0, c1, c2 = (None if value is None else value.detach() for value in self.terms())
        return zero if c0 is None else c0, one if c1 is None else c1, zero if c2 is None else c2

    def terms(self, moments: Tensor | None = None) -> Coefficients:
        """Return c0, c1, c2 for :class:`BlendedReLU`, with gradients; ``None`` for c0 = 0, c1 = 1, c2 = 0.

        Args:
            moments: of the input, for a surrogate that is normalised by them; the running ones if not given.
        """
        if self.moments is not None:
            assert self.c0 is not None
            assert self.c1 is not None
            return Hermite.folded(self.c0, self.c1, self.moments if moments is None else moments)
        c1: Tensor | None = self.c1
        if self.divisor is not None:
            c1 = self.divisor.reciprocal()
        elif c1 is None and self.surrogate.terms[1] == "zero":
            c1 = torch.zeros((), device=self.keep.device)
        scale = self.surrogate.scales[2]
        return self.c0, c1, None if self.c2 is None else self.c2 * scale

    def forward(self, z: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        """Return ``where(keep, relu(z), surrogate(z))``, of the shape of ``z``."""
        c0, c1, c2 = self.terms(self._batch_moments(z))
        if c0 is None and c1 is None and c2 is None:
            y: Tensor = KeptReLU.apply(z, self.keep)  # type: ignore[no-untyped-call]
        else:
            y = BlendedReLU.apply(z, self.keep, c0, c1, c2)  # type: ignore[no-untyped-call]
        return y

    def _batch_moments(self, z: Tensor) -> Tensor | None:
        """Return the statistics of ``z`` that a normalised surrogate is trained with; the running ones follow them."""
        if self.moments is None or not self.training:
            return None
        found = Hermite.moments_of(z).reshape(self.moments.shape)
        with torch.no_grad():
            self.moments.lerp_(found, _MOMENTUM)
        return found

    def extra_repr(self) -> str:
        return f"{self.site.name}: {int(self.keep.sum()):,} of {self.site.relus:,} kept, else {self.surrogate.name}"


Gate = TypeVar("Gate", bound=nn.Module)


class MaskedModel(nn.Module):
    """A network with one :class:`MaskedActivation` a site. Made by :func:`attach`.

    Attributes:
        model: the copy of the user's network; its ``state_dict`` has the names it always had.
        activations: the site modules, in the order of ``sites``.
        made_by: method and budget that set the mask, for its records; empty if somebody else did.
    """

    def __init__(self, model: nn.Module, sites: Sites, surrogate: Surrogate) -> None:
        super().__init__()
        self.model = copied(model)
        self.sites = sites
        self.surrogate = surrogate
        self.made_by: Mapping[str, Any] = {}
        self.activations = nn.ModuleList([MaskedActivation(site, surrogate) for site in sites.values()])
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.activations.to(device)
        self._stack = OwnerStack()
        self._stack.watch(self.model)
        self._order = {name: index for index, name in enumerate(sites)}
        self._leaves = activation_modules(self.model)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the user's network returns, its activations masked.

        Raises:
            SiteError: the ReLUs that fire are not the sites that were found.
            ShapeError: a site gets an input of another shape than it was found with.
        """
        self._stack.paths.clear()
        outputs = None if torch.compiler.is_compiling() else Outputs()  # a compiler decides itself what to recompute
        calls = _Interception(self, outputs)
        with calls:
            output = self.model(*args, **kwargs)
        if len(calls.fired) != len(self.sites):
            silent = [name for name in self.sites if self._order[name] not in calls.fired]
            raise SiteError(
                f"{len(silent)} of {len(self.sites)} sites did not fire in this pass, first {silent[0]} "
                f"({self.sites[silent[0]].line}): the forward pass depends on data or mode; make it the same each time"
            )
        return output

    @property
    def mask(self) -> Mask:
        """What is kept now."""
        return Mask({a.site.name: a.keep.clone() for a in self.masked()})

    def masked(self) -> list[MaskedActivation]:
        """Return the site modules.

        Raises:
            SiteError: gates stand in their place just now.
        """
        modules = [a for a in self.activations if isinstance(a, MaskedActivation)]
        if len(modules) != len(self.sites):
            raise SiteError("the model has gates attached; leave the `with model.gates(...)` block first")
        return modules

    def set_mask(self, mask: Mask) -> "MaskedModel":
        """Set which ReLUs are kept, in place, and return the model itself.

        Raises:
            ShapeError: the mask is of other sites.
        """
        if mask.shapes != {name: site.shape for name, site in self.sites.items()}:
            raise ShapeError(
                f"the mask is of {len(mask)} sites with {mask.total:,} ReLUs, the model has {self.sites!r}"
            )
        for activation in self.masked():
            activation.keep.copy_(mask[activation.site.name])
        return self

    def with_mask(self, mask: Mask) -> "MaskedModel":
        """Return a copy of the model that keeps the ReLUs of ``mask``."""
        return copy.deepcopy(self).set_mask(mask)

    def constants(self) -> list[nn.Parameter]:
        """Return the trained coefficients of the surrogates."""
        return list(self.activations.parameters())

    @contextmanager
    def gates(self, gate: Callable[[MaskedActivation], Gate]) -> Iterator[dict[str, Gate]]:
        """Put ``gate(activation)`` at every site while inside; the masked activations come back on exit.

        Yields:
            the gates by site.
        """
        masked = self.masked()
        gates = {a.site.name: gate(a) for a in masked}
        try:
            self.activations = nn.ModuleList(gates.values())
            yield gates
        finally:
            self.activations = nn.ModuleList(masked)

    @torch.no_grad()
    def start_surrogates(self, images: Float[Tensor, "B ..."]) -> None:
        """Fit the trained coefficients to the inputs that the sites see on ``images``, in evaluation mode."""
        with evaluating(self), self.gates(_Moments) as moments:
            self(images)
        for activation, seen in zip(self.masked(), moments.values(), strict=True):
            activation.start(seen.mean, seen.std)


class _Moments(nn.Module):
    """Lets everything through as ReLU and remembers mean and deviation of its input a channel."""

    def __init__(self, activation: MaskedActivation) -> None:
        super().__init__()
        self.mean = self.std = torch.zeros(activation.site.shape[0])

    def forward(self, z: Float[Tensor, "B C ..."]) -> Float[Tensor, "B C ..."]:
        flat = z.transpose(0, 1).flatten(1).float()
        self.mean, self.std = flat.mean(1), flat.std(1).clamp(min=1e-3)
        return z.relu()


class _Interception(TorchFunctionMode):
    """Hands each ReLU call of one forward pass to the module of its site."""

    def __init__(self, masked: MaskedModel, outputs: Outputs | None) -> None:
        super().__init__()
        self.masked, self.outputs, self.gradients = masked, outputs, torch.is_grad_enabled()
        self.naming = Naming(masked._leaves)
        self.fired: set[int] = set()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        call = Call.read(func, args, kwargs)
        if call is None or call.kind != "relu" or not call.input.is_floating_point():
            other = func(*args, **kwargs)
            if self.outputs is not None:
                self.outputs.forget(other, args)
            return other
        masked = self.masked
        name = self.naming.name(masked._stack.top, "relu")
        index = masked._order.get(name)
        if index is None:
            raise SiteError(
                f"a ReLU fired at {calling_line()} ({name}) that was not there when the sites were found: the forward "
                "pass depends on its data or mode; make it the same every time"
            )
        if self.gradients and not torch.is_grad_enabled():
            raise SiteError(
                f"the ReLU at {calling_line()} ({name}) runs without gradients while the network is trained; is that "
                "activation checkpointing? switch it off: its second pass would not be masked"
            )
        self.fired.add(index)
        site = masked.sites[name]
        if tuple(call.input.shape[1:]) != site.shape:
            raise ShapeError(
                f"site {name} got an input of shape {tuple(call.input.shape[1:])}, its mask is of {site.shape}: "
                f"the model was linearized for inputs of shape {masked.sites.input_shape}"
            )
        # The backward pass may need the input; where that is about to be overwritten, a copy goes in.
        y = masked.activations[index](call.input.clone() if call.inplace else call.input)
        result = call.input.copy_(y) if call.inplace else y
        if self.outputs is not None:
            self.outputs.watch(result, y.grad_fn)
        return result


def attach(model: nn.Module, sites: Sites, surrogate: Surrogate | None = None) -> MaskedModel:
    """Return a copy of ``model`` with a mask at every site, all ReLUs kept: the same outputs as ``model``.

    Args:
        sites: from :func:`reluctant.find_sites` on the same model.
        surrogate: what runs where a ReLU will be dropped; identity if not given.
    """
    if isinstance(model, MaskedModel):
        raise SiteError("the network is masked already; take its dense original, or with_mask(...) for another mask")
    return MaskedModel(model, sites, surrogate or Identity())
