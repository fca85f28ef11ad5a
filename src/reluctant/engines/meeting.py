"""The parties find each other on plain sockets before they open the link that they compute over.

SPU's link loses seconds when one side calls before the other listens, and waits without end for one that never comes.
So each party first listens at its own port itself, calls the others until they answer, and only when all have heard
each other do they hand their ports over to SPU, at about the same moment.
"""

import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress

from reluctant.engines.settings import ROLES, Role
from reluctant.engines.watching import Connections
from reluctant.errors import EngineError, UsageError

_CALL, _REFUSAL = "reluctant {} calls {}", "reluctant {} only"
_LINK = "link of reluctant {} to {}"
_ANSWER, _READY = b"welcome", b"ready"
_PAUSE_SECONDS, _ANSWER_SECONDS = 0.05, 5.0

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


def meet(role: Role, listen: str, peers: Mapping[Role, str], seconds: float) -> dict[Role, Connections]:
    """Return when all parties are there, at about the same time in each: by role, a connection to it and one from it.

    They stay open beside the link; nobody listens any more.

    Args:
        role: of this party.
        listen: its ``host:port``.
        peers: that of each other, as seen from here.

    Raises:
        EngineError: the port is in use, somebody did not answer within ``seconds``, or has another role than expected.
    """
    deadline = time.monotonic() + seconds
    with listen_at(listen) as listener:
        called = _Called(listener, role, peers)
        try:
            connections = {other: _call(role, other, peer, deadline) for other, peer in peers.items()}
            missing = next((peer for other, peer in peers.items() if connections[other] is None), None)
            missing = missing or called.missing(deadline)
        finally:
            called.stop()
    if missing is not None:
        raise EngineError(f"nobody answered at {missing} within {seconds:g} seconds; is the other party running there?")
    met = {other: (there, called.connections[other]) for other, there in connections.items() if there is not None}
    for there, back in met.values():
        with suppress(OSError):  # who is gone by now is missed later
            there.sendall(_READY)
            back.recv(len(_READY))  # all have given up their ports, or a second has passed
    return met


def open_link(role: Role, listen: str, peers: Mapping[Role, str], seconds: float) -> socket.socket:
    """Return one more connection between two parties that have met, for an engine that brings no link of its own.

    Raises:
        EngineError: the port is in use, or the other party opened none within ``seconds``.
    """
    deadline = time.monotonic() + seconds
    ((other, peer),) = peers.items()
    if role == "client":
        connection = _call(role, other, peer, deadline, _LINK)
    else:
        with listen_at(listen) as listener:
            called = _Called(listener, role, peers, _LINK)
            called.missing(deadline)
            called.stop()
        connection = called.connections.get(other)
    if connection is None:
        raise no_link(peers, seconds)
    connection.settimeout(None)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def no_link(peers: Mapping[Role, str], seconds: float) -> EngineError:
    """Return what a party says that has met the others and then waited ``seconds`` for their link."""
    others = " and ".join(f"the {name} at {peer}" for name, peer in peers.items())
    return EngineError(f"{others} answered, but the link did not open in {seconds:g} seconds; this party stopped")


class _Called(threading.Thread):
    """Answers the calls of the other parties, on a thread of its own: all call at once."""

    def __init__(self, listener: socket.socket, role: Role, peers: Mapping[Role, str], call: str = _CALL) -> None:
        super().__init__(daemon=True)
        self._role, self._peers = role, peers
        self._expected = {call.format(other, role).encode(): other for other in peers}
        self._listener, self._stopped, self._heard = listener, threading.Event(), threading.Event()
        self.connections: dict[Role, socket.socket] = {}
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
            if not self._answer(connection):
                connection.close()

    def _answer(self, connection: socket.socket) -> bool:
        """Return whether it was a party that called; tell one which expects somebody else."""
        connection.settimeout(1)
        try:
            call = connection.recv(64)
            other = self._expected.get(call)
            if other is None:
                if call.startswith(b"reluctant "):
                    connection.sendall(_REFUSAL.format(self._role).encode())
                return False
            connection.sendall(_ANSWER)
        except OSError:
            return False
        self.connections[other] = connection  # a second call is a caller who tried again
        if len(self.connections) == len(self._peers):
            self._heard.set()
        return True

    def missing(self, deadline: float) -> str | None:
        """Return where the party should be that has not called before ``deadline``; ``None`` if all have."""
        if self._heard.wait(max(0.0, deadline - time.monotonic())):
            return None
        return next((peer for other, peer in self._peers.items() if other not in self.connections), None)

    def stop(self) -> None:
        """Answer no more calls."""
        self._stopped.set()
        self.join()


def _call(role: Role, other: Role, peer: str, deadline: float, call: str = _CALL) -> socket.socket | None:
    """Return a connection to the party that answers at ``peer``; ``None`` if nobody does before ``deadline``."""
    address = parse_address(peer)
    while time.monotonic() < deadline:
        try:
            connection = socket.create_connection(address, timeout=_ANSWER_SECONDS)
        except OSError:
            time.sleep(_PAUSE_SECONDS)
            continue
        answer = b""
        with suppress(OSError):
            connection.sendall(call.format(role, other).encode())
            answer = connection.recv(len(_ANSWER))  # and no more: what follows belongs to the link
            if answer == _ANSWER:
                return connection
            answer += connection.recv(64)
        connection.close()
        found = next((name for name in ROLES if answer == _REFUSAL.format(name).encode()), None)
        if found == other:
            raise EngineError(f"the {other} at {peer} expects no {role}; it runs another engine")
        if found is not None:
            too = ", too" if found == role else ""
            raise EngineError(f"the party at {peer} is a {found}{too}; this {role} expects the {other} there")
        time.sleep(_PAUSE_SECONDS)
    return None
