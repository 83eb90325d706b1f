"""TODO."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from baseline.cli.options import _print, split_paths

if TYPE_CHECKING:
    pass


def compare(
    runs: Annotated[
        list[Path], typer.Argument(help="Run folders; each is compared with the first.", show_default=False)
    ],
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Also runs of different test images, on those that they share.")
    ] = False,
    ensemble: Annotated[
        list[str] | None,
        typer.Option(help="Some of the runs, between commas: their average is judged, too.", show_default=False),
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Writes the table as CSV.", show_default=False)] = None,
    html: Annotated[Path | None, typer.Option(help="Writes it as a page of its own.", show_default=False)] = None,
) -> None:
    """Compares finished runs: numbers with intervals, and whether they differ by more than noise.

    Examples:

        baseline compare runs/quick runs/standard

        baseline compare runs/seeds/seed-* --csv seeds.csv --html seeds.html

        baseline compare runs/one runs/two --ensemble runs/one,runs/two
    """
    from baseline.cli.printing import comparison_table
    from baseline.files import write_atomic
    from baseline.runs.compare import compare_runs

    found = compare_runs(runs, anyway=anyway, averages=[split_paths([each]) for each in ensemble or []])
    for path, content in ((csv, found.table.to_csv(index=False)), (html, found.as_html())):
        if path is not None:
            write_atomic(path, content)
    _print(comparison_table(found))


def runs(
    folder: Annotated[Path, typer.Argument(help="The folder that holds runs.", metavar="[DIR]")] = Path("runs"),
) -> None:
    """Lists runs: what they reached, when, in how many seconds; unfinished ones, too.

    Examples:

        baseline runs

        baseline runs experiments/
    """
    from baseline.cli.printing import runs_table
    from baseline.runs.compare import list_runs

    _print(runs_table(list_runs(folder)))


def report(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.", show_default=False)],
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the page's path.")] = False,
) -> None:
    """Writes report.html, its pictures and the model card again, as every run does at its end; prints the page's path.

    Examples:

        baseline report runs/mine
    """
    from baseline.progress import ConsoleProgress, Progress
    from baseline.report.model_card import write_card
    from baseline.report.page import write_report

    show = Progress() if quiet else ConsoleProgress()
    page = write_report(run, show)
    if (run / "model" / "model.json").exists():
        write_card(run, show)
    print(page)
