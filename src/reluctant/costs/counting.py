"""What one inference with one image consists of: ReLUs a site, multiply-adds a module, and what was not counted.

Convention: one multiply-add counts as one MAC, whatever the hardware makes of it. Convolutions and matrix products are
counted; a bias is not. What ran besides them is in :attr:`Count.uncounted`, so nothing is left out in silence.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

if TYPE_CHECKING:
    from reluctant.sites import OtherActivation, Sites

_NO_WORK = frozenset({"detach", "empty", "empty_like", "clone", "_to_copy", "lift_fresh", "arange", "zeros", "ones"})
_SITES = frozenset({"relu", "relu_", "clamp", "clamp_", "clamp_min", "clamp_min_"})  # counted as sites, or in `other`


@dataclass(frozen=True)
class Count:
    """What one inference with one image consists of.

    Attributes:
        relus: at each site, in the order of the forward pass.
        macs: of each module that has any, its children included, in the order of the forward pass.
        total_macs: of the whole network; a module that runs twice counts twice.
        parameters: values that training changes, each once.
        other: non-linear calls that are no ReLU.
        uncounted: operation -> calls, of those that compute something and are neither MACs nor ReLUs: additions,
            normalisations, pooling, ...
    """

    relus: Mapping[str, int]
    macs: Mapping[str, int]
    total_macs: int
    parameters: int
    other: "tuple[OtherActivation, ...]"
    uncounted: Mapping[str, int]

    @property
    def total_relus(self) -> int:
        """ReLUs at all sites."""
        return sum(self.relus.values())

    def to_json(self) -> dict[str, Any]:
        """Return all counts as a JSON object."""
        other = [
            {"name": call.name, "kind": call.kind, "shape": list(call.shape), "elements": call.elements}
            for call in self.other
        ]
        return {
            "relus": {"total": self.total_relus, "by_site": dict(self.relus)},
            "macs": {"total": self.total_macs, "by_module": dict(self.macs)},
            "parameters": self.parameters,
            "other": other,
            "uncounted": dict(self.uncounted),
        }


def count(model: nn.Module, sites: "Sites", example: Tensor) -> Count:
    """Return what one inference of ``model`` consists of. The model is run once, and is left as it was.

    Args:
        sites: of this model at this input shape.
        example: an input with its batch dimension; its first sample is used.
    """
    modes = {module: module.training for module in model.modules()}
    flops, operations = FlopCounterMode(display=False), _Operations()
    model.eval()
    try:
        with torch.no_grad(), operations, flops:
            model(example[:1])
    finally:
        for module, mode in modes.items():
            module.training = mode
    by_module = {name: sum(counts.values()) // 2 for name, counts in flops.get_flop_counts().items()}
    total, root = by_module.pop("Global", 0), type(model).__name__
    names = [name for name, _ in model.named_modules() if by_module.get(f"{root}.{name}")]
    return Count(
        relus={name: site.relus for name, site in sites.items()},
        macs={name: by_module[f"{root}.{name}"] for name in names},
        total_macs=total,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        other=sites.other,
        uncounted=dict(sorted(operations.seen.items())),
    )


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the calls of operations that compute something and have no formula."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        operation = func.overloadpacket
        name = operation.__name__
        known = operation in flop_registry or func.is_view or name in _NO_WORK | _SITES
        if not known:
            self.seen[name] += 1
        return func(*args, **(kwargs or {}))
