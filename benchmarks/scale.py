"""What a mask search needs for images of ImageNet's size: first planned, then tried, on synthetic images.

The plan runs the network forward on two images and on four, and counts what autograd keeps. The trial takes real
training steps, each kind of step in a process of its own, and reads the peak of its memory.
"""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from reluctant.distillation import Teacher, distillation, logits
from reluctant.loop import Loop
from reluctant.masked import attach
from reluctant.methods.snl import SNL, SoftGate
from reluctant.models import ModelSpec
from reluctant.sites import Sites, find_sites
from reluctant.task import Augmentation, Split
from reluctant.training import make_fabric

CLASSES = 1000

#: Kinds of step, and how many copies of the network are in memory: the dense one, the masked one, the teacher.
COPIES = {"plain": 1, "frozen": 2, "masked_kd": 3}


@dataclass(frozen=True)
class Trial:
    """``steps`` training steps of one kind with ``batch`` images, after one that is not timed."""

    kind: str
    model: str
    size: int
    batch: int
    steps: int


@dataclass(frozen=True)
class Plan:
    """Bytes that one kind of step needs at its peak, by what they are for."""

    networks: int
    mask: int
    gates: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def memory(self) -> int:
        """Bytes in all."""
        return sum(asdict(self).values())


@contextmanager
def student(kind: str, dense: nn.Module, sites: Sites) -> Iterator[nn.Module]:
    """Yield the network that a step trains: ``dense`` itself, or one with a tenth of its ReLUs, or with soft gates."""
    if kind == "plain":
        yield dense
        return
    masked = attach(dense, sites)
    if kind == "masked_kd":
        with masked.gates(SoftGate):
            yield masked
    else:
        for activation in masked.masked():
            activation.keep.bernoulli_(0.1)
        yield masked


def gates_of(network: nn.Module) -> list[nn.Parameter]:
    return [module.alpha for module in network.modules() if isinstance(module, SoftGate)]


def kept(network: nn.Module, images: Float[Tensor, "B C H W"]) -> int:
    """Return the bytes that a forward pass keeps for its backward pass, parameters and buffers left out."""
    known = {tensor.untyped_storage().data_ptr() for tensor in (*network.parameters(), *network.buffers())}
    storages: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        output = logits(network(images))
    return sum(size for place, size in storages.items() if place not in known and output.requires_grad)


def size_of(tensors: Iterator[Tensor] | list[nn.Parameter]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def plan(trial: Trial, dense: nn.Module, sites: Sites) -> Plan:
    """Return what ``trial`` will need, without a step taken."""
    fabric = make_fabric(input_shape=sites.input_shape)
    images = torch.randn(4, *sites.input_shape, device=fabric.device)
    with student(trial.kind, dense, sites) as network:
        gates, weights = size_of(gates_of(network)), size_of(dense.parameters())
        masks = size_of(b for b in network.buffers() if b.dtype == torch.bool)
        runner = fabric.setup(network)
        two, four = (kept(runner, images[:count]) for count in (2, 4))
    image = (four - two) // 2
    return Plan(
        networks=COPIES[trial.kind] * (weights + size_of(dense.buffers())),
        mask=sites.total if trial.kind != "plain" else 0,
        gates=gates,
        gradients=weights + gates,
        optimizer=2 * (weights + gates),
        activations=two - 2 * image + trial.batch * image,
    )


def train(trial: Trial) -> list[float]:
    """Take the steps; return the seconds of each."""
    shape = (3, trial.size, trial.size)
    count = trial.batch * (trial.steps + 1)
    images = torch.randint(256, (count, *shape), dtype=torch.uint8)
    data = Split(images, torch.randint(CLASSES, (count,)), (0.5,) * 3, (0.25,) * 3)
    fabric = make_fabric(input_shape=shape)
    loop = Loop(trial.kind, train=data, augmentation=Augmentation(), epochs=1, batch=trial.batch, fabric=fabric)
    dense = ModelSpec.parse(trial.model).build(CLASSES, 3).to(fabric.device)
    snl, seconds = SNL(), []
    with student(trial.kind, dense, find_sites(dense, data.inputs(slice(1)))) as model:
        gates = gates_of(model)
        network, optimizer = loop.setup(model, torch.optim.Adam(model.parameters(), snl.lr))
        teacher = Teacher(dense, loop) if trial.kind == "masked_kd" else None
        for step in loop:
            begun = time.perf_counter()
            network.train()
            target = None if teacher is None else teacher(step)
            output = logits(network(step.images))
            loss = F.cross_entropy(output, step.labels)
            if target is not None:
                size = torch.stack([gate.abs().sum() for gate in gates]).sum()
                loss = loss + snl.distil * distillation(output, target, snl.temperature) + snl.penalty * size
            loop.take(loss, optimizer)
            if fabric.device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - begun)
    return seconds


def watch_memory() -> Callable[[], int]:
    """Return a function that returns how many bytes more than now were in use since, at most; on Linux or a GPU."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        start = torch.cuda.memory_allocated()
        return lambda: torch.cuda.max_memory_allocated() - start
    Path("/proc/self/clear_refs").write_text("5")
    start = resident("VmRSS")
    return lambda: resident("VmHWM") - start


def resident(entry: str) -> int:
    """Return bytes of this process in memory: now (``VmRSS``) or at most (``VmHWM``)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(entry))


def measure(trial: Trial) -> dict[str, float]:
    """Return the median seconds of a step and the peak of its bytes; to be called in a fresh process."""
    train(Trial(trial.kind, "resnet8", 32, 2, 1))
    peak = watch_memory()
    seconds = train(trial)
    return {"seconds": statistics.median(seconds[1:]), "memory": peak()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="efficientnet-b2")
    parser.add_argument("--size", type=int, default=224, help="pixels a side")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/scale.json"))
    options = parser.parse_args()
    dense = ModelSpec.parse(options.model).build(CLASSES, 3)
    sites = find_sites(dense, torch.zeros(1, 3, options.size, options.size))
    for kind in COPIES:
        trial = Trial(kind, options.model, options.size, options.batch, options.steps)
        planned = plan(trial, dense, sites)
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            tried = process.submit(measure, trial).result()
        print(kind, asdict(planned), planned.memory / 1e6, tried, planned.memory / tried["memory"], flush=True)


if __name__ == "__main__":
    main()
