"""Engines run a program between parties; one file a protocol."""

from reluctant.registry import Registry

ENGINES = Registry(
    "engine",
    {
        "twin": "reluctant.engines.twin:Twin",
        "cheetah": "reluctant.engines.cheetah:Cheetah",
        "ckks": "reluctant.engines.ckks:CKKS",
    },
)
