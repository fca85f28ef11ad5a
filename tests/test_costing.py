"""What `cost` counts is what the program computes, not what the mask says."""

import torch
from torch import nn

from reluctant.checkpoints import Checkpoint, Origin
from reluctant.costing import count_cost
from reluctant.mask import Mask
from reluctant.masked import MaskedModel, attach
from reluctant.models.resnet import resnet8
from reluctant.sites import find_sites
from reluctant.surrogates import Affine, Identity, Quadratic, Surrogate

IMAGE = torch.zeros(1, 3, 8, 8)


def counted(model: MaskedModel, without: tuple[str, ...] = ()) -> tuple[dict[str, int], dict[str, int]]:
    origin = Origin("net.py:net", "digits", 5, (3, 8, 8))
    found = count_cost(Checkpoint(model.model, model, origin), without=without)
    return found["relus"], found["surrogates"]


def attached(network: nn.Module, surrogate: Surrogate, keep: float) -> MaskedModel:
    """Return ``network`` with every so-manyth ReLU of a site kept."""
    model = attach(network.eval(), find_sites(network.eval(), IMAGE), surrogate)
    step = round(1 / keep) if keep else 10**9
    model.set_mask(
        Mask({n: torch.arange(m.numel()).reshape(m.shape) % step == step - 1 for n, m in model.mask.items()})
    )
    return model


def test_products_of_squares_that_were_carried_away_are_not_counted() -> None:
    model = attached(resnet8(5, 3), Quadratic(), 0.25)
    dropped = model.mask.total - model.mask.kept
    (_, found), (_, all_of_them) = counted(model), counted(model, ("squares",))
    assert found["squares"] == all_of_them["squares"] == found["biases"] == dropped
    assert found["slopes"] < dropped == all_of_them["slopes"]


def test_relus_of_pruned_channels_are_not_compared() -> None:
    model = attached(resnet8(5, 3), Identity(), 0.25)
    convolution = model.model.get_submodule("layer1.0.conv1")
    convolution.weight.data[::2] = 0
    relus, _ = counted(model)
    assert relus["compared"] < relus["kept"] == model.mask.kept
    assert counted(model, ("channels",))[0]["compared"] == model.mask.kept
    convolution.weight.data[:] = 0
    assert counted(model)[0]["sites_compared"] <= relus["sites_kept"]


class Stream(nn.Module):
    """Two sums in a row: where the first keeps no ReLU, its slopes are products that nothing can take."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)
        self.first, self.second = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.first(x))
        x = torch.relu(x + self.second(x))
        out: torch.Tensor = self.head(x.mean((2, 3)))
        return out


def test_slopes_of_a_site_that_keeps_nothing_are_counted_where_they_are_computed() -> None:
    model = attached(Stream(), Affine(), 0.5)
    keep = {name: kept.clone() for name, kept in model.mask.items()}
    first, second = keep
    keep[first][:] = False
    model.set_mask(Mask(keep))
    _, found = counted(model, ("collapse",))
    elements = keep[first].numel()
    assert found["slopes"] == elements + int((~keep[second]).sum())
