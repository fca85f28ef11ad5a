"""Networks whose activations are hard to find or to rewrite; one class a difficulty."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Spellings(nn.Module):
    """A ReLU in each spelling there is: eleven calls."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.relu, self.head = nn.ReLU(inplace=True), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.first(x)) - 0.2
        x = F.relu(x) - 0.1
        x = torch.relu(self.second(x)) - 0.1
        x = x.relu() - 0.1
        x = F.relu(x, inplace=True) - 0.1
        x = x.clamp(min=0) - 0.1
        x = torch.clamp(x, 0) - 0.1
        x = x.clamp_min(0) - 0.1
        x = x.clone()
        x.relu_()
        x = x - 0.1
        x.clamp_(min=0)
        x = self.relu(x - 0.1)
        return self.head(x.mean((2, 3)))


class SharedBlock(nn.Module):
    """One residual block, and in it one ReLU module called twice, run twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.conv, self.bn, self.relu = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()
        self.head = nn.Linear(6, 5)

    def block(self, x: Tensor) -> Tensor:
        return self.relu(self.relu(self.bn(self.conv(x))) + x - 0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.block(self.stem(x))).mean((2, 3)))


class Concat(nn.Module):
    """Dense connections by concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(7, 4, 1)
        self.head = nn.Linear(11 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x, F.relu(self.a(x))], 1)
        x = torch.cat([x, F.relu(self.b(x))], 1)
        return self.head(F.avg_pool2d(x, 2).flatten(1))


class TwoOutputs(nn.Module):
    """Class scores and features."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1, stride=2), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.conv(x).relu().mean((2, 3))
        return self.head(features), features


class ShapeFlow(nn.Module):
    """Control flow on shapes, functional activations, a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        while x.shape[2] > 4:
            x = F.avg_pool2d(F.relu(self.conv(x)), 2)
        if x.shape[2] == 4:
            x = torch.relu(x - 0.1)
        return self.head(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class DataFlow(nn.Module):
    """Control flow on values: which sites fire depends on the image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        if x.mean() > 0.5:
            x = F.relu(x - 0.1)
        return self.head(x.mean((2, 3)))


class TrainingOnly(nn.Module):
    """An auxiliary head that only training runs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        if self.training:
            x = F.relu(x + 1)
        return self.head(x.mean((2, 3)))


class NoGradients(nn.Module):
    """A ReLU that nothing could be trained through."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return x.relu()


class NotReLU(nn.Module):
    """SiLU, ReLU6, GELU, hard-swish, max-pooling, a hand-made ReLU; and one real one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 5)
        self.silu, self.relu6, self.gelu, self.hardswish = nn.SiLU(), nn.ReLU6(), nn.GELU(), nn.Hardswish()
        self.pool, self.relu = nn.MaxPool2d(2), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.hardswish(self.gelu(self.relu6(self.silu(self.conv(x)))))
        x = self.relu(self.pool(x) - 0.2)
        x = x * (x > -9)
        return self.head(x.mean((2, 3)))


#: Every network that can be linearized, with the number of its sites on an 8x8 image.
LINEARIZABLE = {Spellings: 11, SharedBlock: 4, Concat: 2, TwoOutputs: 1, ShapeFlow: 2, NotReLU: 1}
