"""Residual networks for small images.

Paper: He, Zhang, Ren, Sun. Deep Residual Learning for Image Recognition. CVPR 2016, arXiv:1512.03385. ResNet-20/32 are
those of its section 4.2 with 1x1 convolutions at the shortcuts that change shape (option B of section 4.1);
ResNet-18/34 are those of table 1 with a 3x3 stem of stride 1 and no max-pool, as usual on 32x32 images.
"""

from jaxtyping import Float
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; a ReLU after the first and one after the sum."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.relu2 = nn.ReLU()

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D H2 W2"]:
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu2(y + self.downsample(x))  # type: ignore[no-any-return]


class ResNet(nn.Module):
    """A 3x3 stem, stages of basic blocks, the mean over the last map, a linear classifier.

    Args:
        blocks: basic blocks in each stage; every stage after the first halves the map and doubles the channels.
        width: channels of the stem and of the first stage.
        stem_relu: whether an activation follows the stem.
    """

    def __init__(self, blocks: tuple[int, ...], width: int, classes: int, channels: int, stem_relu: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU() if stem_relu else nn.Identity()
        self.stages = tuple(f"layer{number}" for number in range(1, len(blocks) + 1))
        inputs = width
        for number, (stage, count) in enumerate(zip(self.stages, blocks, strict=True)):
            outputs = width << number
            layers = []
            for block in range(count):
                layers.append(BasicBlock(inputs, outputs, stride=2 if number and not block else 1))
                inputs = outputs
            self.add_module(stage, nn.Sequential(*layers))
        self.fc = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        x = self.relu(self.bn1(self.conv1(x)))
        for stage in self.stages:
            x = getattr(self, stage)(x)
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


def resnet8(classes: int, channels: int, *, stem_relu: bool = True, width: int = 16) -> ResNet:
    """Return ResNet-8: one block in each of three stages (n = 1 in the paper's 6n + 2). For 8x8 images and up."""
    return ResNet((1, 1, 1), width, classes, channels, stem_relu)


def resnet20(classes: int, channels: int, *, stem_relu: bool = True, width: int = 16) -> ResNet:
    """Return ResNet-20: 188,416 ReLUs at 32x32, 172,032 without the stem's."""
    return ResNet((3, 3, 3), width, classes, channels, stem_relu)


def resnet32(classes: int, channels: int, *, stem_relu: bool = True, width: int = 16) -> ResNet:
    """Return ResNet-32: 303,104 ReLUs at 32x32, 286,720 without the stem's."""
    return ResNet((5, 5, 5), width, classes, channels, stem_relu)


def resnet18(classes: int, channels: int, *, stem_relu: bool = True, width: int = 64) -> ResNet:
    """Return ResNet-18: 557,056 ReLUs at 32x32, 491,520 without the stem's (the network of SNL)."""
    return ResNet((2, 2, 2, 2), width, classes, channels, stem_relu)


def resnet34(classes: int, channels: int, *, stem_relu: bool = True, width: int = 64) -> ResNet:
    """Return ResNet-34: 966,656 ReLUs at 32x32, 901,120 without the stem's."""
    return ResNet((3, 4, 6, 3), width, classes, channels, stem_relu)
