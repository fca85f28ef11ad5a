"""A network as an engine runs it: few operations, public structure apart from private numbers."""
