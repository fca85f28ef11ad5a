"""How a party finds out that it is alone: SPU's link itself only waits."""

import os
import shutil
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

#: So often a party says that it lives.
_PULSE_SECONDS = 1.0

#: So long a party whose peer is gone waits for its own end, since the other may just be done first.
_GRACE_SECONDS = 1.0

#: Exit codes of a party that stopped by itself.
ALONE, ORPHANED = 4, 5


class PeerWatch:
    """Tells the other party every second that this one lives, and listens to the same from there.

    Args:
        speaking, hearing: connections to the other party and from it.
        patience: seconds of silence after which it counts as stalled.
        alone: called, once, if it is gone (with false) or silent (with true) before :meth:`finish`; it must end the
            process.
    """

    def __init__(
        self, speaking: socket.socket, hearing: socket.socket, patience: float, alone: Callable[[bool], None]
    ) -> None:
        self._speaking, self._hearing, self._alone = speaking, hearing, alone
        hearing.settimeout(patience)
        self._finished = threading.Event()
        self.lost = threading.Event()
        for work in (self._speak, self._hear):
            threading.Thread(target=work, daemon=True).start()

    def finish(self) -> None:
        """Say that the other party may go now."""
        self._finished.set()

    def _speak(self) -> None:
        with suppress(OSError):
            while not self._finished.wait(_PULSE_SECONDS):
                self._speaking.sendall(b".")

    def _hear(self) -> None:
        stalled = False
        try:
            while self._hearing.recv(64):
                pass
        except TimeoutError:
            stalled = True
        except OSError:
            pass
        self.lost.set()
        if not self._finished.wait(_GRACE_SECONDS):
            self._alone(stalled)


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
