"""Weights from a safetensors file into a network that must fit them exactly."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from reluctant.errors import CheckpointError


def load_weights(model: nn.Module, path: Path) -> None:
    """Copy the state dict in the safetensors file ``path`` into ``model``.

    A tensor that the model has under two names needs only one of them in the file.

    Raises:
        CheckpointError: no such file, not whole, or the first name that is missing, too many or of another shape.
    """
    if not path.is_file():
        raise CheckpointError(f"no such file: {path} (a .safetensors file with the weights is expected)")
    try:
        state = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file ({error}); pickled weights (.pt, .pth) are not read because they "
            "can run code: write them anew with safetensors.torch.save_file"
        ) from error
    own = model.state_dict()
    present = {tensor.data_ptr() for name, tensor in own.items() if name in state}
    for name, tensor in own.items():
        if name not in state and tensor.data_ptr() not in present:
            raise CheckpointError(f"{path} is of another model: it has no {name!r}, which this one needs")
    for name, tensor in state.items():
        if name not in own:
            raise CheckpointError(f"{path} is of another model: it has {name!r}, which this one has not")
        if tensor.shape != own[name].shape:
            raise CheckpointError(
                f"{path} is of another model: {name!r} has shape {list(tensor.shape)}, {list(own[name].shape)} is "
                "expected"
            )
        if tensor.is_floating_point() != own[name].is_floating_point():
            raise CheckpointError(f"{path}: {name!r} is {tensor.dtype}, {own[name].dtype} is expected")
    model.load_state_dict(state, strict=False)
