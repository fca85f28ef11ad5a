"""The links between two parties: how fast, how far."""

from dataclasses import dataclass

from reluctant.errors import UsageError
from reluctant.units import parse_duration, parse_rate


@dataclass(frozen=True)
class Network:
    """A link, the same in both directions.

    Args:
        bits_per_second: of each direction; ``None`` for whatever the machine's loopback gives.
        rtt_seconds: a round trip; half of it each way.
    """

    name: str
    bits_per_second: float | None = None
    rtt_seconds: float = 0.0

    @property
    def emulated(self) -> bool:
        """Whether it must be imitated on this machine."""
        return self.bits_per_second is not None


#: Loopback as it is, and the three links that this project reports on.
NETWORKS = {
    network.name: network
    for network in (
        Network("loopback"),
        Network("lan", 1e9, 0.0003),
        Network("wan", 100e6, 0.040),
        Network("mobile", 50e6, 0.100),
    )
}


def parse_network(text: str) -> Network:
    """Return the network called ``text``, or the one that ``400mbps/20ms`` (rate and round trip) describes.

    Raises:
        UsageError: neither a name nor of that form.

    Example:
        >>> parse_network("400mbps/20ms").rtt_seconds
        0.02
    """
    if text in NETWORKS:
        return NETWORKS[text]
    rate, slash, trip = text.partition("/")
    if not slash:
        raise UsageError(f"unknown network {text!r} (known: {', '.join(NETWORKS)}, or rate/round trip: 400mbps/20ms)")
    return Network(text, parse_rate(rate), parse_duration(trip))
