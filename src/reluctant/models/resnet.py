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


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a 1x1 convolution to four times the width, and a shortcut; three ReLUs, the last after the sum.

    The 3x3 convolution takes the stride; in ``groups`` it is that of ResNeXt (Xie et al., CVPR 2017,
    arXiv:1611.05431).
    """

    def __init__(self, inputs: int, width: int, stride: int, groups: int = 1) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.relu3 = nn.ReLU()

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D H2 W2"]:
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.relu2(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu3(y + self.downsample(x))  # type: ignore[no-any-return]


class ResNet(nn.Module):
    """A 3x3 stem, stages of residual blocks, the mean over the last map, a linear classifier.

    Args:
        blocks: blocks in each stage; every stage after the first halves the map.
        widths: channels of each stage; the stem has those of the first. Bottlenecks put out four times as many.
        stem_relu: whether an activation follows the stem.
        stem_stride: 2 halves the map at once.
        groups: bottlenecks whose 3x3 convolutions are in so many groups; 0 for basic blocks.
    """

    def __init__(
        self,
        blocks: tuple[int, ...],
        widths: tuple[int, ...],
        classes: int,
        channels: int,
        stem_relu: bool,
        stem_stride: int = 1,
        groups: int = 0,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, widths[0], 3, stem_stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU() if stem_relu else nn.Identity()
        self.stages = tuple(f"layer{number}" for number in range(1, len(blocks) + 1))
        inputs = widths[0]
        for number, (stage, count, width) in enumerate(zip(self.stages, blocks, widths, strict=True)):
            layers: list[nn.Module] = []
            for block in range(count):
                stride = 2 if number and not block else 1
                layers.append(
                    Bottleneck(inputs, width, stride, groups) if groups else BasicBlock(inputs, width, stride)
                )
                inputs = 4 * width if groups else width
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


def doubling(width: int, stages: int) -> tuple[int, ...]:
    """Return the channels of each of so many stages, twice as many in each as in the one before."""
    return tuple(width << stage for stage in range(stages))


def resnet8(classes: int, channels: int, *, stem_relu: bool = True, width: int = 16) -> ResNet:
    """Return ResNet-8: one block in each of three stages (n = 1 in the paper's 6n + 2). For 8x8 images and up."""
    return ResNet((1, 1, 1), doubling(width, 3), classes, channels, stem_relu)


def resnet20(classes: int, channels: int, *, stem_relu: bool = True, width: int = 16) -> ResNet:
    """Return ResNet-20: 188,416 ReLUs at 32x32, 172,032 without the stem's."""
    return ResNet((3, 3, 3), doubling(width, 3), classes, channels, stem_relu)


def resnet32(classes: int, channels: int, *, stem_relu: bool = True, width: int = 16) -> ResNet:
    """Return ResNet-32: 303,104 ReLUs at 32x32, 286,720 without the stem's."""
    return ResNet((5, 5, 5), doubling(width, 3), classes, channels, stem_relu)


def resnet18(classes: int, channels: int, *, stem_relu: bool = True, width: int = 64) -> ResNet:
    """Return ResNet-18: 557,056 ReLUs at 32x32, 491,520 without the stem's (the network of SNL)."""
    return ResNet((2, 2, 2, 2), doubling(width, 4), classes, channels, stem_relu)


def resnet34(classes: int, channels: int, *, stem_relu: bool = True, width: int = 64) -> ResNet:
    """Return ResNet-34: 966,656 ReLUs at 32x32, 901,120 without the stem's."""
    return ResNet((3, 4, 6, 3), doubling(width, 4), classes, channels, stem_relu)
