"""Many experiments: every point of a folder of recipes that is not there yet.

A point is a recipe with a seed; its teacher is the point of ``dense.toml`` beside it, with the same seed. Each has a
folder of its own, so a sweep that was stopped goes on, and several sweeps over one shared folder share the work: a
point that somebody is at is left to them. One that fails leaves a record of that: it is a result, too.
"""

import fcntl
import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from reluctant.errors import CheckpointError, DataError, Paused, RecordError, ReluctantError, UsageError
from reluctant.experiment import (
    RECIPE,
    Machine,
    check_finished,
    clear_states,
    evaluate_checkpoint,
    is_finished,
    linearize_checkpoint,
    train,
)
from reluctant.files import UNFINISHED, write_json
from reluctant.models import ModelSpec
from reluctant.progress import Progress, Under, limit_of, silent
from reluctant.provenance import as_if_typed, describe_device, without_folders
from reluctant.recipe import Recipe, merge, read_toml
from reluctant.recording import public_name, public_recipe
from reluctant.records import Record, load_records

log = logging.getLogger(__name__)

DENSE = "dense.toml"
#: How the points of a sweep lie in its folder; the folder notes it in :data:`NOTED`.
FORMAT = 1
NOTED = "sweep.json"
FAILURES = "failed-*.record.json"
#: What an experiment is ended with where it breaks: an error of ours or torch's, memory among them.
BREAKS = (ReluctantError, RuntimeError, MemoryError)


@dataclass(frozen=True)
class Point:
    """One experiment of a sweep.

    Args:
        name: of its folder.
        teacher: name of the point of its dense network; ``None`` if it is that itself.
        asked: the arguments of ``reluctant sweep`` that ask for it, for its teacher and for lower seeds, no other.
    """

    name: str
    recipe: Recipe
    teacher: str | None = None
    asked: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Swept:
    """How the points of a sweep stand.

    Args:
        records: of the evaluation, for each point that is finished.
        failed: what went wrong, for each that failed, now or before.
        elsewhere: points that another process is at, or whose teacher is still missing because of that.
    """

    records: dict[str, Record]
    failed: dict[str, str]
    elsewhere: tuple[str, ...]


def find_points(recipes: Sequence[Path], *, budgets: Sequence[str] = (), seeds: int = 1) -> list[Point]:
    """Return the points of ``recipes`` in their order, each after its teacher, seed by seed.

    Args:
        recipes: files, or folders: all their files by name.
        budgets: run each method at these, in place of the recipe's own; ``snl-2%.toml`` is what ``snl`` is at 2 %.
        seeds: so many, from each recipe's own on.

    Raises:
        UsageError: a recipe that is wrong, or that has no ``dense.toml`` beside it; two points of one name.
    """
    found: dict[str, Point] = {}
    for seed in range(seeds):
        for path in [file for given in recipes for file in _files(given)]:
            beside = path.with_name(DENSE)
            if not beside.is_file():
                raise UsageError(f"{path} has no {DENSE} beside it, the recipe of its teacher; add one")
            dense = _recipe(beside, {}, seed)
            so_many = ("--seeds", str(seed + 1)) if seed else ()
            teacher = Point(f"dense-s{dense.seed}", dense, asked=(str(beside), *so_many))
            points = [teacher]
            if path.name != DENSE:
                points += _students(path, teacher, budgets, seed, so_many)
            for point in points:
                if found.setdefault(point.name, point) != point:
                    raise UsageError(f"two recipes are called {point.name}; sweep them into different --out folders")
    return list(found.values())


def _students(
    path: Path, teacher: Point, budgets: Sequence[str], seed: int, so_many: tuple[str, ...]
) -> Iterator[Point]:
    """Yield the points of one recipe; at a budget that a file beside it is named for, that file's recipe is taken."""
    recipe = _student(path, teacher, seed)
    if not budgets:
        yield Point(f"{path.stem}-s{recipe.seed}", recipe, teacher.name, (str(path), *so_many))
    stem = path.stem.removesuffix(f"-{recipe.budget}")
    for budget in budgets:
        beside = (path.with_name(f"{name}.toml") for name in (f"{stem}-{budget}", stem))
        taken = next((file for file in beside if file.is_file()), path)
        own = replace(_student(taken, teacher, seed), budget=budget)
        asked = (str(taken), "--budgets", budget, *so_many)
        yield Point(f"{stem}-{budget}-s{own.seed}", own, teacher.name, asked)


