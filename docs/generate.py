"""Write the pages that are made from the code, the records and the recipes.

``python docs/generate.py`` does it alone; a build of the documentation does it first. ``bench.md`` and ``cifar100.md``
and their pictures are kept in the repository; the pages of the methods, of the designs and of the API are not.
"""

import dataclasses
import inspect
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

import reluctant as rl
from reluctant.costs import PROTOCOLS
from reluctant.costs.model import CostModel, Prediction
from reluctant.costs.networks import NETWORKS
from reluctant.designs import DESIGNS
from reluctant.designs.base import Design
from reluctant.engines import ENGINES
from reluctant.engines.base import Security
from reluctant.methods import METHODS
from reluctant.methods.base import Method
from reluctant.records import SUFFIX, load_records
from reluctant.registry import Registry
from reluctant.report.bench import bench_figure, bench_page
from reluctant.report.grid import read_benches
from reluctant.report.published import cifar100_figure, cifar100_page
from reluctant.report.redesigns import AGAIN, designs_figure, designs_page, read_designs
from reluctant.report.results import read_recipes
from reluctant.surrogates import Surrogate
from reluctant.training import Training
from reluctant.units import format_bytes, format_seconds, format_setting

DOCS = Path(__file__).parent
ROOT = DOCS.parent

TRACKS = {
    "free": "nothing in an engine",
    "affine": "a product with a private slope",
    "polynomial": "a square and products with private coefficients",
}


def generate() -> None:
    """Write all pages; a file that would not change is left alone."""
    records = load_records([ROOT / "results"]) if any((ROOT / "results").glob(f"*{SUFFIX}")) else []
    write(DOCS / "cifar100.md", cifar100_page(records, read_recipes(ROOT / "recipes" / "cifar100")))
    write(DOCS / "images" / "cifar100.svg", cifar100_figure(records))
    benches = read_benches(ROOT / "recipes" / "bench", records)
    write(DOCS / "bench.md", bench_page(benches))
    for bench in benches:
        if picture := bench_figure(bench):
            write(DOCS / "images" / f"{bench.grid.picture}.svg", picture)
    designs = read_designs(ROOT / "recipes" / "bench", records)
    again = read_designs(ROOT / "recipes" / "bench", records, AGAIN)
    write(DOCS / "designs-bench.md", designs_page(designs, again))
    if picture := designs_figure(designs):
        write(DOCS / "images" / "designs.svg", picture)
    write(DOCS / "protocols.md", protocols_table())
    write(DOCS / "api.md", api_page())
    write_folder("methods", {name: method_page(METHODS[name]) for name in METHODS})
    write_folder("designs", {name: design_page(DESIGNS[name]) for name in DESIGNS})


def write_folder(folder: str, pages: dict[str, str]) -> None:
    """Write ``pages`` by their names, and remove what else lies there."""
    for name, page in pages.items():
        write(DOCS / folder / f"{name}.md", page)
    for stale in set((DOCS / folder).glob("*.md")) - {DOCS / folder / f"{name}.md" for name in pages}:
        stale.unlink()


def write(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` unless it stands there."""
    if not path.is_file() or path.read_text() != text:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


def method_page(method: type[Method]) -> str:
    """Return the page of a method: the header of its file, its settings and their defaults."""
    default, name = method(), method.name
    cost = TRACKS[default.surrogate.track]
    lines = [
        *header_and_settings(method, default),
        f"Where a ReLU is dropped, {default.surrogate.name} takes its place by default; that costs {cost}.",
        "",
        "```sh",
        f"reluctant linearize runs/teacher --method {name} --budget 10% --out runs/{name}-10",
        "```",
        "",
        "A setting is given as `--set method.<setting>=<value>` or in a recipe, under `[method]`. In Python the method",
        f"is {{py:class}}`{method.__module__}.{method.__qualname__}`, a frozen dataclass with these fields.",
    ]
    return "\n".join(lines) + "\n"


