"""The methods, one file a paper. A new one is its file and a row here."""

from reluctant.registry import Registry

METHODS = Registry(
    "method",
    {
        "snl": "reluctant.methods.snl:SNL",
        "autorep": "reluctant.methods.autorep:AutoReP",
        "taylor": "reluctant.methods.taylor:Taylor",
        "random": "reluctant.methods.random:Random",
    },
)
