"""What stands for an activation in a traced graph: one node a site."""

import torch
from torch import Tensor, nn


@torch.library.custom_op("reluctant::site", mutates_args=())
def site(z: Tensor, index: int) -> Tensor:
    """Stand for the activation of site number ``index`` in a traced graph."""
    return z.clone()


@site.register_fake
def _site_shape(z: Tensor, index: int) -> Tensor:
    return torch.empty_like(z)


class Marker(nn.Module):
    """Put where the activation of site number ``index`` was, it leaves one node ``reluctant::site``."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index

    def forward(self, z: Tensor) -> Tensor:
        output: Tensor = site(z, self.index)
        return output