def design_page(design: type[Design]) -> str:
    """Return the page of a design: the header of its file, its settings, and the networks that were released."""
    name = design.name
    lines = [*header_and_settings(design, design()), "## Released networks", "", "| name | the same as |", "|---|---|"]
    lines += [f"| `{name}-{inner}` | `{released.spec}` |" for inner, released in design.released().items()]
    lines += ["", "```sh", f"reluctant design {name} --target 100k --task cifar100", "```", ""]
    lines += [f"In Python it is {{py:class}}`{design.__module__}.{design.__qualname__}`, a frozen dataclass."]
    return "\n".join(lines) + "\n"


def header_and_settings(kind: type[Method] | type[Design], default: Method | Design) -> list[str]:
    """Return the lines that the pages of methods and of designs begin with."""
    title, facts = read_header(kind.header())
    lines = [f"# {title} (`{kind.name}`)", "", summary(kind), ""]
    for fact, heading in (
        ("Paper", "Paper"),
        ("Deviates", "Where this implementation deviates"),
        ("Symbols", "Names here and in the paper"),
    ):
        text = facts.pop(fact)
        lines += [f"## {heading}", "", markdown(text) if fact == "Symbols" else sentence(text), ""]
    for fact, text in facts.items():
        lines += [f"## {fact}", "", sentence(text), ""]
    lines += ["## Settings", "", "| setting | default | what it is |", "|---|---|---|"]
    meanings = described(kind)
    for field in dataclasses.fields(kind):
        value = getattr(default, field.name)
        lines.append(
            f"| `{field.name}` | {shown(value)} | {meanings.get(field.name, '–').replace('|', chr(92) + '|')} |"
        )
    return [*lines, ""]


def read_header(header: str) -> tuple[str, dict[str, str]]:
    """Return the title of a method's file and its ``Paper:``, ``Deviates:`` and ``Symbols:`` lines."""
    title, _, rest = header.partition("\n")
    facts: dict[str, str] = {}
    key = ""
    for line in rest.splitlines():
        found = re.match(r"([A-Z]\w+):\s+(.*)", line)
        if found:
            key, facts[found[1]] = found[1], found[2]
        elif key and line.strip():
            facts[key] += f" {line.strip()}"
    return title.rstrip("."), facts


def summary(method: type[Method] | type[Design]) -> str:
    """Return what stands before the first section of a class's docstring."""
    return markdown(re.split(r"\n\n(?:Args|Attributes):", inspect.getdoc(method) or "")[0])


def described(method: type[Method] | type[Design]) -> dict[str, str]:
    """Return what the docstrings of a method and its bases say about each setting."""
    found: dict[str, str] = {}
    for kind in (Training, *reversed(method.__mro__)):  # what is called alike is alike
        names: list[str] = []
        for line in re.split(r"\n(?:Args|Attributes):\n", inspect.cleandoc(kind.__dict__.get("__doc__") or ""))[1:2]:
            for row in line.splitlines():
                entry = re.match(r"    (\w+(?:, \w+)*): (.*)", row)
                if entry:
                    names = entry[1].split(", ")
                    found |= dict.fromkeys(names, entry[2])
                elif row.startswith("        "):
                    found |= {name: f"{found[name]} {row.strip()}" for name in names}
                else:
                    break
    return {name: sentence(text) for name, text in found.items()}


def shown(value: Any) -> str:
    """Return a default as a reader would write it."""
    if isinstance(value, tuple):
        return f"`{format_setting(value)}`"
    if not hasattr(value, "to_json"):
        return f"`{value}`"
    name, *settings = value.to_json().items()
    return f"`{name[1]}`" + "".join(f", {key} `{item}`" for key, item in settings)


def sentence(text: str) -> str:
    """Return ``text`` as Markdown that begins like a sentence."""
    return markdown(text[:1].upper() + text[1:])


