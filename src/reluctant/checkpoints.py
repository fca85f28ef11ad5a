"""Networks on disk: one safetensors file, weights under their own names, masks as bits, and where it came from.

Nothing in the file is code. Its metadata carries a SHA-256 over everything else in it, so a changed byte is seen.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from reluctant.errors import CheckpointError
from reluctant.files import write_atomically
from reluctant.loop import fingerprint
from reluctant.mask import Mask
from reluctant.masked import MaskedModel, attach
from reluctant.models import ModelSpec
from reluctant.sites import Sites, find_sites
from reluctant.surrogates import surrogate_from_json

FILE = "model.safetensors"
FORMAT = 1
_MASK, _CONSTANT = "reluctant.mask/", "reluctant.constant/"


@dataclass(frozen=True)
class Origin:
    """What must be known to build the network again, and what was done to it.

    Args:
        model: as it was named: ``resnet20``, ``resnet18:stem_relu=false`` or ``file.py:function``.
        task: the name of its task.
        classes: number of them.
        input_shape: channels, height, width.
        method: name and settings, for a linearized one.
        budget: as it was given.
        facts: what records of the network repeat: seed, epochs, seconds, validation accuracy, the resolved recipe.
    """

    model: str
    task: str
    classes: int
    input_shape: tuple[int, ...]
    method: Mapping[str, Any] | None = None
    budget: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A network as it was saved; ``masked`` is ``None`` for a dense one."""

    dense: nn.Module
    masked: MaskedModel | None
    origin: Origin

    @property
    def sites(self) -> Sites | None:
        """The sites of a linearized network."""
        return None if self.masked is None else self.masked.sites

    @property
    def example(self) -> Float[Tensor, "1 C H W"]:
        """A black image of the right shape."""
        return torch.zeros(1, *self.origin.input_shape)

    @property
    def model(self) -> nn.Module:
        """The network to run: the masked one if there is one."""
        return self.dense if self.masked is None else self.masked


def save_checkpoint(folder: Path, model: nn.Module, origin: Origin) -> Path:
    """Write ``model`` to ``folder`` and return the file; it is whole or not there.

    Args:
        model: a :class:`MaskedModel` or any other network.
    """
    tensors, sites, surrogate = _tensors(model), None, None
    if isinstance(model, MaskedModel):
        surrogate = model.surrogate.to_json()
        sites = {name: list(site.shape) for name, site in model.sites.items()}
    about = {"format": FORMAT, "sites": sites, "surrogate": surrogate, **asdict(origin)}
    text = json.dumps(about, sort_keys=True)
    path = folder / FILE
    write_atomically(path, save(tensors, {"reluctant": text, "sha256": fingerprint(tensors, text)}))
    return path


def load_checkpoint(path: Path) -> Checkpoint:
    """Return the network saved at ``path``, a folder or a file.

    Raises:
        CheckpointError: missing, cut short, altered, of another format, or of a model that has changed since.
    """
    file, about, tensors = _read(path)
    origin = _origin(about)
    network = ModelSpec.parse(origin.model).build(origin.classes, origin.input_shape[0])
    weights = {name: tensor for name, tensor in tensors.items() if not name.startswith("reluctant.")}
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).split("\n")[1].strip()
        raise CheckpointError(f"{file} is not of the model {origin.model}: {reason}") from error
    network.eval()
    if about["sites"] is None:
        return Checkpoint(network, None, origin)
    sites = find_sites(network, torch.zeros(1, *origin.input_shape))
    if {name: list(site.shape) for name, site in sites.items()} != about["sites"]:
        raise CheckpointError(f"{file} is of a {origin.model} with other ReLU sites; the model's code has changed")
    masked = attach(network, sites, surrogate_from_json(about["surrogate"]))
    packed = {name.removeprefix(_MASK): t for name, t in tensors.items() if name.startswith(_MASK)}
    masked.set_mask(Mask.unpack(packed, {name: site.shape for name, site in sites.items()}))
    masked.made_by = {"method": origin.method, "budget": origin.budget} if origin.method else {}
    with torch.no_grad():
        for activation in masked.masked():
            for key, constant in activation.named_parameters():
                constant.copy_(tensors[f"{_CONSTANT}{key}/{activation.site.name}"])
    return Checkpoint(network, masked.eval(), origin)


def load_origin(path: Path) -> Origin:
    """Return what the checkpoint at ``path`` is of, without building it; errors as :func:`load_checkpoint`."""
    return _origin(_read(path)[1])


def _origin(about: Mapping[str, Any]) -> Origin:
    given = {key: about[key] for key in Origin.__dataclass_fields__}
    return Origin(**given | {"input_shape": tuple(about["input_shape"])})


def _read(path: Path) -> tuple[Path, dict[str, Any], dict[str, Tensor]]:
    """Return the file at ``path``, its metadata and its tensors, checked against its digest."""
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise CheckpointError(f"no checkpoint at {path}: expected a folder with {FILE}, or such a file")
    try:
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file} is cut short or damaged ({error}); make it again") from error
    text = metadata.get("reluctant")
    if text is None:
        raise CheckpointError(f"{file} was not written by reluctant: load it as weights=... of a model of your own")
    if fingerprint(tensors, text) != metadata.get("sha256"):
        raise CheckpointError(f"{file} has been altered: its SHA-256 does not match; make it again")
    about = json.loads(text)
    if about["format"] != FORMAT:
        raise CheckpointError(f"{file} has format {about['format']}, this version reads {FORMAT}")
    return file, about, tensors


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return all that makes ``model``: weights, packed masks and the surrogates' coefficients."""
    tensors: dict[str, Tensor] = dict((model.model if isinstance(model, MaskedModel) else model).state_dict())
    if isinstance(model, MaskedModel):
        tensors |= {_MASK + name: bits for name, bits in model.mask.pack().items()}
        for activation in model.masked():
            for key, constant in activation.named_parameters():
                tensors[f"{_CONSTANT}{key}/{activation.site.name}"] = constant
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def weights_digest(model: nn.Module) -> str:
    """Return a SHA-256 over weights, masks and coefficients: the same for one network wherever it is saved."""
    return fingerprint(_tensors(model))
