"""Write the tables of README.md and docs/ from the committed CSV files, so that no figure there is typed by hand, and the
lists of names from the package itself.

A page holds a table between `<!-- table: NAME -->` and `<!-- end of NAME -->`.

python tools/results_table.py           rewrite the pages
python tools/results_table.py --check   exit 1 when a page differs from its sources
"""

import argparse
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # for benchmarks.targets and the package

from results_tables import grid, kernels, loops, names, systems  # noqa: E402

PAGES = ("README.md", "docs/performance.md", "docs/results.md", "docs/api.md")
TABLES: dict[str, Callable[[], list[str]]] = {
    "digits": systems.receiver,
    "photographs": systems.photographs,
    "channel priors": systems.channel_priors,
    "oracle": systems.oracle,
    "downlink": systems.downlink,
    "classical downlink": systems.classical_downlink,
    "downlink sizes": systems.downlink_sizes,
    "denoising": systems.denoising,
    "estimation": systems.estimation,
    "kernels": kernels.epyc,
    "one thread": kernels.one_thread,
    "epyc": kernels.epyc,
    "all kernels": kernels.every_row,
    "grid": grid.rule,
    "epyc grid": grid.epyc,
    "crossover": grid.crossover,
    "loops": loops.loops,
    "functions": names.of("semcom_fast", inspect.isfunction),
    "classes": names.of("semcom_fast", inspect.isclass),
    **{part: names.of(f"semcom_fast.{part}") for part in ("receivers", "links", "baselines", "data")},
}
PLACE = re.compile(r"<!-- table: (?P<name>[^>]+?) -->\n.*?<!-- end of (?P=name) -->", re.DOTALL)


def filled(text: str) -> str:
    """The page with every table made anew."""

    def fill(found: re.Match[str]) -> str:
        name = found["name"]
        return "\n".join([f"<!-- table: {name} -->", *TABLES[name](), f"<!-- end of {name} -->"])

    return PLACE.sub(fill, text)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a page is out of date")
    check = parser.parse_args(argv).check
    stale = []
    for page in PAGES:
        path = ROOT / page
        text = path.read_text()
        new = filled(text)
        if new != text:
            stale.append(page)
            if not check:
                path.write_text(new)
    if stale and check:
        print(f"{', '.join(stale)}: not what benchmarks/results says; run python tools/results_table.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
