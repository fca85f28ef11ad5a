"""Whole experiments: what each command does, from a recipe or a folder to a checkpoint and a record in it."""

import json
import math
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reluctant.budget import Budget
from reluctant.checkpoints import (
    Checkpoint,
    Origin,
    has_checkpoint,
    load_checkpoint,
    round_weights,
    save_checkpoint,
    weights_digest,
)
from reluctant.costs.pricing import price_list
from reluctant.data import load_task, task_shape
from reluctant.errors import UsageError
from reluctant.files import UNFINISHED, write_json
from reluctant.linearization import linearize
from reluctant.loop import is_late, read_state, write_state
from reluctant.masked import attach
from reluctant.models import ModelSpec
from reluctant.program.lower import lower
from reluctant.program.ops import Program
from reluctant.progress import Progress, limit_of, silent
from reluctant.provenance import describe_device
from reluctant.recipe import Recipe
from reluctant.recording import about, evaluation_record, known_accuracy, public_recipe
from reluctant.records import Record, load_records
from reluctant.secure import as_masked, twin_outputs
from reluctant.sites import find_sites
from reluctant.task import Task
from reluctant.training import Evaluation, evaluate, finetune, fit, make_fabric

if TYPE_CHECKING:
    from lightning_fabric import Fabric

RECIPE = "recipe.json"
STATES = ("train.state", "search.state", "finetune.state", "linearized.state", "teacher-*.state")
#: Test images between two looks at the clock, where the twin works through all of them.
TWIN_IMAGES = 512
SELECTION = "best epoch on a held-out tenth of the training set; test split read once, afterwards"


@dataclass(frozen=True)
class Machine:
    """Where the data lies, what to compute on, and the table of what secure work costs, if it is not the usual one."""

    data: Path | None = None
    download: bool = False
    device: str = "auto"
    prices: Path | None = None

    def task(self, name: str) -> Task:
        """Return the task called ``name``, its data read from where it lies."""
        return load_task(name, data=self.data, download=self.download)


def open_model(name: str, task: str | None = None, machine: Machine | None = None) -> Checkpoint:
    """Return the network that ``name`` means: a checkpoint's folder or file, a zoo name or ``path.py:function``.

    Args:
        task: gives classes and input shape to a network that is no checkpoint; digits if not given. No data is read,
            but for ``folder`` tasks.
    """
    path = Path(name)
    if path.is_dir() or path.suffix == ".safetensors":
        checkpoint = load_checkpoint(path)
        if task is not None and task != checkpoint.origin.task:
            raise UsageError(f"{name} is of task {checkpoint.origin.task}, not {task}; leave --task away")
        return checkpoint
    machine = machine or Machine()
    spec = ModelSpec.parse(name)
    classes, shape = task_shape(task or "digits", data=machine.data)
    network = spec.build(classes, shape[0], min(shape[1:])).eval()
    return Checkpoint(network, None, Origin(str(spec), task or "digits", classes, shape))


def open_dense(path: Path, task: Task) -> Checkpoint:
    """Return the checkpoint at ``path``, of a network with all of its ReLUs.

    Raises:
        UsageError: it is linearized, or of another task than ``task``.
    """
    checkpoint = load_checkpoint(path)
    if checkpoint.masked is not None:
        raise UsageError(f"{path} is linearized already; give the dense network it was made of")
    check_fits(checkpoint.origin, task, path)
    return checkpoint


def train(recipe: Recipe, out: Path, machine: Machine, *, progress: Progress = silent) -> Record:
    """Train the recipe's network, write its checkpoint and record to ``out``, and return the record.

    An interrupted call goes on where it stopped when it is made again.

    Raises:
        UsageError: ``out`` holds a finished checkpoint already.
    """
    begun = time.monotonic()
    task = recipe.prepare(machine.task(recipe.task))
    fabric = make_fabric(device=machine.device, input_shape=task.input_shape)
    torch.manual_seed(recipe.seed)
    spec = ModelSpec.parse(recipe.model)
    model = spec.build(len(task.classes), task.input_shape[0], min(task.input_shape[1:]))
    find_sites(model, task.example)  # a network that cannot be linearized is refused before it is trained
    begin(out, public_recipe(recipe))
    model = fit(model, task, recipe.training, seed=recipe.seed, fabric=fabric, directory=out, progress=progress)
    val = _validate(model, task, recipe, fabric, progress)
    facts = {
        "seed": recipe.seed,
        "epochs": recipe.training.epochs,
        "val": val.accuracy,
        "n_val": val.n,
        "recipe": public_recipe(recipe),
        "selection": SELECTION,
        "note": recipe.note,
        "device": describe_device(str(fabric.device)),
        "input_range": task.train.input_range,
    }
    origin = Origin(str(spec), task.name, len(task.classes), task.input_shape, facts=facts)
    leave_the_rest_to_the_first(fabric)
    return _finish(out, model, origin, recipe, "train", time.monotonic() - begun)


