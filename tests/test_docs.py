"""The documentation: generated pages are current, and what the others name exists."""

import importlib.util
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from genrec.config import known_keys, load_config
from genrec.config.loading import RENAMED

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
VERBS = [
    *("prepare", "embed", "assign", "sft", "grpo", "tune", "refit", "evaluate", "full"),
    *("report", "judge", "catalog", "export", "import", "update", "serve", "manifest", "bench"),
]
FREE = ("data.columns.", "tune.space.", "rewards.custom.", "rewards.settings.events.", "bench.parts.", "bench.grid.")
SECTIONS = {key.partition(".")[0] for key in known_keys() if "." in key}
KEY = re.compile(r"(?<![\w./\-])([a-z]+(?:\.[A-Za-z_]+)+)(?![\w/(])")
FOLDERS = ["genrec", "cluster", "workflows", "benchmarks", "configs", "docs", "tests"]
FILE = re.compile(rf"(?:{'|'.join(FOLDERS)})/[\w./\-]*")
COMMAND = re.compile(r"(?:^|[\s`])(?:genrec|python -m workflows\.(?=\w)) ?(\w+)((?: [^`\n]*)?)")
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([\w\-]+))?\)")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@cache
def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8").replace(" \\\n", " ")


def code_of(page: Path) -> Iterator[str]:
    """What stands in backticks, and the lines of fenced blocks, without their comments."""
    fenced = re.split(r"^ *```.*$", text_of(page), flags=re.MULTILINE)
    for block in fenced[1::2]:
        yield from (re.sub(r"\s#\s.*", "", line).strip() for line in block.splitlines())
    for block in fenced[::2]:
        yield from re.findall(r"`([^`\n]+)`", block)


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_current(generator: ModuleType) -> None:
    for page, text in generator.pages().items():
        assert page.read_text(encoding="utf-8") == text, f"run python docs/generate.py: {name(page)} is not current"


def test_conditions_of_stages_are_numbered_once_each(generator: ModuleType) -> None:
    notes: dict[str, str] = {}
    stages = [SimpleNamespace(reads={"prepare": SimpleNamespace(__doc__=f"If {n}.")}) for n in range(13)]
    signs = [generator._mark(stage, "prepare", notes) for stage in (*stages, *stages)]
    assert signs == [*notes.values()] * 2 and len(set(signs)) == 13


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_config_key_that_a_page_names_exists(page: Path) -> None:
    known = set(known_keys())
    for code in code_of(page):
        for key in KEY.findall(code):
            if key.partition(".")[0] in SECTIONS and not key.endswith(
                (".parquet", ".json", ".py", ".yaml", ".md", ".safetensors", ".html")
            ):
                assert key in known or key.startswith(FREE), f"{name(page)} names {key}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_path_that_a_page_names_exists(page: Path) -> None:
    for code in code_of(page):
        for file in FILE.findall(code) if re.fullmatch(r"[\w./\-]+(?:::\w+)?", code) else ():
            assert (ROOT / file).exists(), f"{name(page)} names {file}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_command_that_a_page_names_can_be_read(page: Path) -> None:
    for code in code_of(page):
        for verb, rest in COMMAND.findall(code) if code.startswith("genrec ") or "-m workflows." in code else ():
            if verb in ("VERB", "load"):
                continue
            assert verb in VERBS, f"{name(page)} names the verb {verb} in {code!r}"
            words = rest.split("--rewards")[0].replace("[key=value ...]", "").replace("[--json]", "").split()
            if verb == "bench" and words:
                benchmark = words.pop(0)
                assert benchmark == "NAME" or (ROOT / "benchmarks" / f"{benchmark.replace('-', '_')}.py").is_file(), (
                    code
                )
            if verb in ("report", "export", "import", "update", "serve", "judge"):  # of a run, with no config file
                words = [word for word in words if "=" in word]
            if verb == "manifest":
                assert (ROOT / words.pop(0)).is_file(), code
            if verb == "catalog":
                assert words.pop(0) in ("insert", "remove") and words.pop(0), code
            words = [
                word.strip("\"'") for word in words if word not in ("CONFIG...", "--json", "--show", "mine.yaml", "…")
            ]
            load_config([word for word in words if "=" not in word], [word for word in words if "=" in word])


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_within_the_documentation_leads_somewhere(page: Path) -> None:
    for target, anchor in LINK.findall(text_of(page)):
        if "://" in target:
            continue
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), f"{name(page)} links to {target}"
        if anchor:
            assert anchor in anchors(file), f"{name(page)} links to {target}#{anchor}"


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", text_of(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_lines_are_at_most_120_characters_but_for_tables_links_and_code(page: Path) -> None:
    fenced = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        fenced ^= line.lstrip().startswith("```")
        free = fenced or line.lstrip().startswith(("|", "    ")) or "](" in line
        assert free or len(line) <= 120, f"{name(page)}:{number} has {len(line)} characters"


def test_the_readme_has_at_most_160_lines() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 160


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_old_config_keys_are_named_in_the_changelog_alone(page: Path) -> None:
    for old in RENAMED:
        assert not re.search(rf"(?<![\w.]){re.escape(old)}(?!\w)", text_of(page)), f"{name(page)} names {old}"


def test_the_changelog_tells_every_key_that_was_renamed() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    for old, new in RENAMED.items():
        assert f"`{old}`" in changelog and f"`{new}`" in changelog, old


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in sorted((ROOT / "docs").rglob("*.md")):
        assert f": {page.relative_to(ROOT / 'docs').as_posix()}\n" in site, f"{name(page)} is not in mkdocs.yml"
