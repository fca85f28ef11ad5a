"""A sweep over a Ray cluster: points run where there is room, teachers before their students.

Ray is an optional package (``pip install "reluctant[ray]"``). Every machine of the cluster has this package and sees
the sweep's folder and the data under the same paths.
"""

import logging
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from reluctant.data.download import VARIABLE
from reluctant.errors import Paused, UsageError
from reluctant.experiment import Machine
from reluctant.progress import Progress, TimeLimit, limit_of, silent
from reluctant.records import Record
from reluctant.sweep import Point, Swept, open_folder, run_point

log = logging.getLogger(__name__)


def sweep_on_ray(
    points: Sequence[Point],
    out: Path,
    machine: Machine,
    *,
    address: str,
    retry: bool = False,
    progress: Progress = silent,
) -> Swept:
    """Run all of ``points`` that are not finished in ``out`` on a Ray cluster; see :func:`reluctant.sweep.sweep`.

    Each takes one CPU of the cluster, or one GPU where the cluster has any.

    Args:
        address: of the cluster; ``local`` starts one on this machine.
        retry: train those again that failed before.

    Raises:
        UsageError: Ray is not installed, or there is no cluster at ``address``.
        Paused: the time limit is near; everything is saved.
    """
    try:
        import ray
    except ImportError as error:
        raise UsageError('sweeps over a cluster need Ray: pip install "reluctant[ray]"') from error
    open_folder(out, machine)
    _check_reachable(address)
    try:
        ray.init(address=None if address == "local" else address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UsageError(f"no Ray cluster at {address}: {str(error).splitlines()[0]}") from error
    limit = limit_of(progress)
    until = None if limit is None else time.time() + limit.left
    given = machine.data or os.environ.get(VARIABLE)
    place = replace(machine, data=Path(given).expanduser().resolve() if given else None)
    gpus = 1 if ray.cluster_resources().get("GPU") else 0
    try:
        remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(_finish)
        tasks: dict[str, Any] = {}
        for point in points:
            after = tasks[point.teacher] if point.teacher else None
            tasks[point.name] = remote.remote(point, out.resolve(), place, until, retry, after)
        names, waiting = {task: name for name, task in tasks.items()}, list(tasks.values())
        ended: dict[str, Record | str | Paused | None] = {}
        while waiting:
            progress("points", len(ended), len(points))
            done, waiting = ray.wait(waiting)
            for task in done:
                try:
                    ended[names[task]] = ray.get(task)
                except ray.exceptions.RayError as error:
                    ended[names[task]] = f"its process broke: {str(error).strip().splitlines()[-1]}"
    finally:
        ray.shutdown()
    failed = {name: result for name, result in ended.items() if isinstance(result, str)}
    pauses = [result for result in ended.values() if isinstance(result, Paused)]
    if pauses and not failed:
        raise Paused(f"{len(pauses)} points, first {pauses[0].stage}", pauses[0].done, pauses[0].total)
    return Swept(
        {name: result for name, result in ended.items() if isinstance(result, Record)},
        failed,
        tuple(name for name, result in ended.items() if result is None),
    )


def _check_reachable(address: str) -> None:
    """Raise unless something listens at a ``host:port``; Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon:
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except (OSError, ValueError) as error:
            raise UsageError(f"no Ray cluster at {address}: {error}") from error


def _finish(
    point: Point,
    out: Path,
    machine: Machine,
    until: float | None,
    retry: bool,
    teacher: Record | str | Paused | None,
) -> Record | str | Paused | None:
    """Run one point where Ray puts it; return its record, what went wrong, its pause, or ``None`` if it is not ours.

    Args:
        until: the time limit, in seconds since the epoch.
    """
    if point.teacher is not None and not isinstance(teacher, Record):
        return f"its teacher {point.teacher} failed" if isinstance(teacher, str) else teacher
    try:
        # Not to have begun at all under the limit is a pause here, too: others may have had the time.
        progress = silent if until is None else TimeLimit(until - time.time(), worked=True)
        return run_point(point, out, machine, retry=retry, progress=progress)
    except Paused as pause:
        return pause
