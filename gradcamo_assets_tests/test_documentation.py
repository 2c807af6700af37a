"""The pages say what is true: links lead somewhere, examples run, and generated parts leave nothing out."""

from __future__ import annotations

import re
import shlex
from collections import OrderedDict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from pydoc import locate
from typing import Any, NamedTuple
from urllib.parse import unquote

import click
import duckdb
import pytest
import torch
import yaml
from torch import nn

from documentation import generated_pages
from gradcamo_assets.cli import main
from gradcamo_assets.defs.settings import Settings, read_settings
from gradcamo_assets.home import Home
from gradcamo_assets.plates.formats.configuration import read_configuration
from gradcamo_assets.tables import publish, run_sql
from gradcamo_assets_tests.tables.rows import filled

REPOSITORY = Path(__file__).parents[1]
DOCS = REPOSITORY / "docs"
OTHERS = ("build", "data", "dist", "site")
FOLDERS = [path for path in REPOSITORY.iterdir() if path.is_dir() and path.name[0] != "." and path.name not in OTHERS]
PAGES = sorted([*REPOSITORY.glob("*.md"), *(page for folder in FOLDERS for page in folder.rglob("*.md"))])
SHOWN = [path for path in PAGES if path.parent in (REPOSITORY, DOCS, DOCS / "reference")]

_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
_BLOCK = re.compile(r"(<!-- not run -->\n)?^```(\w+)[ ]?([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """A fenced block: where it stands, its title, its text, and whether it says that it cannot run alone."""

    page: str
    line: int
    title: str
    text: str
    runs: bool


def name_of(page: Path) -> str:
    return page.relative_to(REPOSITORY).as_posix()


def blocks(language: str) -> Iterator[Block]:
    for page in SHOWN:
        text = page.read_text(encoding="utf-8")
        for found in _BLOCK.finditer(text):
            mark, kind, title, body = found.groups()
            if kind == language:
                yield Block(name_of(page), text[: found.start()].count("\n") + 1, title, body, mark is None)


def each(language: str) -> list[Any]:
    found = [pytest.param(block, id=f"{block.page}:{block.line}") for block in blocks(language)]
    assert found, language
    return found


def whole(page: Path) -> str:
    """A page with its generated parts."""
    return generated_pages.on_page_markdown(page.read_text(encoding="utf-8"))


@cache
def anchors(page: Path) -> set[str]:
    """What links into a page may name."""
    found, text = set(), whole(page)
    for title in re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE), re.M):
        title, _, given = title.partition(" {: #")
        words = re.sub(r"[^\w\s-]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title)).strip().lower()
        found.add(given.removesuffix(" }") or re.sub(r"[-\s]+", "-", words))
    return found


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small published database."""
    folder = tmp_path_factory.mktemp("home")
    publish(filled(folder / "lake", plates=1, sites=1), folder / "qc.duckdb")
    return folder / "qc.duckdb"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_and_pictures_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for picture, words, target in _LINK.findall(re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)):
        assert words.strip(), f"{target} has no {'alternative text' if picture else 'words'}"
        if target.startswith(("http://", "https://", "mailto:")):
            assert not picture, f"the picture {target} is not in the repository"
            continue
        path, _, anchor = unquote(target).partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists() and there.is_relative_to(REPOSITORY), f"{target} does not exist"
        if anchor:
            assert anchor in anchors(there), f"{target}: there is no such heading"


def test_every_picture_of_the_docs_is_shown() -> None:
    shown = {Path(target).name for page in PAGES for _, _, target in _LINK.findall(page.read_text(encoding="utf-8"))}
    assert {path.name for path in DOCS.rglob("*.png")} <= shown


def test_the_navigation_names_every_page() -> None:
    class Loader(yaml.SafeLoader):
        """Reads MkDocs' tags of Python functions as nothing."""

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)
    settings = yaml.load((REPOSITORY / "mkdocs.yml").read_text(), Loader)
    named = re.findall(r"[\w./-]+\.md", str(settings["nav"]))
    assert sorted(named) == sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
    assert all((REPOSITORY / hook).exists() for hook in settings["hooks"])


def test_the_readme_is_short() -> None:
    assert len((REPOSITORY / "README.md").read_text().split()) <= 500


def test_no_generated_part_is_left_open() -> None:
    used = set()
    for page in SHOWN:
        text = page.read_text(encoding="utf-8")
        used.update(re.findall(r"<!-- generated: (.+?) -->", text))
        assert "<!-- generated" not in generated_pages.PLACE.sub("", text), page
    assert used == set(generated_pages.GENERATORS)


def test_the_settings_page_has_every_key() -> None:
    text = generated_pages.settings()
    for name, field in Settings.__pydantic_fields__.items():
        section = text.split(f"## `[{name}]`\n")[1].split("\n## ")[0]
        keys = field.annotation.__pydantic_fields__  # type: ignore[union-attr]
        rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", section, re.MULTILINE))
        assert list(rows) == list(keys), name
        for key, row in rows.items():
            kind, default, meaning = row.split(" | ")
            assert kind and default and meaning == (keys[key].description or "").replace("<", "&lt;"), f"{name}.{key}"


