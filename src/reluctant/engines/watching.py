"""How a party finds out that it is alone: SPU's link itself only waits."""

import os
import shutil
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from reluctant.engines.meeting import parse_address

#: So long a party whose peer has closed its connection waits for its own end, since the other may just be done first.
_GRACE_SECONDS = 1.0

#: Exit codes of a party that stopped by itself.
ALONE, ORPHANED = 4, 5


class PeerWatch:
    """Holds a connection to the other party's port; when it closes, the other party is gone.

    Args:
        address: where the other party listens.
        alone: called, once, if it is gone before :meth:`finish`; it must end the process.
    """

    def __init__(self, address: str, alone: Callable[[], None]) -> None:
        self._connection = socket.create_connection(parse_address(address), timeout=10)
        self._connection.settimeout(None)
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
            if hasattr(socket, option):
                self._connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        self._alone, self._finished = alone, threading.Event()
        self.lost = threading.Event()
        threading.Thread(target=self._wait, daemon=True).start()

    def finish(self) -> None:
        """Say that the other party may go now."""
        self._finished.set()

    def _wait(self) -> None:
        try:
            while self._connection.recv(1):
                pass
        except OSError:
            pass
        self.lost.set()
        if not self._finished.wait(_GRACE_SECONDS):
            self._alone()


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
