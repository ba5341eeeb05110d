"""What the pages promise is there: messages, flags, commands."""

import functools
import importlib
import re
import sys
from pathlib import Path
from typing import get_args

import pytest

from vqvae2 import PriorConfig, VQVAEConfig
from vqvae2.optim import TrainingConfig
from vqvae2.presets import PRESETS, Preset
from vqvae2.sampling import Sharpness
from vqvae2.stages.commands import STAGES, TOOLS
from vqvae2.version import __version__
from vqvae2.vqvae_config import UpperDecoder

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


def source() -> str:
    """All strings of the package, joined as Python joins them, without what is put into f-strings."""
    text = "".join(path.read_text() for path in sorted((ROOT / "vqvae2").rglob("*.py")))
    return re.sub(r"\{[^{}]*\}", "...", re.sub(r'"\s+f?"', "", text))


def test_messages_of_the_troubleshooting_page_exist():
    page = (ROOT / "docs" / "troubleshooting.md").read_text().split("## By symptom")[0]
    messages = [line.strip("`\n") for line in re.findall(r"^`[^`]+`", page, re.M)]
    assert len(messages) > 8
    code = source()
    for message in messages:
        for part in re.split(r"\.\.\.|\bN\b", message):
            assert part.strip() in code, message


@pytest.fixture(scope="module")
def helps() -> dict[str, str]:
    """What each command's --help prints."""
    sys.path.insert(0, str(ROOT / "docs"))
    from flag_reference import help_text

    return {name: help_text(name) for name in (*STAGES, *TOOLS)}


def commands() -> list[tuple[str, str, list[str]]]:
    """(page, command, flags) of each command line in a code block of a page, or of the speedrun."""
    found = []
    for page in (*PAGES, ROOT / "benchmarks" / "speedrun.sh"):
        for line in page.read_text().replace("\\\n", " ").splitlines():
            if match := re.match(r"\s*(?:python |timed \S+ |torchrun .*?|srun .*?)?(\w+)\.py\s(.*)", line):
                name, rest = match[1].replace("_", "-"), match[2]
            elif match := re.match(r"\s*vqvae2 (import \w+|[a-z-]+)\s(.*)", line):
                name, rest = match[1].replace(" ", "-"), match[2]
            else:
                continue
            if name in (*STAGES, *TOOLS):
                found.append((page.name, name, re.findall(r"(?<!\S)--[a-z][a-z-]*", rest.split(" # ")[0])))
    return found


def test_flags_of_every_command_line_exist(helps):
    lines = commands()
    assert len(lines) > 25
    assert sum(page == "speedrun.sh" for page, _, _ in lines) == 7
    for page, name, flags in lines:
        for flag in flags:
            plain = re.sub("^--no-", "--", flag)
            assert re.search(rf"^  {plain}\b", helps[name], re.M), f"{page}: {name} {flag}"


def test_the_flag_reference_names_every_command(helps):
    from flag_reference import groups

    data = groups(helps["train-vqvae"])["data"]
    assert data["--data DATA"].endswith("FashionMNIST. Required.")
    page = (ROOT / "docs" / "flags.md").read_text()
    assert re.findall(r"```\{flags\} ([a-z-]+)", page) == [*STAGES, *TOOLS]


def looked_up(name: str) -> object:
    """The object of a dotted name below vqvae2; None where there is no such module."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        path = ROOT.joinpath("vqvae2", *parts[:count])
        if path.with_suffix(".py").is_file() or (path / "__init__.py").is_file():
            module = importlib.import_module(".".join(["vqvae2", *parts[:count]]))
            return functools.reduce(getattr, parts[count:], module)
    return None


def test_names_of_code_on_the_paper_page_are_alive():
    page = (ROOT / "docs" / "paper-to-code.md").read_text()
    names = set(re.findall(r"`([a-z_0-9]+(?:\.[A-Za-z_]\w*)+)`", page))
    names = {name for name in names if not name.endswith(".py")}
    assert len(names) > 25
    for name in sorted(names):
        assert looked_up(name) is not None, name
    configs = (VQVAEConfig, PriorConfig, TrainingConfig, Preset, Sharpness)
    known = {name for config in configs for name in dir(config)} | set(PRESETS) | set(get_args(UpperDecoder))
    words = set(re.findall(r"`([a-z_0-9]+)`", page)) - {"n01440764", "train", "val", "vqvae2"}
    assert len(words) > 25
    assert words <= known, words - known


def test_each_row_of_the_paper_names_its_code_and_each_deviation_its_effect():
    page = (ROOT / "docs" / "paper-to-code.md").read_text()
    rows = re.search(r"^\| In the paper .*\n\|---.*\n((?:\|.*\n)+)", page, re.M)[1].splitlines()
    assert len(rows) > 15
    for row in rows:
        assert re.search(r"`[a-z_]+\.[\w.]+`", row), row
    beyond = re.split(r"\n\n(?=[^:\s])", page.split("## Where we go beyond it")[1].split("\nPriors: Gated")[0].strip())
    deviations = [text for text in beyond if "\n: " in text]
    assert len(deviations) > 12
    for text in deviations:
        assert re.search(r"`[a-z_]+(\.[\w.]+)?`", text), text
        assert re.search(r"[Mm]easured", text), text


def test_pages_do_not_link_into_nothing():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?://|#)([^)#\s]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
        for name in re.findall(r"\{doc\}`([\w-]+)`", page.read_text()):
            assert any((ROOT / "docs" / f"{name}{kind}").exists() for kind in (".md", ".ipynb")), f"{page.name}: {name}"


def test_every_page_is_in_the_table_of_contents():
    index = (ROOT / "docs" / "index.md").read_text()
    listed = " ".join(re.findall(r"```{toctree}(.*?)```", index, re.S)).split()
    pages = {page.stem for kind in ("*.md", "*.ipynb") for page in (ROOT / "docs").glob(kind)} - {"index"}
    assert pages <= set(listed)


def test_the_citation_names_this_version():
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
