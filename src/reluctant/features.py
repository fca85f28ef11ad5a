"""What a network computes on the way: the outputs of its sites, and where they draw the eye.

The attention-map consistency ("PRAM") is SENet's (ICLR 2023, arXiv:2301.09254, section 3), after attention transfer
(Zagoruyko, Komodakis, ICLR 2017, arXiv:1612.03928).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from reluctant.masked import MaskedModel
from reluctant.sites import Sites


@contextmanager
def watching(model: MaskedModel, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Watch the sites ``names`` of ``model``, whatever module stands there on entry.

    Yields:
        the output ``[B, *shape]`` of each in the latest pass, with its gradient.
    """
    seen: dict[str, Tensor] = {}

    def note(name: str) -> Any:
        return lambda module, args, output: seen.update({name: output})

    order = {name: index for index, name in enumerate(model.sites)}
    handles = [model.activations[order[name]].register_forward_hook(note(name)) for name in names]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def stage_ends(sites: Sites) -> list[str]:
    """Return the last site of each size of map, in the order of the forward pass: the ends of a network's stages.

    All sites, where none has a map.
    """
    last = {site.shape[1:]: name for name, site in sites.items() if len(site.shape) == 3}
    return [name for name in sites if name in last.values()] or list(sites)


def attention(features: Float[Tensor, "B C ..."]) -> Float[Tensor, "B pixels"]:
    """Return the mean over channels of the squared features, flattened and of norm 1 a sample.

    Where there is no map, the squared features themselves.
    """
    squares = features.float().square()
    return F.normalize(squares.mean(1).flatten(1) if squares.dim() > 2 else squares, dim=1)


def attention_gap(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> Float[Tensor, ""]:
    """Return the sum over sites of the mean squared difference of the two attention maps (PRAM).

    SENet weights it by 1,000.

    Args:
        student, teacher: features by site, of the same shapes; the sites of ``teacher`` are compared.
    """
    gaps = [(attention(student[name]) - attention(maps)).square().mean() for name, maps in teacher.items()]
    return torch.stack(gaps).sum()
