"""EfficientNet.

Paper: Tan, Le. EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks. ICML 2019, arXiv:1905.11946,
table 1, scaled as its B2: 1.1 times wider, 1.2 times deeper. Its blocks are those of MobileNetV2 (Sandler et al., 2018,
arXiv:1801.04381) with the squeeze-and-excitation of Hu et al. (2018, arXiv:1709.01507). The rounding of channels, the
squeeze to a quarter of a block's input and the settings of BN are the reference implementation's. Without dropout and
stochastic depth. The activation of the paper is SiLU; AutoReP (arXiv:2308.10134) puts ReLU in its place.
"""

import math
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

Activation = Literal["relu", "silu"]

MODULES: dict[Activation, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU}

#: Table 1, stages 2 to 8: expansion, kernel, stride, channels, blocks.
STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
STEM, HEAD = 32, 1280  # stages 1 and 9


def widened(channels: int, factor: float) -> int:
    """Return the multiple of 8 nearest to ``factor * channels``, or the next one if that loses over a tenth."""
    exact = factor * channels
    nearest = max(8, int(exact + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * exact else nearest + 8


class ConvBN(nn.Sequential):
    """A padded convolution without bias, BN and, unless ``activation`` is ``None``, an activation."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        activation: Activation | None,
        *,
        stride: int = 1,
        groups: int = 1,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.01)
        if activation is not None:
            self.act = MODULES[activation]()


class SqueezeExcite(nn.Module):
    """Scales each channel by a sigmoid of two layers over the means of all channels."""

    def __init__(self, channels: int, squeezed: int, activation: Activation) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.act = MODULES[activation]()
        self.expand = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        means = x.mean((2, 3), keepdim=True)
        return x * self.expand(self.act(self.reduce(means))).sigmoid()  # type: ignore[no-any-return]


class MBConv(nn.Module):
    """Expand, convolve channel by channel, squeeze-excite, project; and a shortcut where the shape stays."""

    def __init__(
        self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int, activation: Activation
    ) -> None:
        super().__init__()
        inner = expansion * inputs
        self.expand = nn.Identity() if expansion == 1 else ConvBN(inputs, inner, 1, activation)
        self.depthwise = ConvBN(inner, inner, kernel, activation, stride=stride, groups=inner)
        self.excite = SqueezeExcite(inner, inputs // 4, activation)
        self.project = ConvBN(inner, outputs, 1, None)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D H2 W2"]:
        y = self.project(self.excite(self.depthwise(self.expand(x))))
        return x + y if self.shortcut else y  # type: ignore[no-any-return]


class EfficientNet(nn.Module):
    """A 3x3 stem of stride 2, stages of MBConv blocks, a 1x1 convolution, the mean, a linear classifier.

    Args:
        width, depth: factors on the channels and on the blocks of every stage of the paper's B0.
        activation: of every block, also inside the squeeze-excite.
    """

    def __init__(self, width: float, depth: float, classes: int, channels: int, activation: Activation) -> None:
        super().__init__()
        inputs, last = widened(STEM, width), widened(HEAD, width)
        self.stem = ConvBN(channels, inputs, 3, activation, stride=2)
        self.stages = nn.Sequential()
        for expansion, kernel, stride, base, count in STAGES:
            outputs, stage = widened(base, width), nn.Sequential()
            for block in range(math.ceil(depth * count)):
                stage.append(MBConv(inputs, outputs, expansion, kernel, 1 if block else stride, activation))
                inputs = outputs
            self.stages.append(stage)
        self.head = ConvBN(inputs, last, 1, activation)
        self.fc = nn.Linear(last, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] ** 2 * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        x = self.head(self.stages(self.stem(x)))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


def efficientnet_b2(classes: int, channels: int, *, activation: Activation = "relu") -> EfficientNet:
    """Return EfficientNet-B2: 8,804,162 ReLUs at 224x224, 626 of them in squeeze-excites (the network of AutoReP).

    Args:
        activation: ``silu`` is the paper's; ``swap_activations(model, "silu", "relu")`` of it is the default.
    """
    return EfficientNet(1.1, 1.2, classes, channels, activation)
