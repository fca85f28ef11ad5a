"""``reluctant run``: private inference between two parties."""

from pathlib import Path
from typing import Annotated, Any

import typer

from reluctant.cli.main import app, show
from reluctant.cli.options import Data, Download, Json, TaskName, Without, rewrites
from reluctant.cli.progress import ProgressView
from reluctant.engines import ENGINES
from reluctant.errors import UsageError
from reluctant.units import format_bytes, format_seconds


@app.command()
def run(
    checkpoint: Annotated[
        Path | None, typer.Argument(help="Folder of the network; a client on its own has none.", show_default=False)
    ] = None,
    engine: Annotated[str, typer.Option("--engine", help=", ".join(ENGINES.names()) + ".")] = "cheetah",
    images: Annotated[int, typer.Option("--images", help="How many test images to send.", min=1)] = 1,
    network: Annotated[
        str, typer.Option("--network", help="loopback; or imitated: lan, wan, mobile, 400mbps/20ms.")
    ] = "loopback",
    batch: Annotated[int | None, typer.Option("--batch", help="Images that travel together.", min=1)] = None,
    transfers: Annotated[
        str | None,
        typer.Option(
            "--transfers",
            help="Oblivious transfers of cheetah: ferret (few bytes), softspoken (little set-up), auto (as predicted).",
            show_default=False,
        ),
    ] = None,
    without: Without = None,
    party: Annotated[
        str | None, typer.Option("--party", help="Be one party only: server, client or helper.", show_default=False)
    ] = None,
    listen: Annotated[str, typer.Option("--listen", help="host:port of this party.")] = "",
    peer: Annotated[
        str, typer.Option("--peer", help="host:port of the other party; of two, with a comma, server first.")
    ] = "",
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds to wait for the other party.")] = 60.0,
    task: TaskName = None,
    data: Data = None,
    download: Download = False,
    json: Json = False,
) -> None:
    """Run private inference for real, between processes on this machine, and check the answers.

    The server process holds the weights, the client process the images; the client alone learns the class scores. Masks
    and architecture are public. Engine aby3 has a third process, the helper, that holds nothing; semi2k only simulates
    costs, and is not private. The answers are compared with the fixed-point twin and with plain torch.

    Each of the rewrites `channels`, `factors` and `squares` tells something of the weights where it makes the run
    cheaper; `--without channels,factors,squares` tells none of it.

    Under `ckks` the server computes on ciphertexts; the network may keep no ReLU (`linearize --budget 0`), there is no
    twin, and masks and architecture are not told.

    With `--party` this machine is only one of them: the server gives its checkpoint, the client its `--task` and
    `--images`, a helper nothing; each says where it listens and where the others do. Then there is nothing to compare
    with.
    """
    from reluctant.experiment import Machine
    from reluctant.inference import run_checkpoint
    from reluctant.recording import network_cost

    machine = Machine(data, download)
    if party is not None:
        _run_alone(party, checkpoint, machine, engine, images, batch, without, (listen, peer, timeout), task, json)
        return
    if task is not None:
        raise UsageError("--task is for a client on its own; a checkpoint knows its task")
    if checkpoint is None:
        raise UsageError("name the checkpoint to run, for instance runs/snl-10")
    with ProgressView(quiet=json) as progress:
        _, done = run_checkpoint(
            checkpoint,
            machine,
            engine=engine,
            images=images,
            network=network,
            batch=batch,
            transfers=transfers,
            without=rewrites(without),
            progress=progress,
        )
    equal = f"{done.argmax_equal_float} of {images}"
    if done.twin is not None:
        equal = f"{done.argmax_equal_twin} of {images} as the twin, {done.argmax_equal_float}"
    proof = "" if done.certificate is None else f"; fixed point: {done.certificate}"
    show(
        {**_promise(engine, without), "transfers": done.run.transfers, **network_cost(done)},
        f"{checkpoint}: classes {_first(done.answers)}; {equal} as plain torch "
        f"(scores off by at most {done.max_abs_error_float:.1g}); "
        f"{_costs(done.run)} ({_named(engine, without)}, {done.engine.security.label}, {network}){proof}",
        json,
    )


def _run_alone(
    party: str,
    checkpoint: Path | None,
    machine: Any,
    engine: str,
    images: int,
    batch: int | None,
    without: str | None,
    where: tuple[str, str, float],
    task: str | None,
    json: bool,
) -> None:
    """Be one party of a run between two machines."""
    from reluctant.engines.parties import Place
    from reluctant.engines.settings import ROLES
    from reluctant.inference import be_party
    from reluctant.recording import engine_costs, fixed_point

    role = next((role for role in ROLES if role == party), None)
    if role is None:
        raise UsageError(f"unknown party {party!r}; expected one of {', '.join(ROLES)}")
    place = Place(listen=where[0], peer=where[1], connect_timeout=where[2])
    with ProgressView(quiet=json) as progress:
        done, certificate = be_party(
            role,
            place,
            machine,
            engine=engine,
            checkpoint=checkpoint,
            task=task,
            images=images,
            batch=batch,
            without=rewrites(without),
            progress=progress,
        )
    line = f"{role}, {done.images} images: {_costs(done)} ({_named(engine, without)}, {ENGINES[engine].security.label})"
    if role == "client":
        line = f"classes {[int(k) for k in done.outputs.argmax(1)]}; {line}"
    if role == "server":
        proof = certificate or "not checked, for the checkpoint does not say which values its images have"
        line = f"{line}; fixed point: {proof}"
    checked = {} if certificate is None else {"fixed_point": fixed_point(certificate)}
    show({**_promise(engine, without), **engine_costs(done), **checked}, line, json)


def _first(answers: list[int], most: int = 20) -> str:
    """Return the classes of the first images; they were only sent to see what it costs."""
    return str(answers) if len(answers) <= most else f"{answers[:most]} and {len(answers) - most:,} more"


def _named(engine: str, without: str | None) -> str:
    return f"{engine} without {', '.join(rewrites(without))}" if without else engine


def _promise(engine: str, without: str | None) -> dict[str, Any]:
    """Return what stands beside the numbers of a run in JSON."""
    security, left_out = ENGINES[engine].security, {"without": list(rewrites(without))} if without else {}
    return {"engine": engine, **left_out, "adversary": security.adversary, "private": security.private}


def _costs(run: Any) -> str:
    return (
        f"{run.comparisons:,} comparisons, {format_bytes(run.bytes)} in {run.messages:,} messages, "
        f"{format_seconds(run.seconds)} after {format_seconds(run.setup_seconds)} of set-up"
    )