def markdown(text: str) -> str:
    """Return the text of a docstring as Markdown."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text)
    parts = re.split(r"(``?[^`]+``?)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([*<\[\]])", r"\\\1", part) for part in parts)


def api_page() -> str:
    """Return the page of all public names: functions, classes, and the tables of what can be named."""
    names: dict[str, list[str]] = {}
    for name in rl.__all__:
        names.setdefault(kind_of(getattr(rl, name)), []).append(name)
    lines = ["# API", "", "Every public name of `import reluctant as rl`, under its kind.", ""]
    for kind in ("Functions", "Classes", "Methods", "Designs", "Surrogates", "Errors"):
        directive = "autofunction" if kind == "Functions" else "autoclass"
        lines += [
            f"## {kind}",
            "",
            "```{eval-rst}",
            *(f".. {directive}:: reluctant.{n}" for n in names.pop(kind)),
            "```",
            "",
        ]
    lines += ["## Tables", "", "Read-only mappings from a name to what it means, loaded when it is used.", ""]
    lines += ["| table | names |", "|---|---|"]
    lines += [f"| `{name}` | {listed(getattr(rl, name))} |" for name in names.pop("Tables")]
    if names:
        raise ValueError(f"public names of an unknown kind: {names}")
    return "\n".join(lines) + "\n"


def kind_of(value: Any) -> str:
    """Return the heading under which a public name stands."""
    if isinstance(value, Registry):
        return "Tables"
    if not inspect.isclass(value):
        return "Functions" if callable(value) else type(value).__name__
    if issubclass(value, Exception):
        return "Errors"
    if issubclass(value, Surrogate):
        return "Surrogates"
    if issubclass(value, Design) and not inspect.isabstract(value):
        return "Designs"
    return "Methods" if issubclass(value, Method) and not inspect.isabstract(value) else "Classes"


def listed(names: Iterable[str]) -> str:
    """Return names as Markdown."""
    return ", ".join(f"`{name}`" for name in names)


def engines_table() -> str:
    """Return what each engine promises, as a Markdown table."""
    rows = ["| engine | private | against | parties | dealer | preparation in the cost |", "|---|---|---|---|---|---|"]
    for name in ENGINES:
        security: Security = ENGINES[name].security
        private, included = ("yes" if flag else "**no**" for flag in (security.private, security.offline_included))
        against = "nobody" if security.adversary == "none" else security.adversary
        rows.append(f"| `{name}` | {private} | {against} | {security.parties} | {security.dealer} | {included} |")
    return "\n".join(rows)


def protocols_table() -> str:
    """Return what a ResNet-18 for 32x32 images costs under each protocol, all ReLUs kept and a tenth at every site."""
    model, example = rl.MODELS["resnet18"](10, 3).eval(), torch.zeros(1, 3, 32, 32)
    masked = rl.attach(model, rl.find_sites(model, example))
    rows = [
        "| ReLUs | protocol | before | then | for ReLUs | round trips for them | before, LAN / WAN | then, LAN / WAN |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for label, stride in (("all", 1), ("10 %", 10)):
        keep = {name: (torch.arange(site.relus) % stride == 0).view(site.shape) for name, site in masked.sites.items()}
        program = rl.lower(masked.set_mask(rl.Mask(keep)))
        for name in PROTOCOLS:
            by_link = [CostModel.load(name).predict(program, network=NETWORKS[link]) for link in ("lan", "wan")]
            rows.append(f"| {label} | `{name}` | {' | '.join(protocol_cells(*by_link))} |")
    return "\n".join(rows) + "\n"


def protocol_cells(lan: Prediction, wan: Prediction) -> list[str]:
    """Return bytes, round trips and seconds of one image; - for what is not known, or done once for many images."""
    before = lan.offline if lan.provenance != "measured" else None
    trips = [site.round_trips for site in lan.by_site if site.round_trips is not None]
    sent = [before and before.bytes, lan.online.bytes, lan.comparison_bytes]
    seconds = [
        [before and found.offline.seconds for found in (lan, wan)],
        [found.online.seconds for found in (lan, wan)],
    ]
    return [
        *("-" if count is None else format_bytes(count) for count in sent),
        f"{sum(trips):,.0f}",
        *("-" if None in pair else " / ".join(map(format_seconds, pair)) for pair in seconds),
    ]


if __name__ == "__main__":
    generate()
