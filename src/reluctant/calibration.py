"""Measures what a unit of work costs under CHEETAH, and makes the table that predictions are made from.

Programs of one operation are run by the engine's own runtime, in two processes of this machine, on a value that both
parties share. How many units of each kind such a program needs is known (:mod:`reluctant.costs.cheetah`); what a unit
costs is the least-squares solution over all programs, none below zero. Bytes and messages are counted, so other work on
the machine changes nothing; seconds are those of the fastest of several runs, since other work can only add some. Round
trips are what a distant link adds to the seconds on loopback.
"""

import functools
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from reluctant.costs import ENGINES
from reluctant.costs.cheetah import CALLS, COMPUTED, Stocks, Work, held_at_most
from reluctant.costs.model import Cost
from reluctant.costs.networks import NETWORKS, Network
from reluctant.costs.table import CostTable
from reluctant.costs.work import set_up_work, work
from reluctant.engines.meeting import free_ports
from reluctant.engines.memory import peak_memory
from reluctant.engines.preparation import prepare
from reluctant.engines.relay import Relay
from reluctant.engines.session import Session, Talk
from reluctant.engines.settings import CLIENT, SERVER, Settings
from reluctant.engines.spu import FRACTION_BITS, Compiled, Log, Machine, Tally, Traffic, compile_program, require_spu
from reluctant.program.operations import INPUT, Activation, AvgPool, Conv2d, Linear, MaxPool, Op, Scale
from reluctant.program.ops import Program, ProgramSite
from reluctant.progress import Progress, silent
from reluctant.provenance import environment, typed_command
from reluctant.registry import unknown

#: A link so far that what it adds to a run is round trips, and so fast that it is nothing else.
FAR = Network("far", 1e11, 0.02)

#: A stock of transfers is looked for in steps of so many comparisons.
STEP = 1000

#: Times that each program is run; the first one is warming up.
REPEATS = 4

Case = tuple[str, Program, int]
Rows = Sequence[Mapping[str, Any]]


def single(
    name: str, shape: tuple[int, ...], op: Op | None, arrays: dict[str, tuple[int, ...]], batch: int = 1
) -> Case:
    """Return the program of ``op``, or of none, on a value that is the client's image plus an array of the server's."""
    sites: tuple[ProgramSite, ...] = ()
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
    keep = np.random.default_rng(2).permutation(kept + dropped) < kept
    c0, c1, c2 = (name if name in coefficients else None for name in ("c0", "c1", "c2"))
    op = Activation(output="y", inputs=("shared",), site="site", keep=keep, c0=c0, c1=c1, c2=c2)
    what = f"{name} {kept or dropped}" + (f" of {kept + dropped}" if kept and dropped else "")
    return single(what, (kept + dropped,), op, dict.fromkeys(coefficients, (dropped,)))


def cases() -> Iterator[Case]:
    """Yield the programs that are measured; the first needs every kind of set-up."""
    yield from (activation("parabola", 0, n, "c2", "c1", "c0") for n in (50, 1000, 3000, 10000, 16384, 30000))
    yield from (activation("private slope", 0, n, "c1") for n in (100, 5000, 9000, 20000))
    yield from (activation("ReLU", n, 0) for n in (50, 512, 1000, 2048, 3001, 5000, 16384, 40000))
    yield from (activation("ReLU", *counts) for counts in ((50, 16334), (1600, 14784), (3000, 62536)))
    yield from (convolution(3, 32, 16, 3, 1), convolution(16, 32, 16, 3, 1), convolution(16, 32, 32, 3, 2))
    yield from (convolution(16, 32, 32, 1, 2), convolution(32, 16, 32, 3, 1), convolution(32, 16, 64, 3, 2))
    yield from (convolution(64, 8, 64, 3, 1), convolution(64, 8, 64, 3, 1, 4), convolution(16, 8, 16, 3, 1))
    yield from (convolution(1, 8, 16, 3, 1), convolution(3, 16, 8, 5, 1), convolution(8, 4, 8, 1, 1, 2))
    yield from (convolution(64, 32, 64, 3, 1), convolution(128, 16, 128, 3, 1), convolution(512, 4, 512, 3, 1))
    yield from (linear(64, 10), linear(64, 10, 8), linear(512, 100), linear(512, 100, 8), linear(3, 70))
    yield from (linear(1024, 1024), linear(2048, 2048))
    for size in (4, 16, 40):
        op = AvgPool(output="y", inputs=("shared",), kernel=(2, 2), stride=(2, 2))
        yield single(f"average pool 16x{size}x{size}", (16, size, size), op, {})
    yield single("times 0.3", (50,), Scale(output="y", inputs=("shared",), factor=0.3), {})
    yield from (single(f"the answer alone, {n} elements", (n,), None, {}) for n in (10, 300, 20000))
    for kernel in (2, 3):
        pool = MaxPool(output="y", inputs=("shared",), kernel=(kernel, kernel), stride=(2, 2))
        yield single(f"max pool 16x16x16, kernel {kernel}", (16, 16, 16), pool, {})


