"""Where a number came from: the code, the machine, the command. Nothing here names a user, a host or a folder."""

import functools
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import metadata
from pathlib import Path

_HERE = Path(__file__).parent
_COMMAND: ContextVar[Sequence[str] | None] = ContextVar("command", default=None)


@functools.cache
def source_version() -> str:
    """Return the commit of this package's working tree (``git describe``), or its version if it was installed."""
    try:
        _git("ls-files", "--error-unmatch", Path(__file__).name)  # some other project's tree may hold our installation
        return _git("describe", "--always", "--dirty")
    except (OSError, subprocess.SubprocessError):
        return _version("reluctant")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", _HERE, *arguments], capture_output=True, text=True, timeout=20, check=True)
    return done.stdout.strip()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def environment() -> dict[str, str | int]:
    """Return versions of what computes (``none`` where not installed), the kind of machine, and its processor."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "reluctant": _version("reluctant"),
        "python": platform.python_version(),
        "torch": _version("torch"),
        "spu": _version("spu"),
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cpus": cpus,
    }


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or "unknown"


@contextmanager
def as_if_typed(arguments: Sequence[str]) -> Iterator[None]:
    """Let the records made inside say that ``arguments`` were typed, program first: what makes them again alone."""
    before = _COMMAND.set(arguments)
    try:
        yield
    finally:
        _COMMAND.reset(before)


def typed_command(arguments: Sequence[str] | None = None) -> str:
    """Return the command line as it was typed, with absolute paths cut to what another machine can use.

    A path below the working folder becomes relative to it, one below the home folder starts with ``~``, any other keeps
    its last part (``.../cifar``).

    Args:
        arguments: program first; if not given, those of :func:`as_if_typed`, or of this process.
    """
    program, *rest = arguments or _COMMAND.get() or sys.argv
    words = [Path(program.removeprefix("-c")).name or "python", *map(_portable, rest)]
    return " ".join(word if re.fullmatch(r"[\w@%+=:,./~-]+", word) else shlex.quote(word) for word in words)


def _portable(word: str) -> str:
    option, equals, value = word.rpartition("=")
    path = Path(value)
    if not path.is_absolute():
        return word
    for start, mark in ((Path.cwd(), "."), (Path.home(), "~")):
        if path.is_relative_to(start):
            return f"{option}{equals}{mark / path.relative_to(start)}"
    return f"{option}{equals}.../{path.name}"


def without_folders(text: str) -> str:
    """Return ``text`` with all absolute paths in it cut to their last part: ``.../cifar``."""
    return re.sub(r"(?<![\w.~/:])/(?:[\w.@+-]+/)+", ".../", text)


def describe_device(device: str = "cpu") -> str:
    """Return the device in words: ``cpu, 2 threads`` or the name of the accelerator."""
    import torch

    if torch.device(device).type == "cuda":
        return f"cuda, {torch.cuda.get_device_name(device)}"
    threads = torch.get_num_threads()
    return f"{device}, {threads} thread{'s' if threads > 1 else ''}"
