"""Result files of the benchmarks for people: one HTML page with plots and sortable tables, or a Markdown table.

The page needs nothing beside itself and no network; it says which targets (goals.py) the results meet.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":  # a script: its own folder, which has a module `kernels` as another package has, gives way
    sys.path[0] = str(ROOT)

from benchmarks import results_file  # noqa: E402
from benchmarks.goals import evaluate  # noqa: E402
from benchmarks.report_markdown import markdown, updated  # noqa: E402
from benchmarks.report_page import section, write_page  # noqa: E402
from benchmarks.report_text import as_written  # noqa: E402
from talent.errors import UserError, command  # noqa: E402
from talent.files import atomic_write, check_writable  # noqa: E402

PAGES = (".html", ".htm")
OWN_SHAPE = ("rows", "commit", "versions")
"""Fields of which a file without a schema has at least one: those of training.py, processing.py, qat.py and tlm.py."""
EXAMPLE = """examples:
  python benchmarks/report.py benchmarks/results/*.json -o report.html
  python benchmarks/report.py latency.json parity.json --markdown
  python benchmarks/report.py --update-readme
"""


def read_results(paths: Sequence[Path]) -> tuple[list[dict[str, Any]], list[str]]:
    """(the results, which files were left out and why): those of training.py and others that have a shape of their own.

    Raises UserError for a file that cannot be read, is damaged or holds what this version would not write, and where
    nothing is left.
    """
    results, left_out = [], []
    for path in paths:
        if _has_other_shape(path):
            left_out.append(f"Left out: {path.name}, whose benchmark writes a shape of its own")
        else:
            result = results_file.read(path)
            with as_written(f"{path}: {result['title']!r}"):
                section(1, result)
                markdown([result])
                evaluate([result])
            results.append(result)
    if not results:
        raise UserError("expected the JSON files that latency.py, parity.py or scaling.py wrote, received "
                        f"{', '.join(map(str, paths)) or 'none'}; make one: python benchmarks/latency.py BUNDLE --json "
                        "latency.json")
    return results, left_out


def _has_other_shape(path: Path) -> bool:
    """Whether it is JSON of ours that has no schema; what cannot be read is left to results_file.read to refuse."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "schema" not in content and any(name in content for name in OWN_SHAPE)


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="report.py", description=__doc__.partition("\n")[0], epilog=EXAMPLE,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("results", nargs="*", type=Path, metavar="RESULT", help="JSON file that a benchmark wrote")
    result.add_argument("-o", "--output", type=Path, metavar="HTML", help="write the page")
    result.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    result.add_argument("--update-readme", action="store_true",
                        help="write the tables of the README anew from the result files that its markers name")
    result.add_argument("--readme", type=Path, default=ROOT / "README.md", metavar="FILE",
                        help="which README (default: this project's); result files are named from its folder")
    return result


def update_readme(path: Path) -> bool:
    """Write the README's tables anew; whether anything changed. Raises UserError as `report_markdown.updated`."""
    try:
        before = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; name a README with --readme") from error
    after = updated(before, path.resolve().parent)
    if before == after:
        return False
    with atomic_write(path) as temporary:
        temporary.write_text(after, encoding="utf-8")
    return True


@command("report.py")
def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    if arguments.update_readme:
        if arguments.results or arguments.output or arguments.markdown:
            raise UserError("expected --update-readme alone, received more: the README's markers name the result files")
        print(f"wrote the numbers of {arguments.readme}" if update_readme(arguments.readme)
              else f"the numbers of {arguments.readme} are those of their result files: wrote nothing")
        return 0
    if not arguments.output and not arguments.markdown:
        raise UserError("expected what to make of the results, received nothing; add -o report.html or --markdown")
    if arguments.output:
        if arguments.output.suffix.lower() not in PAGES:
            raise UserError(f"-o: expected a name that ends in {' or '.join(PAGES)}, received {arguments.output}; the "
                            "page would replace that file: -o report.html")
        check_writable(arguments.output)
    results, left_out = read_results(arguments.results)
    for line in left_out:
        print(line, file=sys.stderr)
    if arguments.markdown:
        print(markdown(results), end="")
    if arguments.output:
        write_page(arguments.output, results, outcomes=evaluate(results), left_out=left_out)
        print(f"wrote {arguments.output}: {len(results)} results in one page", file=sys.stderr if arguments.markdown
              else sys.stdout)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
