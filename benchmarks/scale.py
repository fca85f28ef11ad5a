"""What a mask search needs for images of ImageNet's size: planned, then tried, on synthetic images.

The plan takes no step: it runs the network forward on two and on four images and counts what is kept after it. The
trial takes steps of SNL's search, of a training with its mask frozen and of one without masks, each in a process of its
own.

On a CPU a process takes more than its tensors: glibc's heap has holes between them, which the plan takes to be half as
large as the activations (they were 0.3 to 0.95 of them for ResNet-18, VGG-16 and EfficientNet-B2 at 64 to 224 pixels).
With ``MALLOC_MMAP_THRESHOLD_=131072`` in the environment every freed tensor goes back to the system, so there are none,
for about twice the time a step.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from memory import watch_memory
from torch import Tensor, nn
from torch.profiler import profile

from reluctant.distillation import Teacher, distillation, logits
from reluctant.loop import Loop
from reluctant.masked import attach
from reluctant.methods.snl import SNL, SoftGate
from reluctant.models import ModelSpec
from reluctant.provenance import environment
from reluctant.sites import Sites, find_sites
from reluctant.task import Augmentation, Split
from reluctant.training import make_fabric
from reluctant.units import format_bytes, format_seconds

CLASSES = 1000

#: Kinds of step, and how many copies of the network each has in memory: the dense one, the masked one, the teacher.
COPIES = {"plain": 1, "frozen": 2, "masked_kd": 3}


@dataclass(frozen=True)
class Trial:
    """``steps`` training steps with ``batch`` images, after one that is not timed."""

    kind: str
    model: str
    size: int
    batch: int
    steps: int


@dataclass(frozen=True)
class Plan:
    """Bytes in use at the peak of a step, by what they are for.

    Args:
        casts: what is kept for the backward pass whatever the batch: mostly weights cast to 16 bits.
        activations: what is kept for it in proportion to the batch.
        holes: of the heap.
    """

    networks: int
    mask: int
    gates: int
    gradients: int
    optimizer: int
    casts: int
    activations: int
    holes: int

    @property
    def memory(self) -> int:
        """Bytes in all."""
        return sum(asdict(self).values())


@contextmanager
def trained(kind: str, dense: nn.Module, sites: Sites) -> Iterator[nn.Module]:
    """Yield what a step trains: ``dense`` itself, a copy with a tenth of its ReLUs, or a copy with soft gates."""
    if kind == "plain":
        yield dense
        return
    masked = attach(dense, sites)
    for activation in masked.masked():
        activation.keep.bernoulli_(0.1)
    if kind == "frozen":
        yield masked
        return
    with masked.gates(SoftGate):
        yield masked


def gates_of(network: nn.Module) -> list[nn.Parameter]:
    """Return the soft gates, a tensor a site; none outside of a search."""
    return [module.alpha for module in network.modules() if isinstance(module, SoftGate)]


def size_of(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of all ``tensors``."""
    return sum(tensor.nbytes for tensor in tensors)


def kept(network: nn.Module, images: Float[Tensor, "B C H W"]) -> int:
    """Return the bytes that a forward pass takes and does not give back: what it keeps for the backward pass."""
    with profile(profile_memory=True) as seen:
        scores = network(images)
    usage = [(event.self_cpu_memory_usage, event.self_device_memory_usage) for event in seen.key_averages()]
    del scores
    return sum(device if images.is_cuda else cpu for cpu, device in usage)


def planned(trial: Trial, sites: Sites) -> Plan:
    """Return what ``trial`` will need."""
    fabric = make_fabric(input_shape=sites.input_shape)
    images = torch.randn(4, *sites.input_shape, device=fabric.device)
    dense = ModelSpec.parse(trial.model).build(CLASSES, 3).to(fabric.device)
    weights = size_of(dense.parameters())
    with trained(trial.kind, dense, sites) as model:
        gates = size_of(gates_of(model))
        network = fabric.setup(model).train()
        two, four = kept(network, images[:2]), kept(network, images)
    activations = trial.batch * (four - two) // 2
    heap = fabric.device.type == "cpu" and "MALLOC_MMAP_THRESHOLD_" not in os.environ
    return Plan(
        networks=COPIES[trial.kind] * (weights + size_of(dense.buffers())),
        mask=0 if trial.kind == "plain" else sites.total,
        gates=gates,
        gradients=weights + gates,
        optimizer=2 * (weights + gates),
        casts=2 * two - four,
        activations=activations,
        holes=activations // 2 if heap else 0,
    )


