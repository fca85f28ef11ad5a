"""What private inferences cost in money: machines by the hour, traffic by the gigabyte."""

from dataclasses import asdict, dataclass

#: Inferences that a sum of money is given for.
INFERENCES = 1000


@dataclass(frozen=True)
class Tariff:
    """What a cloud charges. As defaults, list prices of a large one: EC2 c6i.xlarge and traffic out, us-east-1, 2024.

    Args:
        dollars_per_gb: for a gigabyte (10^9 bytes) that a party sends.
        dollars_per_hour: for the machine of one party.
    """

    dollars_per_gb: float = 0.09
    dollars_per_hour: float = 0.17

    def dollars(self, bytes_: float, seconds: float, parties: int = 2) -> float:
        """Return the price of :data:`INFERENCES` inferences one after the other, each of which sends and takes that.

        Both parties' machines are paid for, and what either of them sends.
        """
        traffic = bytes_ / 1e9 * self.dollars_per_gb
        return INFERENCES * (traffic + parties * seconds / 3600 * self.dollars_per_hour)

    def to_json(self) -> dict[str, float]:
        """Return the prices as a JSON object."""
        return asdict(self)
