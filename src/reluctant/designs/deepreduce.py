"""DeepReDuce.

Paper:    Jha, Ghodsi, Garg, Reagen. DeepReDuce: ReLU Reduction for Fast Private Inference. ICML 2021,
          arXiv:2103.01396.
Deviates: the usual order of stages is that of ResNet-18 on CIFAR-100; the released Tiny-ImageNet networks lose stage 2
          after stage 1, so another data set may have another order: ``reluctant search criticality`` measures it. The
          released networks are those that a public implementation of multi-party inference carries under the authors'
          names; that they are the authors' is our reading, as is the row 197k, which the paper's figures have and that
          code has not. The distillation from the full network is the finetune's and `fit`'s business here, as for any
          network.
Symbols:  alpha -> width / 64; rho -> 1 / stem_stride; culled stages -> cull; thinning -> thin.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar

from reluctant.designs.base import check_order
from reluctant.designs.residual import Residual
from reluctant.errors import UsageError
from reluctant.models.resnet import doubling

#: Of ResNet-18 on CIFAR-100, most critical first; the released CIFAR-100 networks drop stage 1 first, stage 4 second.
ORDER = (3, 2, 4, 1)


@dataclass(frozen=True, kw_only=True)
class DeepReDuce(Residual):
    """A ResNet-18 without the ReLUs of its least critical stages, thinned and reshaped.

    Thinning keeps the ReLU between the convolutions of a block and drops the one after the sum.

    Args:
        width: channels of the first stage, doubled by each further one; 64 in the paper, 32 where channels are halved.
        cull: stages without ReLUs, counted from 1. There is never a ReLU after the stem.
        stem_stride: 2 halves the resolution of every map.
    """

    name: ClassVar[str] = "deepreduce"

    width: int = 64
    cull: tuple[int, ...] = (1,)
    stem_stride: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stem_stride > 2:
            raise UsageError(f"deepreduce.stem_stride is {self.stem_stride}, expected 1, or 2 for half the resolution")
        for stage in self.cull:
            if stage > len(self.blocks) or self.cull.count(stage) > 1:
                raise UsageError(f"deepreduce.cull is {self.cull}, expected stages from 1 to {len(self.blocks)}, once")
        if len(self.cull) == len(self.blocks):
            raise UsageError(f"deepreduce.cull names all {len(self.blocks)} stages: no ReLU would be left")

    @property
    def widths(self) -> tuple[int, ...]:
        return doubling(self.width, len(self.blocks))

    @property
    def has_stem_relu(self) -> bool:
        return False

    @property
    def culled(self) -> tuple[int, ...]:
        return self.cull

    @property
    def first_stride(self) -> int:
        return self.stem_stride

    @classmethod
    def candidates(cls, order: tuple[int, ...] | None, settings: Mapping[str, Any]) -> tuple["DeepReDuce", ...]:
        """Return all that culling (one stage or more, least critical first), thinning and half resolution give."""
        base = cls.from_json(settings)
        order = order or ORDER
        check_order(order, len(base.blocks))
        least = order[::-1]
        culls = [base.cull] if "cull" in settings else [tuple(sorted(least[:n])) for n in range(1, len(order))]
        thins = [base.thin] if "thin" in settings else [False, True]
        strides = [base.stem_stride] if "stem_stride" in settings else [1, 2]
        return tuple(
            base.changed({"cull": cull, "thin": thin, "stem_stride": stride})
            for cull, thin, stride in product(culls, thins, strides)
        )

    @classmethod
    def released(cls) -> Mapping[str, "DeepReDuce"]:
        """Return the published networks; ``tiny`` stands for Tiny-ImageNet (64x64 images, stem of stride 1)."""
        return {
            "cifar100-230k": cls(),
            "cifar100-197k": cls(cull=(1, 4)),
            "cifar100-115k": cls(thin=True),
            "cifar100-57k": cls(thin=True, width=32),
            "cifar100-49k": cls(cull=(1, 4), thin=True, width=32),
            "cifar100-29k": cls(thin=True, stem_stride=2),
            "cifar100-14k": cls(thin=True, width=32, stem_stride=2),
            "cifar100-12k": cls(cull=(1, 4), thin=True, width=32, stem_stride=2),
            "cifar100-7k": cls(blocks=(2, 1, 1, 1), thin=True, width=32, stem_stride=2),
            "tiny-918k": cls(),
            "tiny-459k": cls(thin=True),
            "tiny-393k": cls(cull=(1, 2)),
            "tiny-229k": cls(thin=True, width=32),
            "tiny-197k": cls(cull=(1, 2), thin=True),
            "tiny-115k": cls(thin=True, stem_stride=2),
            "tiny-98k": cls(cull=(1, 2), thin=True, width=32),
            "tiny-57k": cls(thin=True, width=32, stem_stride=2),
            "tiny-49k": cls(cull=(1, 2), thin=True, stem_stride=2),
        }
