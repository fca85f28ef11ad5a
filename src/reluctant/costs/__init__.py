"""What networks consist of, and what that costs under a protocol."""

from reluctant.costs.counting import Count, count

__all__ = ["Count", "count"]
