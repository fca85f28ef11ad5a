"""One party of a secure run, a process of its own: ``python -m reluctant.engines.party FOLDER``.

The folder holds what this party alone knows: the server's program and arrays, or the client's images. What the party
has to say to whoever started it goes to standard output, a JSON object a line; its result goes into the folder.
"""

import importlib
import json
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reluctant.engines.base import EngineRun, Images, SiteCost
from reluctant.engines.meeting import LINK_SECONDS, meet
from reluctant.engines.settings import Role, Settings
from reluctant.engines.watching import ALONE, Connections, Ill, PeerWatch, die_with_parent
from reluctant.errors import EngineError, ReluctantError
from reluctant.program.ops import Program


@dataclass(frozen=True)
class Order:
    """What a party is told by whoever starts it.

    Args:
        listen: ``host:port`` of this party.
        peers: that of each other, as seen from here.
        settings: of SPU; ``None`` for an engine that does without it.
        connect_timeout: seconds to wait for the others to appear.
        batch: images in one run, which the client decides; ``None`` for what suits the program.
        patience: seconds of silence after which another party counts as stalled.
        session: ``module:function`` of what the party does once it has met the others; it takes the party's folder,
            this order and its voice, and returns an :class:`EngineRun`.
    """

    role: Role
    listen: str
    peers: Mapping[Role, str]
    settings: Settings | None
    connect_timeout: float = 60.0
    patience: float = 60.0
    batch: int | None = None
    session: str = "reluctant.engines.session:take_part"

    @property
    def link_seconds(self) -> float:
        """How long parties that have met may take to open their link."""
        return min(LINK_SECONDS, self.connect_timeout)


@contextmanager
def _writing(role: Role, folder: Path) -> Iterator[None]:
    """Turn a disk that takes no more into one line.

    Raises:
        EngineError: something could not be written into ``folder``.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = ((error.strerror if isinstance(error, OSError) else None) or str(error)).lower()
        raise EngineError(f"the {role} cannot write to {folder}: {reason}; free some space, or set TMPDIR") from error


def write_order(folder: Path, order: Order, *, program: Program | None = None, images: Any = None) -> None:
    """Put into ``folder`` what a party needs: the program with its arrays, or the images.

    Raises:
        EngineError: the disk takes no more.
    """
    from safetensors.numpy import save_file

    with _writing(order.role, folder):
        if program is not None and program.arrays is not None:
            (folder / "program.json").write_text(json.dumps(program.public()))
            save_file(dict(program.arrays), folder / "arrays.safetensors")
        if images is not None:
            save_file({"images": images}, folder / "images.safetensors")
        (folder / "order.json").write_text(json.dumps(asdict(order)))


def _read_order(folder: Path) -> Order:
    fields = json.loads((folder / "order.json").read_text())
    settings = fields["settings"]
    return Order(**fields | {"settings": None if settings is None else Settings(**settings)})


def read_program(folder: Path) -> Program:
    """Return the server's program, with its arrays."""
    from safetensors.numpy import load_file

    public = Program.from_public(json.loads((folder / "program.json").read_text()))
    return public.with_arrays(load_file(folder / "arrays.safetensors"))


def read_images(folder: Path) -> Images:
    """Return the client's images."""
    from safetensors.numpy import load_file

    images: Images = load_file(folder / "images.safetensors")["images"]
    return images


def read_result(folder: Path) -> EngineRun:
    """Return the run that a party left in ``folder``.

    Raises:
        EngineError: it left none.
    """
    from safetensors.numpy import load_file

    try:
        fields = json.loads((folder / "result.json").read_text())
        outputs = load_file(folder / "outputs.safetensors")
    except (OSError, ValueError) as error:
        raise EngineError(f"a party left no result: {error}") from error
    fields["by_site"] = tuple(SiteCost(**row) for row in fields["by_site"])
    found = [outputs[str(number)] for number in range(len(outputs))]
    return EngineRun(outputs=found[0], more_outputs=tuple(found[1:]), **fields)


def _write_result(folder: Path, run: EngineRun) -> None:
    from safetensors.numpy import save_file

    fields = asdict(run)
    outputs = [fields.pop("outputs"), *fields.pop("more_outputs")]
    save_file(
        {str(number): np.ascontiguousarray(o) for number, o in enumerate(outputs)}, folder / "outputs.safetensors"
    )
    (folder / "result.json").write_text(json.dumps(fields))


class Voice:
    """Speaks to whoever started this party; of two last words only the first is said."""

    def __init__(self) -> None:
        self._lock, self._ended, self._left = threading.Lock(), False, False

    def progress(self, stage: str, done: int, total: int) -> None:
        self._say({"event": "progress", "stage": stage, "done": done, "total": total})

    def leave(self, error: Exception) -> None:
        """Say why this party is about to end, whatever comes of it."""
        self.end(error)
        self._left = True

    def end(self, error: Exception | None, code: int | None = None) -> None:
        """Say how it ended, and leave at once with ``code`` if one is given."""
        with self._lock:
            if not self._ended:
                kind = type(error).__name__ if isinstance(error, ReluctantError) else "EngineError"
                self._say(
                    {"event": "done"} if error is None else {"event": "error", "kind": kind, "message": str(error)}
                )
            self._ended = True
            if code is not None:
                os._exit(2 if self._left else code)

    def _say(self, event: Mapping[str, Any]) -> None:
        sys.stdout.write(json.dumps(event) + "\n")
        sys.stdout.flush()


def _watch(order: Order, met: Mapping[Role, Connections], voice: Voice) -> PeerWatch:
    """Return what ends this process with one line as soon as another party is lost."""

    def alone(name: Role, ill: Ill) -> None:
        voice.end(_lost(order, name, ill), ALONE)

    return PeerWatch(met, order.patience, alone)


def _lost(order: Order, name: Role, ill: Ill) -> EngineError:
    what = {
        "gone": "broke off in the middle of the run",
        "silent": f"has been silent for {order.patience:g} seconds: it hangs, or the link is down",
        "strange": "sent what no party says: it is another program, or somebody is in between",
    }
    return EngineError(f"the {name} at {order.peers[name]} {what[ill]}; this party stopped")


def _take_part(folder: Path, order: Order, voice: Voice) -> EngineRun:
    """Do the party's work from connecting to the result."""
    module, _, function = order.session.partition(":")
    session = getattr(importlib.import_module(module), function)
    voice.progress("connect", 0, 1)
    watch = _watch(order, meet(order.role, order.listen, order.peers, order.connect_timeout), voice)
    try:
        run: EngineRun = session(folder, order, voice)
        return run
    except (ReluctantError, OSError):
        raise
    except Exception as error:
        if lost := watch.lost(3):
            voice.end(_lost(order, *lost), ALONE)
        reason = next((line.strip() for line in str(error).splitlines() if line.strip(" what:")), repr(error))
        raise EngineError(f"the {order.role} failed: {reason}") from error
    finally:
        watch.finish()


def main() -> None:
    """Be the party that the folder named on the command line describes."""
    folder, voice = Path(sys.argv[1]), Voice()
    order = _read_order(folder)
    die_with_parent(folder.parent)
    try:
        with _writing(order.role, folder):
            _write_result(folder, _take_part(folder, order, voice))
    except ReluctantError as error:
        voice.end(error, 2)
    voice.end(None, 0)


if __name__ == "__main__":
    main()
