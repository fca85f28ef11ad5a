"""Networks on disk: safetensors, weights under their own names, masks as bits, and where it all came from.

Nothing in the files is code. Their metadata carries a SHA-256 over everything else in them, so a changed byte is seen.
A network is one file; a small one may be several, as ``model-00001-of-00002.safetensors``, each with the same metadata.
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
PARTS = "model-*-of-*.safetensors"
#: Bytes of tensors in a part; its header comes on top.
PART_BYTES = 15 * 2**20 - 2**17
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


def round_weights(model: nn.Module) -> None:
    """Round all floating-point weights, statistics and coefficients to bf16, in place; their type stays."""
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(tensor.bfloat16())


def save_checkpoint(folder: Path, model: nn.Module, origin: Origin, *, small: bool = False) -> list[Path]:
    """Write ``model`` to ``folder`` and return the files; each is whole or not there.

    Args:
        model: a :class:`MaskedModel` or any other network.
        small: 16 bits a weight, which must have been rounded (:func:`round_weights`), and files of at most 15 MiB.

    Raises:
        CheckpointError: a single tensor is too large for a part.
    """
    tensors, sites, surrogate = _tensors(model), None, None
    if isinstance(model, MaskedModel):
        surrogate = model.surrogate.to_json()
        sites = {name: list(site.shape) for name, site in model.sites.items()}
    about = {"format": FORMAT, "sites": sites, "surrogate": surrogate, **asdict(origin)}
    text = json.dumps(about, sort_keys=True)
    metadata = {"reluctant": text, "sha256": fingerprint(tensors, text)}
    if small:
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not torch.equal(tensor.bfloat16().float(), tensor):
                raise CheckpointError(f"{name} is not rounded to bf16; call round_weights first")
        rounded = {name: t.bfloat16() if t.dtype == torch.float32 else t for name, t in tensors.items()}
        parts = _parts(rounded, PART_BYTES - len(text))
        names = [f"model-{number:05}-of-{len(parts):05}.safetensors" for number in range(1, len(parts) + 1)]
    else:
        parts, names = [tensors], [FILE]
    paths = [folder / name for name in names]
    for path, part in zip(paths, parts, strict=True):
        write_atomically(path, save(part, metadata))
    for old in {folder / FILE, *folder.glob(PARTS)} - set(paths):
        old.unlink(missing_ok=True)
    return paths


def _parts(tensors: Mapping[str, Tensor], size: int) -> list[dict[str, Tensor]]:
    """Return ``tensors`` in their order, in parts of at most ``size`` bytes."""
    parts: list[dict[str, Tensor]] = [{}]
    room = size
    for name, tensor in tensors.items():
        if tensor.nbytes > size:
            raise CheckpointError(f"{name} takes {tensor.nbytes:,} bytes, more than a part may; leave --small out")
        if tensor.nbytes > room:
            parts.append({})
            room = size
        parts[-1][name] = tensor
        room -= tensor.nbytes
    return parts


def has_checkpoint(folder: Path) -> bool:
    """Return whether a network, or a part of one, lies in ``folder``."""
    return (folder / FILE).exists() or any(folder.glob(PARTS))


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
            for key, constant in activation.constants().items():
                constant.copy_(tensors[f"{_CONSTANT}{key}/{activation.site.name}"])
    return Checkpoint(network, masked.eval(), origin)


def load_origin(path: Path) -> Origin:
    """Return what the checkpoint at ``path`` is of, without building it; errors as :func:`load_checkpoint`."""
    return _origin(_read(path)[1])


def _origin(about: Mapping[str, Any]) -> Origin:
    given = {key: about[key] for key in Origin.__dataclass_fields__}
    return Origin(**given | {"input_shape": tuple(about["input_shape"])})


def _read(path: Path) -> tuple[Path, dict[str, Any], dict[str, Tensor]]:
    """Return the file or first part at ``path``, its metadata and its tensors, checked against its digest."""
    files = _files(path)
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for file in files:
        try:
            with safe_open(file, "pt") as opened:
                metadata = opened.metadata() or {}
                tensors |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{file} is cut short or damaged ({error}); make it again") from error
    file, text = files[0], metadata.get("reluctant")
    if text is None:
        raise CheckpointError(f"{file} was not written by reluctant: load it as weights=... of a model of your own")
    if len(files) > 1 or files[0].match(PARTS):
        tensors = {name: t.float() if t.dtype == torch.bfloat16 else t for name, t in tensors.items()}
    if fingerprint(tensors, text) != metadata.get("sha256"):
        raise CheckpointError(f"{file} has been altered: its SHA-256 does not match; make it again")
    about = json.loads(text)
    if about["format"] != FORMAT:
        raise CheckpointError(f"{file} has format {about['format']}, this version reads {FORMAT}")
    return file, about, tensors


def _files(path: Path) -> list[Path]:
    """Return the file, or all parts, of the network at ``path``: a folder, its file, or any of its parts."""
    folder = path.parent if path.match(PARTS) else path
    file = folder / FILE if folder.is_dir() else folder
    if file.is_file():
        return [file]
    parts = sorted(folder.glob(PARTS)) if folder.is_dir() else []
    if not parts:
        raise CheckpointError(f"no checkpoint at {path}: expected a folder with {FILE}, or such a file")
    counts = {part.stem.rpartition("-")[2] for part in parts}
    if counts != {f"{len(parts):05}"}:
        raise CheckpointError(
            f"{folder} holds {len(parts)} files of a network in {'/'.join(sorted(counts))} parts; "
            "copy all of them there, and no other, or make it again"
        )
    return parts


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return all that makes ``model``: weights, packed masks and the surrogates' coefficients."""
    tensors: dict[str, Tensor] = dict((model.model if isinstance(model, MaskedModel) else model).state_dict())
    if isinstance(model, MaskedModel):
        tensors |= {_MASK + name: bits for name, bits in model.mask.pack().items()}
        for activation in model.masked():
            for key, constant in activation.constants().items():
                tensors[f"{_CONSTANT}{key}/{activation.site.name}"] = constant
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def weights_digest(model: nn.Module) -> str:
    """Return a SHA-256 over weights, masks and coefficients: the same for one network wherever it is saved."""
    return fingerprint(_tensors(model))
