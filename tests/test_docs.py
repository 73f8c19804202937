"""What a reader sees is true: code blocks run, commands parse, examples work, pages and names are complete."""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import pytest
import yaml
from lightning import Trainer

import covidcxr
from covidcxr import ClassificationModel, ModelConfig, PreprocessConfig, SegmentationModel, registry
from covidcxr.cli.main import _parser, _spell_data, main
from covidcxr.data.summary import describe_dataset
from covidcxr.io.image import write_image
from covidcxr.phantom import draw_dataset, write_dataset
from covidcxr.training.recipe import Recipe, recipe_paths

ROOT = Path(__file__).resolve().parents[1]
PAGES = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md")}
PAGES |= {path.relative_to(ROOT).as_posix(): path for path in sorted((ROOT / "docs").rglob("*.md"))}
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
REGISTRIES = {word: getattr(registry, word) for word in registry.__all__ if word.isupper()}

quiet = pytest.mark.filterwarnings(  # what Lightning says to everybody who trains on a laptop
    "ignore::lightning.fabric.utilities.warnings.PossibleUserWarning",
    "ignore:.*tensorboardX",
    "ignore:.*LightningCLI's args parameter",
    "ignore:.*is smaller than the logging interval",
    "ignore:The dirpath has changed",
)


def read_page(name: str) -> str:
    """A page with what it includes from other files, as mkdocs would show it."""

    def included(match: re.Match[str]) -> str:
        path, _, section = match[1].partition(":")
        if not section and not (ROOT / path).is_file():
            return ""  # test_links_lead_somewhere says so
        text = (ROOT / path).read_text(encoding="utf-8")
        return text.split(f"[start:{section}] -->")[1].split("<!-- --8<-- [end:")[0] if section else text

    return re.sub(r'^--8<-- "(.+)"$', included, PAGES[name].read_text(encoding="utf-8"), flags=re.MULTILINE)


def code_blocks(name: str, language: str) -> list[str]:
    """The blocks of a language, but for those under a comment that says why they are not run."""
    found = re.finditer(rf"(<!-- not run: .+ -->\n)?^```{language}\n(.*?)^```$", read_page(name), re.M | re.S)
    return [match[2] for match in found if match[1] is None]


def commands(name: str) -> list[str]:
    """The `covidcxr` commands of a page."""
    lines = "\n".join(code_blocks(name, "bash")).replace("\\\n", " ").replace("&& ", "\n").splitlines()
    return [line for line in lines if line.startswith("covidcxr ")]


def first_seen(blocks_of: Any) -> dict[str, list[str]]:
    """Pages with the blocks that no page before them has."""
    seen: set[str] = set()
    pages: dict[str, list[str]] = {}
    for name in PAGES:
        blocks = blocks_of(name)
        if not set(blocks) <= seen:
            pages[name] = blocks
        seen.update(blocks)
    return pages


