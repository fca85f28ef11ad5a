"""``reluctant methods``: what ``--method`` can be."""

from reluctant.cli.main import aligned, app, show
from reluctant.cli.options import Json


@app.command()
def methods(json: Json = False) -> None:
    """List the methods: the paper, what a dropped ReLU becomes and whether that is free, what is dropped together."""
    from reluctant.methods import METHODS

    rows = [
        {
            "name": name,
            "paper": method.citation(),
            "surrogate": method().surrogate.name,
            "track": method().surrogate.track,
            "granularities": list(method.granularities()),
        }
        for name, method in METHODS.items()
    ]
    columns = ("name", "track", "surrogate", "granularities", "paper")
    show(rows, aligned([columns, *([_text(row[column]) for column in columns] for row in rows)]), json)


def _text(value: object) -> str:
    return ",".join(value) if isinstance(value, list) else str(value)
