"""The commands for finished runs: `compare`, `runs` and `report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from baseline.cli.json_output import comparison_object, print_object, runs_object
from baseline.cli.options import AsJson, make_progress, split_paths
from baseline.cli.output import print_table, print_text
from baseline.errors import DataError


def compare_command(
    runs: Annotated[
        list[str],
        typer.Argument(
            help="Run folders; each is compared with the first one. Or quoted patterns, each for the runs of a recipe.",
            show_default=False,
        ),
    ],
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Compare runs with different test images on the images they share.")
    ] = False,
    ensemble: Annotated[
        list[str] | None,
        typer.Option(
            help="Some of the runs, separated by commas; their ensemble is also evaluated.", show_default=False
        ),
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Write the table as CSV.", show_default=False)] = None,
    html: Annotated[Path | None, typer.Option(help="Write the table as HTML.", show_default=False)] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the table as Markdown.", show_default=False)] = None,
    latex: Annotated[Path | None, typer.Option(help="Write the table as LaTeX.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Compare finished runs: metrics with confidence intervals, and a paired significance test.

    Quoted patterns compare recipes over seeds: the difference of their means, and a t-test over seeds.

    Examples:

    ```text
    baseline compare runs/quick runs/standard
    baseline compare runs/seeds/seed-* --csv seeds.csv --html seeds.html
    baseline compare 'runs/a/seed-*' 'runs/b/seed-*' --markdown seeds.md
    baseline compare runs/one runs/two --ensemble runs/one,runs/two
    ```
    """
    from baseline.cli.printing import comparison_table, recipes_table
    from baseline.experiments.compare import Comparison, compare_runs
    from baseline.experiments.compare_recipes import RecipeComparison, compare_recipes, is_pattern
    from baseline.files import to_csv, write_atomic

    result: Comparison | RecipeComparison
    if any(is_pattern(run) and not Path(run).exists() for run in runs):
        if anyway or ensemble:
            raise DataError("--anyway and --ensemble need run folders. Leave them out, or pass folders, not patterns.")
        result = compare_recipes(runs)
    else:
        result = compare_runs(runs, anyway=anyway, averages=[split_paths([text]) for text in ensemble or []])
    text = result.as_text()
    contents = to_csv(result.table), result.as_html(), text.as_markdown(), text.as_latex()
    for path, content in zip((csv, html, markdown, latex), contents, strict=True):
        if path is not None:
            write_atomic(path, content)
    if as_json:
        print_object("compare", comparison_object(result))
    else:
        print_table(comparison_table(result) if isinstance(result, Comparison) else recipes_table(result))


def runs_command(
    folder: Annotated[Path, typer.Argument(help="Folder of the runs.", metavar="DIR")] = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """List the runs in a folder, including unfinished ones, with accuracy, date and seconds.

    Examples:

    ```text
    baseline runs
    baseline runs experiments/
    ```
    """
    from baseline.cli.printing import runs_table
    from baseline.experiments.compare import list_runs

    if as_json:
        print_object("runs", runs_object(folder, list_runs(folder)))
    else:
        print_table(runs_table(list_runs(folder)))


def report_command(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.", show_default=False)],
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only print the path.")] = False,
) -> None:
    """Regenerate report.html, its pictures and the model card, and print the path.

    Examples:

    ```text
    baseline report runs/mine
    ```
    """
    from baseline.report.model_card import write_card
    from baseline.report.page import write_report

    progress = make_progress(quiet)
    if (run / "model" / "model.json").exists():
        write_card(run, progress)  # first: it is made at once, and nothing is written where it cannot be
    print_text(write_report(run, progress))