def train(trial: Trial) -> list[float]:
    """Take the steps of ``trial`` and one before them; return the seconds of each."""
    shape, count = (3, trial.size, trial.size), trial.batch * (trial.steps + 1)
    images = torch.randint(256, (count, *shape), dtype=torch.uint8)
    data = Split(images, torch.randint(CLASSES, (count,)), (0.5,) * 3, (0.25,) * 3)
    fabric = make_fabric(input_shape=shape)
    loop = Loop(trial.kind, train=data, augmentation=Augmentation(), epochs=1, batch=trial.batch, fabric=fabric)
    dense = ModelSpec.parse(trial.model).build(CLASSES, 3).to(fabric.device)
    search, seconds = SNL(), []
    with trained(trial.kind, dense, find_sites(dense, data.inputs(slice(1)))) as model:
        gates = gates_of(model)
        network, optimizer = loop.setup(model, torch.optim.Adam(model.parameters(), search.lr))
        teacher = Teacher(dense, loop) if gates else None
        for step in loop:
            begun = time.perf_counter()
            network.train()
            target = None if teacher is None else teacher(step)
            output = logits(network(step.images))
            loss = F.cross_entropy(output, step.labels)
            if target is not None:
                size = torch.stack([gate.abs().sum() for gate in gates]).sum()
                loss = loss + distillation(output, target, search.temperature) + search.penalty * size
            loop.take(loss, optimizer)
            if fabric.device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - begun)
    return seconds


def tried(trial: Trial) -> dict[str, float]:
    """Return the median seconds of a step and the bytes in use at its peak; to be called in a fresh process."""
    train(Trial(trial.kind, "resnet8", 32, 2, 1))  # loads and initialises what is no tensor
    peak = watch_memory()
    seconds = train(trial)
    return {"seconds": statistics.median(seconds[1:]), "memory": peak()}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return plan and trial of each kind of step, and what they are of."""
    shape = (3, options.size, options.size)
    sites = find_sites(ModelSpec.parse(options.model).build(CLASSES, 3), torch.zeros(1, *shape))
    fabric = make_fabric(input_shape=shape)
    with fabric.autocast():
        precision = "bf16-mixed" if torch.is_autocast_enabled(fabric.device.type) else "32-true"
    gpu = fabric.device.type == "cuda"
    trials = [Trial(kind, options.model, options.size, options.batch, options.steps) for kind in COPIES]
    plans = {trial.kind: planned(trial, sites) for trial in trials}
    measured = {}
    for trial in trials:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            measured[trial.kind] = process.submit(tried, trial).result()
    return {
        "model": options.model,
        "input": shape,
        "sites": len(sites),
        "relus": sites.total,
        "device": torch.cuda.get_device_name() if gpu else environment()["processor"],
        "threads": torch.get_num_threads(),
        "precision": precision,
        "batch": options.batch,
        "plan": {kind: asdict(plan) | {"memory": plan.memory} for kind, plan in plans.items()},
        "tried": measured,
    }


def show(found: dict[str, Any]) -> None:
    """Print what :func:`measure` found: a column a kind of step."""
    plan, trial = found["plan"], found["tried"]
    print(f"{found['model']}, {'x'.join(map(str, found['input']))}: {found['sites']} sites, {found['relus']:,} ReLUs")
    print(f"batch {found['batch']}, {found['precision']} on {found['device']}, threads: {found['threads']}\n")
    rows = {part: [format_bytes(plan[kind][part]) for kind in COPIES] for part in plan["plain"]}
    rows["= predicted"] = rows.pop("memory")
    rows["measured"] = [format_bytes(trial[kind]["memory"]) for kind in COPIES]
    rows["measured / predicted"] = [f"{trial[kind]['memory'] / plan[kind]['memory']:.2f}" for kind in COPIES]
    rows["activations an image"] = [format_bytes(plan[kind]["activations"] / found["batch"]) for kind in COPIES]
    rows["time of a step"] = [format_seconds(trial[kind]["seconds"]) for kind in COPIES]
    for name, cells in {"": list(COPIES), **rows}.items():
        print(f"{name:<20}" + "".join(f"{cell:>12}" for cell in cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="efficientnet-b2", help="a name of the zoo, or path.py:function")
    parser.add_argument("--size", type=int, default=224, help="of the images, in pixels")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/scale.json"))
    options = parser.parse_args()
    found = measure(options)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=2) + "\n")
    show(found)


if __name__ == "__main__":
    main()
