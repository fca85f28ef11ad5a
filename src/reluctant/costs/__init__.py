"""What private inference costs: counted, priced by measured tables, and turned into the price list of a budget."""

#: Engines with a table of prices.
ENGINES = ("cheetah",)