def _student(path: Path, teacher: Point, seed: int) -> Recipe:
    dense = teacher.recipe
    recipe = _recipe(path, {"task": dense.task, "model": dense.model}, seed)
    if recipe.method is None or recipe.budget is None:
        raise UsageError(f"{path} names no method or no budget")
    if (recipe.task, recipe.model) != (dense.task, dense.model):
        raise UsageError(f"{path} is for another task or model than the {DENSE} beside it, its teacher")
    return recipe


def _files(given: Path) -> list[Path]:
    files = sorted(given.glob("*.toml")) if given.is_dir() else [given]
    if not files:
        raise UsageError(f"{given} holds no recipe (*.toml)")
    return files


def _recipe(path: Path, usual: dict[str, str], seed: int) -> Recipe:
    try:
        recipe = Recipe.from_json(merge(usual, read_toml(path)))
        return replace(recipe, seed=recipe.seed + seed)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def sweep(
    points: Sequence[Point], out: Path, machine: Machine, *, retry: bool = False, progress: Progress = silent
) -> Swept:
    """Run all of ``points`` that are not finished in ``out``, read the test split once for each; say how they stand.

    A point that fails is noted, and those that need it fail with it; the others go on.

    Args:
        retry: train those again that failed before; otherwise they are reported and left alone.

    Raises:
        UsageError: ``out`` is of another version, or ``machine`` trains in several processes.
        Paused: the time limit is near; everything is saved.
    """
    records: dict[str, Record] = {}
    failed: dict[str, str] = {}
    elsewhere: list[str] = []
    open_folder(out, machine)
    limit = limit_of(progress)
    tell = progress if limit is None else limit.progress  # to look at a finished point is no work
    for number, point in enumerate(points):
        tell("points", number, len(points))
        if point.teacher in failed:
            failed[point.name] = f"its teacher {point.teacher} failed"
        elif point.teacher in elsewhere and not is_finished(out / point.teacher):
            elsewhere.append(point.name)
        else:
            try:
                ended = run_point(point, out, machine, retry=retry, progress=Under(progress, point.name))
            except Paused as pause:
                stage = f"{point.name} ({number + 1} of {len(points)} points), {pause.stage}"
                raise Paused(stage, pause.done, pause.total, pause.seconds_left) from None
            if ended is None:
                elsewhere.append(point.name)
            elif isinstance(ended, str):
                log.warning("%s: %s", point.name, ended)
                failed[point.name] = ended
            else:
                records[point.name] = ended
    return Swept(records, failed, tuple(elsewhere))


def open_folder(out: Path, machine: Machine) -> None:
    """Note in ``out`` how a sweep lies there.

    Raises:
        UsageError: it lies there in another way; or ``machine`` trains in several processes: a sweep is shared by
            points, not by batches.
    """
    if machine.device.partition(":")[2] not in ("", "1") or int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UsageError(
            f"a sweep trains each point in one process, --device {machine.device} asks for several; start as "
            "many sweeps with the same --out, they share the points"
        )
    noted = out / NOTED
    try:
        found = json.loads(noted.read_text())["format"]
    except FileNotFoundError:  # a new folder, or one from before this was noted
        with _claimed(out) as mine:
            if mine:  # otherwise another sweep is noting the same
                for killed in out.glob(f".{NOTED}.*{UNFINISHED}"):
                    killed.unlink(missing_ok=True)
                write_json(noted, {"format": FORMAT})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UsageError(f"cannot read {noted}: {error!r}; choose another --out") from error
    else:
        if found != FORMAT:
            raise UsageError(
                f"{out} holds a sweep in format {found!r}, this version of reluctant writes {FORMAT}; choose another "
                "--out, or use the version that began it"
            )


