"""A masked model as a graph of aten operations, each activation site one opaque operation in it."""

import copy
import traceback
from pathlib import Path

import torch
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from reluctant.errors import ReluctantError, UnsupportedOperation
from reluctant.markers import Marker
from reluctant.masked import MaskedActivation, MaskedModel
from reluctant.program.conversion import BATCH

_OWN = (Path(torch.__file__).parent, Path(__file__).parent.parent)


def trace(masked: MaskedModel) -> tuple[GraphModule, list[MaskedActivation]]:
    """Return the graph of one pass over a batch of :data:`BATCH` images, and the activations of its sites.

    In-place operations are made functional. The model is copied and left as it is.

    Raises:
        UnsupportedOperation: what runs depends on the values in a tensor.
    """
    model = copy.deepcopy(masked).cpu().float().eval().requires_grad_(False)
    activations = model.masked()
    index = {activation.site.name: number for number, activation in enumerate(activations)}
    example = torch.zeros(BATCH, *model.sites.input_shape)
    try:
        with model.gates(lambda a: Marker(index[a.site.name])), torch.no_grad():
            # The clone is for networks that overwrite their input, which would be an effect of the graph.
            pure = torch.func.functionalize(lambda images: model(images.clone()))
            graph = make_fx(pure, record_stack_traces=True)(example)
    except ReluctantError:
        raise
    except Exception as error:
        raise UnsupportedOperation(_untraceable(error)) from error
    graph.graph.eliminate_dead_code()
    return graph, activations


def _untraceable(error: Exception) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not _is_own(f.filename)]
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    if "data-dependent" in str(error) or "tracing tensor" in str(error):
        return (
            f"the model cannot be traced: what it does{where} depends on the values in a tensor, which are secret in a "
            "private run; make it the same for every input"
        )
    reason = str(error).strip().split("\n")[0]
    return f"the model cannot be traced{where}: {type(error).__name__}: {reason}"


def _is_own(path: str) -> bool:
    return path.startswith("<") or any(Path(path).is_relative_to(folder) for folder in _OWN)


def place(node: Node) -> str:
    """Return ``file.py:12 (the line)`` of the user's code that ``node`` comes from; empty if nobody knows."""
    found = ""
    for line in (node.stack_trace or "").splitlines():
        words = line.strip().split('"')
        if line.strip().startswith("File ") and len(words) == 3:
            number = words[2].split("line ")[1].split(",")[0]
            current = "" if _is_own(words[1]) else f"{Path(words[1]).name}:{number}"
            found = current or found
    return found
