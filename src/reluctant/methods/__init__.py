"""The methods, one file a paper. A new one is its file and a row here."""

from reluctant.registry import Registry

METHODS = Registry(
    "method",
    {
        "ebb": "reluctant.methods.ebb:Ebb",
        "snl": "reluctant.methods.snl:SNL",
        "autorep": "reluctant.methods.autorep:AutoReP",
        "senet": "reluctant.methods.senet:SENet",
        "streamlinet": "reluctant.methods.streamlinet:StreamliNet",
        "relupruner": "reluctant.methods.relupruner:ReLUPruner",
        "descent": "reluctant.methods.descent:Descent",
        "drep": "reluctant.methods.drep:DReP",
        "taylor": "reluctant.methods.taylor:Taylor",
        "snip": "reluctant.methods.snip:SNIP",
        "random": "reluctant.methods.random:Random",
    },
)

#: The method where none is named.
USUAL = "ebb"
