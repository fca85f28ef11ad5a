"""What a training step costs with masks, gates and a teacher, beside the plain step of the same network.

Each kind of step is taken by the project's own search or training, on random images. Times are measured side by side:
every round takes some steps of each kind, a ratio is of one round, and the median over the rounds is what counts.
Memory is the peak of a process of its own, above what it held before the network was there, the median of several. On
a CPU that process gives freed tensors back to the system at once, which the one that is timed does not: what is needed
is counted, not what an allocator keeps for later, which differs by a tenth from one process to the next.
"""

import argparse
import json
import logging
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from memory import watch_memory
from torch import nn

from reluctant.mask import Mask
from reluctant.masked import MaskedModel, attach
from reluctant.methods.autorep import AutoReP
from reluctant.methods.base import Method
from reluctant.methods.snl import SNL
from reluctant.models import ModelSpec
from reluctant.prices import Prices
from reluctant.progress import Progress, silent
from reluctant.provenance import describe_device, environment
from reluctant.sites import find_sites
from reluctant.task import Augmentation, Job, Split, Task
from reluctant.training import Training, finetune, fit, make_fabric

if TYPE_CHECKING:
    from lightning_fabric import Fabric

CLASSES = 100
SHARE = 0.1
#: That a peak of memory is measured in.
PROCESSES = 5
#: For those processes, of glibc: memory that was freed goes back to the system.
FRUGAL = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


@dataclass(frozen=True)
class Bench:
    """The network and its data, ready for steps of any kind.

    Args:
        directory: where teacher scores of fixed views are kept.
    """

    task: Task
    dense: nn.Module
    masked: MaskedModel
    fabric: "Fabric"
    batch: int
    directory: Path

    @classmethod
    def of(cls, model: str, batch: int, steps: int, directory: Path) -> "Bench":
        """Return the bench of ``model``, with an epoch of ``steps`` steps."""
        generator = torch.Generator().manual_seed(0)

        def split(count: int) -> Split:
            images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
            labels = torch.randint(CLASSES, (count,), generator=generator)
            return Split(images, labels, (0.5,) * 3, (0.25,) * 3)

        augmentation = Augmentation(crop_padding=4, flip=True)
        names = tuple(map(str, range(CLASSES)))
        task = Task("random", names, split(batch * steps), split(8), split(8), augmentation)
        fabric = make_fabric(input_shape=task.input_shape)
        dense = ModelSpec.parse(model).build(CLASSES, 3)
        masked = attach(dense, sites := find_sites(dense, task.example))
        masked.set_mask(Mask({name: torch.rand(s.shape, generator=generator) < SHARE for name, s in sites.items()}))
        return cls(task, dense, masked, fabric, batch, directory)

    def fit(self, network: nn.Module, progress: Progress) -> None:
        """Train ``network`` for an epoch on the labels alone."""
        fit(network, self.task, Training(epochs=1, batch=self.batch), fabric=self.fabric, progress=progress)

    def learn(self, network: nn.Module, progress: Progress) -> None:
        """Train ``network`` for an epoch with the dense network as teacher."""
        settings = Training(epochs=1, batch=self.batch)
        fit(network, self.task, settings, teacher=self.dense, fabric=self.fabric, progress=progress)

    def finetune(self, progress: Progress) -> None:
        """Finetune the masked network for an epoch."""
        settings = Training(epochs=1, batch=self.batch)
        finetune(self.masked, self.task, settings, teacher=self.dense, fabric=self.fabric, progress=progress)

    def search(self, method: Method, progress: Progress, *, views: int = 0) -> None:
        """Search for an epoch; with ``views`` the teacher's scores of an earlier call are used again."""
        sites = self.masked.sites
        job = Job(
            train=self.task.train,
            val=self.task.val,
            augmentation=replace(self.task.augmentation, views=views),
            limit=SHARE * sites.total,
            prices=Prices.count(sites),
            teacher=self.dense,
            fabric=self.fabric,
            directory=self.directory if views else None,
            progress=progress,
        )
        method.run(attach(self.dense, sites, method.surrogate), job)
        (self.directory / "search.state").unlink(missing_ok=True)

    def kinds(self) -> dict[str, Callable[[Progress], None]]:
        """Return what takes the steps of each kind; all are compared with the first."""
        snl, autorep = SNL(max_epochs=1, batch=self.batch), AutoReP(search_epochs=1, batch=self.batch)
        return {
            "plain": lambda progress: self.fit(self.dense, progress),
            "frozen": lambda progress: self.fit(self.masked, progress),
            "plain_kd": lambda progress: self.learn(self.dense, progress),
            "frozen_kd": self.finetune,
            "masked_kd": lambda progress: self.search(snl, progress),
            "masked_kd_reused": lambda progress: self.search(snl, progress, views=1),
            "polynomial_kd": lambda progress: self.search(autorep, progress),
        }

    def seconds(self, take: Callable[[Progress], None]) -> float:
        """Return the mean seconds of a step of ``take``, the first and the last of the epoch left out.

        On a CPU they are the processor's, which other work on the machine disturbs less than the clock on the wall.
        """
        times: list[float] = []
        clock = time.process_time if self.fabric.device.type == "cpu" else time.perf_counter

        def note(stage: str, done: int, total: int, **metrics: float) -> None:
            if self.fabric.device.type == "cuda" and done in (1, total - 1):
                torch.cuda.synchronize()
            times.append(clock())

        take(note)
        return (times[-2] - times[0]) / (len(times) - 2)