def heavy_cases() -> Iterator[Case]:
    """Yield the programs whose memory is measured, each in a process of its own."""
    yield linear(64, 10)
    yield from (activation("ReLU", n, 0) for n in (512, 40000, 100_000))
    yield from (convolution(16, 32, 16, 3, 1), convolution(64, 32, 64, 3, 1), convolution(128, 16, 128, 3, 1))
    yield convolution(512, 4, 512, 3, 1)
    yield single("times 0.3, 20000 elements", (20000,), Scale(output="y", inputs=("shared",), factor=0.3), {})


class Party:
    """One of the two, ready to run cases."""

    def __init__(self, rank: int, ports: list[int], folder: str) -> None:
        from spu import libspu

        description = libspu.link.Desc()
        description.recv_timeout_ms = 120_000
        for number, port in enumerate(ports):
            description.add_party(str(number), f"127.0.0.1:{port}")
        link, log = libspu.link.create_brpc(description, rank), Log(Path(folder) / f"{rank}.log")
        self.rank = rank
        settings = Settings(FRACTION_BITS)
        self.machine, self.talk = Machine(link, rank, settings, log), Talk(link, rank)
        self.session = Session(rank, link, log, settings, lambda stage, done, total: None)
        self.rng = np.random.default_rng(1)

    def run(self, program: Program, compiled: Compiled) -> tuple[Traffic, float]:
        """Return what one batch costs, and its seconds, from the client's image to the answer at the client."""
        images = self.rng.normal(size=(compiled.batch, *program.input_shape)).astype(np.float32)
        self.machine.put_arrays(program, program.arrays if self.rank == SERVER else None, SERVER)
        begun = time.perf_counter()
        self.machine.put_images(images if self.rank == CLIENT else None, program.input_shape, compiled.batch, CLIENT)
        self.machine.run_program(compiled, tally := Tally())
        for name in program.outputs:
            self.session._reveal(self.talk, self.machine, program, name)
        return tally.total() + self.talk.take(), time.perf_counter() - begun


def party(rank: int, ports: list[int], folder: str) -> dict[str, Any]:
    """Be one party; return what each case cost, what set-up did, and what was seen of a stock of transfers."""
    begun = time.perf_counter()
    one = Party(rank, ports, folder)
    connected, begun = time.perf_counter() - begun, time.perf_counter()
    compiled = [compile_program(program, batch) for _, program, batch in cases()]
    compiling = (time.perf_counter() - begun) / sum(len(program.ops) for _, program, _ in cases())
    setup = {part: _as_cost(traffic) for part, traffic in prepare(one.machine, compiled)}
    measured = []
    for (name, program, _), ready in zip(cases(), compiled, strict=True):
        runs = [one.run(program, ready) for _ in range(REPEATS)]
        traffic = min((traffic for traffic, _ in runs), key=lambda traffic: traffic.messages)
        seconds = min(seconds for _, seconds in runs[1:])
        measured.append({"case": name, "bytes": traffic.bytes, "messages": traffic.messages, "seconds": seconds})
    setup |= {"connection": Cost(seconds=connected), "operation": Cost(seconds=compiling)}
    return {"measured": measured, "setup": setup, "stock": find_stock(one)}


def party_peak(rank: int, ports: list[int], folder: str, number: int) -> int:
    """Be one party of a heavy case alone; return the most bytes that its process held."""
    _, program, batch = list(heavy_cases())[number]
    one, compiled = Party(rank, ports, folder), compile_program(program, batch)
    for _ in prepare(one.machine, [compiled]):
        pass
    one.run(program, compiled)
    return peak_memory()