def run_point(
    point: Point, out: Path, machine: Machine, *, retry: bool = False, progress: Progress = silent
) -> Record | str | None:
    """Finish ``point``; return the record of its evaluation, or what went wrong, or ``None``: another process is at it.

    A failure of the experiment leaves a record in the point's folder and is not tried again unless ``retry`` says so.
    What can be put right outside of it (a missing file, a full disk, a recipe that makes no sense) leaves none.
    """
    folder = out / point.name
    begun = time.monotonic()
    try:
        with _claimed(folder) as mine, as_if_typed(_command(point, out, machine)):
            if not mine:
                return None
            try:
                return _run(point, out, machine, retry, progress)
            except BREAKS as error:
                if _is_outcome(error, folder):
                    _failure(point.recipe, _reason(error), time.monotonic() - begun).save(folder)
                raise
    except Paused:
        raise
    except BREAKS as error:
        return _reason(error)


def _run(point: Point, out: Path, machine: Machine, retry: bool, progress: Progress) -> Record | str:
    folder = out / point.name
    teacher = None if point.teacher is None else out / point.teacher
    if is_finished(folder):
        check_finished(folder, point.recipe, teacher)
        clear_states(folder)
    else:
        failures = sorted(folder.glob(FAILURES))
        if failures and not retry:
            check_finished(folder, point.recipe, teacher)
            latest = load_records(failures)[-1]
            return f"{latest.note} (at {latest.created}; --retry trains it again)"
        if failures:
            clear_states(folder)
            # The failures go last: killed before, this is done again; after, it goes on like any point.
            for path in (folder / RECIPE, *folder.glob("*.metrics.jsonl"), *failures):
                path.unlink(missing_ok=True)
        if teacher is None:
            train(point.recipe, folder, machine, progress=progress)
        else:
            linearize_checkpoint(teacher, point.recipe, folder, machine, progress=progress)
    limit = limit_of(progress)
    if limit is not None and limit.left < 2 * limit.longest:
        limit.pause("evaluation", 0, 1, limit.longest)
    return evaluate_checkpoint(folder, machine, progress=progress)


def _command(point: Point, out: Path, machine: Machine) -> list[str]:
    """Return the one command that makes ``point`` again, for somebody who has the data: it goes into its records."""
    import torch

    device = [] if machine.device == "auto" else ["--device", machine.device]
    threads = ["--threads", str(torch.get_num_threads())]
    place = out.name if out.is_absolute() else str(out)  # whose machine it lay on is nobody's business
    return ["reluctant", *threads, "sweep", *point.asked, "--out", place, *device]


def _is_outcome(error: BaseException, folder: Path) -> bool:
    """Return whether ``error`` is what came of an experiment that was begun, not of how it was asked for or kept."""
    elsewhere = isinstance(error, Paused | DataError | CheckpointError | RecordError) or type(error) is UsageError
    return (folder / RECIPE).exists() and not is_finished(folder) and not elsewhere


def _reason(error: BaseException) -> str:
    """Return the first line of what went wrong."""
    return next(iter(str(error).splitlines()), "out of memory" if isinstance(error, MemoryError) else repr(error))


def _failure(recipe: Recipe, reason: str, seconds: float) -> Record:
    """Return the record of a run of ``recipe`` that failed; nothing was measured, so its counts are zero."""
    method = recipe.method
    return Record(
        kind="train" if method is None else "linearize",
        task=public_name(recipe.task),
        model=public_name(str(ModelSpec.parse(recipe.model))),
        method=None if method is None else method.name,
        track="free" if method is None else method.surrogate.track,
        surrogate=None if method is None else method.surrogate.name,
        budget=recipe.budget,
        relus={"total": 0, "kept": 0, "sites": 0, "sites_kept": 0},
        accuracy={"val": None, "test": None, "n_test": None},
        seed=recipe.seed,
        seconds=seconds,
        device=describe_device(),
        recipe=public_recipe(recipe),
        status="failed",
        note=without_folders(reason),
    )


@contextmanager
def _claimed(folder: Path) -> Iterator[bool]:
    """Claim ``folder`` for this process while inside, and tell whether that worked; a killed process claims nothing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".claim").open("w")
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror}; choose another --out") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
