"""VGG with batch normalisation, for small images.

Paper: Simonyan, Zisserman. Very Deep Convolutional Networks for Large-Scale Image Recognition. ICLR 2015,
arXiv:1409.1556, configuration D of table 1, with batch normalisation and one linear classifier in place of three.
"""

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))  # table 1, column D


class VGG(nn.Module):
    """Stages of 3x3 convolutions, each with BN and ReLU and closed by a 2x2 pooling; the mean; a linear classifier.

    A map of one row or column is pooled no further, so images smaller than 32x32 work too.
    """

    def __init__(self, pool: Literal["max", "avg"], classes: int, channels: int) -> None:
        super().__init__()
        self.features = nn.Sequential()
        inputs = channels
        for stage, widths in enumerate(STAGES, start=1):
            for layer, outputs in enumerate(widths, start=1):
                name = f"{stage}_{layer}"
                self.features.add_module(f"conv{name}", nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False))
                self.features.add_module(f"bn{name}", nn.BatchNorm2d(outputs))
                self.features.add_module(f"relu{name}", nn.ReLU())
                inputs = outputs
            self.features.add_module(f"pool{stage}", nn.MaxPool2d(2) if pool == "max" else nn.AvgPool2d(2))
        self.fc = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        for layer in self.features:
            if min(x.shape[2:]) > 1 or not isinstance(layer, nn.MaxPool2d | nn.AvgPool2d):
                x = layer(x)
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


def vgg16_bn(classes: int, channels: int, *, pool: Literal["max", "avg"] = "max") -> VGG:
    """Return VGG-16 with batch normalisation: 276,480 ReLUs at 32x32.

    Args:
        pool: ``avg`` has no comparisons; those of ``max`` cost a secure run about as much as ReLUs do.
    """
    return VGG(pool, classes, channels)