def linearize_checkpoint(
    teacher: Path, recipe: Recipe, out: Path, machine: Machine, *, progress: Progress = silent
) -> Record:
    """Linearize the network at ``teacher`` by the recipe's method, finetune it, write checkpoint and record to ``out``.

    An interrupted call goes on where it stopped when it is made again.

    Raises:
        UsageError: no method or budget, a teacher that is linearized itself, or ``out`` is finished already.
    """
    if recipe.method is None or recipe.budget is None:
        raise UsageError("to linearize, name a method and a budget: --method ebb --budget 10%")
    begun = time.monotonic()
    task = recipe.prepare(machine.task(recipe.task))
    given = open_dense(teacher, task)
    fabric = make_fabric(device=machine.device, input_shape=task.input_shape)
    sites = find_sites(given.dense, task.example)
    budget = Budget.parse(recipe.budget)  # refused before anything is written
    budget.resolve(sites, price_list(attach(given.dense, sites, recipe.method.surrogate), budget, machine.prices))
    begin(out, {**public_recipe(recipe), "teacher": weights_digest(given.dense)})
    torch.manual_seed(recipe.seed)
    settings: dict[str, Any] = {"seed": recipe.seed, "fabric": fabric, "directory": out, "progress": progress}
    small = linearize(given.dense, recipe.method, budget, task, table=machine.prices, **settings)
    small = finetune(small, task, recipe.finetune, teacher=given.dense, **settings)
    val = _validate(small, task, recipe, fabric, progress)
    facts = {
        "seed": recipe.seed,
        "epochs": math.ceil(sum(lines[-1]["epoch"] for lines in _histories(out))),
        "val": val.accuracy,
        "n_val": val.n,
        "teacher": weights_digest(given.dense),
        "recipe": public_recipe(recipe),
        "selection": SELECTION,
        "note": recipe.note,
        "device": describe_device(str(fabric.device)),
        "input_range": task.train.input_range,
    }
    origin = Origin(
        given.origin.model,
        task.name,
        len(task.classes),
        task.input_shape,
        method=recipe.method.to_json(),
        budget=recipe.budget,
        facts=facts,
    )
    leave_the_rest_to_the_first(fabric)
    return _finish(out, small, origin, recipe, "linearize", time.monotonic() - begun)


def evaluate_checkpoint(folder: Path, machine: Machine, *, twin: bool = False, progress: Progress = silent) -> Record:
    """Return the record of the network's accuracy on the test split, read now or, if that was done, then.

    Args:
        twin: evaluate under the fixed point of a secure run, in one process and without cryptography; the accuracy in
            floats stands beside.
    """
    floats = evaluate_checkpoint(folder, machine) if twin else None
    begun = time.monotonic()
    checkpoint = load_checkpoint(folder)
    task = machine.task(checkpoint.origin.task)
    check_fits(checkpoint.origin, task, folder)
    masked = as_masked(checkpoint.model, task.example)
    digest = weights_digest(checkpoint.model)
    place = folder if folder.is_dir() else folder.parent
    for record in load_records([place]) if any(place.glob("*.record.json")) else []:
        read = record.accuracy.get("twin" if twin else "test")
        if record.kind == "evaluate" and record.checkpoint == digest and read is not None:
            return record
    if twin:
        scores = iter(_twin_scores(lower(masked), task, place / "twin.state", digest, progress))
        found = evaluate(lambda _: next(scores), task, "test", batch=TWIN_IMAGES)
    else:
        found = evaluate(masked, task, "test")
    record = evaluation_record(found, checkpoint.model, checkpoint.origin, time.monotonic() - begun, floats=floats)
    record.save(place)
    if twin:
        (place / "twin.state").unlink(missing_ok=True)
    return record


def _twin_scores(
    program: Program, task: Task, state: Path, digest: str, progress: Progress
) -> list[Float[Tensor, "B K"]]:
    """Return the twin's scores for the test images, ``TWIN_IMAGES`` at a time; ``state`` keeps those there are."""
    limit, total = limit_of(progress), len(task.test)
    known = read_state(state) if state.exists() else {}
    scores: list[Tensor] = known["scores"] if known.get("network") == digest else []
    for start in range(len(scores) * TWIN_IMAGES, total, TWIN_IMAGES):
        if limit is not None and limit.left < 1.5 * limit.longest:
            limit.pause("twin", start, total)
        begun = time.monotonic()
        images = task.test.inputs(slice(start, start + TWIN_IMAGES))
        scores.append(torch.from_numpy(twin_outputs(program, images.numpy())))
        write_state(state, {"network": digest, "scores": scores})
        progress("twin", min(start + TWIN_IMAGES, total), total)
        if limit is not None:
            limit.longest = max(limit.longest, time.monotonic() - begun)
    return scores


