"""Run the next missing points of the CIFAR-100 grid within a time limit, and collect their records.

Made for machines that are lent for minutes: call it again and again with the same ``--out``.
"""

import argparse
import sys
from pathlib import Path

from reluctant.errors import Paused, ReluctantError
from reluctant.experiment import Machine
from reluctant.files import write_atomically
from reluctant.progress import TimeLimit
from reluctant.sweep import find_points, sweep

HERE = Path(__file__).parent
#: The points that say most come first, our own before others; the rest follow by name.
FIRST = (
    "ebb-12.9k",
    "ebb-50k",
    "ebb-quadratic-12.9k",
    "snl-12.9k",
    "snl-50k",
    "autorep-12.9k",
    "autorep-identity-12.9k",
    "autorep-identity-50k",
    "autorep-50k",
)


def in_order(grid: Path) -> list[Path]:
    """Return the recipes of ``grid``, the first ones first."""
    files = {path.stem: path for path in sorted(grid.glob("*.toml"))}
    return [files[name] for name in sorted(files, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))]


def main() -> int:
    """Run a slice; return 0 if nothing failed, whether or not everything is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs, kept from slice to slice")
    parser.add_argument("--max-seconds", type=float, required=True, help="stop before so many seconds")
    parser.add_argument("--data", type=Path, help="folder with the data sets; else $RELUCTANT_DATA, else ./data")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    parser.add_argument("--grid", type=Path, default=HERE / "resnet18", help="folder of recipes")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--records", type=Path, help="folder that gets a copy of every record")
    chosen = parser.parse_args()
    limit = TimeLimit(chosen.max_seconds)
    points = find_points(in_order(chosen.grid), seeds=chosen.seeds)
    failed = {}
    try:
        swept = sweep(points, chosen.out, Machine(chosen.data, device=chosen.device), progress=limit)
    except Paused as pause:
        print(f"{pause}; the same command goes on")
    else:
        failed = swept.failed
        print(f"{len(swept.records)} of {len(points)} points are there")
        for name, reason in failed.items():
            print(f"{name} failed: {reason}")
    if chosen.records is not None:
        for record in chosen.out.glob("*/*.record.json"):
            write_atomically(chosen.records / record.name, record.read_bytes())
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ReluctantError as error:
        sys.exit(f"error: {error}")
