"""Two parties find each other on plain sockets before they open the link that they compute over.

SPU's link loses seconds when one side calls before the other listens, and waits without end for one that never comes.
So each party first listens at its own port itself, calls the other until it answers, and only when both have heard
each other do they hand their ports over to SPU, at the same moment.
"""

import socket
import threading
import time
from contextlib import suppress
from typing import Literal

from reluctant.errors import EngineError, UsageError

_CALLS = {"server": b"reluctant server", "client": b"reluctant client"}
_ANSWER, _SAME_ROLE, _READY = b"welcome", b"so am I", b"ready"
_LINK = b"reluctant link"
_PAUSE_SECONDS = 0.05

#: Parties that have met open their link within a second or two; a slow machine may take longer.
LINK_SECONDS = 60


def parse_address(text: str) -> tuple[str, int]:
    """Return host and port of ``host:port``.

    Raises:
        UsageError: it is nothing of the kind.
    """
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise UsageError(f"address {text!r} is not host:port, for instance 127.0.0.1:9000")
    return host, int(port)


def free_ports(count: int) -> list[int]:
    """Return ports on loopback that nobody listens at just now."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def listen_at(address: str) -> socket.socket:
    """Return a socket that listens at ``address``.

    Raises:
        EngineError: another process listens there, or this machine has no such address.
    """
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(parse_address(address))
        listener.listen()
    except OSError as error:
        listener.close()
        reason = (error.strerror or str(error)).lower()
        raise EngineError(f"cannot listen at {address}: {reason}; choose another port or free this one") from error
    return listener


def meet(
    role: Literal["server", "client"], listen: str, peer: str, seconds: float
) -> tuple[socket.socket, socket.socket]:
    """Return when the other party is there, at about the same time in both: a connection to it, and one from it.

    Both stay open beside the link; nobody listens any more.

    Args:
        role: of this party.
        listen, peer: ``host:port`` of this party and of the other.

    Raises:
        EngineError: the port is in use, nobody answered within ``seconds``, or who did has the same role.
    """
    deadline = time.monotonic() + seconds
    with listen_at(listen) as listener:
        called = _Called(listener, _CALLS["client" if role == "server" else "server"])
        try:
            connection = _call(_CALLS[role], peer, deadline)
        except EngineError:
            called.stop()
            raise
        heard = connection is not None and called.within(deadline)
    called.stop()
    if connection is None or not heard:
        raise EngineError(f"nobody answered at {peer} within {seconds:g} seconds; is the other party running there?")
    connection.sendall(_READY)
    return connection, called.wait_ready()


def open_link(role: Literal["server", "client"], listen: str, peer: str) -> socket.socket:
    """Return one more connection between parties that have met, for an engine that brings no link of its own.

    Raises:
        EngineError: the port is in use, or the other party opened none in ``LINK_SECONDS``.
    """
    deadline = time.monotonic() + LINK_SECONDS
    if role == "client":
        connection = _call(_LINK, peer, deadline)
    else:
        with listen_at(listen) as listener:
            called = _Called(listener, _LINK)
            called.within(deadline)
            called.stop()
        connection = called.connection
    if connection is None:
        raise EngineError(f"the other party at {peer} was there, but no link opened in {LINK_SECONDS} seconds")
    connection.settimeout(None)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


class _Called(threading.Thread):
    """Answers the other party's call, on a thread of its own: both call at once."""

    def __init__(self, listener: socket.socket, expected: bytes) -> None:
        super().__init__(daemon=True)
        self._expected = expected
        self._listener, self._stopped, self._heard = listener, threading.Event(), threading.Event()
        self.connection: socket.socket | None = None
        listener.settimeout(_PAUSE_SECONDS)
        self.start()

    def run(self) -> None:
        while not self._stopped.is_set():
            try:
                connection = self._listener.accept()[0]
            except TimeoutError:
                continue
            except OSError:
                return
            connection.settimeout(1)
            try:
                call = connection.recv(len(self._expected))
                if call == self._expected:
                    connection.sendall(_ANSWER)
                    self.connection = connection  # a second call is a caller who tried again
                    self._heard.set()
                elif call in _CALLS.values():
                    connection.sendall(_SAME_ROLE)
            except OSError:
                connection.close()

    def within(self, deadline: float) -> bool:
        """Return whether the other party called before ``deadline``."""
        return self._heard.wait(max(0.0, deadline - time.monotonic()))

    def stop(self) -> None:
        """Answer no more calls."""
        self._stopped.set()
        self.join()

    def wait_ready(self) -> socket.socket:
        """Return the other party's connection once it has given up its port, too, or after a second at most."""
        assert self.connection is not None
        with suppress(OSError):
            self.connection.recv(len(_READY))
        return self.connection


def _call(call: bytes, peer: str, deadline: float) -> socket.socket | None:
    """Return a connection to the party that answers at ``peer``; ``None`` if nobody does before ``deadline``."""
    address = parse_address(peer)
    while time.monotonic() < deadline:
        try:
            connection = socket.create_connection(address, timeout=1)
        except OSError:
            time.sleep(_PAUSE_SECONDS)
            continue
        answer = b""
        try:
            connection.sendall(call)
            answer = connection.recv(len(_ANSWER))
        except OSError:
            pass
        if answer == _ANSWER:
            return connection
        connection.close()
        if answer == _SAME_ROLE:
            role = call.decode().split()[1]
            raise EngineError(f"the party at {peer} is a {role}, too; one must be the server and one the client")
        time.sleep(_PAUSE_SECONDS)
    return None
