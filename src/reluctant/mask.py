"""Which ReLUs are kept. True = kept, everywhere, always."""

import hashlib
import math
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from reluctant.errors import ShapeError
from reluctant.knapsack import buy, worth
from reluctant.prices import Prices
from reluctant.registry import unknown
from reluctant.sites import Sites


class Mask(Mapping[str, Bool[Tensor, "..."]]):
    """One boolean tensor a site, of the site's per-sample shape, on the CPU. Immutable by convention.

    Example:
        >>> Mask({"a": torch.tensor([True, False])}).kept
        1
    """

    def __init__(self, keep: Mapping[str, Bool[Tensor, "..."]]) -> None:
        self._keep = {name: tensor.detach().to("cpu", torch.bool) for name, tensor in keep.items()}

    def __getitem__(self, name: str) -> Bool[Tensor, "..."]:
        if name not in self._keep:
            raise unknown("site", name, list(self._keep))
        return self._keep[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._keep)

    def __len__(self) -> int:
        return len(self._keep)

    def __repr__(self) -> str:
        return f"Mask({self.kept:,} of {self.total:,} ReLUs at {self.sites_kept} of {len(self)} sites)"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mask) or self.shapes != other.shapes:
            return False
        return all(torch.equal(self[name], other[name]) for name in self)

    def __hash__(self) -> int:
        return hash(self.digest)

    def __and__(self, other: "Mask") -> "Mask":
        return self._combine(other, torch.logical_and)

    def __or__(self, other: "Mask") -> "Mask":
        return self._combine(other, torch.logical_or)

    def __sub__(self, other: "Mask") -> "Mask":
        return self._combine(~other, torch.logical_and)

    def __invert__(self) -> "Mask":
        return Mask({name: ~keep for name, keep in self.items()})

    def _combine(self, other: "Mask", operation: object) -> "Mask":
        if self.shapes != other.shapes:
            raise ShapeError(
                "the two masks are of different sites; masks combine only over one model at one input shape"
            )
        return Mask({name: operation(keep, other[name]) for name, keep in self.items()})  # type: ignore[operator]

    @property
    def kept(self) -> int:
        """ReLUs kept, of one inference with one image."""
        return sum(self.by_site().values())

    @property
    def total(self) -> int:
        """ReLUs there were."""
        return sum(keep.numel() for keep in self.values())

    @property
    def sites_kept(self) -> int:
        """Sites that keep at least one ReLU, and so cost messages."""
        return sum(count > 0 for count in self.by_site().values())

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Per-sample shape of each site."""
        return {name: tuple(keep.shape) for name, keep in self.items()}

    @property
    def digest(self) -> str:
        """SHA-256 over names, shapes and bits, in hexadecimal."""
        sha = hashlib.sha256()
        for name, bits in self.pack().items():
            sha.update(f"{name}{self.shapes[name]}".encode())
            sha.update(bits.numpy().tobytes())
        return sha.hexdigest()

    def by_site(self) -> dict[str, int]:
        """Return the ReLUs kept at each site."""
        return {name: int(keep.sum()) for name, keep in self.items()}

    def pack(self) -> dict[str, UInt8[Tensor, "bytes"]]:
        """Return eight elements a byte, in row-major order, the first in the highest bit."""
        return {name: torch.from_numpy(np.packbits(keep.numpy().reshape(-1))) for name, keep in self.items()}

    @classmethod
    def unpack(cls, packed: Mapping[str, UInt8[Tensor, "bytes"]], shapes: Mapping[str, tuple[int, ...]]) -> "Mask":
        """Return the mask that :meth:`pack` wrote.

        Raises:
            ShapeError: the bytes of a site do not fit its shape, or the sites differ.
        """
        if set(packed) != set(shapes):
            raise ShapeError(f"packed mask has the sites {sorted(packed)}, expected {sorted(shapes)}")
        keep = {}
        for name, shape in shapes.items():
            count = math.prod(shape)
            if len(packed[name]) != (count + 7) // 8:
                raise ShapeError(
                    f"packed mask of {name} has {len(packed[name])} bytes, {shape} needs {(count + 7) // 8}"
                )
            bits = np.unpackbits(packed[name].numpy(), count=count)
            keep[name] = torch.from_numpy(bits.astype(bool)).reshape(shape)
        return cls(keep)

    @classmethod
    def full(cls, sites: Sites) -> "Mask":
        """Return the mask that keeps every ReLU."""
        return cls({name: torch.ones(site.shape, dtype=torch.bool) for name, site in sites.items()})

    @classmethod
    def top(
        cls,
        scores: Mapping[str, Float[Tensor, "..."]],
        prices: Prices,
        limit: float,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
    ) -> "Mask":
        """Return the mask of the highest scores whose cost under ``prices`` is at most ``limit``.

        With one price for all ReLUs and none for a site this is the exact top k: as many as the limit buys. Else it is
        a knapsack (:mod:`reluctant.knapsack`): sites that do not earn what keeping them alive costs are emptied whole,
        then the rest is bought greedily until no further ReLU fits. Equal scores are taken in the order of sites and
        elements, whatever the seed or the device.

        Args:
            scores: higher = rather kept; one tensor a site. Only their order counts.
            limit: in the unit of ``prices``.
            shapes: of the sites, where scores are of groups (:func:`grouped`): each score is then of a ReLU, on
                average, of a group that is kept or dropped whole.
        """
        names = list(scores)
        shapes = shapes or {name: tuple(scores[name].shape) for name in names}
        flat = [scores[name].detach().to("cpu", torch.float64).reshape(-1).numpy() for name in names]
        value = np.concatenate(flat)
        site = np.repeat(np.arange(len(names)), [len(part) for part in flat])
        if not np.isfinite(value).all():
            bad = names[site[~np.isfinite(value)][0]]
            raise ShapeError(f"the scores of site {bad} hold NaN or infinity; lower the learning rate of the search")
        relus = np.array([_group_size(scores[name], shapes[name]) for name in names], dtype=np.float64)
        price = relus * np.array([prices.by_site[name].relu for name in names], dtype=np.float64)
        if prices.uniform and len(set(price)) == 1:
            chosen = np.zeros(len(value), dtype=bool)
            bought = max(0, int((limit - prices.floor) / price[0] + 1e-9))
            chosen[np.argsort(-value, kind="stable")[:bought]] = True
        else:
            chosen = buy(
                worth(value) * relus[site],
                site,
                price,
                lambda alive: prices.fixed(names[number] for number in alive),
                limit,
            )
        parts = np.split(chosen, np.cumsum([len(part) for part in flat])[:-1])
        return cls(
            {
                name: torch.from_numpy(part.copy()).reshape(scores[name].shape).expand(shapes[name]).clone()
                for name, part in zip(names, parts, strict=True)
            }
        )

    @classmethod
    def top_of_sites(
        cls,
        scores: Mapping[str, Float[Tensor, "..."]],
        counts: Mapping[str, int],
        shapes: Mapping[str, tuple[int, ...]] | None = None,
    ) -> "Mask":
        """Return the mask of the ``counts[name]`` highest scores of each site; of groups, as many as fit whole.

        Args:
            scores, shapes: as for :meth:`top`.
        """
        keep = {}
        for name, score in scores.items():
            shape = tuple(score.shape) if shapes is None else shapes[name]
            order = score.detach().cpu().reshape(-1).argsort(descending=True, stable=True)
            chosen = torch.zeros(score.numel(), dtype=torch.bool)
            chosen[order[: counts[name] // _group_size(score, shape)]] = True
            keep[name] = chosen.reshape(score.shape).expand(shape).clone()
        return cls(keep)


#: What is kept or dropped together: one ReLU; the map of a channel; one place in all channels.
GRANULARITIES = ("pixel", "channel", "spatial")


def grouped(score: Float[Tensor, "..."], granularity: str) -> Float[Tensor, "..."]:
    """Return the mean of ``score [C, ...]`` over each group: of its own shape, ``[C, 1, 1]`` or ``[1, H, W]``."""
    if granularity == "pixel" or (score.dim() == 1 and granularity == "channel"):
        return score
    return score.mean(tuple(range(1, score.dim())) if granularity == "channel" else 0, keepdim=True)


def _group_size(score: Tensor, shape: tuple[int, ...]) -> int:
    return math.prod(shape) // score.numel()
