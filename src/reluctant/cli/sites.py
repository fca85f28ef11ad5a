"""``reluctant sites``: which ReLUs a network has."""

from typing import Annotated

import typer

from reluctant.cli.main import app, show
from reluctant.cli.options import Data, Json, TaskName

Model = Annotated[
    str, typer.Argument(help="Name of the zoo or of a design, checkpoint folder or file, or path.py:function.")
]


@app.command()
def sites(model: Model, task: TaskName = None, data: Data = None, json: Json = False) -> None:
    """List the ReLUs of a network, call by call, and the non-linear calls that are no ReLU.

    No data is read: the task only gives the input's shape and the number of classes.
    """
    from reluctant.experiment import Machine, open_model
    from reluctant.sites import find_sites

    opened = open_model(model, task, Machine(data=data))
    found = opened.sites or find_sites(opened.dense, opened.example)
    rows = [{"name": site.name, "shape": list(site.shape), "relus": site.relus} for site in found.values()]
    other = [
        {"name": call.name, "kind": call.kind, "shape": list(call.shape), "line": call.line} for call in found.other
    ]
    kept = None if opened.masked is None else opened.masked.mask.by_site()
    width = max(len(site.name) for site in found.values())
    lines = [
        f"{site.name:<{width}}  {'x'.join(map(str, site.shape)):>12}  {site.relus:>10,}"
        + ("" if kept is None else f"  {kept[site.name]:>10,} kept")
        + f"  {site.line}"
        for site in found.values()
    ]
    lines += [
        f"{call.name:<{width}}  {'x'.join(map(str, call.shape)):>12}  not ReLU: {call.kind}" for call in found.other
    ]
    total = f"{found.total:,} ReLUs at {len(found)} sites, input {'x'.join(map(str, found.input_shape))}"
    if kept is not None:
        total += f"; {sum(kept.values()):,} kept"
    show({"total": found.total, "sites": rows, "other": other}, "\n".join([*lines, total]), json)
