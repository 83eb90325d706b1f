"""TODO."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from baseline.cli.options import _paths, _print

if TYPE_CHECKING:
    pass


def compare(
    runs: Annotated[
        list[Path], typer.Argument(help="Run folders; each is compared with the first.", show_default=False)
    ],
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Also runs of different test photos, on those that they share.")
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
    from baseline.cli.printing import compared
    from baseline.files import write
    from baseline.runs.compare import comparison

    found = comparison(runs, anyway=anyway, averages=[_paths([each]) for each in ensemble or []])
    for path, content in ((csv, found.table.to_csv(index=False)), (html, found.as_html())):
        if path is not None:
            write(path, content)
    _print(compared(found))


def runs(
    folder: Annotated[Path, typer.Argument(help="The folder that holds runs.", metavar="[DIR]")] = Path("runs"),
) -> None:
    """Lists runs: what they reached, when, in how many seconds; unfinished ones, too.

    Examples:

        baseline runs

        baseline runs experiments/
    """
    from baseline.cli.printing import listing
    from baseline.runs.compare import runs_in

    _print(listing(runs_in(folder)))


def report(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.", show_default=False)],
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the page's path.")] = False,
) -> None:
    """Writes report.html, its pictures and the model card again, as every run does at its end; prints the page's path.

    Examples:

        baseline report runs/mine
    """
    from baseline.progress import Show, Terminal
    from baseline.report.model_card import write_card
    from baseline.report.page import write_report

    show = Show() if quiet else Terminal()
    page = write_report(run, show)
    if (run / "model" / "model.json").exists():
        write_card(run, show)
    print(page)
