"""A slow link between two parties on one machine, without root: a relay that delays and rations what it passes on.

Each party names one of the relay's ports as the other's. What goes through is delayed by half a round trip and leaves
no faster than the link's rate, which all connections in one direction share. It imitates no losses and no slow start,
and opening a connection costs no round trip, so a real link is a little slower than this one.
"""

import asyncio
import threading
from collections.abc import Callable
from types import TracebackType

from reluctant.costs.networks import Network
from reluctant.engines.meeting import parse_address

_CHUNK = 1 << 16
_QUEUE = 256  # chunks on their way in one connection; a sender that is further ahead waits, as in TCP


class Direction:
    """One way through the link: when something that enters now comes out."""

    def __init__(self, network: Network) -> None:
        self.bytes_per_second = (network.bits_per_second or float("inf")) / 8
        self.delay = network.rtt_seconds / 2
        self._free = 0.0

    def arrival(self, now: float, size: int) -> float:
        """Return when the last of ``size`` bytes arrives that are handed over at ``now``, in seconds."""
        self._free = max(now, self._free) + size / self.bytes_per_second
        return self._free + self.delay


class Relay:
    """Stands between two parties while inside; ``ports`` are what each must take for the other's.

    Args:
        addresses: ``host:port`` where the two parties really listen.

    Attributes:
        ports: ``host:port`` to be called in place of each of ``addresses``.
    """

    def __init__(self, network: Network, addresses: tuple[str, str]) -> None:
        self.network, self.addresses = network, addresses
        self.ports: tuple[str, str] = addresses
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> "Relay":
        self._thread.start()
        self.ports = asyncio.run_coroutine_threadsafe(self._open(), self._loop).result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _open(self) -> tuple[str, str]:
        to_first, to_second = Direction(self.network), Direction(self.network)
        first = await self._listen(self.addresses[0], to_first, to_second)
        second = await self._listen(self.addresses[1], to_second, to_first)
        self._servers = (first, second)
        names = [f"127.0.0.1:{server.sockets[0].getsockname()[1]}" for server in self._servers]
        return names[0], names[1]

    async def _listen(self, address: str, there: Direction, back: Direction) -> asyncio.Server:
        host, port = parse_address(address)

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                far_reader, far_writer = await asyncio.open_connection(host, port)
            except OSError:
                writer.close()
                return
            await asyncio.gather(_carry(reader, far_writer, there), _carry(far_reader, writer, back))

        return await asyncio.start_server(connected, "127.0.0.1", 0)

    async def _close(self) -> None:
        for server in self._servers:
            server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: Direction) -> None:
    """Pass on what ``reader`` gives to ``writer``, late and slowly; close it when there is no more."""
    clock: Callable[[], float] = asyncio.get_running_loop().time
    travelling: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_QUEUE)

    async def send() -> None:
        while True:
            due, data = await travelling.get()
            await asyncio.sleep(max(0.0, due - clock()))
            if not data:
                return
            writer.write(data)
            await writer.drain()

    sender = asyncio.create_task(send())
    try:
        while data := await reader.read(_CHUNK):
            await travelling.put((direction.arrival(clock(), len(data)), data))
        await travelling.put((clock() + direction.delay, b""))
        await sender
    except OSError:
        pass
    finally:
        sender.cancel()
        writer.close()
