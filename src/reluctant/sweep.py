"""Many experiments: every point of a folder of recipes that is not there yet.

A point is a recipe with a seed; its teacher is the point of ``dense.toml`` beside it, with the same seed. Each has a
folder of its own, so a sweep that was stopped goes on, and several sweeps over one shared folder share the work: a
point that somebody is at is left to them.
"""

import fcntl
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from reluctant.errors import Paused, ReluctantError, UsageError
from reluctant.experiment import (
    Machine,
    check_finished,
    clear_states,
    evaluate_checkpoint,
    is_finished,
    linearize_checkpoint,
    train,
)
from reluctant.progress import Progress, Under, limit_of, silent
from reluctant.recipe import Recipe, merge, read_toml
from reluctant.records import Record

log = logging.getLogger(__name__)

DENSE = "dense.toml"


@dataclass(frozen=True)
class Point:
    """One experiment of a sweep.

    Args:
        name: of its folder.
        teacher: name of the point of its dense network; ``None`` if it is that itself.
    """

    name: str
    recipe: Recipe
    teacher: str | None = None


@dataclass(frozen=True)
class Swept:
    """How the points of a sweep stand.

    Args:
        records: of the evaluation, for each point that is finished.
        failed: what went wrong, for each that failed.
        elsewhere: points that another process is at, or whose teacher is still missing because of that.
    """

    records: dict[str, Record]
    failed: dict[str, str]
    elsewhere: tuple[str, ...]


def find_points(recipes: Sequence[Path], *, budgets: Sequence[str] = (), seeds: int = 1) -> list[Point]:
    """Return the points of ``recipes`` in their order, each after its teacher, seed by seed.

    Args:
        recipes: files, or folders: all their files by name.
        budgets: run each method at these, in place of the recipe's own.
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
            teacher = Point(f"dense-s{dense.seed}", dense)
            points = [teacher]
            if path.name != DENSE:
                recipe = _recipe(path, {"task": dense.task, "model": dense.model}, seed)
                if recipe.method is None or recipe.budget is None:
                    raise UsageError(f"{path} names no method or no budget")
                if (recipe.task, recipe.model) != (dense.task, dense.model):
                    raise UsageError(f"{path} is for another task or model than the {DENSE} beside it, its teacher")
                stem = path.stem.removesuffix(f"-{recipe.budget}")
                for budget in budgets or (recipe.budget,):
                    name = f"{stem}-{budget}" if budgets else path.stem
                    points.append(Point(f"{name}-s{recipe.seed}", replace(recipe, budget=budget), teacher.name))
            for point in points:
                if found.setdefault(point.name, point) != point:
                    raise UsageError(f"two recipes are called {point.name}; sweep them into different --out folders")
    return list(found.values())


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


def sweep(points: Sequence[Point], out: Path, machine: Machine, *, progress: Progress = silent) -> Swept:
    """Run all of ``points`` that are not finished in ``out``, read the test split once for each; say how they stand.

    A point that fails is noted, and those that need it fail with it; the others go on.

    Raises:
        Paused: the time limit is near; everything is saved.
    """
    records: dict[str, Record] = {}
    failed: dict[str, str] = {}
    elsewhere: list[str] = []
    check_alone(machine)
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
                record = run_point(point, out, machine, progress=Under(progress, point.name))
            except Paused as pause:
                stage = f"{point.name} ({number + 1} of {len(points)} points), {pause.stage}"
                raise Paused(stage, pause.done, pause.total, pause.seconds_left) from None
            except (ReluctantError, RuntimeError) as error:  # the second: torch's, out of memory among them
                log.warning("%s: %s", point.name, error)
                failed[point.name] = str(error).splitlines()[0]
            else:
                if record is None:
                    elsewhere.append(point.name)
                else:
                    records[point.name] = record
    return Swept(records, failed, tuple(elsewhere))


def check_alone(machine: Machine) -> None:
    """Raise unless ``machine`` trains in one process.

    Raises:
        UsageError: it does so in several; a sweep is shared by points, not by batches.
    """
    if machine.device.partition(":")[2] not in ("", "1") or int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UsageError(
            f"a sweep trains each point in one process, --device {machine.device} asks for several; start as "
            "many sweeps with the same --out, they share the points"
        )


def run_point(point: Point, out: Path, machine: Machine, *, progress: Progress = silent) -> Record | None:
    """Finish ``point`` and return the record of its evaluation; ``None`` if another process is at it."""
    folder = out / point.name
    with _claimed(folder) as mine:
        if not mine:
            return None
        teacher = None if point.teacher is None else out / point.teacher
        if is_finished(folder):
            check_finished(folder, point.recipe, teacher)
            clear_states(folder)
        elif teacher is None:
            train(point.recipe, folder, machine, progress=progress)
        else:
            linearize_checkpoint(teacher, point.recipe, folder, machine, progress=progress)
        limit = limit_of(progress)
        if limit is not None and limit.left < 2 * limit.longest:
            limit.pause("evaluation", 0, 1, limit.longest)
        return evaluate_checkpoint(folder, machine, progress=progress)


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
