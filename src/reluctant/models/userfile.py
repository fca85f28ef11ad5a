"""Networks from a user's own file, named ``path.py:function``. The file is imported: its code runs."""

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from reluctant.errors import UsageError
from reluctant.registry import unknown


def build_from_file(path: Path, function: str, *, classes: int, channels: int) -> nn.Module:
    """Return what ``function`` of the file ``path`` returns.

    It is called with ``classes`` and ``channels`` where its signature has them, else without. While it runs, the folder
    of the file stands first on the import path, so that it may import its neighbours.

    Raises:
        UsageError: the file or the function is not there, fails (the message has the line), or returns no module.
    """
    if not path.is_file():
        raise UsageError(f"no such file: {path} (a model is a name of the zoo, or path.py:function)")
    with _folder_first(path.parent):
        with _blamed(path):
            module = _imported(path)
        builder = _find(module, function, path)
        arguments = _arguments(builder, f"{path}:{function}", {"classes": classes, "channels": channels})
        with _blamed(path):
            model = builder(**arguments)
    if not isinstance(model, nn.Module):
        raise UsageError(f"{path}:{function} returned {type(model).__name__}; an nn.Module is expected")
    return model


@contextmanager
def _folder_first(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


@contextmanager
def _blamed(path: Path) -> Iterator[None]:
    """Turn whatever the user's code raises into one line that names the place in the user's file."""
    try:
        yield
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        if isinstance(error, SyntaxError) and error.filename == str(path):
            lines.append(error.lineno)
        place = f"{path}:{lines[-1]}" if lines else str(path)
        reason = (str(error).strip() or "no message").splitlines()[0]
        raise UsageError(f"{place}: {type(error).__name__}: {reason}") from error


def _imported(path: Path) -> ModuleType:
    name = f"reluctant_user_file_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError("not a Python source file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up there
    spec.loader.exec_module(module)
    return module


def _find(module: ModuleType, function: str, path: Path) -> Any:
    builder = getattr(module, function, None)
    if builder is None:
        own = [
            name
            for name, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", None) == module.__name__
        ]
        raise unknown(f"function of {path}", function, own)
    if isinstance(builder, nn.Module) or not callable(builder):
        raise UsageError(
            f"{path}:{function} is of type {type(builder).__name__}; a function that returns an nn.Module is expected"
        )
    return builder


def _arguments(builder: Any, place: str, offered: dict[str, int]) -> dict[str, int]:
    variable = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    parameters = inspect.signature(builder).parameters
    needed = [p.name for p in parameters.values() if p.default is p.empty and p.kind not in variable]
    for name in needed:
        if name not in offered:
            raise UsageError(
                f"{place} needs an argument {name!r}; only classes and channels are given, the rest need defaults"
            )
    return {name: value for name, value in offered.items() if name in parameters}
