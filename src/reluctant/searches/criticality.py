"""Stage criticality.

Paper:    Jha, Ghodsi, Garg, Reagen. DeepReDuce: ReLU Reduction for Fast Private Inference. ICML 2021,
          arXiv:2103.01396. DeepReShape (arXiv:2304.10593) orders its stages by it.
Deviates: the networks with one stage of ReLUs start from the dense network's weights and not from fresh ones, so a few
          epochs do; accuracies are of held-out images.
Recalled: the formula, (A_k - min A) / N_k^w with w = 0.07, and the distillation from the dense network could not be
          checked against the paper. Counting ReLUs in other units changes all criticalities by one factor, so it does
          not change the order.
Symbols:  A_k -> val; N_k -> relus; w -> exponent; C_k -> criticality.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar

import torch

from reluctant.designs.base import part_of
from reluctant.errors import UsageError
from reluctant.mask import Mask
from reluctant.masked import attach
from reluctant.searches.base import Search, Study
from reluctant.sites import Sites, find_sites

#: Deviations of a difference in accuracy under which two stages are not told apart.
SURE = 2.0


@dataclass(frozen=True, kw_only=True)
class Criticality(Search):
    """How much each stage's ReLUs are worth: the accuracy that the network has with no others.

    Args:
        exponent: how much a stage's number of ReLUs counts against it.
    """

    name: ClassVar[str] = "criticality"
    may_be_zero: ClassVar[tuple[str, ...]] = ("exponent",)
    from_trained: ClassVar[bool] = True

    exponent: float = 0.07

    def check(self, study: Study) -> None:
        """Refuse a network without stages.

        Raises:
            UsageError: its modules are not called ``layer1``, ``layer2``, ... or ``stage1``, ...
        """
        super().check(study)
        _stages(find_sites(study.build(study.model), study.task.example), study.model)

    def run(self, study: Study) -> dict[str, Any]:
        """Return ReLUs, accuracy and criticality of each stage, and the order, most critical first."""
        sites = find_sites(study.build(study.model), study.task.example)
        stages = _stages(sites, study.model)
        dense = study.dense
        whole = study.noted("dense", partial(study.accuracy, dense))
        rows = []
        for stage in stages:
            name = f"only-{stage.replace(' ', '-')}"
            mask = Mask({name: torch.full(site.shape, name in stages[stage]) for name, site in sites.items()})
            alone = attach(dense, sites).set_mask(mask)
            trained = study.trained(name, alone, study.finetune, teacher=dense)
            val = study.noted(name, partial(study.accuracy, trained))
            rows.append({"stage": int(stage.split()[1]), "relus": mask.kept, "val": val})
        return self.rank(rows, len(study.task.val)) | {"dense": whole}

    def rank(self, rows: list[dict[str, Any]], n: int) -> dict[str, Any]:
        """Return the criticality of each stage, and the order of the stages.

        Args:
            rows: of each stage its ``relus`` and, alone, its accuracy ``val``.
            n: images that the accuracies are of.
        """
        least = min(row["val"] for row in rows)
        stages = [{**row, "criticality": (row["val"] - least) / row["relus"] ** self.exponent} for row in rows]
        ranked = sorted(stages, key=lambda row: -row["criticality"])
        unsure = [
            [first["stage"], second["stage"]]
            for first, second in pairwise(ranked)
            if abs(first["val"] - second["val"])
            < SURE * math.sqrt(_variance(first["val"], n) + _variance(second["val"], n))
        ]
        return {"n_val": n, "stages": stages, "order": [row["stage"] for row in ranked], "unsure": unsure}

    def tell(self, found: Mapping[str, Any]) -> str:
        """Return the stages as a table, and the order as ``reluctant design`` takes it."""
        lines = [f"{'stage':<7}{'ReLUs':>10}{'alone':>10}{'criticality':>14}"]
        lines += [
            f"{row['stage']:<7}{row['relus']:>10,}{100 * row['val']:>8.2f} %{row['criticality']:>14.4f}"
            for row in found["stages"]
        ]
        lines += [f"all    {100 * found['dense']:>18.2f} %, of {found['n_val']:,} held-out images"]
        lines += [
            f"stages {first} and {second} are not told apart: more epochs, or other seeds"
            for first, second in found["unsure"]
        ]
        order = ",".join(map(str, found["order"]))
        return "\n".join([*lines, f"order {order}; next: reluctant design hybrenet --order {order} --blocks ..."])


def _stages(sites: Sites, model: str) -> dict[str, set[str]]:
    """Return the sites of each stage, in order; those of stem and head are of none."""
    stages: dict[str, set[str]] = {}
    for name in sites:
        if (part := part_of(name)).startswith("stage"):
            stages.setdefault(part, set()).add(name)
    if len(stages) < 2:
        raise UsageError(
            f"{model} has no stages to compare: name its modules layer1, layer2, ... or stage1, stage2, ..., "
            "or take a ResNet or a design"
        )
    return stages


def _variance(share: float, n: int) -> float:
    return share * (1 - share) / n