PYTHON = first_seen(lambda name: code_blocks(name, "python"))
COMMANDS = sorted({command for name in PAGES for command in commands(name)})
CONFIGS = [block for name in PAGES for block in code_blocks(name, "yaml")]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the documentation speaks of."""
    desk = tmp_path_factory.mktemp("desk")
    write_dataset(desk / "phantoms", 24, size=(96, 96))
    for number, phantom in enumerate(draw_dataset(24, size=(96, 96))):
        folder = desk / "my-films" / phantom.label
        folder.mkdir(parents=True, exist_ok=True)
        write_image(folder / f"p{number:03d}_1.png", phantom.image)
    (desk / "films").mkdir()
    for image in sorted((desk / "phantoms" / "images").iterdir())[:3]:
        shutil.copy(image, desk / "films")
    shutil.copy(desk / "films" / "phantom-00000.png", desk / "film.png")
    (desk / "films" / "broken.png").write_text("no image")
    preprocess = PreprocessConfig(image_size=(64, 64))
    classes = ("covid19", "normal", "pneumonia")
    classifier = ModelConfig("classification", "timm:mobilenetv3_small_050", classes, preprocess=preprocess)
    encoder = {"encoder": "tu-mobilenetv3_small_100"}
    lungs = ModelConfig("segmentation", "smp:fpn", ("lung_field", "lung"), "multilabel", encoder, preprocess)
    ClassificationModel(classifier).save_pretrained(desk / "my-model")
    SegmentationModel(lungs).save_pretrained(desk / "my-lungs")
    for config in CONFIGS:
        if {"model", "data"} <= yaml.safe_load(config).keys():
            (desk / "config.yaml").write_text(config)
    return desk


@pytest.fixture
def reader(desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Somebody who sits at a desk of their own."""
    shutil.copytree(desk, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["example.py"])
    for table in REGISTRIES.values():
        table.load()  # or a module that is imported in the test would register in the copy alone
        monkeypatch.setattr(table, "_entries", dict(table._entries))
    return tmp_path


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training stops after a moment."""
    build = Trainer.__init__

    def briefly(self: Trainer, **settings: Any) -> None:
        epochs = max(1, settings.pop("max_epochs") // 20)
        limits = {"limit_train_batches": 2, "limit_val_batches": 1, "accelerator": "cpu", "enable_progress_bar": False}
        build(self, max_epochs=epochs, **limits, **settings)

    monkeypatch.setattr(Trainer, "__init__", briefly)


@quiet
@pytest.mark.usefixtures("reader", "brief")
@pytest.mark.parametrize("name", PYTHON)
def test_python_blocks_run(name: str) -> None:
    namespace: dict[str, Any] = {"__name__": "documentation"}
    for block in PYTHON[name]:
        exec(compile(block, name, "exec"), namespace)


@pytest.mark.parametrize("name", PAGES)
def test_all_python_blocks_compile(name: str) -> None:
    for block in re.findall(r"^```python\n(.*?)^```$", read_page(name), re.M | re.S):
        compile(block, name, "exec")


@quiet
@pytest.mark.usefixtures("reader", "brief")
@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_examples_run(script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if script.stem == "mini_table":
        pytest.skip("needs the images of two collections, which cannot be passed on")
    assert len(script.read_text(encoding="utf-8").splitlines()) <= 40
    runpy.run_path(str(script), run_name="__main__")
    assert capsys.readouterr().out.strip()


@quiet
@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(command.partition(" > ")[0])[1:]
    if words[0] not in ("fit", "validate", "test"):
        if words != ["--help"]:
            options, more = _parser().parse_known_args(list(_spell_data(words)))
            assert not more or getattr(options, "takes_more", False), (command, more)
        return
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--help" if "--help" in words else "--print_config"])
    assert stopped.value.code == 0, capsys.readouterr().err


def test_every_yaml_block_is_yaml() -> None:
    assert CONFIGS
    assert all(isinstance(yaml.safe_load(config), dict) for config in CONFIGS)


@pytest.mark.parametrize(
    "verb",
    [
        [],
        ["demo"],
        ["predict"],
        ["evaluate"],
        ["plan"],
        ["audit"],
        ["explain"],
        ["recipes"],
        ["tune"],
        ["serve"],
        ["feedback"],
        ["datasets"],
        ["doctor"],
        ["fit"],
        ["completion"],
    ],
    ids=lambda verb: " ".join(verb) or "covidcxr",
)
def test_help_shows_examples(verb: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*verb, "--help"])
    assert re.search(r"examples?:\s+covidcxr", capsys.readouterr().out)


def test_the_readme_has_two_commands() -> None:
    readme = PAGES["README.md"].read_text(encoding="utf-8")
    assert readme.index("pip install covidcxr\ncovidcxr demo\n") < readme.index("\npip install . && covidcxr demo\n")
    wanted = re.search(r"grep -E '(.+)' README", (ROOT / ".ci" / "run").read_text(encoding="utf-8"))
    assert wanted is not None
    assert re.findall(wanted[1], readme, re.M) == ['pip install -e ".[test]" && pytest -n auto']
    for text in (readme, PAGES["docs/index.md"].read_text(encoding="utf-8")):
        assert "research only" in text.lower()


def test_every_package_has_an_api_page() -> None:
    pages = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "api").rglob("*.md"))
    described = set(re.findall(r"^::: (covidcxr[\w.]*)$", pages, re.M))
    packages = {f"covidcxr.{module.name}" for module in iter_modules(covidcxr.__path__)} - {"covidcxr.__main__"}
    assert {name for name in described if name.count(".") == 1} == packages
    assert {table._package for table in REGISTRIES.values()} - {None} <= described


def test_pages_by_topic_have_every_name_of_their_package_once() -> None:
    pages = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "api").rglob("*.md"))
    listed: dict[str, list[str]] = {}
    for package, members in re.findall(
        r"^::: (covidcxr\.\w+)\n    options:\n(?: .+\n)*? +members: \[([^]]+)\]", pages, re.M
    ):
        listed.setdefault(package, []).extend(re.findall(r"\w+", members))
    assert {"covidcxr.data", "covidcxr.evaluation"} <= listed.keys()
    for package, names in listed.items():
        assert sorted(names) == sorted(import_module(package).__all__), package


@pytest.mark.parametrize("table", REGISTRIES)
def test_every_name_is_in_the_guide(table: str) -> None:
    guide = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "guide").glob("*.md"))
    ours = [name for name in REGISTRIES[table].names() if REGISTRIES[table].get(name).__module__.startswith("covidcxr")]
    assert [name for name in ours if f"| `{name}` |" not in guide] == []
    entry_points = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert f"| `{table}` | `{REGISTRIES[table].group}` |" in entry_points


def test_the_table_of_data_sets_tells_what_they_tell() -> None:
    ours = [name for name in registry.DATASETS.names() if registry.DATASETS.get(name).__module__.startswith("covidcxr")]
    rows = []
    for facts in map(describe_dataset, ours):
        images = "" if facts["films"] is None else f"{facts['films']:,}"
        classes = ", ".join(facts["classes"]) or "as found"
        about = f"{facts['what']} `{facts['class']}`"
        cells = (f"`{facts['name']}`", about, classes, images, facts["license"])
        rows.append("".join(f"| {cell} " if cell else "| " for cell in cells) + "|")
    table = (
        read_page("docs/guide/datasets.md")
        .split("| Name | What it is, and its class |")[1]
        .split("\n\n")[0]
        .splitlines()[2:]
    )
    assert table == rows


def test_the_architecture_tells_the_layers_that_hold() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    layers = contracts[0]["layers"]
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    drawn = page.split("<!-- layers -->")[1].split("```")[1]
    assert [re.findall(r"[a-z]+", line[1:29]) for line in drawn.splitlines() if line.startswith("|")] == [
        layer.split(" | ") for layer in layers
    ]
    tree = page.split("## The tree")[1].split("## ")[0]
    missing = [module.name for module in iter_modules(covidcxr.__path__) if f"  {module.name}" not in tree]
    assert missing == ["__main__"]


def test_the_table_of_recipes_tells_what_they_tell() -> None:
    names = {registry.DATASETS.get(name).__qualname__: name for name in registry.DATASETS}
    rows = []
    for recipe in map(Recipe.read, recipe_paths()):
        data = names[recipe.base()["data"]["class_path"].rpartition(".")[2]]
        cells = (f"`{recipe.name}`", recipe.about, f"`{data}`", str(recipe.count), recipe.published)
        rows.append("".join(f"| {cell} " if cell else "| " for cell in cells) + "|")
    guide = read_page("docs/guide/recipes.md")
    assert guide.split("| Recipe | What it trains |")[1].split("\n\n")[0].splitlines()[2:] == rows
    choices = guide.split("| Recipes | Published | Chosen here |")[1]
    own = ("base-", "mini-", "covidcnn2021-frozen-", "wali2021-next")
    assert [name for name in recipe_paths() if f"`{name}`" not in choices and not name.startswith(own)] == []


def test_the_plots_of_the_benchmarks_find_their_tables() -> None:
    script = runpy.run_path(str(ROOT / "docs" / "assets" / "make_plots.py"), run_name="imported")
    for name, (head, _) in script["PLOTS"].items():
        table = script["read_table"](head)
        assert len(table) > 2
        assert all(low <= value <= high for row in table.values() for value, low, high in row.values())
        assert f"assets/{name}.svg" in read_page("docs/benchmarks.md")


def test_the_front_door_is_in_the_api() -> None:
    block = "".join(code_blocks("docs/api/index.md", "python"))
    assert set(re.findall(r"\w+", block)) - {"from", "import", "covidcxr"} == set(covidcxr.__all__) - {"__version__"}


def test_the_version_is_told_alike() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## \[{re.escape(covidcxr.__version__)}\] - ", changelog, re.M)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == covidcxr.__version__
    assert citation["authors"] == [{"name": "The covidcxr authors"}]


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    text = PAGES[name].read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    assert [link for link in links if not (PAGES[name].parent / link).exists()] == []
    snippets = re.findall(r'^--8<-- "([^":]+)', text, re.M)
    assert [path for path in snippets if not (ROOT / path).is_file()] == []


def anchors(page: Path) -> set[str]:
    """What headings of a page are linked by."""
    headings = re.findall(r"^#+ (.+)$", read_page(page.relative_to(ROOT).as_posix()), re.M)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_links_to_headings_lead_to_one(name: str) -> None:
    links = re.findall(r"\]\(([^)#:]*)#([^)]+)\)", PAGES[name].read_text(encoding="utf-8"))
    targets = [((PAGES[name].parent / page).resolve() if page else PAGES[name], anchor) for page, anchor in links]
    names = [(page, anchor) for page, anchor in targets if not anchor.startswith("covidcxr.")]  # mkdocs knows those
    assert [(page.name, anchor) for page, anchor in names if anchor not in anchors(page)] == []


def test_addresses_are_whole_and_those_of_this_repository_lead_to_a_file() -> None:
    texts = [path.read_text(encoding="utf-8") for path in (*PAGES.values(), *(ROOT / "examples").rglob("*.ipynb"))]
    addresses = {word for text in texts for word in re.findall(r"\]\((\w+:[^)]*)\)", text)}
    assert len(addresses) > 20
    assert [word for word in addresses if not re.fullmatch(r"https://[\w-]+(\.[\w-]+)+(/[^\s<>\"]*)?", word)] == []
    ours = re.compile(r"https://(?:colab\.research\.google\.com/)?github(?:\.com)?/covidcxr/covidcxr/\w+/main/(.+)")
    files = [match[1] for word in addresses if (match := ours.match(word))]
    assert files
    assert [path for path in files if not (ROOT / path.partition("#")[0]).exists()] == []


def test_no_file_knows_the_machine_it_was_written_on() -> None:
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("not a clone")
    listing = [git, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    folders = "|".join(("work", "root", "home", "Users", "mnt", "tmp"))
    traces = re.compile(rf"(?<![\w./:~-])/({folders})/\w|index[-_]url|trusted[-_]host|/simple/?\b|\b(\d+\.){{3}}\d+:\d")
    found = []
    for path in (ROOT / name for name in names if name):
        if path == Path(__file__) or not path.is_file() or b"\0" in (content := path.read_bytes()):
            continue
        lines = enumerate(content.decode("utf-8").splitlines(), 1)
        found += [f"{path.relative_to(ROOT)}:{number}: {line}" for number, line in lines if traces.search(line)]
    assert found == []
