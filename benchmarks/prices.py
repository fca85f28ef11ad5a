"""Measures what a unit of work costs under CHEETAH, and writes the table that predictions are made from.

Programs of one operation are run by the engine's own runtime, in two processes on loopback, on a value that both
parties share. How many units of each kind such a program needs is known (``reluctant.costs.cheetah``); what a unit
costs is the least-squares solution over all programs, none below zero. Bytes and messages are counted, so other work on
the machine changes nothing. What the table says of each measured program is printed beside what was measured.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from reluctant.costs.cheetah import Stocks, Work
from reluctant.costs.work import work
from reluctant.engines.meeting import free_ports
from reluctant.engines.preparation import prepare
from reluctant.engines.session import CLIENT, SERVER, Session, Settings, Talk
from reluctant.engines.spu import FRACTION_BITS, Compiled, Log, Machine, Tally, Traffic, compile_program
from reluctant.program.operations import (
    INPUT,
    Activation,
    AvgPool,
    Conv2d,
    Linear,
    MaxPool,
    Op,
    Scale,
)
from reluctant.program.ops import Program, ProgramSite
from reluctant.provenance import environment, typed_command

TABLE = Path(__file__).parents[1] / "src" / "reluctant" / "costs" / "tables" / "cheetah.json"

#: A stock of transfers is looked for in steps of so many comparisons.
STEP = 1000

Case = tuple[str, Program, int]


def single(
    name: str, shape: tuple[int, ...], op: Op | None, arrays: dict[str, tuple[int, ...]], batch: int = 1
) -> Case:
    """Return the program of ``op``, or of none, on a value that is the client's image plus an array of the server's."""
    sites = ()
    if isinstance(op, Activation):
        sites = (ProgramSite(op.site, len(op.kept), len(op.keep), "measured"),)
    shapes = {"blind": shape, **arrays}
    rng = np.random.default_rng(0)
    numbers = {key: rng.normal(size=size).astype(np.float32) for key, size in shapes.items()}
    ops: tuple[Op, ...] = (Scale(output="shared", inputs=(INPUT,), bias="blind"), *([op] if op else []))
    return name, Program(ops, shape, (ops[-1].output,), shapes, sites, numbers), batch


def convolution(channels: int, size: int, outputs: int, kernel: int, stride: int, batch: int = 1) -> Case:
    """Return the program of one convolution with a padded kernel."""
    pad = (kernel // 2,) * 4
    op = Conv2d(output="y", inputs=("shared",), weight="w", stride=(stride, stride), padding=pad)
    name = f"conv {channels}x{size}x{size} to {outputs}, kernel {kernel}, stride {stride}, batch {batch}"
    return single(name, (channels, size, size), op, {"w": (outputs, channels, kernel, kernel)}, batch)


def linear(inputs: int, outputs: int, batch: int = 1) -> Case:
    """Return the program of one fully connected layer."""
    op = Linear(output="y", inputs=("shared",), weight="w")
    return single(f"linear {inputs} to {outputs}, batch {batch}", (inputs,), op, {"w": (outputs, inputs)}, batch)


def activation(name: str, kept: int, dropped: int, *coefficients: str) -> Case:
    """Return the program of one activation, with those private coefficients where a ReLU is dropped."""
    keep = np.arange(kept + dropped) < kept
    op = Activation(output="y", inputs=("shared",), site="site", keep=keep, **{c: c for c in coefficients})
    return single(f"{name} {kept or dropped}", (kept + dropped,), op, dict.fromkeys(coefficients, (dropped,)))


def cases() -> Iterator[Case]:
    """Yield the programs that are measured; the first needs every kind of set-up."""
    yield from (activation("parabola", 0, n, "c2", "c1", "c0") for n in (50, 1000, 3000, 10000, 16384, 30000))
    yield from (activation("private slope", 0, n, "c1") for n in (100, 5000, 9000, 20000))
    yield from (activation("ReLU", n, 0) for n in (50, 512, 1000, 2048, 3001, 5000, 16384, 40000))
    yield from (convolution(3, 32, 16, 3, 1), convolution(16, 32, 16, 3, 1), convolution(16, 32, 32, 3, 2))
    yield from (convolution(16, 32, 32, 1, 2), convolution(32, 16, 32, 3, 1), convolution(32, 16, 64, 3, 2))
    yield from (convolution(64, 8, 64, 3, 1), convolution(64, 8, 64, 3, 1, 4), convolution(16, 8, 16, 3, 1))
    yield from (convolution(1, 8, 16, 3, 1), convolution(3, 16, 8, 5, 1), convolution(8, 4, 8, 1, 1, 2))
    yield from (linear(64, 10), linear(64, 10, 8), linear(512, 100), linear(512, 100, 8), linear(3, 70))
    for size in (4, 16, 40):
        op = AvgPool(output="y", inputs=("shared",), kernel=(2, 2), stride=(2, 2))
        yield single(f"average pool 16x{size}x{size}", (16, size, size), op, {})
    yield single("times 0.3", (50,), Scale(output="y", inputs=("shared",), factor=0.3), {})
    yield from (single(f"the answer alone, {n} elements", (n,), None, {}) for n in (10, 300, 20000))
    for kernel in (2, 3):
        pool = MaxPool(output="y", inputs=("shared",), kernel=(kernel, kernel), stride=(2, 2))
        yield single(f"max pool 16x16x16, kernel {kernel}", (16, 16, 16), pool, {})


class Party:
    """One of the two, set up for all cases."""

    def __init__(self, rank: int, ports: list[int], folder: str) -> None:
        from spu import libspu

        description = libspu.link.Desc()
        description.recv_timeout_ms = 120_000
        for number, port in enumerate(ports):
            description.add_party(str(number), f"127.0.0.1:{port}")
        link, log = libspu.link.create_brpc(description, rank), Log(Path(folder) / f"{rank}.log")
        self.rank = rank
        self.machine = Machine(link, rank, 2, "CHEETAH", FRACTION_BITS, log)
        self.talk = Talk(link, rank)
        self.session = Session(rank, link, log, Settings(FRACTION_BITS), lambda stage, done, total: None)
        self.rng = np.random.default_rng(1)

    def run(self, program: Program, compiled: Compiled) -> Traffic:
        """Return what one batch costs, from the shared value to the answer at the client."""
        images = self.rng.normal(size=(compiled.batch, *program.input_shape)).astype(np.float32)
        self.machine.put_arrays(program, program.arrays if self.rank == SERVER else None, SERVER)
        self.machine.put_images(images if self.rank == CLIENT else None, program.input_shape, compiled.batch, CLIENT)
        self.machine.run_program(compiled, tally := Tally())
        for name in program.outputs:
            self.session._reveal(self.talk, self.machine, program, name)
        return tally.total() + self.talk.take()


def party(rank: int, ports: list[int], folder: str) -> dict[str, Any]:
    """Be one party; return bytes and messages of each case, and what was seen of a stock of transfers."""
    one = Party(rank, ports, folder)
    compiled = [compile_program(program, batch) for _, program, batch in cases()]
    prepare(one.machine, compiled)
    measured = []
    for (name, program, _), ready in zip(cases(), compiled, strict=True):
        traffic = one.run(program, ready)
        measured.append({"case": name, "bytes": traffic.bytes, "messages": traffic.messages})
    return {"measured": measured, "stock": find_stock(one)}


def find_stock(one: Party) -> dict[str, int]:
    """Return for how many comparisons a stock of transfers lasts in one stream, and what fetching one costs."""
    _, program, batch = activation("ReLU", STEP, 0)
    compiled = compile_program(program, batch)
    usual, runs, fetched = one.run(program, compiled), 0, []
    while len(fetched) < 2:
        runs, traffic = runs + 1, one.run(program, compiled)
        if traffic.messages > usual.messages:
            fetched.append((runs, traffic))
    (first, _), (second, last) = fetched
    return {
        "comparisons": (second - first) * STEP,
        "bytes": last.bytes - usual.bytes,
        "messages": last.messages - usual.messages,
    }


def measure() -> dict[str, Any]:
    """Return what the client saw."""
    ports = free_ports(2)
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(2, get_context("spawn")) as pool:
        parties = [pool.submit(party, rank, ports, folder) for rank in (SERVER, CLIENT)]
        return [found.result() for found in parties][CLIENT]


def needed(processors: int) -> list[Work]:
    """Return the units that each case needs. Transfers have no end here: fetching a stock is measured apart."""
    stocks = Stocks.after_set_up(processors, 1 << 60, longest=1 << 20, largest=1 << 20, squares=True)
    return [sum((done for _, _, done in work(program, batch, stocks)), Work()) for _, program, batch in cases()]


def prices(measured: list[dict[str, Any]], needs: list[Work]) -> dict[str, dict[str, float]]:
    """Return bytes and messages of each unit: those with the least squared relative errors over all cases."""
    from scipy.optimize import nnls

    units = sorted({unit for need in needs for unit in need})
    scale = np.array([[1 / row["bytes"]] for row in measured])
    matrix = scale * np.array([[need[unit] for unit in units] for need in needs])
    if np.linalg.matrix_rank(matrix) < len(units):
        raise SystemExit(f"{len(units)} units cannot be told apart by these cases; add cases")
    bytes_, messages = (nnls(matrix, scale[:, 0] * [row[key] for row in measured])[0] for key in ("bytes", "messages"))
    return {
        unit: {"bytes": round(float(cost), 3), "messages": round(float(count))}
        for unit, cost, count in zip(units, bytes_, messages, strict=True)
    }


def main() -> None:
    """Measure, solve, write the table, and print how well it fits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=TABLE)
    arguments = parser.parse_args()
    found, machine = measure(), environment()
    needs = needed(int(machine["cpus"]))
    stock = found["stock"]
    table = {
        "engine": "cheetah",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine,
        "command": f"python benchmarks/{typed_command()}",
        "stock": stock.pop("comparisons"),
        "prices": prices(found["measured"], needs) | {"transfer stock": stock},
        "measured": [{**row, "units": need} for row, need in zip(found["measured"], needs, strict=True)],
    }
    arguments.out.write_text(json.dumps(table, indent=1) + "\n")
    for row, need in zip(found["measured"], needs, strict=True):
        cost = sum(table["prices"][unit]["bytes"] * count for unit, count in need.items())
        messages = sum(table["prices"][unit]["messages"] * count for unit, count in need.items())
        print(f"{row['case']:56}{row['bytes']:>11,} B{row['messages']:>6}; table{cost:>13,.0f} B{messages:>6}")


if __name__ == "__main__":
    main()
