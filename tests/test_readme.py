"""The commands and the Python of the README, run as they stand, with presets made small."""

import importlib
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pictures import save

from vqvae2 import __main__, presets
from vqvae2.stages.commands import STAGES

ROOT = Path(__file__).resolve().parents[1]
FIRST = [  # a run of which models are exported for those that the README samples from
    "python train_vqvae.py --run runs/brain --data ~/slices --preset brain128",
    "python extract_codes.py --run runs/brain",
    *(f"python train_prior.py --run runs/brain --level {level}" for level in ("top", "middle", "bottom")),
]
SKIPPED = ("make", "tensorboard", "pip")  # what is no part of the package


def small(preset: presets.Preset) -> presets.Preset:
    """A preset of the same shape that trains in a moment."""
    vqvae = replace(
        preset.vqvae,
        hidden_channels=8,
        residual_channels=4,
        num_residual_layers=1,
        embedding_dim=(4,) * len(preset.vqvae.strides),
        num_embeddings=(8,) * len(preset.vqvae.strides),
        init_vectors=64,
        level_dropout=0.0,
        rate_weight=0.0,
    )
    prior = {"embedding_dim": 4, "channels": 8, "residual_channels": 8, "num_layers": 2, "num_heads": 2}
    steps = {"max_steps": 10, "batch_size": 4, "evaluations": 1}
    return replace(
        preset,
        vqvae=vqvae,
        vqvae_training=replace(preset.vqvae_training, **steps),
        priors=tuple(replace(one, **prior) for one in preset.priors),
        prior_training=tuple(replace(one, **steps) for one in preset.prior_training),
        copies=min(preset.copies, 1),
        sharpening={},
        size="32x32",
        phantom_images=60,
    )


def heads(folder: Path, names: list[str], seed: int) -> None:
    """Slices that differ: bright ellipses of several sizes on black, with texture."""
    y, x = np.mgrid[-1:1:32j, -1:1:32j]
    for index, name in enumerate(names):
        rng = np.random.default_rng([seed, index])
        a, b = rng.uniform(0.4, 0.9, 2)
        inside = (x / a) ** 2 + (y / b) ** 2 < 1
        save(folder / name, (inside * rng.integers(90, 255, (32, 32))).astype(np.uint8))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home folder with the data that the pages speak of, and a folder to work in with a finished run."""
    place = tmp_path_factory.mktemp("pages")
    home, work = place / "home", place / "work"
    names = [f"P{p:02}_{k}.png" for p in range(20) for k in range(3)]
    rows = ["file,sex,age", *(f"{name},{'FM'[i // 3 % 2]},{30 + i}" for i, name in enumerate(names))]
    for seed, folder in enumerate((home / "slices", home / "few", work / "slices")):
        heads(folder, names, seed)
        (folder / "slices.csv").write_text("\n".join(rows) + "\n")
    heads(home / "patients", names[:3], 3)
    heads(work, ["slice.png"], 4)
    save(work / "mask.png", np.pad(np.full((16, 16), 255, np.uint8), ((0, 16), (0, 16))))
    with pytest.MonkeyPatch.context() as patch:
        for name, preset in presets.PRESETS.items():
            patch.setitem(presets.PRESETS, name, small(preset))
        patch.setenv("HOME", str(home))
        patch.chdir(work)
        for line in FIRST:
            run_command(line)
        run_command("vqvae2 export --run runs/brain --out weights/ixi128")
        yield work


def run_command(line: str) -> None:
    """Run one command line of a page in this process."""
    words = [str(Path(word).expanduser()) for word in shlex.split(line, comments=True)]
    if not words or words[0] in SKIPPED or words[:2] in ([".", ".venv/bin/activate"], ["python", "-m"]):
        return
    if words[0] == "vqvae2":
        code = __main__.main(words[1:])
    else:
        assert words[0] == "python", line
        name = Path(words[1]).stem
        assert name.replace("_", "-") in STAGES, line
        more = ["--allow-collapse"] if name == "extract_codes" else []  # models made small use few codes
        code = importlib.import_module(f"vqvae2.stages.{name}").main([*words[2:], *more])
    assert code == 0, line


def code_of(page: str) -> Iterator[tuple[str, str]]:
    """The code of a page in its order: ("python", a fenced block) and ("command", a line of an indented one)."""
    for match in re.finditer(r"```python\n(?P<python>.*?)```|(?P<commands>(?:^    [^\n]*\n)+)", page, re.M | re.S):
        if match["python"]:
            yield "python", match["python"]
        else:
            yield from (("command", line) for line in match["commands"].replace("\\\n", " ").splitlines())


def test_the_code_of_the_readme_runs_as_it_stands(made, tmp_path, monkeypatch):
    work = shutil.copytree(made, tmp_path / "work")
    monkeypatch.chdir(work)
    shutil.rmtree(work / "runs")
    names: dict[str, object] = {}
    counts = {"command": 0, "python": 0}
    for kind, code in code_of((ROOT / "README.md").read_text()):
        counts[kind] += 1
        if kind == "python":
            exec(code, names)
            continue
        run_command(code)
        if re.search(r"--level top.*then", code):  # "then middle, then bottom"
            for level in re.findall(r"then (\w+)", code):
                run_command(re.sub("--level top", f"--level {level}", code))
    assert counts["command"] > 1
