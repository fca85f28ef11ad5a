"""Private inference as predicted and as measured, and what a mask and the rewrites of its program save.

Every row is a run between two processes of this machine, over loopback or over an imitated link, set-up apart. Weights
and masks are random: what is sent and how long it takes does not depend on them. Seconds are those of the machine on
which the table of prices was measured; give another machine its own: ``reluctant calibrate --out FILE``, then
``--prices FILE``. Leave the machine alone meanwhile.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reluctant.costs.model import CostModel
from reluctant.costs.networks import parse_network
from reluctant.engines.cheetah import Cheetah
from reluctant.mask import Mask
from reluctant.masked import MaskedModel, attach
from reluctant.models import ModelSpec
from reluctant.program.lower import lower
from reluctant.provenance import environment
from reluctant.sites import find_sites
from reluctant.surrogates import SURROGATES
from reluctant.task import stream

CLASSES = 10


@dataclass(frozen=True)
class Case:
    """A network that is run.

    Args:
        share: of the ReLUs that a random mask keeps at each site.
        emptied: of the last sites, that keep none.
        surrogate: what stands in for a dropped ReLU.
        without: rewrites that are left out.
        images: sent one after the other.
    """

    label: str
    model: str
    shape: tuple[int, int, int]
    share: float
    emptied: int = 0
    surrogate: str = "identity"
    without: tuple[str, ...] = ()
    network: str = "loopback"
    images: int = 1

    def masked(self) -> MaskedModel:
        """Return the network with its mask."""
        torch.manual_seed(0)
        dense = ModelSpec.parse(self.model).build(CLASSES, self.shape[0]).eval()
        sites, generator = find_sites(dense, torch.zeros(1, *self.shape)), stream(0)
        keep = {name: torch.rand(site.shape, generator=generator) < self.share for name, site in sites.items()}
        for name in list(sites)[len(sites) - self.emptied :]:
            keep[name] = torch.zeros_like(keep[name])
        return attach(dense, sites, SURROGATES[self.surrogate]()).eval().set_mask(Mask(keep))


DIGITS, CIFAR = (1, 8, 8), (3, 32, 32)


def predicted_cases() -> Iterator[Case]:
    """Yield the networks whose cost is predicted and measured."""
    for network in ("loopback", "wan"):
        yield Case("ResNet-8 (width 8), digits", "resnet8:width=8", DIGITS, 1.0, network=network, images=5)
        for share in (1.0, 0.1, 0.0):
            label = f"ResNet-20 at {share:.0%}".replace("%", " %")
            yield Case(label, "resnet20", CIFAR, share, network=network, images=2 if share else 20)
        yield Case("VGG-16 at 10 %", "vgg16-bn", CIFAR, 0.1, network=network)
    yield Case("ResNet-18", "resnet18", CIFAR, 1.0)


def saving_cases() -> Iterator[Case]:
    """Yield a ResNet-18 before and after: the first is what the others are compared with."""
    whole = Case("all ReLUs", "resnet18", CIFAR, 1.0)
    yield whole
    yield Case("5 % at every site", "resnet18", CIFAR, 0.05)
    empty = "5 %, none at the last two sites"
    yield Case(f"{empty}, program not collapsed", "resnet18", CIFAR, 0.05, 2, without=("collapse",))
    yield Case(empty, "resnet18", CIFAR, 0.05, 2)
    parabolas = "5 % at every site, parabolas"
    yield Case(f"{parabolas}, factors not carried", "resnet18", CIFAR, 0.05, 0, "quadratic", ("squares",))
    yield Case(parabolas, "resnet18", CIFAR, 0.05, 0, "quadratic")
    yield Case("no ReLU", "resnet18", CIFAR, 0.0, images=20)


def measured(case: Case, model: CostModel) -> dict[str, Any]:
    """Return what ``case`` was predicted to cost and what it cost, an image each where it is not the set-up."""
    program, network = lower(case.masked(), case.without), parse_network(case.network)
    images = np.random.default_rng(0).normal(size=(case.images, *case.shape)).astype(np.float32)
    found = model.predict(program, case.images, 1, network)
    run = Cheetah(network=network).run(program, images, batch=1)
    if run.comparisons != program.kept * case.images:
        raise AssertionError(f"{case.label}: {run.comparisons} comparisons for {program.kept} ReLUs an image")
    numbers = {
        "bytes": (found.bytes, run.bytes),
        "comparison_bytes": (found.comparison_bytes, sum(site.comparison_bytes for site in run.by_site)),
        "messages": (found.messages, run.messages),
        "seconds": (found.seconds, run.seconds),
    }
    row = {key: {"predicted": a / case.images, "measured": b / case.images} for key, (a, b) in numbers.items()}
    setup = {
        "memory": (found.memory, run.memory),
        "setup_bytes": (found.setup.bytes, run.setup_bytes),
        "setup_seconds": (found.setup.seconds, run.setup_seconds),
    }
    row |= {key: {"predicted": a, "measured": b} for key, (a, b) in setup.items()}
    return {"case": {**asdict(case), "kept": program.kept}, **row}


def off(row: dict[str, Any], key: str, digits: int = 1) -> str:
    """Return how far the prediction is off, in percent of the measurement."""
    return f"{100 * (row[key]['predicted'] / row[key]['measured'] - 1):+.{digits}f} %"


def prediction_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return a Markdown table: what was measured, and how far the prediction was off."""
    lines = [
        "| network | link | MB | off | messages | off | seconds | off | set-up, s | off | memory, GB | off |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        case, missed = row["case"], row["messages"]["predicted"] - row["messages"]["measured"]
        cells = [case["label"], case["network"]]
        cells += [f"{row['bytes']['measured'] / 1e6:.2f}", off(row, "bytes", 2)]
        cells += [f"{row['messages']['measured']:,.0f}", f"{missed:+.0f}" if missed else "0"]
        cells += [f"{row['seconds']['measured']:.2f}", off(row, "seconds")]
        cells += [f"{row['setup_seconds']['measured']:.1f}", off(row, "setup_seconds")]
        cells += [f"{row['memory']['measured'] / 1e9:.2f}", off(row, "memory")]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def saving_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return a Markdown table: what each row measured, and its part of the first."""
    lines = [
        "| ResNet-18 | ReLUs | comparisons, MB | all, MB | messages | seconds |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        cells = [row["case"]["label"], f"{row['case']['kept']:,}"]
        for key, unit in (("comparison_bytes", 1e6), ("bytes", 1e6), ("messages", 1), ("seconds", 1)):
            value, first = row[key]["measured"], rows[0][key]["measured"]
            number = f"{value:,.0f}" if key == "messages" else f"{value / unit:.2f}"
            cells.append(number if row is rows[0] else f"{number} ({100 * (value / first - 1):+.0f} %)")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def page(found: dict[str, Any]) -> str:
    """Return the part of the documentation that holds the tables."""
    machine = found["environment"]
    return "\n".join(
        [
            f"Measured by `make bench-secure` on {machine['cpus']} cores ({machine['processor']}), both parties there;",
            "one image at a time, seconds and bytes an image after set-up. *Off* is how far the prediction is from the",
            "run.",
            "",
            *prediction_table(found["prediction"]),
            "",
            "What a mask saves, and what the program's rewrites add to that, on loopback:",
            "",
            *saving_table(found["saving"]),
            "",
        ]
    )


def main() -> None:
    """Run all cases, print the tables, write them and the numbers behind them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/secure.json"))
    parser.add_argument("--page", type=Path, help="Markdown file for the tables.")
    parser.add_argument("--prices", type=Path, help="Table from `reluctant calibrate`; else the one that comes along.")
    words = parser.parse_args()
    model = CostModel.load("cheetah", words.prices)
    found: dict[str, Any] = {"environment": environment(), "prediction": [], "saving": []}
    done: dict[Case, dict[str, Any]] = {}
    for part, cases in (("prediction", predicted_cases()), ("saving", saving_cases())):
        for case in cases:
            print(f"{case.label}, {case.network}", flush=True)
            same = next((row for other, row in done.items() if _same_run(other, case)), None)
            done[case] = {**same, "case": {**same["case"], "label": case.label}} if same else measured(case, model)
            found[part].append(done[case])
    words.out.parent.mkdir(parents=True, exist_ok=True)
    words.out.write_text(json.dumps(found, indent=1) + "\n")
    print(text := page(found))
    if words.page:
        words.page.write_text(text)


def _same_run(one: Case, other: Case) -> bool:
    """Return whether two cases differ in their label alone."""
    return {**asdict(one), "label": ""} == {**asdict(other), "label": ""}


if __name__ == "__main__":
    main()
