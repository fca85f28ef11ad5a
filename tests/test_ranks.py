"""Two processes that train together: the same on both, and what one process alone ends with."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = str(Path(__file__).with_name("ranks.py"))
RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def launch(*commands):
    """Run the commands side by side to their end."""
    surroundings = {name: value for name, value in os.environ.items() if name not in RANKS}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": surroundings}
    processes = [subprocess.Popen(list(map(str, command)), **pipes) for command in commands]
    for process in processes:
        output, _ = process.communicate(timeout=280)
        assert process.returncode == 0, output


def result(folder, ranks):
    ended = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(ranks)]
    assert all(one["ranks"] == ranks for one in ended)
    return ended


def same(one, two, **tolerance):
    """Assert that both ended with the same tensors: masks exactly, numbers exactly or within ``tolerance``."""
    assert one.keys() == two.keys()
    for stage, tensors in one.items():
        if stage == "ranks":
            continue
        for name, tensor in tensors.items():
            if tolerance and tensor.is_floating_point():
                torch.testing.assert_close(tensor, two[stage][name], **tolerance, msg=lambda m, n=name: f"{n}: {m}")
            else:
                assert torch.equal(tensor, two[stage][name]), (stage, name)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["plain", "normalised"])
def test_two_processes_agree_with_each_other_and_with_one(tmp_path, kind):
    """Masks, gates, running statistics and coefficients.

    Without batch norm the result is one process's up to rounding; with it each rank normalises by its own half of a
    batch, so only nearly so.
    """
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder, device in zip(folders, ("cpu", "cpu:2"), strict=True):
        folder.mkdir()
        launch([sys.executable, SCRIPT, folder, device, kind])
    (alone,), (first, second) = result(folders[0], 1), result(folders[1], 2)
    same(first, second)
    if kind == "plain":
        same(alone, first, atol=2e-3, rtol=1e-2)
        return
    for method in ("snl", "autorep"):
        masks = [{n: t for n, t in ended[method].items() if t.dtype == torch.bool} for ended in (alone, first)]
        agreed = sum(int((masks[0][name] == masks[1][name]).sum()) for name in masks[0])
        assert agreed > 0.8 * sum(mask.numel() for mask in masks[0].values())


@pytest.mark.timeout(600)
def test_the_standard_launcher_starts_them_on_several_nodes(tmp_path):
    """Two nodes of one process each, both on this machine."""
    place = f"--master-addr=127.0.0.1 --master-port={free_port()} --nnodes=2 --nproc-per-node=1".split()
    torchrun = [sys.executable, "-m", "torch.distributed.run", *place]
    launch(*([*torchrun, f"--node-rank={node}", SCRIPT, tmp_path, "cpu", "plain"] for node in (0, 1)))
    same(*result(tmp_path, 2))