def _as_cost(traffic: Traffic) -> Cost:
    return Cost(traffic.bytes, traffic.messages, traffic.seconds)


def find_stock(one: Party) -> dict[str, float]:
    """Return for how many comparisons a stock of transfers lasts in one stream, and what fetching one costs."""
    _, program, batch = activation("ReLU", STEP, 0)
    compiled = compile_program(program, batch)
    (usual, lasted), runs = one.run(program, compiled), 0
    fetched: list[tuple[int, Traffic, float]] = []
    while len(fetched) < 2:
        runs, (traffic, seconds) = runs + 1, one.run(program, compiled)
        if traffic.messages > usual.messages:
            fetched.append((runs, traffic, seconds))
    (first, _, _), (second, last, seconds) = fetched
    return {
        "comparisons": (second - first) * STEP,
        "bytes": last.bytes - usual.bytes,
        "messages": last.messages - usual.messages,
        "seconds": seconds - lasted,
    }


def measure(network: Network) -> dict[str, Any]:
    """Return what the client saw of all cases over ``network``."""
    seen: dict[str, Any] = _both(network, party)[CLIENT]
    return seen


def _both(network: Network, role: Callable[..., Any], *more: Any) -> list[Any]:
    """Return what ``role`` returned as the server and as the client, two processes with a link between them."""
    ports = free_ports(2)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="reluctant-"))
        listed = {SERVER: list(ports), CLIENT: list(ports)}
        if network.emulated:
            relay = stack.enter_context(Relay(network, (f"127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}")))
            listed[CLIENT][0], listed[SERVER][1] = (int(port.rpartition(":")[2]) for port in relay.ports)
        pool = stack.enter_context(ProcessPoolExecutor(2, get_context("spawn")))
        parties = [pool.submit(role, rank, listed[rank], folder, *more) for rank in (SERVER, CLIENT)]
        return [found.result() for found in parties]


def needed(processors: int) -> list[Work]:
    """Return the units that each case needs. Transfers have no end here: fetching a stock is measured apart."""
    stocks = Stocks.after_set_up(processors, 1 << 60, longest=1 << 20, largest=1 << 20, squares=True)
    return [sum((done for _, _, done in work(program, batch, stocks)), Work()) for _, program, batch in cases()]


def _memory(peaks: Sequence[int], processors: int) -> dict[str, float]:
    """Return the bytes that a party holds for each unit, from the peaks of all heavy cases."""
    needs = []
    for _, program, batch in heavy_cases():
        stocks = Stocks(processors, 1 << 60, [1 << 60] * processors)
        _, first = set_up_work(program, batch, processors, 1 << 60)
        needs.append(held_at_most([first, *(done for _, _, done in work(program, batch, stocks))]))
    found = _least_squares(needs, sorted({unit for need in needs for unit in need}), peaks, 1 / np.array(peaks))
    return {unit: round(held) for unit, held in found.items()}


def _least_squares(needs: Sequence[Work], units: Sequence[str], values: Any, weights: Any) -> dict[str, float]:
    """Return what each unit costs, none below zero: the least weighted squared errors over all cases."""
    from scipy.optimize import nnls

    matrix = np.array([[need[unit] for unit in units] for need in needs], float)
    if np.linalg.matrix_rank(matrix) < len(units):
        raise AssertionError(f"{len(units)} units cannot be told apart by these cases; add cases")
    found = nnls(matrix * np.asarray(weights)[:, None], np.asarray(values) * weights)[0]
    return {unit: float(cost) for unit, cost in zip(units, found, strict=True)}


def _prices(near: Rows, far: Rows, needs: Sequence[Work]) -> dict[str, Cost]:
    """Return the cost of each unit, from the same cases over two links."""
    units = sorted({unit for need in needs for unit in need})
    calls = [unit for unit in units if unit in CALLS]
    sending = [unit for unit in units if unit not in COMPUTED]
    bytes_, messages, seconds = (np.array([row[key] for row in near]) for key in ("bytes", "messages", "seconds"))
    trips = (np.array([row["seconds"] for row in far]) - seconds) / FAR.rtt_seconds
    found = {
        "bytes": _least_squares(needs, sending, bytes_, 1 / bytes_),
        "messages": _least_squares(needs, sending, messages, 1 / bytes_),
        "seconds": _least_squares(needs, units, seconds, 1 / seconds),
        "trips": _least_squares(needs, calls, trips, 1 / (0.05 + seconds)),
    }
    digits = {"bytes": 3, "messages": 0, "seconds": 10, "trips": 2}
    return {
        unit: Cost(**{key: round(costs.get(unit, 0.0), digits[key]) for key, costs in found.items()}) for unit in units
    }


