"""Who takes part in a run on SPU, and what all of them must have set alike."""

from dataclasses import dataclass
from typing import Literal

Role = Literal["server", "client", "helper"]

#: Parties by rank: who has the network, who has the images, who has nothing.
ROLES: tuple[Role, ...] = ("server", "client", "helper")
SERVER, CLIENT, HELPER = range(3)

#: How many parties each of SPU's protocols is for.
_PARTIES = {"REF2K": 1, "CHEETAH": 2, "SEMI2K": 2, "ABY3": 3}


@dataclass(frozen=True)
class Settings:
    """What all parties must have set alike.

    Args:
        fraction_bits: bits after the binary point of the 64-bit fixed-point numbers.
        protocol: SPU's name of it.
        transfers: how CHEETAH makes oblivious transfers; another protocol makes none.
        version: of what the parties say to each other.
    """

    fraction_bits: int
    protocol: str = "CHEETAH"
    transfers: str = "ferret"
    version: int = 2

    @property
    def roles(self) -> tuple[Role, ...]:
        """The parties, by rank."""
        return ROLES[: _PARTIES[self.protocol]]
