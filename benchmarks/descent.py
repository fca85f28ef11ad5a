"""How fast candidates for a block are scored, beside whole passes of the network for each.

One round is one step of a descent: some blocks are drawn, each in one site, and the one that leaves most right answers
is looked for. Every way of scoring gets the same blocks and must find the same one with the same count. A ratio is of
one round, and the median over the rounds is what counts. The network is trained on made-up images, half of its ReLUs
gone, and scored on others, a tenth of whose labels are wrong.
"""

import argparse
import json
import logging
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from reluctant.mask import Mask
from reluctant.masked import MaskedModel, attach
from reluctant.methods.descent import Block, Pool, harms, screened
from reluctant.models import ModelSpec
from reluctant.prices import Prices
from reluctant.provenance import describe_device, environment
from reluctant.scoring import Race, Scorer
from reluctant.sites import find_sites
from reluctant.task import Augmentation, Split, Task, stream
from reluctant.training import Training, fit, make_fabric

if TYPE_CHECKING:
    from lightning_fabric import Fabric

CLASSES = 10
#: How many times as many blocks are drawn where they are screened.
SCREEN = 8


def made_up(count: int) -> Task:
    """Return a task of noisy images of ten smooth patterns: ``count`` to train on, ``count`` to score."""
    generator = stream(0)
    coarse = torch.randn(CLASSES, 3, 8, 8, generator=generator)
    patterns = torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bilinear")

    def split(size: int, wrong: float) -> Split:
        labels = torch.randint(CLASSES, (size,), generator=generator)
        noise = torch.randn(size, 3, 32, 32, generator=generator)
        images = (128 + 12 * (patterns[labels] + 4 * noise)).clamp(0, 255).to(torch.uint8)
        other = (labels + 1) % CLASSES
        labels = torch.where(torch.rand(size, generator=generator) < wrong, other, labels)
        return Split(images, labels, (0.5,) * 3, (0.25,) * 3)

    names = tuple(map(str, range(CLASSES)))
    return Task("made-up", names, split(count, 0.0), split(count, 0.1), split(8, 0.0), Augmentation())


@dataclass(frozen=True)
class Bench:
    """A masked network that knows its images, and ways to find the best of some blocks."""

    masked: MaskedModel
    images: Split
    fabric: "Fabric"
    batch: int
    draws: int

    @classmethod
    def of(cls, model: str, images: int, batch: int, draws: int, epochs: int) -> "Bench":
        """Return the bench of ``model``, trained for ``epochs``."""
        task = made_up(images)
        fabric = make_fabric(input_shape=task.input_shape)
        dense = ModelSpec.parse(model).build(CLASSES, 3)
        masked = attach(dense, sites := find_sites(dense, task.example))
        generator = stream(1)
        masked.set_mask(Mask({name: torch.rand(s.shape, generator=generator) < 0.5 for name, s in sites.items()}))
        trained = fit(masked, task, Training(epochs=epochs, batch=64, lr=0.05), fabric=fabric)
        assert isinstance(trained, MaskedModel)
        return cls(trained.to(fabric.device), task.val, fabric, batch, draws)

    def scorer(self, branching: bool) -> Scorer:
        """Return what scores by walks or by whole passes, its images in their order, the network traced."""
        scorer = Scorer(self.masked, self.images, self.fabric, batch=self.batch, branching=branching)
        scorer.rank()
        return scorer

    def drawn(self, number: int, times: int) -> tuple[Pool, list[Block]]:
        """Return ``times`` as many blocks as a round scores, of 1 % of the ReLUs."""
        pool, generator = Pool(self.masked.mask, Prices.count(self.masked.sites)), stream(number)
        size = len(pool.site) / 100
        return pool, [pool.draw(size, "site", generator) for _ in range(times * self.draws)]


def exhaustive(scorer: Scorer, pool: Pool, blocks: list[Block]) -> tuple[int, int]:
    """Return which block leaves most right answers, and how many, after counting all of all."""
    counts = scorer.right([pool.without(block) for block in blocks])
    best = max(range(len(counts)), key=lambda number: (counts[number], -number))
    return best, counts[best]


def race(scorer: Scorer, pool: Pool, blocks: list[Block]) -> tuple[int, int]:
    """Return the same, each block scored as far as that needs."""
    scorer.rank()
    running = Race(scorer, [pool.without(block) for block in blocks])
    best = running.best()
    return best, running.right[best]


