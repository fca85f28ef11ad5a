"""The whole way, once, on a small real task: what ``reluctant demo`` does."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from reluctant.experiment import (
    Machine,
    evaluate_checkpoint,
    is_finished,
    linearize_checkpoint,
    train,
)
from reluctant.files import write_json
from reluctant.inference import run_checkpoint
from reluctant.progress import Progress, Under, silent
from reluctant.recipe import Recipe
from reluctant.records import load_records
from reluctant.report import Report
from reluctant.units import format_bytes

BUDGET = "10%"

#: Settings for an epoch of 20 steps: the papers' rates and penalties are for epochs of 390.
METHODS: Mapping[str, Mapping[str, Any]] = {
    "ebb": {"search_epochs": 25, "batch": 64},
    "snl": {"lr": 1e-3, "gate_lr": 1e-2, "penalty": 1e-2, "max_epochs": 60, "batch": 64},
    "autorep": {"lr": 2e-3, "mask_lr": 1e-2, "search_epochs": 20, "batch": 64},
}
BASE: Mapping[str, Any] = {
    "task": "digits",
    "model": "resnet8",
    "training": {"epochs": 30, "batch": 64, "lr": 0.05},
    "finetune": {"epochs": 25, "batch": 64, "lr": 0.05},
}


@dataclass(frozen=True)
class Demo:
    """What the demo made: the cards, one a method, and a line for each."""

    cards: list[dict[str, Any]]
    summary: str


def run_demo(out: Path, *, images: int = 16, progress: Progress = silent) -> Demo:
    """Train, linearize with each method, evaluate once, run the private inferences, write report and card to ``out``.

    What an earlier demo finished in ``out`` is used again; the private inferences are always run.

    Args:
        images: test images sent through each private inference.
    """
    torch.set_num_threads(1)  # these networks are so small that a second thread costs more than it gives
    machine = Machine(device="cpu")
    dense = out / "dense"
    if not is_finished(dense):
        train(Recipe.from_json(BASE), dense, machine, progress=Under(progress, "dense"))
    for name, settings in METHODS.items():
        if not is_finished(out / name):
            recipe = Recipe.from_json({**BASE, "budget": BUDGET, "method": {"name": name, **settings}})
            linearize_checkpoint(dense, recipe, out / name, machine, progress=Under(progress, name))
    for name in ("dense", *METHODS):
        shown = Under(progress, name)
        evaluate_checkpoint(out / name, machine, progress=shown)
        evaluate_checkpoint(out / name, machine, twin=True, progress=shown)
        run_checkpoint(out / name, machine, engine="cheetah", images=images, progress=shown)
    report = Report(load_records([out / name for name in ("dense", *METHODS)]))
    cards = report.card()
    write_json(out / "card.json", cards)
    path = report.save(out / "report.html")
    return Demo(cards, "\n".join([*map(_line, cards), f"open {path} in a browser"]))


def _line(card: Mapping[str, Any]) -> str:
    relus, accuracy, secure = card["relus"], card["accuracy"], card["secure"]
    dense, small = secure["dense"], secure["linearized"]
    return (
        f"{card['method']}: {relus['kept']:,} of {relus['total']:,} ReLUs, test accuracy "
        f"{100 * accuracy['dense']:.1f} -> {100 * accuracy['linearized']:.1f} % (n = {accuracy['n_test']}); private "
        f"inference of {small['images']} images: {dense['comparisons']:,} -> {small['comparisons']:,} comparisons, "
        f"{format_bytes(dense['bytes'])} -> {format_bytes(small['bytes'])}, {dense['seconds']:.1f} -> "
        f"{small['seconds']:.1f} s; {small['argmax_equal_twin']} of {small['images']} answers as the twin"
    )
