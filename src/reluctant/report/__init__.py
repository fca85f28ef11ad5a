"""Views of records: a page, cost cards, fronts, a table. Never a source of numbers."""

from reluctant.report.card import cards
from reluctant.report.front import Front, Point, fronts, undominated
from reluctant.report.html import Report
from reluctant.report.networks import Network, networks
from reluctant.report.results import results_page

__all__ = [
    "Front",
    "Network",
    "Point",
    "Report",
    "cards",
    "fronts",
    "networks",
    "results_page",
    "undominated",
]
