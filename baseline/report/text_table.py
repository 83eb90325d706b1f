"""A table of text, as Markdown and as LaTeX."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["TextTable"]


LATEX_SPECIALS = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip


@dataclass(frozen=True)
class TextTable:
    """Headings, and rows of as many cells. The first column is text, the others are numbers."""

    headings: list[str]
    rows: list[list[str]]

    def as_markdown(self) -> str:
        """Return the table in Markdown.

        >>> print(TextTable(["run", "accuracy"], [["runs/a|b", "90.0%"]]).as_markdown(), end="")
        | run | accuracy |
        |---|---:|
        | runs/a\\|b | 90.0% |
        """
        lines = [self.headings, *self.rows]
        texts = [
            "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines
        ]
        return "\n".join([texts[0], "|---" + "|---:" * (len(self.headings) - 1) + "|", *texts[1:]]) + "\n"

    def as_latex(self) -> str:
        """Return the table as a LaTeX `tabular`, which needs no package.

        >>> print(TextTable(["run", "accuracy"], [["my_run", "90.0%"]]).as_latex(), end="")
        \\begin{tabular}{lr}
        \\hline
        run & accuracy \\\\
        \\hline
        my\\_run & 90.0\\% \\\\
        \\hline
        \\end{tabular}
        """
        head, *lines = (" & ".join(map(escape_latex, line)) + r" \\" for line in [self.headings, *self.rows])
        columns = "l" + "r" * (len(self.headings) - 1)
        begin, end = rf"\begin{{tabular}}{{{columns}}}", r"\end{tabular}"
        return "\n".join([begin, r"\hline", head, r"\hline", *lines, r"\hline", end]) + "\n"


def escape_latex(text: str) -> str:
    """Return the text with LaTeX's special characters escaped."""
    return re.sub(r"[\\{}&%$#_~^<>]", lambda match: LATEX_SPECIALS[match[0]], text.replace("\n", " "))
