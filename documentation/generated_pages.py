"""The generated parts of the documentation: settings, tables and views, commands, and files that stand elsewhere.

A page holds ``<!-- generated: NAME -->``, a line that says where the content comes from, and ``<!-- end -->``. MkDocs
runs this file as a hook (``mkdocs.yml``), and ``on_page_markdown`` puts the content of ``GENERATORS[NAME]`` there.
"""

from __future__ import annotations

import inspect
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

REPOSITORY = Path(__file__).resolve().parents[1]
PLACE = re.compile(r"<!-- generated: (.+?) -->\n.*?<!-- end -->", re.DOTALL)
LIMITS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
TYPES = {str: "text", int: "whole number", float: "number", bool: "`true` or `false`"}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by MkDocs for each page: the page with its generated parts."""
    return PLACE.sub(lambda found: GENERATORS[found.group(1)](), markdown)


def settings() -> str:
    """Every section and key of ``gradcamo.toml``: type, default and meaning."""
    from gradcamo_assets.defs.settings import Settings

    parts = []
    for name, field in Settings.__pydantic_fields__.items():
        parts += [f"## `[{name}]`", _about(field.annotation), _settings_table(field.annotation)]
    return "\n\n".join(part for part in parts if part)


def _about(section: Any) -> str:
    """The docstring of a section: paragraphs, and a list where a line begins with the name of a key."""
    first, *more = inspect.cleandoc(section.__doc__ or "").splitlines()
    keys = "|".join(section.__pydantic_fields__)
    # The heading names the section already.
    first = re.sub(r": section ``\[\w+\]``( of ``gradcamo.toml``)?", "", first)
    lines = [re.sub(rf"^({keys}): ", r"- `\1`: ", line) for line in (first, *more)]
    text = "\n".join(f"\n{line}" if line.startswith("- ") else line for line in lines)
    return text.replace("``", "`")


def _settings_table(section: Any) -> str:
    rows = []
    for name, field in section.__pydantic_fields__.items():
        bounds = [
            f"{text} {getattr(limit, bound)}"
            for limit in field.metadata
            for bound, text in LIMITS.items()
            if hasattr(limit, bound)
        ]
        kind = ", ".join([_kind(field.annotation), *bounds])
        rows.append((f"`{name}`", kind, _default(field.default), field.description or ""))
    return _table(("Key", "Value", "Default", "Meaning"), rows)


def _kind(annotation: Any) -> str:
    """A type, in words: what may stand behind the key."""
    if annotation in TYPES:
        return TYPES[annotation]
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{json.dumps(value)}`" for value in inner)
    if origin is tuple:
        return f"list of {_kind(inner[0])}" if Ellipsis in inner else f"list of {len(inner)} {_kind(inner[0])}s"
    if hasattr(annotation, "__metadata__"):
        return _kind(inner[0])
    return " or ".join(_kind(one) for one in inner if one is not NoneType)


def _default(value: Any) -> str:
    return "not set" if value is None else f"`{json.dumps(value)}`"


@cache
def columns() -> dict[str, list[tuple[str, str, str]]]:
    """Of each table and view that SQL users see: its columns with type and comment, as an empty database has them."""
    from gradcamo_assets.tables import Lake, publish, run_sql

    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / "qc.duckdb"
        publish(Lake(Path(folder) / "lake"), database)
        rows = run_sql(
            database,
            "SELECT table_name, column_name, data_type, comment FROM duckdb_columns() "
            "WHERE schema_name = 'main' AND NOT internal ORDER BY table_name, column_index",
        ).rows()
    found: dict[str, list[tuple[str, str, str]]] = {}
    for table, name, kind, comment in rows:
        found.setdefault(table, []).append((name, kind, comment or ""))
    return found


def views() -> str:
    """What SQL users see: an overview, then each view with its columns."""
    from gradcamo_assets.tables.questions import QUESTIONS
    from gradcamo_assets.tables.views import VIEWS

    shown, questions = columns(), [view.name for view in QUESTIONS]
    comments = {view.name: view.comment for view in VIEWS if view.name in shown}
    groups = {
        "Views with a verdict": questions,
        "Summaries": [name for name in comments if name.startswith("qc_by_") or name == "model_comparison"],
    }
    grouped = {name for names in groups.values() for name in names}
    groups["Tables and further views"] = [name for name in comments if name not in grouped]
    parts = []
    for title, names in groups.items():
        parts.append(f"- **{title}**: {', '.join(f'[{name}](#{name})' for name in names)}")
    parts = ["\n".join(parts)]
    for title, names in groups.items():
        parts.append(f"## {title}")
        for name in names:
            rows = [(f"`{column}`", f"`{kind}`", comment) for column, kind, comment in shown[name]]
            heading = f"### `{name}` {{: #{name} }}"
            parts += [heading, comments[name], _table(("Column", "Type", "Meaning"), rows)]
    return "\n\n".join(parts)


def questions() -> str:
    """The views with a verdict: what a row is, and how the verdict is made."""
    from gradcamo_assets.tables.questions import QUESTIONS

    rows = []
    for view in QUESTIONS:
        comments = {column: comment for column, _, comment in columns()[view.name]}
        verdict = comments.get("verdict") or comments.get("reason") or ""
        rows.append((f"[{view.name}](reference/tables-and-views.md#{view.name})", view.comment, verdict))
    return _table(("View", "Content", "Verdict or reason"), rows)


def commands() -> str:
    """Each ``gradcamo`` command with its arguments and options, as ``--help`` prints them."""
    import click

    from gradcamo_assets.cli import main

    parts = []
    for name, command in main.commands.items():
        context = click.Context(command, info_name=f"gradcamo {name}", terminal_width=84, max_content_width=84)
        parts += [f"## `gradcamo {name}` {{: #{name} }}", f"```text\n{command.get_help(context).rstrip()}\n```"]
    return "\n\n".join(parts)


def file_at(path: str) -> Callable[[], str]:
    """The content of a Markdown file of the repository, without its title; its pictures stand in ``docs/``."""

    def content() -> str:
        title, _, text = (REPOSITORY / path).read_text(encoding="utf-8").partition("\n")
        assert title.startswith("# "), path
        return re.sub(r"\]\((?:\.\./)+docs/", "](", text).strip()

    return content


GENERATORS: dict[str, Callable[[], str]] = {
    "settings": settings,
    "questions": questions,
    "views": views,
    "commands": commands,
    "benchmarks": file_at("benchmarks/README.md"),
    "compact network": file_at("gradcamo_assets/segmentation/weights/README.md"),
}


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = [[cell.replace("|", "&#124;").replace("<", "&lt;") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *cells))
