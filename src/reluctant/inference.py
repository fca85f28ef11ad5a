"""What ``reluctant run`` does: private inference with a checkpoint, and whether it keeps the budget it was made for."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from reluctant.budget import Budget
from reluctant.checkpoints import Checkpoint, load_checkpoint
from reluctant.circa import Circa, Truncations, largest_truncations
from reluctant.engines import ENGINES
from reluctant.engines.base import EngineRun
from reluctant.engines.on_spu import SpuEngine
from reluctant.engines.parties import Place, assist, query, serve
from reluctant.engines.settings import Role
from reluctant.errors import UsageError
from reluctant.experiment import Machine, check_fits
from reluctant.program.certificate import Certificate, certify
from reluctant.program.lower import lower
from reluctant.program.ops import Program
from reluctant.progress import Progress, silent
from reluctant.recording import run_record
from reluctant.records import Record
from reluctant.secure import SecureRun, as_masked, make_engine, secure_run


def run_checkpoint(
    folder: Path,
    machine: Machine,
    *,
    engine: str,
    images: int,
    network: str = "loopback",
    batch: int | None = None,
    transfers: str | None = None,
    without: Collection[str] = (),
    progress: Progress = silent,
) -> tuple[Record, SecureRun]:
    """Run the first test images through the network at ``folder`` as private inference; return record and run.

    Args:
        without: see :func:`reluctant.secure.secure_run`.
    """
    checkpoint = load_checkpoint(folder)
    task = machine.task(checkpoint.origin.task)
    check_fits(checkpoint.origin, task, folder)
    made = make_engine(engine, network, transfers)
    run = secure_run(
        checkpoint.model,
        task.images(images),
        engine=made,
        network=network,
        batch=batch,
        input_range=task.train.input_range,
        without=without,
        progress=progress,
    )
    record = run_record(run, checkpoint.model, checkpoint.origin)
    record.save(folder if folder.is_dir() else folder.parent)
    return record, run


def truncate_checkpoint(
    folder: Path, machine: Machine, circa: Circa, *, points: float = 0.5, progress: Progress = silent
) -> Truncations:
    """Return what Circa's faulty signs would cost the network at ``folder``; a simulation, so no record is kept."""
    checkpoint = load_checkpoint(folder)
    task = machine.task(checkpoint.origin.task)
    check_fits(checkpoint.origin, task, folder)
    masked = as_masked(checkpoint.model, task.example)
    return largest_truncations(masked, task, circa, points=points, progress=progress)


def be_party(
    role: Role,
    place: Place,
    machine: Machine,
    *,
    engine: str,
    checkpoint: Path | None = None,
    task: str | None = None,
    images: int = 1,
    batch: int | None = None,
    without: Collection[str] = (),
    progress: Progress = silent,
) -> tuple[EngineRun, Certificate | None]:
    """Be one party of a private inference whose others are on other machines; return its cost, at the client answers.

    And, at the server, the certificate of the fixed point, for the range of values that images of the network's task
    have: the client refuses to send any other. ``None`` for checkpoints that do not know the range; then nothing is
    refused.

    Args:
        checkpoint: what the server gives.
        task: the one whose first test images the client sends.
        without: what the server leaves out of the program, see :func:`reluctant.secure.secure_run`.

    Raises:
        UsageError: this party gives something else, or the engine has no parties of its own.
    """
    found = ENGINES[engine]()
    if not isinstance(found, SpuEngine):
        alone = ", ".join(name for name in ENGINES if issubclass(ENGINES[name], SpuEngine))
        raise UsageError(f"engine {engine} has no parties that run on their own; --party is for {alone}")
    given = (checkpoint is not None, task is not None)
    if role == "server" and given == (True, False) and checkpoint is not None:
        program, certificate = _checked_program(load_checkpoint(checkpoint), found.fraction_bits, without)
        return serve(program, place, found.settings(), progress), certificate
    if without and role != "server":
        raise UsageError(f"the program is the server's: --without is for it, not for the {role}")
    if role == "client" and given == (False, True) and task is not None:
        sent = machine.task(task).images(images).numpy()
        return query(sent, place, found.settings(), progress, batch=batch), None
    if role == "helper" and given == (False, False):
        return assist(place, found.settings(), progress), None
    gives = {"server": "a checkpoint to serve alone", "client": "no checkpoint but a --task", "helper": "neither"}
    raise UsageError(f"the {role} gives {gives[role]}")


def _checked_program(
    checkpoint: Checkpoint, fraction_bits: int, without: Collection[str]
) -> tuple[Program, Certificate | None]:
    """Return what a server computes, and the certificate for the range of its inputs, if the checkpoint knows it."""
    program = lower(as_masked(checkpoint.model, checkpoint.example), without)
    if "input_range" not in checkpoint.origin.facts:
        return program, None
    low, high = checkpoint.origin.facts["input_range"]
    return replace(program, input_range=(low, high)), certify(program, (low, high), fraction_bits=fraction_bits)


@dataclass(frozen=True)
class Kept:
    """What an inference was to cost, and what it did.

    Args:
        unit: ``bytes`` or ``seconds``, an image and after set-up.
        budget: the most it may be.
        measured: the mean over the images of ``run``, one at a time.
    """

    unit: str
    budget: float
    measured: float
    run: SecureRun

    @property
    def holds(self) -> bool:
        """Whether the budget was kept."""
        return self.measured <= self.budget


def check_measurable(budget: str | None) -> tuple[str, str]:
    """Return the engine and the link that ``budget`` names.

    Raises:
        UsageError: it is no budget in bytes or seconds, or none under an engine that runs here.
    """
    quantity = Budget.parse(budget or "").quantity
    if quantity.unit not in ("bytes", "seconds"):
        raise UsageError(f"budget {budget} cannot be measured, for it is in {quantity.unit}: write 10s@cheetah/wan")
    engine, _, link = quantity.where.partition("/")
    make_engine(engine, link or "loopback")
    return engine, link or "loopback"


def measure_budget(folder: Path, machine: Machine, *, images: int, progress: Progress = silent) -> Kept:
    """Run the first test images through the network at ``folder`` privately, as its budget says; leave the record.

    Raises:
        UsageError: as :func:`check_measurable`.
    """
    text = load_checkpoint(folder).origin.budget
    engine, link = check_measurable(text)
    _, run = run_checkpoint(folder, machine, engine=engine, images=images, network=link, batch=1, progress=progress)
    quantity = Budget.parse(text or "").quantity
    spent = run.run.bytes if quantity.unit == "bytes" else run.run.seconds
    return Kept(quantity.unit, quantity.value, spent / images, run)