def test_the_reference_has_every_view_and_column(database: Path) -> None:
    text = generated_pages.views()
    with duckdb.connect(database, read_only=True) as connection:
        names = {name for (name,) in connection.execute("SHOW TABLES").fetchall()}
    assert names == set(generated_pages.columns())
    for name in names:
        section = text.split(f"\n### `{name}` ")[1].split("\n### ")[0]
        described = re.findall(r"^\| `(\w+)` \| `[^`]+` \| (.+) \|$", section, re.MULTILINE)
        assert [column for column, _ in described] == run_sql(database, f"FROM {name} LIMIT 0").columns, name


def test_the_questions_page_asks_every_question() -> None:
    from gradcamo_assets.tables.questions import QUESTIONS

    page = (DOCS / "questions-in-sql.md").read_text()
    for view in QUESTIONS:
        assert f"FROM {view.name}" in page


def test_the_commands_page_has_every_option() -> None:
    text = generated_pages.commands()
    for name, command in main.commands.items():
        section = text.split(f"## `gradcamo {name}` ")[1].split("\n## ")[0]
        for parameter in command.params:
            options = [option for option in parameter.opts if option.startswith("--")]
            assert all(option in section for option in options), name


def test_the_operations_page_has_every_schedule_and_sensor() -> None:
    from gradcamo_assets.definitions import defs

    page = (DOCS / "operations.md").read_text()
    for automation in [*(defs.schedules or ()), *(defs.sensors or ())]:
        assert f"| `{automation.name}` |" in page


@pytest.mark.parametrize("block", each("sql"))
def test_sql(block: Block, database: Path) -> None:
    run_sql(database, block.text.strip().removesuffix(";"))


@pytest.mark.parametrize("block", each("toml"))
def test_toml(block: Block, tmp_path: Path) -> None:
    title = re.fullmatch(r'title="(.+)"', block.title)
    assert title, "a title says which file it is"
    file = {"data/gradcamo.toml": "gradcamo.toml", "data/inbox/<plate>.toml": "plate.toml"}[title[1]]
    (tmp_path / file).write_text(block.text)
    if file == "plate.toml":
        assert read_configuration(tmp_path / "plate").model_fields_set
    else:
        assert read_settings(Home(tmp_path)) != Settings()


@pytest.mark.parametrize("block", each("sh"))
def test_commands(block: Block) -> None:
    targets = re.search(r"^\.PHONY: (.+)$", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert targets
    for line in block.text.replace("\\\n", " ").splitlines():
        program, *words = shlex.split(line, comments=True)
        if program == "make":
            assert words[0] in targets[1].split(), line
            continue
        assert program == "gradcamo", line
        command = main.commands[words[0]]
        context = click.Context(command, info_name=words[0])
        values, rest, _ = command.make_parser(context).parse_args(words[1:])
        assert not rest, line
        for parameter in command.params:
            given = values.get(parameter.name)
            if given is not None and isinstance(parameter.type, click.Choice | click.types.IntParamType):
                parameter.type_cast_value(context, given)


@pytest.mark.parametrize("page", [page for page in SHOWN if "```python" in page.read_text()], ids=name_of)
def test_python(page: Path, database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "qc.duckdb").symlink_to(database)
    monkeypatch.chdir(tmp_path)
    values = stand_ins()
    for block in blocks("python"):
        if block.page == name_of(page):
            code = compile("\n" * block.line + block.text, block.page, "exec")
            if block.runs:
                exec(code, values)  # noqa: S102
    if "build" in values:
        network, layer = values["build"](2, 3)
        assert network(torch.zeros(1, 2, 4, 8, 8)).shape == (1, 3) and layer in dict(network.named_modules())


def stand_ins() -> dict[str, Any]:
    """What the examples take as given: two networks, four images, their masks, two embeddings."""
    torch.manual_seed(0)

    def network(outputs: int) -> nn.Module:
        parts = {
            "layer3": nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU()),
            "layer4": nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.ReLU()),
            "pool": nn.AdaptiveAvgPool2d(1),
            "flat": nn.Flatten(),
            "head": nn.Linear(6, outputs),
        }
        return nn.Sequential(OrderedDict(parts)).eval()

    target_masks, others = torch.zeros(2, 4, 16, 16, dtype=torch.bool)
    target_masks[:, 4:10, 4:10] = True
    others[:, 12:, 12:] = True
    embeddings = torch.randn(2, 5)
    return {
        "__name__": "example",
        "model": network(3),
        "embedder": network(5),
        "images": torch.rand(4, 2, 16, 16),
        "target_masks": target_masks,
        "others": others,
        "treatment": embeddings[0],
        "controls": embeddings[1],
    }


def test_the_reference_names_what_exists() -> None:
    for page in sorted((DOCS / "reference").glob("*.md")):
        for name, options in re.findall(r"^::: (\S+)\n((?: +.*\n)*)", page.read_text(), re.MULTILINE):
            documented = locate(name)
            assert documented is not None, (page.name, name)
            members = (yaml.safe_load(options) or {}).get("options", {}).get("members", [])
            assert all(hasattr(documented, member) for member in members), (page.name, name, members)