def screened_race(scorer: Scorer, pool: Pool, blocks: list[Block], draws: int) -> tuple[int, int]:
    """Return the same of those of ``blocks`` that do least harm to first order."""
    scorer.rank()
    running = Race(scorer, [pool.without(block) for block in screened(blocks, draws, pool, harms(scorer))])
    best = running.best()
    return best, running.right[best]


def measure(bench: Bench, rounds: int) -> dict[str, Any]:
    """Return for each way of scoring its candidates a second and its ratio to whole passes."""
    clock = time.process_time if bench.fabric.device.type == "cpu" else time.perf_counter
    whole, walks = bench.scorer(False), bench.scorer(True)
    ways: dict[str, tuple[int, Callable[[Pool, list[Block]], tuple[int, int]]]] = {
        "whole passes": (1, lambda pool, blocks: exhaustive(whole, pool, blocks)),
        "prefix": (1, lambda pool, blocks: exhaustive(walks, pool, blocks)),
        "race of whole passes": (1, lambda pool, blocks: race(whole, pool, blocks)),
        "prefix + race": (1, lambda pool, blocks: race(walks, pool, blocks)),
        "prefix + race + screen": (SCREEN, lambda pool, blocks: screened_race(walks, pool, blocks, bench.draws)),
    }
    rates: dict[str, list[float]] = {way: [] for way in ways}
    gained = []
    for number in range(rounds):
        pool, blocks = bench.drawn(number, SCREEN)
        answers = {}
        for way, (times, find) in ways.items():
            begun = clock()
            answers[way] = find(pool, blocks[: times * bench.draws])
            rates[way].append(times * bench.draws / (clock() - begun))
        assert len({answers[way] for way, (times, _) in ways.items() if times == 1}) == 1, answers
        gained.append(answers["prefix + race + screen"][1] - answers["whole passes"][1])
    ratios = {way: [a / b for a, b in zip(found, rates["whole passes"], strict=True)] for way, found in rates.items()}
    return {
        **{
            way: {
                "ratio": round(statistics.median(ratios[way]), 2),
                "ratio_range": [round(min(ratios[way]), 2), round(max(ratios[way]), 2)],
                "candidates_per_second": round(statistics.median(found), 2),
            }
            for way, found in rates.items()
        },
        "screen_gains_right_answers": round(statistics.mean(gained), 2),
        "right": walks.rank(),
        "images": len(walks),
        "batch": bench.batch,
        "draws": bench.draws,
        "screen": SCREEN,
        "rounds": rounds,
        "device": describe_device(str(bench.fabric.device)),
        "processor": environment()["processor"],
        "torch": environment()["torch"],
    }


def show(found: dict[str, Any]) -> None:
    """Print what :func:`measure` found: a row a way of scoring."""
    print(
        f"{found['model']}: the best of {found['draws']} blocks on {found['images']} images, of which the network gets "
        f"{found['right']} right; {found['device']} ({found['processor']})"
    )
    print(f"{'scored by':<26}{'ratio':>8}{'(range)':>16}{'candidates/s':>14}")
    for way, cost in found.items():
        if isinstance(cost, dict):
            span = "({:.2f}-{:.2f})".format(*cost["ratio_range"])
            print(f"{way:<26}{cost['ratio']:>7.2f}x{span:>16}{cost['candidates_per_second']:>14.2f}")
    print(
        "All but the last find the same block with the same count; the last, of "
        f"{SCREEN}x the draws, one with {found['screen_gains_right_answers']:+.1f} right answers on average."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20", help="a name of the zoo")
    parser.add_argument("--images", type=int, default=1024, help="that candidates are scored on")
    parser.add_argument("--batch", type=int, default=64, help="images a walk")
    parser.add_argument("--draws", type=int, default=50, help="blocks a round")
    parser.add_argument("--epochs", type=int, default=4, help="that the network is trained for")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/descent.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.disable(logging.WARNING)
    torch.manual_seed(0)
    bench = Bench.of(options.model, options.images, options.batch, options.draws, options.epochs)
    found = {"model": options.model, **measure(bench, options.rounds)}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=2) + "\n")
    show(found)


if __name__ == "__main__":
    main()