def _setup(model: CostTable, near: Mapping[str, Cost], far: Mapping[str, Cost]) -> dict[str, Cost]:
    """Return what each part of the set-up costs, without the work in it that the table prices."""
    stocks = Stocks(model.processors, 1 << 60, [1 << 60] * model.processors)
    longest = max(batch * math.prod(shape) for _, program, batch in cases() for shape in program.shapes.values())
    largest = max(len(op.kept) for _, program, _ in cases() for op in program.activations())
    known = {"product": stocks.truncate(longest), "comparison": stocks.compare(largest)}
    parts = {}
    for part, cost in near.items():
        priced = model.cost(known.get(part, Work()))
        seconds, distant = cost.seconds, far[part].seconds
        parts[part] = Cost(
            bytes=round(max(0.0, cost.bytes - priced.bytes)),
            messages=round(max(0.0, cost.messages - priced.messages)),
            seconds=round(max(0.0, min(seconds, distant) - priced.seconds), 4),
            trips=round(max(0.0, (distant - seconds) / FAR.rtt_seconds - priced.trips), 2),
        )
    return parts


def calibrate(engine: str = "cheetah", progress: Progress = silent) -> dict[str, Any]:
    """Return the table of what a unit of work costs under ``engine`` on this machine, for :meth:`CostTable.open`.

    Takes some minutes, with two processes; what else runs on the machine makes its seconds longer.

    Raises:
        UnknownName: no such engine, or none whose work is known.
        UsageError: SPU is not installed.
    """
    if engine not in ENGINES:
        raise unknown("engine to calibrate", engine, list(ENGINES))
    require_spu()
    heavy = len(list(heavy_cases()))
    steps: list[Callable[[], Any]] = [functools.partial(measure, link) for link in (NETWORKS["loopback"], FAR)]
    steps += [functools.partial(_both, NETWORKS["loopback"], party_peak, number) for number in range(heavy)]
    found: list[Any] = []
    for number, step in enumerate(steps):
        progress("calibrate", number, len(steps))
        found.append(step())
    progress("calibrate", len(steps), len(steps))
    near, far, *peaks = found
    machine, stock = environment(), dict(near["stock"])
    needs, lasting = needed(int(machine["cpus"])), int(stock.pop("comparisons"))
    fetching = (far["stock"]["seconds"] - stock["seconds"]) / FAR.rtt_seconds
    prices = _prices(near["measured"], far["measured"], needs) | {
        "transfer stock": Cost(**{key: round(value, 4) for key, value in stock.items()}),
        "transfer call": Cost(trips=round(max(0.0, fetching), 2)),
    }
    model = CostTable(engine, prices, {}, {}, int(machine["cpus"]), lasting)
    return {
        "engine": engine,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine,
        "command": typed_command(),
        "stock": lasting,
        "prices": {unit: cost._asdict() for unit, cost in prices.items()},
        "setup": {part: cost._asdict() for part, cost in _setup(model, near["setup"], far["setup"]).items()},
        "memory": _memory([max(both) for both in peaks], int(machine["cpus"])),
        "peaks": [{"case": name, "bytes": max(both)} for (name, _, _), both in zip(heavy_cases(), peaks, strict=True)],
        "measured": [
            {**row, "far_seconds": round(there["seconds"], 4), "seconds": round(row["seconds"], 4), "units": need}
            for row, there, need in zip(near["measured"], far["measured"], needs, strict=True)
        ],
    }


def residuals(table: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """Return each program that ``table`` was made from: its bytes and its seconds, as priced over as measured."""
    prices = {unit: Cost(**price) for unit, price in table["prices"].items()}
    rows = []
    for row in table["measured"]:
        priced = [(prices[unit], count) for unit, count in row["units"].items()]
        bytes_ = sum(price.bytes * count for price, count in priced) / row["bytes"]
        seconds = sum(price.seconds * count for price, count in priced) / row["seconds"]
        rows.append((str(row["case"]), bytes_, seconds))
    return rows
