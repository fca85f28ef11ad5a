"""Wide residual networks.

Paper: Zagoruyko, Komodakis. Wide Residual Networks. BMVC 2016, arXiv:1605.07146, table 1: WRN-d-k has (d - 4) / 6
pre-activation blocks in each of three groups of 16k, 32k and 64k channels. Without dropout.
"""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn


class PreActivationBlock(nn.Module):
    """BN, ReLU and a 3x3 convolution, twice, and a shortcut.

    Where the shape changes, the 1x1 shortcut reads what the first convolution reads; elsewhere it is the input itself.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D H2 W2"]:
        a = self.relu1(self.bn1(x))
        y = self.conv2(self.relu2(self.bn2(self.conv1(a))))
        return y + (x if self.shortcut is None else self.shortcut(a))  # type: ignore[no-any-return]


class WideResNet(nn.Module):
    """A 3x3 stem without activation, three groups of pre-activation blocks, BN, ReLU, the mean, a linear classifier.

    Args:
        depth: convolutions in all, 6n + 4.
        factor: how many times wider the groups are than 16, 32 and 64 channels.
        last_relu: whether an activation stands before the mean.
    """

    def __init__(self, depth: int, factor: int, classes: int, channels: int, last_relu: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        inputs = 16
        groups = []
        for number in range(3):
            outputs = 16 * factor << number
            blocks = []
            for block in range((depth - 4) // 6):
                blocks.append(PreActivationBlock(inputs, outputs, stride=2 if number and not block else 1))
                inputs = outputs
            groups.append(nn.Sequential(*blocks))
        self.group1, self.group2, self.group3 = groups
        self.bn = nn.BatchNorm2d(inputs)
        self.relu = nn.ReLU() if last_relu else nn.Identity()
        self.fc = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        x = self.group3(self.group2(self.group1(self.conv1(x))))
        return self.fc(self.relu(self.bn(x)).mean((2, 3)))  # type: ignore[no-any-return]


def wrn(depth: int, factor: int) -> Callable[..., WideResNet]:
    """Return the function that builds WRN-depth-factor, with the signature of :func:`wrn_22_8`.

    Raises:
        ValueError: there is no such network.
    """
    if depth < 10 or depth % 6 != 4 or factor < 1:
        raise ValueError("in wrn-D-K, D must be 6n + 4 (10, 16, 22, ...) and K at least 1")

    def build(classes: int, channels: int, *, last_relu: bool = True) -> WideResNet:
        return WideResNet(depth, factor, classes, channels, last_relu)

    return build


def wrn_22_8(classes: int, channels: int, *, last_relu: bool = True) -> WideResNet:
    """Return WRN-22-8: 1,392,640 ReLUs at 32x32, 1,359,872 without the last (the network of SNL and AutoReP)."""
    return WideResNet(22, 8, classes, channels, last_relu)
