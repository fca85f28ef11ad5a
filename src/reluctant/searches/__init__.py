"""Searches for a design by training networks, one file a paper. A new one is its file and a row here."""

from reluctant.registry import Registry

SEARCHES = Registry(
    "search",
    {
        "criticality": "reluctant.searches.criticality:Criticality",
        "adjustment": "reluctant.searches.adjustment:Adjustment",
        "sphynx": "reluctant.searches.sphynx:SphynxSearch",
    },
)
