"""Prepares the pages of the documentation site; mkdocs runs it at build time (`mkdocs build --strict`).

The pages outside `docs/` are copied to the site, links between files of the repository become links between pages, and
each public name gets a reference page, generated from `baseline.__all__` and its docstring.
"""

from __future__ import annotations

import ast
import dataclasses
import os
import re
from pathlib import Path

import mkdocs_gen_files

import baseline
from baseline.recipe.schema import FLAT_NAMES, GROUPS

ROOT = Path(__file__).resolve().parents[1]

PAGES = {
    "recipes/README.md": "recipes.md",
    "benchmarks/README.md": "benchmarks.md",
    "benchmarks/RELIABILITY.md": "reliability.md",
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
} | {f"docs/{path.name}": path.name for path in (ROOT / "docs").glob("*.md")}
"""The page of the site for each Markdown file of the repository."""

NAV = """\
* [Home](index.md)
* [Installation](install.md)
* [Platforms and stability](platforms.md)
* Guides
    * [Images](images.md)
    * [Training](training.md)
    * [Evaluation](evaluation.md)
    * [Models](models.md)
    * [Automation](automation.md)
    * [Kaggle](kaggle.md)
    * [Scale](scale.md)
* [Recipes](recipes.md)
* Benchmarks
    * [Accuracy and speed](benchmarks.md)
    * [Reliability](reliability.md)
* API reference
    * [Overview](reference/index.md)
    * [Recipe fields](reference/recipe-fields.md)
{reference}
* Project
    * [Contributing](contributing.md)
    * [Changelog](changelog.md)
    * [Security](security.md)
    * [Licenses](licenses.md)
"""

HEADINGS = (("Functions", str.islower), ("Classes", lambda name: not name.islower()))


def site_path(path: Path) -> str:
    """Return where a file of the repository is on the site; files that are not pages keep their path."""
    name = path.relative_to(ROOT).as_posix()
    return PAGES.get(name, name.removeprefix("docs/"))


def rewrite_links(text: str, source: Path, page: str) -> tuple[str, set[Path]]:
    """Return the text with links that work on the site, and the linked files that are not pages."""
    files = set()

    def replace(match: re.Match[str]) -> str:
        name, hash_sign, anchor = match[1].partition("#")
        if not name or "://" in name:
            return match[0]
        target = (source.parent / name).resolve()
        if target.suffix != ".md":
            files.add(target)
        return f"]({os.path.relpath(site_path(target), Path(page).parent)}{hash_sign}{anchor})"

    return re.sub(r"\]\(([^)\s]+)\)", replace, text), files


def write_pages() -> None:
    """Write the guides and the pages outside `docs/`, and copy the files that they link to."""
    files = set()
    for name, page in PAGES.items():
        if name == "README.md":  # for a reader of the repository; the site has docs/index.md
            continue
        text, linked = rewrite_links((ROOT / name).read_text(encoding="utf-8"), ROOT / name, page)
        files |= linked
        with mkdocs_gen_files.open(page, "w") as out:
            out.write(text)
    for file in files:
        with mkdocs_gen_files.open(site_path(file), "wb") as out:
            out.write(file.read_bytes())


def module_of(name: str) -> str:
    """Return the module that defines a public name."""
    return f"baseline.{baseline._HOMES[name]}"


def first_sentence(name: str) -> str:
    """Return the first paragraph of the docstring of a public name, without importing its module."""
    path = ROOT / f"{module_of(name).replace('.', '/')}.py"
    nodes = ast.parse(path.read_text(encoding="utf-8")).body
    node = next((node for node in nodes if getattr(node, "name", "") == name), None)
    docstring = ast.get_docstring(node) if isinstance(node, ast.FunctionDef | ast.ClassDef) else None
    return " ".join((docstring or "").split("\n\n")[0].split())


def write_reference() -> str:
    """Write one page per public name and an overview, and return their part of the navigation."""
    overview = ["# API reference", "", "Everything below can be imported from `baseline`.", ""]
    nav = []
    for heading, belongs in HEADINGS:
        names = [name for name in baseline.__all__ if belongs(name)]
        overview += [f"## {heading}", "", "| name | |", "|---|---|"]
        nav.append(f"    * {heading}")
        for name in names:
            page = f"reference/{name}.md"
            with mkdocs_gen_files.open(page, "w") as out:
                out.write(f"---\ntitle: {name}\n---\n\n::: {module_of(name)}.{name}\n")
            summary = first_sentence(name).replace("|", r"\|")
            overview.append(f"| [`{name}`]({name}.md) | {summary} |")
            nav.append(f"        * [{name}]({page})")
        overview.append("")
    with mkdocs_gen_files.open("reference/index.md", "w") as out:
        out.write("\n".join(overview))
    return "\n".join(nav)


def write_recipe_fields() -> None:
    """Write a table of the fields of each group of a recipe, from their own metadata."""
    lines = [
        "# Recipe fields",
        "",
        "The name is the key in a TOML file, the keyword argument of `make_baseline` and, with dashes, the option of",
        "`baseline run` (whose `--data` is the path of the images). `--set KEY=VALUE` takes the name or the full name.",
        "The fields of `augment` and `stages` are described under [Augment](Augment.md) and [Stage](Stage.md).",
    ]
    for group, names in FLAT_NAMES.items():
        summary = (GROUPS[group].__doc__ or "").split("\n")[0].split("; see ")[0].rstrip(".")
        lines += ["", f"## {group}", "", f"{summary}.", "", "| name | full name | default | |", "|---|---|---|---|"]
        for field in dataclasses.fields(GROUPS[group]):
            meaning = field.metadata["help"].replace("|", r"\|")
            lines.append(f"| `{names[field.name]}` | `{group}.{field.name}` | `{field.default!r}` | {meaning} |")
    with mkdocs_gen_files.open("reference/recipe-fields.md", "w") as out:
        out.write("\n".join(lines) + "\n")


write_pages()
write_recipe_fields()
with mkdocs_gen_files.open("SUMMARY.md", "w") as summary_file:
    summary_file.write(NAV.format(reference=write_reference()))