def leave_the_rest_to_the_first(fabric: "Fabric") -> None:
    """Of several processes that trained together, end all but the first, which alone writes what came out."""
    fabric.barrier()
    if not fabric.is_global_zero:
        sys.exit(0)


def _validate(model: nn.Module, task: Task, recipe: Recipe, fabric: "Fabric", progress: Progress) -> Evaluation:
    """Return what the finished ``model``, rounded if it is kept small, gets right of the held-out images."""
    limit = limit_of(progress)
    if limit is not None and is_late(limit, limit.longest, fabric):
        limit.pause("validation", 0, 1, limit.longest)
    if recipe.small:
        round_weights(model)
    return evaluate(model, task, "val")


def _finish(out: Path, model: nn.Module, origin: Origin, recipe: Recipe, kind: Any, seconds: float) -> Record:
    """Write checkpoint and record, then drop the states that an interrupted run would have needed."""
    trained = sum(lines[-1]["seconds"] for lines in _histories(out))  # with those of legs before an interruption
    record = Record(
        kind=kind,
        accuracy=known_accuracy(origin),
        seconds=max(seconds, trained),
        device=str(origin.facts["device"]),
        **about(model, origin),
    )
    save_checkpoint(out, model, origin, small=recipe.small)
    record.save(out)
    clear_states(out)
    return record


def clear_states(out: Path) -> None:
    """Delete what an interrupted run in ``out`` would have needed, and what killed ones were writing."""
    for pattern in (*STATES, f".*{UNFINISHED}"):
        for path in _of_run(out, pattern):
            path.unlink(missing_ok=True)


def _of_run(out: Path, pattern: str) -> list[Path]:
    """Return the files of the run in ``out``, and of the searches that its own started from, in ``start`` folders."""
    return sorted([*out.glob(pattern), *out.glob(f"start/**/{pattern}")])


def _histories(out: Path) -> list[list[dict[str, float]]]:
    """Return what the loops that ran in ``out`` noted, a line an epoch."""
    files = [path for path in _of_run(out, "*.metrics.jsonl") if path.stat().st_size]
    return [[json.loads(line) for line in path.read_text().splitlines()] for path in files]


def is_finished(out: Path) -> bool:
    """Return whether a training or a linearization ended in ``out``: its record is the last thing that is written."""
    return any(out.glob("train-*.record.json")) or any(out.glob("linearize-*.record.json"))


def check_finished(out: Path, recipe: Recipe, teacher: Path | None) -> None:
    """Raise unless the finished run in ``out`` is of ``recipe`` and, for a linearized network, of that ``teacher``.

    Raises:
        UsageError: it is of other settings (a note is none), or of another teacher.
    """
    try:
        begun = json.loads((out / RECIPE).read_text())
        digest = begun.pop("teacher", None)
        same = replace(Recipe.from_json(begun), note=None).to_json() == public_recipe(replace(recipe, note=None))
    except (OSError, ValueError, UsageError):
        same, digest = False, None
    if not same or (teacher is not None and digest != weights_digest(load_checkpoint(teacher).dense)):
        raise UsageError(f"{out} is of other settings or another teacher; choose another --out, or remove it first")


def begin(out: Path, settings: dict[str, Any]) -> None:
    """Note in ``out`` what is being done there.

    Raises:
        UsageError: something else was begun there, or this is finished.
    """
    if is_finished(out) or (has_checkpoint(out) and not (out / RECIPE).exists()):
        raise UsageError(f"{out} holds a finished checkpoint; choose another --out, or remove it first")
    try:
        begun = json.loads((out / RECIPE).read_text())
    except FileNotFoundError:
        write_json(out / RECIPE, settings)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {out / RECIPE}: {error}; remove {out} to start again") from error
    else:
        if begun != json.loads(json.dumps(settings)):
            raise UsageError(f"{out} holds a run of other settings; choose another --out, or remove it first")


def check_fits(origin: Origin, task: Task, where: Path) -> None:
    """Raise :class:`UsageError` unless the network of ``where`` takes the images of ``task`` and names its classes."""
    if (origin.classes, tuple(origin.input_shape)) != (len(task.classes), task.input_shape):
        raise UsageError(
            f"{where} is for {origin.classes} classes of images {tuple(origin.input_shape)}, task {task.name} has "
            f"{len(task.classes)} of {task.input_shape}; name the task it was trained on"
        )
