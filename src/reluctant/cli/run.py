"""``reluctant run``: private inference between two parties."""

from pathlib import Path
from typing import Annotated, Any

import typer

from reluctant.cli.main import app, show
from reluctant.cli.options import Data, Download, Json, TaskName
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
    party: Annotated[
        str | None, typer.Option("--party", help="Be one party only: server or client.", show_default=False)
    ] = None,
    listen: Annotated[str, typer.Option("--listen", help="host:port of this party.")] = "",
    peer: Annotated[str, typer.Option("--peer", help="host:port of the other party.")] = "",
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds to wait for the other party.")] = 60.0,
    task: TaskName = None,
    data: Data = None,
    download: Download = False,
    json: Json = False,
) -> None:
    """Run private inference for real, between two processes on this machine, and check the answers.

    The server process holds the weights, the client process the images; the client alone learns the class scores. Masks
    and architecture are public. The answers are compared with plain torch, and with the fixed-point twin.

    Under `ckks` the server computes on ciphertexts; the network may keep no ReLU (`linearize --budget 0`), and there is
    no twin.

    With `--party` this machine is only one of the two: the server gives its checkpoint, the client its `--task` and
    `--images`, both say where they listen and where the other one does. Then there is nothing to compare with.
    """
    from reluctant.experiment import Machine, run_checkpoint
    from reluctant.recording import network_cost

    machine = Machine(data, download)
    if party is not None:
        _run_alone(party, checkpoint, machine, engine, images, batch, (listen, peer, timeout), task, json)
        return
    if task is not None:
        raise UsageError("--task is for a client on its own; a checkpoint knows its task")
    if checkpoint is None:
        raise UsageError("name the checkpoint to run, for instance runs/snl-10")
    with ProgressView(quiet=json) as progress:
        _, done = run_checkpoint(
            checkpoint, machine, engine=engine, images=images, network=network, batch=batch, progress=progress
        )
    of = f"of {images} "
    twin = "" if done.twin is None else f"{done.argmax_equal_twin} {of}as the twin, "
    show(
        network_cost(done),
        f"{checkpoint}: classes {done.answers}; {twin}"
        f"{done.argmax_equal_float} {'' if twin else of}as plain torch "
        f"(scores off by at most {done.max_abs_error_float:.1g}); "
        f"{_costs(done.run)} ({done.engine.name}, "
        f"{done.engine.security.adversary}, {network})",
        json,
    )


def _run_alone(
    party: str,
    checkpoint: Path | None,
    machine: Any,
    engine: str,
    images: int,
    batch: int | None,
    where: tuple[str, str, float],
    task: str | None,
    json: bool,
) -> None:
    """Be one party of a run between two machines."""
    from reluctant.engines.parties import Place
    from reluctant.experiment import query_images, serve_checkpoint
    from reluctant.recording import engine_costs

    if engine != "cheetah":
        raise UsageError(f"--party is for cheetah; leave it out to run {engine} on this machine")
    if party not in ("server", "client"):
        raise UsageError(f"unknown party {party!r}; expected server or client")
    place = Place(listen=where[0], peer=where[1], connect_timeout=where[2])
    with ProgressView(quiet=json) as progress:
        if party == "server":
            if checkpoint is None:
                raise UsageError("the server needs a checkpoint to serve, for instance runs/snl-10")
            done = serve_checkpoint(checkpoint, place, progress=progress)
            line = f"served {done.images} images: {_costs(done)}"
        else:
            if task is None or checkpoint is not None:
                raise UsageError("the client gives no checkpoint but the --task whose images it sends")
            done = query_images(task, machine, place, images=images, batch=batch, progress=progress)
            line = f"classes {[int(k) for k in done.outputs.argmax(1)]}: {_costs(done)}"
    show(engine_costs(done), line, json)


def _costs(run: Any) -> str:
    return (
        f"{run.comparisons:,} comparisons, {format_bytes(run.bytes)} in {run.messages:,} messages, "
        f"{format_seconds(run.seconds)} after {format_seconds(run.setup_seconds)} of set-up"
    )
