"""Trains, linearizes and finetunes on the few digits, and writes what each rank ended with to <out>/<rank>.pt.

Started by test_ranks.py, as one process or as several: python ranks.py <out> <device> <plain or normalised>
"""

import sys
from pathlib import Path

import torch
from torch import nn

from reluctant.data import load_task
from reluctant.linearization import linearize
from reluctant.methods.autorep import AutoReP
from reluctant.methods.snl import SNL
from reluctant.task import Split, Task
from reluctant.training import Training, finetune, fit, make_fabric

METHODS = {
    "snl": SNL(max_epochs=3, batch=64, gate_lr=3e-2, penalty=3e-3, patience=0),
    "autorep": AutoReP(search_epochs=3, batch=64, mask_lr=3e-2, refresh_every=2),
}


def network(normalised: bool) -> nn.Module:
    norms = [nn.BatchNorm2d(6) if normalised else nn.Identity() for _ in range(2)]
    convs = [nn.Conv2d(1, 6, 3, padding=1), norms[0], nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), norms[1], nn.ReLU()]
    return nn.Sequential(*convs, nn.Flatten(), nn.Linear(6 * 64, 10))


def main(out: Path, device: str, kind: str) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    digits = load_task("digits")
    part = Split(digits.train.images[:256], digits.train.labels[:256], digits.train.mean, digits.train.std)
    task = Task(digits.name, digits.classes, part, digits.val, digits.test, digits.augmentation)
    fabric = make_fabric(device=device, precision="32-true")
    short = Training(epochs=3, batch=64, lr=0.02)
    dense = fit(network(kind == "normalised"), task, short, fabric=fabric)
    ended = {"ranks": fabric.world_size, "dense": dense.state_dict()}
    for name, method in METHODS.items():
        small = linearize(dense, method, "20%", task, fabric=fabric)
        ended[name] = {site: small.mask[site] for site in small.sites} | dict(small.state_dict())
        small = finetune(small, task, short, teacher=dense, fabric=fabric)
        ended[f"{name}, finetuned"] = dict(small.state_dict())
    torch.save(ended, out / f"{fabric.global_rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
