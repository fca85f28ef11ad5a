"""Engines run a program between parties; one file a protocol."""

from reluctant.registry import Registry

ENGINES = Registry(
    "engine",
    {
        "twin": "reluctant.engines.twin:Twin",
        "cheetah": "reluctant.engines.cheetah:Cheetah",
        "aby3": "reluctant.engines.aby3:Aby3",
        "semi2k": "reluctant.engines.semi2k:Semi2k",
        "ckks": "reluctant.engines.ckks:CKKS",
    },
)