def peak(kind: str, model: str, batch: int) -> int:
    """Return the bytes that a few steps of ``kind`` take at most; to be called in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        Bench.of("resnet8", 2, 2, Path(folder)).kinds()[kind](silent)  # loads and initialises what is no tensor
    with tempfile.TemporaryDirectory() as folder:
        found = watch_memory()
        Bench.of(model, batch, 4, Path(folder)).kinds()[kind](silent)
        return found()


def measure(model: str, batch: int, steps: int, rounds: int) -> dict[str, Any]:
    """Return ratios to the plain step, of time and memory, for every kind, and what they are of."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench.of(model, batch, steps, Path(folder))
        kinds = bench.kinds()
        for take in kinds.values():
            take(silent)
        seconds = [{kind: bench.seconds(take) for kind, take in kinds.items()} for _ in range(rounds)]
    memory = {}
    os.environ.update(FRUGAL)
    for kind in kinds:
        peaks = []
        for _ in range(PROCESSES):
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                peaks.append(process.submit(peak, kind, model, batch).result())
        memory[kind] = int(statistics.median(peaks))
    medians = {kind: statistics.median(times[kind] for times in seconds) for kind in kinds}
    ratios = {kind: [times[kind] / times["plain"] for times in seconds] for kind in kinds}
    return {
        **{
            kind: {
                "time": round(statistics.median(ratios[kind]), 3),
                "time_range": [round(min(ratios[kind]), 3), round(max(ratios[kind]), 3)],
                "memory": round(memory[kind] / memory["plain"], 3),
                "seconds": round(medians[kind], 4),
                "images_per_second": round(batch / medians[kind], 1),
                "bytes": memory[kind],
            }
            for kind in kinds
        },
        "model": model,
        "device": describe_device(str(bench.fabric.device)),
        "processor": environment()["processor"],
        "torch": environment()["torch"],
        "batch": batch,
        "steps": steps - 2,
        "rounds": rounds,
        "share_kept": SHARE,
    }


def show(found: dict[str, Any]) -> None:
    """Print what :func:`measure` found: a row a kind of step."""
    print(f"{found['model']}, batch {found['batch']}, on {found['device']} ({found['processor']})")
    print(f"{'step':<18}{'time':>8}{'(range)':>16}{'memory':>9}{'images/s':>11}")
    for kind, cost in found.items():
        if isinstance(cost, dict):
            low, high = cost["time_range"]
            span = f"({low:.2f}-{high:.2f})"
            print(
                f"{kind:<18}{cost['time']:>7.2f}x{span:>16}{cost['memory']:>8.2f}x{cost['images_per_second']:>11,.0f}"
            )


def main() -> None:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18:stem_relu=false" if gpu else "resnet20", help="a name of the zoo")
    parser.add_argument("--batch", type=int, default=256 if gpu else 128)
    parser.add_argument("--steps", type=int, default=8, help="of an epoch; the first and the last are not timed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/training.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.disable(logging.WARNING)  # that searches of a few steps are far from their budget
    found = measure(options.model, options.batch, options.steps, options.rounds)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=2) + "\n")
    show(found)


if __name__ == "__main__":
    main()
