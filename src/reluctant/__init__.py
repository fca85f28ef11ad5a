"""Trained CNNs made cheap enough for private inference, and the private inference itself.

Example::

    import reluctant as rl

    task = rl.load_task("cifar10", data="~/data")
    model = rl.load_model("resnet20", task=task, weights="resnet20.safetensors")
    small = rl.linearize(model, rl.SNL(), budget="10%", task=task)
    small = rl.finetune(small, task, teacher=model)
    run = rl.secure_run(small, task.images(8), engine="cheetah")

Importing this package imports nothing heavy: each name is loaded when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reluctant.budget import Budget
    from reluctant.checkpoints import load_checkpoint, save_checkpoint
    from reluctant.data import TASKS, load_task
    from reluctant.designs import DESIGNS
    from reluctant.designs.adjusted import Adjusted
    from reluctant.designs.base import Design
    from reluctant.designs.cryptonas import CryptoNAS
    from reluctant.designs.deepreduce import DeepReDuce
    from reluctant.designs.hybrenet import HybReNet
    from reluctant.designs.sphynx import Sphynx
    from reluctant.engines import ENGINES
    from reluctant.errors import DivergedError, Paused, ReluctantError
    from reluctant.linearization import linearize
    from reluctant.mask import Mask
    from reluctant.masked import MaskedModel, attach
    from reluctant.methods import METHODS
    from reluctant.methods.autorep import AutoReP
    from reluctant.methods.base import MaskMethod, Method
    from reluctant.methods.descent import Descent
    from reluctant.methods.drep import DReP
    from reluctant.methods.ebb import Ebb
    from reluctant.methods.random import Random
    from reluctant.methods.relupruner import ReLUPruner
    from reluctant.methods.senet import SENet
    from reluctant.methods.snip import SNIP
    from reluctant.methods.snl import SNL
    from reluctant.methods.streamlinet import StreamliNet
    from reluctant.methods.taylor import Taylor
    from reluctant.models import MODELS, load_model
    from reluctant.prices import Prices
    from reluctant.program.lower import lower
    from reluctant.progress import TimeLimit
    from reluctant.recipe import Recipe
    from reluctant.records import Record, load_records
    from reluctant.report import Report
    from reluctant.secure import SecureRun, secure_run
    from reluctant.sites import Sites, find_sites, swap_activations
    from reluctant.surrogates import Affine, Constant, Hermite, Identity, Quadratic, Reciprocal, Shift
    from reluctant.task import Job, Task
    from reluctant.training import Evaluation, Training, evaluate, finetune, fit

_HOME = {
    "budget": ["Budget"],
    "checkpoints": ["load_checkpoint", "save_checkpoint"],
    "circa": ["Circa", "finetune_with_faults", "largest_truncations", "with_faults"],
    "data": ["TASKS", "load_task"],
    "designs": ["DESIGNS"],
    "designs.adjusted": ["Adjusted"],
    "designs.base": ["Design"],
    "designs.cryptonas": ["CryptoNAS"],
    "designs.deepreduce": ["DeepReDuce"],
    "designs.hybrenet": ["HybReNet"],
    "designs.sphynx": ["Sphynx"],
    "engines": ["ENGINES"],
    "errors": ["DivergedError", "Paused", "ReluctantError"],
    "linearization": ["linearize"],
    "mask": ["Mask"],
    "masked": ["MaskedModel", "attach"],
    "methods": ["METHODS"],
    "methods.autorep": ["AutoReP"],
    "methods.base": ["MaskMethod", "Method"],
    "methods.descent": ["Descent"],
    "methods.drep": ["DReP"],
    "methods.ebb": ["Ebb"],
    "methods.random": ["Random"],
    "methods.relupruner": ["ReLUPruner"],
    "methods.senet": ["SENet"],
    "methods.snip": ["SNIP"],
    "methods.snl": ["SNL"],
    "methods.streamlinet": ["StreamliNet"],
    "methods.taylor": ["Taylor"],
    "models": ["MODELS", "load_model"],
    "prices": ["Prices"],
    "program.certificate": ["Certificate", "certify"],
    "program.lower": ["lower"],
    "progress": ["TimeLimit"],
    "recipe": ["Recipe"],
    "records": ["Record", "load_records"],
    "report": ["Report"],
    "secure": ["SecureRun", "secure_run"],
    "sites": ["Sites", "find_sites", "swap_activations"],
    "surrogates": ["Affine", "Constant", "Hermite", "Identity", "Quadratic", "Reciprocal", "Shift"],
    "task": ["Job", "Task"],
    "training": ["Evaluation", "Training", "evaluate", "finetune", "fit"],
}
_MODULE = {name: f"{__name__}.{module}" for module, names in _HOME.items() for name in names}

__all__ = [
    "DESIGNS",
    "ENGINES",
    "METHODS",
    "MODELS",
    "SNIP",
    "SNL",
    "TASKS",
    "Adjusted",
    "Affine",
    "AutoReP",
    "Budget",
    "Certificate",
    "Circa",
    "Constant",
    "CryptoNAS",
    "DReP",
    "DeepReDuce",
    "Descent",
    "Design",
    "DivergedError",
    "Ebb",
    "Evaluation",
    "Hermite",
    "HybReNet",
    "Identity",
    "Job",
    "Mask",
    "MaskMethod",
    "MaskedModel",
    "Method",
    "Paused",
    "Prices",
    "Quadratic",
    "Random",
    "ReLUPruner",
    "Recipe",
    "Reciprocal",
    "Record",
    "ReluctantError",
    "Report",
    "SENet",
    "SecureRun",
    "Shift",
    "Sites",
    "Sphynx",
    "StreamliNet",
    "Task",
    "Taylor",
    "TimeLimit",
    "Training",
    "attach",
    "certify",
    "evaluate",
    "find_sites",
    "finetune",
    "finetune_with_faults",
    "fit",
    "largest_truncations",
    "linearize",
    "load_checkpoint",
    "load_model",
    "load_records",
    "load_task",
    "lower",
    "save_checkpoint",
    "secure_run",
    "swap_activations",
    "with_faults",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE[name]), name)


def __dir__() -> list[str]:
    return __all__
