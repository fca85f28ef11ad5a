"""What runs where a ReLU is dropped.

Every surrogate is a polynomial ``c0 + c1 z + c2 z^2`` whose coefficients are fixed (0 or 1) or trained, per channel or
per element. A surrogate knows what it must compute on secret shares, so it can be priced: under most protocols an
identity or a private bias costs nothing, a private slope more than the ReLU it replaced.

Initial coefficients are least-squares fits of ReLU for a normally distributed input of mean u and deviation s
(Hermite projection; AutoReP, arXiv:2308.10134, "distribution-aware polynomial"): with ``phi`` the standard normal
density and ``Phi`` its distribution function at u/s,

    degree 1:  c1 = Phi                    c0 = s phi
    degree 2:  c2 = phi / (2 s)            c1 = Phi - u phi / s        c0 = s phi / 2 + u^2 phi / (2 s)
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from reluctant.errors import UnknownName, UsageError
from reluctant.registry import unknown
from reluctant.units import as_type_of, check_number

#: How a coefficient is stored: fixed at 0, fixed at 1, trained with one value a channel or an element, set once to the
#: reciprocal of a public integer a channel, or not at all, since it is ``tied`` to the others.
Term = Literal["zero", "one", "channel", "element", "reciprocal", "tied"]
Track = Literal["free", "affine", "polynomial"]

#: Added to variances, as in torch's batch norm.
_EPSILON = 1e-5

#: No slope may be the reciprocal of a larger number: engines multiply by it.
LARGEST_DIVISOR = 1 << 10


@dataclass(frozen=True, kw_only=True)
class Surrogate:
    """A polynomial of degree at most 2 that stands in for a dropped ReLU.

    Attributes:
        terms: how c0, c1 and c2 are stored.
        operations: what it computes on shares, an element: ``add`` and ``multiply`` by a private constant, ``square``.
        normalised: whether its coefficients depend on statistics of its input.
    """

    name: ClassVar[str]
    terms: ClassVar[tuple[Term, Term, Term]]
    operations: ClassVar[tuple[str, ...]]
    normalised: ClassVar[bool] = False

    @property
    def track(self) -> Track:
        """``free`` if a dropped ReLU costs nothing in an engine, else ``affine`` (slopes) or ``polynomial``."""
        if "square" in self.operations:
            return "polynomial"
        return "affine" if "multiply" in self.operations else "free"

    @property
    def scales(self) -> tuple[float, float, float]:
        """Fixed factors in front of the stored c0, c1 and c2."""
        return (1.0, 1.0, 1.0)

    def fit(self, mean: Float[Tensor, "C"], std: Float[Tensor, "C"]) -> tuple[Tensor, Tensor, Tensor]:
        """Return c0, c1, c2 per channel, the best of this form for an input of normal distribution.

        Args:
            mean, std: of the activation's input, a channel.
        """
        return identity_fit(mean)

    def to_json(self) -> dict[str, Any]:
        """Return the name and settings as a JSON object."""
        return {"name": self.name, **asdict(self)}


def _normal(mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Density and distribution function of the standard normal at mean / std."""
    ratio = mean / std
    return torch.exp(-(ratio**2) / 2) / math.sqrt(2 * math.pi), torch.special.ndtr(ratio)


