"""What private inference costs: counted, priced, and turned into the price list of a budget.

Prices are measured tables of the engines that run here, and analytic profiles of protocols that do not: one file a
protocol, and one row below.
"""

from reluctant.registry import Registry

#: Engines with a table of prices, which ``reluctant calibrate`` measures.
ENGINES = ("cheetah",)

#: Protocols that can be priced, and what prices them.
PROTOCOLS = Registry(
    "protocol",
    {
        **dict.fromkeys(ENGINES, "reluctant.costs.table:CostTable"),
        "delphi": "reluctant.costs.delphi:Delphi",
        "circa": "reluctant.costs.circa:Circa",
        "cryptflow2": "reluctant.costs.cryptflow2:CrypTFlow2",
    },
)
