"""Train a network, measure one.

:func:`evaluate` is the only reader of the test split's labels. Everything that trains selects on the validation split.
"""

import atexit
import logging
import math
import os
import re
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from reluctant.distillation import logits, teaching
from reluctant.errors import ReluctantError, UsageError
from reluctant.loop import Counters, Loop, Step
from reluctant.masked import MaskedModel
from reluctant.progress import Progress, silent
from reluctant.sites import copied, evaluating
from reluctant.task import Split, Task, stream
from reluctant.units import check_number

if TYPE_CHECKING:
    from lightning_fabric import Fabric

log = logging.getLogger(__name__)

Precision = Literal["auto", "32-true", "bf16-mixed"]

#: What the forward pass of a training step runs in, made anew for each step from the network and the step.
Regularizer = Callable[[nn.Module, Step], AbstractContextManager[object]]


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a network is trained: SGD with Nesterov momentum, linear warm-up, cosine to zero.

    Args:
        epochs: passes over the training split.
        batch: images a step, over all devices.
        lr: peak learning rate.
        weight_decay: on weights of two dimensions and more; never on batch norm, biases or surrogates.
        warmup: share of the steps in which the rate rises from zero.
        labels: weight of the cross-entropy with the labels. 0 beside a teacher at temperature 1 learns from its class
            scores alone (ReActNet's distributional loss, arXiv:2003.03488).
        label_smoothing: of that cross-entropy.
        ema: decay a step of an average of the weights, which is then what is kept; 0 for none.
        clip: bound on the gradient's norm; 0 for none.
        temperature, distil: softmax temperature and weight of the teacher's term, where there is a teacher
            (T = 4 and 1 in SNL and AutoReP).
        only_right: learn from the teacher's class scores only where it is right (MESS, arXiv:2106.03527).
        attention: weight of the gap between the attention maps of a masked network and its teacher's (SENet: 1,000).
        batch_norm_images: training images that the statistics of batch norm are taken from anew before the first step,
            for a network whose mask has just changed; 0 leaves them to the training.
    """

    epochs: int = 60
    batch: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup: float = 0.05
    labels: float = 1.0
    label_smoothing: float = 0.0
    ema: float = 0.0
    clip: float = 0.0
    temperature: float = 4.0
    distil: float = 1.0
    only_right: bool = False
    attention: float = 0.0
    batch_norm_images: int = 0

    def __post_init__(self) -> None:
        above_zero = ("epochs", "batch", "lr", "temperature")
        numbers = {setting.name: setting.default for setting in fields(self) if not isinstance(setting.default, bool)}
        for name, default in numbers.items():
            zero, whole = name not in above_zero, isinstance(default, int)
            check_number(getattr(self, name), f"training: {name}", whole=whole, zero=zero)
        for name in ("momentum", "warmup", "label_smoothing", "ema"):
            if not getattr(self, name) < 1:
                raise UsageError(f"training: {name} is {getattr(self, name)}, expected a value from 0 to under 1")


#: The finetune after a mask search: SNL's (arXiv:2202.02340) is 100 epochs at 1e-3; ours is shorter and steeper.
FINETUNE = Training(epochs=30, lr=0.02, warmup=0.1)


@dataclass(frozen=True)
class Evaluation:
    """How many of a split's images a predictor gets right; ``model`` is the predictor, if it was a network."""

    task: str
    split: str
    correct: int
    n: int
    input_shape: tuple[int, ...] = ()
    model: nn.Module | None = field(default=None, compare=False, repr=False)

    @property
    def accuracy(self) -> float:
        """Share of right answers, 0 to 1."""
        return self.correct / self.n


def make_fabric(*, device: str = "auto", precision: Precision = "auto", input_shape: tuple[int, ...] = ()) -> "Fabric":
    """Return the launched Fabric that training runs on.

    ``auto`` precision is bf16 autocast on a GPU, and on a CPU that multiplies bf16 in hardware for images of 32 x 32
    pixels and more (below that it does not pay), else float32.

    Args:
        device: ``auto``, ``cpu``, ``cuda``; ``cuda:2`` for two of them and ``cpu:2`` for two processes (DDP).

    Raises:
        UsageError: no such device, or not so many of them.
    """
    import lightning_fabric

    accelerator, colon, devices = device.partition(":")
    if accelerator not in ("auto", "cpu", "cuda"):
        raise UsageError(f"unknown device {device!r}; expected auto, cpu, cuda or cuda:<how many>")
    if colon and not re.fullmatch("[1-9][0-9]{0,3}", devices):
        raise UsageError(f"device {device!r} says no number of them; expected for instance {accelerator}:2")
    cuda = torch.cuda.is_available()
    if accelerator == "cuda" and not cuda:
        raise UsageError("device cuda was asked for, but torch finds none; use --device cpu")
    on_gpu = accelerator != "cpu" and cuda
    if on_gpu and int(devices or 1) > torch.cuda.device_count():
        raise UsageError(f"device {device!r} was asked for, but torch finds {torch.cuda.device_count()} here")
    if not on_gpu and int(devices or 1) > (os.cpu_count() or 1):
        raise UsageError(f"device {device!r} asks for more processes than the {os.cpu_count()} cores there are")
    if precision == "auto":
        pays = on_gpu or (math.prod(input_shape[-2:]) >= 1024 and torch.cpu._is_avx512_bf16_supported())
        precision = "bf16-mixed" if pays else "32-true"
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", "Grad strides do not match")  # of DDP, about 1x1 convolutions
    launched = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # by torchrun, which says how many there are
    fabric = lightning_fabric.Fabric(
        accelerator="cuda" if on_gpu else "cpu",
        devices=int(devices or launched),
        num_nodes=int(os.environ.get("WORLD_SIZE", launched)) // launched if "LOCAL_WORLD_SIZE" in os.environ else 1,
        precision=precision,
    )
    fabric.launch()
    if fabric.world_size > 1:
        atexit.register(_leave_ranks)
    return fabric


def _leave_ranks() -> None:
    """End the threads that connect the ranks: left running, they may abort the process at its exit."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def rate(done: float, warmup: float) -> float:
    """Return the factor on the learning rate after the share ``done`` of all steps: linear up, then cosine to zero."""
    if done < warmup:
        return done / warmup
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group, times the group's own ``factor`` if it has one."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("factor", 1.0)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the parameters in two groups: those with weight decay and those without."""
    constants = {id(p) for p in model.constants()} if isinstance(model, MaskedModel) else set()
    decayed = [p for p in model.parameters() if p.dim() > 1 and id(p) not in constants]
    chosen = {id(p) for p in decayed}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def check_network(model: nn.Module, task: Task) -> None:
    """Raise unless ``model`` gives class scores for images of ``task`` and can be saved.

    Raises:
        SiteError: it cannot be copied.
        UsageError: its first output is no tensor ``[B, K]`` with a score for each class, or its state holds more than
            tensors.
    """
    network = copied(model).cpu()
    with torch.no_grad(), evaluating(network):
        try:
            output: Any = logits(network(torch.cat([task.example] * 2)))
        except ReluctantError:
            raise
        except Exception as error:
            reason = str(error).strip().split("\n")[0]
            raise UsageError(f"the network gives no class scores for a batch of 2 images: {reason}") from error
    if output.dim() != 2 or len(output) != 2 or output.shape[1] < len(task.classes):
        raise UsageError(
            f"the network gives an output of shape {tuple(output.shape)} for 2 images, expected "
            f"(2, {len(task.classes)}): a score for each class of {task.name}"
        )
    strange = [name for name, value in network.state_dict().items() if not isinstance(value, Tensor)]
    if strange:
        raise UsageError(f"the network's state holds {strange[0]}, which is no tensor, so it cannot be saved safely")


def fit(
    model: nn.Module,
    task: Task,
    training: Training | None = None,
    *,
    teacher: nn.Module | None = None,
    seed: int = 0,
    fabric: "Fabric | None" = None,
    directory: Path | None = None,
    progress: Progress = silent,
    stage: str = "train",
    regularize: Regularizer | None = None,
) -> nn.Module:
    """Return a trained copy of ``model``: the epoch that was best on the validation split, the last of equals.

    Args:
        teacher: distils into the copy, beside the labels.
        directory: keeps the state of an interrupted run; the same call then goes on where it stopped.
        regularize: what the training steps' forward passes run in, dropout of some kind; validation does not. What it
            draws must be a function of the step.
    """
    training = training or Training()
    fabric = fabric or make_fabric(input_shape=task.input_shape)
    check_network(model, task)
    student = copied(model).to(fabric.device)
    torch.manual_seed(seed)
    groups = parameter_groups(student, training.weight_decay)
    optimizer = torch.optim.SGD(groups, training.lr, training.momentum, nesterov=training.momentum > 0)
    average = _average(student, training.ema) if training.ema else None
    best = Counters(accuracy=-1.0, weights={})
    loop = Loop(
        stage,
        train=task.train,
        augmentation=task.augmentation,
        epochs=training.epochs,
        batch=training.batch,
        seed=seed,
        fabric=fabric,
        directory=directory,
        settings=asdict(training),
        progress=progress,
    )
    kept: dict[str, Any] = {"best": best} | ({} if average is None else {"average": average})
    network, optimizer = loop.setup(student, optimizer, **kept)
    teach = {name: getattr(training, name) for name in ("temperature", "distil", "attention", "only_right")}
    with nullcontext() if teacher is None else teaching(teacher, student, loop, **teach) as lesson:
        for step in loop:
            if training.batch_norm_images and not step.done:
                reestimate_batch_norm(student, task.train, fabric, training.batch_norm_images)
            network.train()
            set_rate(optimizer, training.lr * rate(step.done, training.warmup))
            taught = None if lesson is None else lesson(step)
            with nullcontext() if regularize is None else regularize(student, step):
                output = logits(network(step.images))
            loss = training.labels * F.cross_entropy(output, step.labels, label_smoothing=training.label_smoothing)
            if taught is not None:
                loss = loss + taught(output)
            loop.take(loss, optimizer, clip=(list(student.parameters()), training.clip) if training.clip else None)
            if average is not None:
                average.update_parameters(student)
            if step.last:
                accuracy = _keep_if_best(best, student if average is None else average.module, task.val, fabric)
                loop.note(epoch=step.epoch + 1, loss=float(loss.detach()), val=accuracy)
    student.load_state_dict(best["weights"])
    student.zero_grad(set_to_none=True)
    return student.to("cpu").eval()


@torch.no_grad()
def reestimate_batch_norm(
    model: nn.Module, split: Split, fabric: "Fabric", images: int = 1000, *, batch: int = 500
) -> None:
    """Set the running statistics of every batch norm of ``model`` to their mean over batches of ``split``, in place.

    A mask changes what the layers behind it see; the weights stay. Without batch norm nothing happens.

    Args:
        images: that many, drawn without augmentation, the same ones each time; all if there are fewer.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    norms = [norm for norm in norms if norm.track_running_stats]
    momenta, split = [norm.momentum for norm in norms], split.to(fabric.device)
    order = torch.randperm(len(split), generator=stream(len(split)))[:images].to(fabric.device)
    with fabric.autocast(), evaluating(model.to(fabric.device)):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a mean over all batches
            norm.train()
        for chosen in order.chunk(max(1, len(order) // batch)):
            model(split.inputs(chosen))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _keep_if_best(best: Counters, model: nn.Module, val: Split, fabric: "Fabric") -> float:
    """Put the weights of ``model`` into ``best`` if none did better on ``val``, and return its accuracy there."""
    accuracy = share_correct(model, val, fabric)
    if accuracy >= best["accuracy"]:
        weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        best.update(accuracy=accuracy, weights=weights)
    return accuracy


def _average(model: nn.Module, decay: float) -> AveragedModel:
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)  # type: ignore[no-untyped-call]


def finetune(
    model: MaskedModel,
    task: Task,
    training: Training | None = None,
    *,
    teacher: nn.Module,
    seed: int = 0,
    fabric: "Fabric | None" = None,
    directory: Path | None = None,
    progress: Progress = silent,
) -> MaskedModel:
    """Return a copy of ``model`` trained further with its mask frozen, its weights and surrogates free.

    Args:
        teacher: the dense network.
    """
    return fit(  # type: ignore[return-value]
        model,
        task,
        training or FINETUNE,
        teacher=teacher,
        seed=seed,
        fabric=fabric,
        directory=directory,
        progress=progress,
        stage="finetune",
    )


@torch.no_grad()
def share_correct(model: nn.Module, split: Split, fabric: "Fabric", *, batch: int = 500) -> float:
    """Return the share of ``split`` that ``model`` gets right, in evaluation mode and training precision."""
    correct = torch.zeros((), dtype=torch.long, device=fabric.device)
    with fabric.autocast(), evaluating(model):
        for images, labels in split.to(fabric.device).batches(batch):
            correct += (logits(model(images)).argmax(1) == labels).sum()
    return int(correct) / len(split)


Predictor = Callable[[Float[Tensor, "B C H W"]], Float[Tensor, "B K"]]


@torch.no_grad()
def evaluate(model: nn.Module | Predictor, task: Task, split: str = "test", *, batch: int = 250) -> Evaluation:
    """Return how many images of ``split`` are classified right, in float32 on the CPU or wherever the model is.

    Args:
        model: a network (evaluated in evaluation mode and left in the mode it had) or any function from images to class
            scores, for instance a secure engine.
    """
    if split not in ("val", "test"):
        raise UsageError(f"unknown split {split!r}; expected val or test")
    part: Split = getattr(task, split)
    network = model if isinstance(model, nn.Module) else None
    device = next((p.device for p in network.parameters()), torch.device("cpu")) if network else torch.device("cpu")
    correct = 0
    with nullcontext() if network is None else evaluating(network):
        for images, labels in part.batches(batch):
            correct += int((logits(model(images.to(device))).argmax(1).cpu() == labels).sum())
    return Evaluation(task.name, split, correct, len(part), task.input_shape, network)