def identity_fit(mean: Float[Tensor, "C"]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the coefficients of ``z`` itself."""
    return torch.zeros_like(mean), torch.ones_like(mean), torch.zeros_like(mean)


def affine_fit(mean: Float[Tensor, "C"], std: Float[Tensor, "C"]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the least-squares line to ReLU under a normal input, as c0, c1, c2 = 0."""
    phi, cdf = _normal(mean, std)
    return std * phi, cdf, torch.zeros_like(mean)


def quadratic_fit(mean: Float[Tensor, "C"], std: Float[Tensor, "C"]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the least-squares parabola to ReLU under a normal input, as c0, c1, c2."""
    phi, cdf = _normal(mean, std)
    return std * phi / 2 + mean**2 * phi / (2 * std), cdf - mean * phi / std, phi / (2 * std)


@dataclass(frozen=True, kw_only=True)
class Identity(Surrogate):
    """z. Free everywhere."""

    name: ClassVar[str] = "identity"
    terms: ClassVar[tuple[Term, Term, Term]] = ("zero", "one", "zero")
    operations: ClassVar[tuple[str, ...]] = ()


@dataclass(frozen=True, kw_only=True)
class Shift(Surrogate):
    """z + b, with one trained private bias an element. Free: adding a private constant is local."""

    name: ClassVar[str] = "shift"
    terms: ClassVar[tuple[Term, Term, Term]] = ("element", "one", "zero")
    operations: ClassVar[tuple[str, ...]] = ("add",)

    def fit(self, mean: Float[Tensor, "C"], std: Float[Tensor, "C"]) -> tuple[Tensor, Tensor, Tensor]:
        phi, cdf = _normal(mean, std)
        return mean * cdf + std * phi - mean, torch.ones_like(mean), torch.zeros_like(mean)


@dataclass(frozen=True, kw_only=True)
class Constant(Surrogate):
    """b, one trained private value an element. Free."""

    name: ClassVar[str] = "constant"
    terms: ClassVar[tuple[Term, Term, Term]] = ("element", "zero", "zero")
    operations: ClassVar[tuple[str, ...]] = ("add",)

    def fit(self, mean: Float[Tensor, "C"], std: Float[Tensor, "C"]) -> tuple[Tensor, Tensor, Tensor]:
        phi, cdf = _normal(mean, std)
        return mean * cdf + std * phi, torch.zeros_like(mean), torch.zeros_like(mean)


@dataclass(frozen=True, kw_only=True)
class Reciprocal(Surrogate):
    """z / n + b, with one public whole number n a channel, set once, and one trained private bias an element. Free.

    The slope is not multiplied by in an engine: the channel is carried n times as large, which costs its kept ReLUs a
    product with a small public integer (additions of shares) and its dropped ones nothing, until a convolution takes
    1 / n into its weights (:mod:`reluctant.program.carrying`). What it reveals is n.

    Args:
        largest: bound on n, at most 1,024. A product of the n of one stage's sites must fit into the fixed point.
    """

    name: ClassVar[str] = "reciprocal"
    terms: ClassVar[tuple[Term, Term, Term]] = ("element", "reciprocal", "zero")
    operations: ClassVar[tuple[str, ...]] = ("add",)
    largest: int = 10

    def __post_init__(self) -> None:
        check_number(self.largest, "reciprocal surrogate: largest", whole=True)
        if self.largest > LARGEST_DIVISOR:
            raise UsageError(f"reciprocal surrogate: largest is {self.largest}, expected at most {LARGEST_DIVISOR}")

    def fit(self, mean: Float[Tensor, "C"], std: Float[Tensor, "C"]) -> tuple[Tensor, Tensor, Tensor]:
        phi, cdf = _normal(mean, std)
        slope = 1 / (1 / cdf).round().clamp(1, self.largest)
        return mean * cdf + std * phi - slope * mean, slope, torch.zeros_like(mean)


@dataclass(frozen=True, kw_only=True)
class Affine(Surrogate):
    """a z + b, trained a channel. The private slope costs a product an element."""

    name: ClassVar[str] = "affine"
    terms: ClassVar[tuple[Term, Term, Term]] = ("channel", "channel", "zero")
    operations: ClassVar[tuple[str, ...]] = ("multiply", "add")

    def fit(self, mean: Float[Tensor, "C"], std: Float[Tensor, "C"]) -> tuple[Tensor, Tensor, Tensor]:
        return affine_fit(mean, std)


@dataclass(frozen=True, kw_only=True)
class Quadratic(Surrogate):
    """scale c2 z^2 + c1 z + c0, trained a channel.

    Costs a product of two shares an element and one with a private number, unless that one can be carried into the
    weights beside it (:mod:`reluctant.program.carrying`).

    Args:
        scale: fixed factor of the square (AutoReP's released scripts: 0.1 on CIFAR, 0.2 small CIFAR-10, 2 on
            Tiny-ImageNet). A small one slows the square's learning and so keeps deep networks stable.
    """

    name: ClassVar[str] = "quadratic"
    terms: ClassVar[tuple[Term, Term, Term]] = ("channel", "channel", "channel")
    operations: ClassVar[tuple[str, ...]] = ("square", "multiply", "multiply", "add")
    scale: float = 0.1

    def __post_init__(self) -> None:
        check_number(self.scale, "quadratic surrogate: scale")

    @property
    def scales(self) -> tuple[float, float, float]:
        return (1.0, 1.0, self.scale)

    def fit(self, mean: Float[Tensor, "C"], std: Float[Tensor, "C"]) -> tuple[Tensor, Tensor, Tensor]:
        return quadratic_fit(mean, std)


@dataclass(frozen=True, kw_only=True)
class Hermite(Surrogate):
    """The Hermite expansion of ReLU to degree 2, each of its polynomials normalised on its own, as in AESPA.

    ``b + g (c1 N(h1(z)) + c2 N(h2(z)))`` with the Hermite polynomials ``h1 = z``, ``h2 = (z^2 - 1) / sqrt(2)`` and
    ReLU's coefficients ``c1 = 1 / 2``, ``c2 = 1 / (2 sqrt(pi))``; N takes off the mean a channel and divides by the
    deviation: of the batch in training, running ones afterwards, as batch norm does. Trained are b and g a channel. So
    neither the square nor the line can grow from layer to layer, which keeps a network of them trainable. Afterwards it
    is ``c2 z^2 + c1 z + c0`` a channel and costs what :class:`Quadratic` does.

    Source: Park, Kim, Jung, Ahn, arXiv:2201.06699, whose text was not at hand: the form is a reconstruction.
    Theirs takes the place of batch norm and is trained from scratch; here the network's own batch norms stay, and b and
    g start where the output has ReLU's mean and slope. A search that puts gates at the sites sees the running
    statistics only.
    """

    name: ClassVar[str] = "hermite"
    terms: ClassVar[tuple[Term, Term, Term]] = ("channel", "channel", "tied")
    operations: ClassVar[tuple[str, ...]] = Quadratic.operations
    normalised: ClassVar[bool] = True

    def fit(self, mean: Float[Tensor, "C"], std: Float[Tensor, "C"]) -> tuple[Tensor, Tensor, Tensor]:
        phi, cdf = _normal(mean, std)
        return mean * cdf + std * phi, std, torch.zeros_like(mean)

    @staticmethod
    def folded(b: Tensor, g: Tensor, moments: Float[Tensor, "4 ..."]) -> tuple[Tensor, Tensor, Tensor]:
        """Return c0, c1, c2 of the parabola. ``moments`` are mean and variance of z, then of z^2."""
        c1 = g / 2 * (moments[1] + _EPSILON).rsqrt()
        c2 = g / (2 * math.sqrt(math.pi)) * (moments[3] + _EPSILON).rsqrt()
        return b - c1 * moments[0] - c2 * moments[2], c1, c2

    @staticmethod
    def moments_of(z: Float[Tensor, "B C ..."]) -> Float[Tensor, "4 C"]:
        """Return mean and variance of z, then of z^2, a channel, with their gradients."""
        flat = z.float().transpose(0, 1).flatten(1)
        variance, mean = torch.var_mean(flat, 1, correction=0)
        variance_of_square, mean_of_square = torch.var_mean(flat**2, 1, correction=0)
        return torch.stack([mean, variance, mean_of_square, variance_of_square])

    @staticmethod
    def normal_moments(mean: Float[Tensor, "C"], std: Float[Tensor, "C"]) -> Float[Tensor, "4 C"]:
        """Return the same for a z of normal distribution."""
        square = std**2
        return torch.stack([mean, square, mean**2 + square, 2 * square**2 + 4 * mean**2 * square])


SURROGATES: dict[str, type[Surrogate]] = {
    s.name: s for s in (Identity, Shift, Constant, Reciprocal, Affine, Quadratic, Hermite)
}


def surrogate_from_json(value: Any, default: Surrogate | None = None) -> Surrogate:
    """Return the surrogate written by :meth:`Surrogate.to_json`, or named by a bare string.

    Args:
        default: what settings without a name are settings of; what they leave out is as it is there.

    Raises:
        UnknownName: no such surrogate or setting.
        UsageError: neither a name nor a table, or a setting of another type than its default, or out of its range.
    """
    if not isinstance(value, str | Mapping):
        raise UsageError(f"surrogate is {value!r}, expected a name ({', '.join(SURROGATES)}) or a table with a name")
    settings: dict[str, Any] = {"name": value} if isinstance(value, str) else dict(value)
    if default is not None and "name" not in settings:
        settings = {**default.to_json(), **settings}
    name = str(settings.pop("name", ""))
    if name not in SURROGATES:
        raise unknown("surrogate", name, list(SURROGATES))
    known = {field.name: field.default for field in fields(SURROGATES[name])}
    for key, item in settings.items():
        if not known:
            raise UnknownName(f"surrogate {name} has no settings, so no {key!r}; name the surrogate that is meant")
        if key not in known:
            raise unknown(f"setting of surrogate {name}", key, list(known))
        settings[key] = as_type_of(known[key], item, f"{name} surrogate: {key}")
    return SURROGATES[name](**settings)
