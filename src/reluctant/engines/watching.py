"""How a party finds out that it is alone: SPU's link itself only waits."""

import os
import queue
import shutil
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

from reluctant.engines.settings import Role

#: What a party says to show that it lives.
PULSE = b"."

#: So often a party says that it lives.
_PULSE_SECONDS = 1.0

#: So long a party whose peer is gone waits for its own end, since the other may just be done first.
_GRACE_SECONDS = 1.0

#: Exit codes of a party that stopped by itself.
ALONE, ORPHANED = 4, 5


Connections = tuple[socket.socket, socket.socket]

#: What can be wrong with another party.
Ill = Literal["gone", "silent", "strange"]


class PeerWatch:
    """Tells the other parties every second that this one lives, and listens to the same from them.

    Args:
        peers: connections to each other party and from it, by its role.
        patience: seconds of silence after which a party counts as stalled.
        alone: called with a role and what is wrong if that party is gone, silent, or says anything else, before
            :meth:`finish`; it must end the process.
    """

    def __init__(self, peers: Mapping[Role, Connections], patience: float, alone: Callable[[Role, Ill], None]) -> None:
        self._alone = alone
        self._finished = threading.Event()
        self._lost: queue.SimpleQueue[tuple[Role, Ill]] = queue.SimpleQueue()
        for name, (speaking, hearing) in peers.items():
            hearing.settimeout(patience)
            threading.Thread(target=self._speak, args=(speaking,), daemon=True).start()
            threading.Thread(target=self._hear, args=(name, hearing), daemon=True).start()

    def finish(self) -> None:
        """Say that the other parties may go now."""
        self._finished.set()

    def lost(self, seconds: float) -> tuple[Role, Ill] | None:
        """Return the party that was lost first and what is wrong with it; ``None`` if none is within ``seconds``."""
        try:
            return self._lost.get(timeout=seconds)
        except queue.Empty:
            return None

    def _speak(self, speaking: socket.socket) -> None:
        with suppress(OSError):
            while not self._finished.wait(_PULSE_SECONDS):
                speaking.sendall(PULSE)

    def _hear(self, name: Role, hearing: socket.socket) -> None:
        ill: Ill = "gone"
        try:
            while said := hearing.recv(64):
                if said.strip(PULSE):
                    ill = "strange"
                    break
        except TimeoutError:
            ill = "silent"
        except OSError:
            pass
        self._lost.put((name, ill))
        if not self._finished.wait(_GRACE_SECONDS):
            self._alone(name, ill)


def die_with_parent(folder: Path) -> None:
    """End this process, and remove ``folder``, as soon as standard input closes: whoever started it is gone."""

    def wait() -> None:
        while sys.stdin.buffer.read(1):
            pass
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(ORPHANED)

    threading.Thread(target=wait, daemon=True).start()


class Deadline:
    """Calls ``late`` unless it is stopped within ``seconds``; ``late`` must end the process."""

    def __init__(self, seconds: float, late: Callable[[], None]) -> None:
        self._timer = threading.Timer(seconds, late)
        self._timer.daemon = True
        self._timer.start()

    def stop(self) -> None:
        """Be in time."""
        self._timer.cancel()
