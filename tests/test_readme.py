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
FIRST = [  # models in place of those that the repository holds
    "python train_vqvae.py --run runs/brain --data ~/slices --preset brain128",
    "python extract_codes.py --run runs/brain",
    *(f"python train_prior.py --run runs/brain --level {level}" for level in ("top", "middle", "bottom")),
    "vqvae2 export --run runs/brain --out weights/ixi128",
]


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
    )


def heads(folder: Path, names: list[str], seed: int) -> None:
    """Slices that differ: bright ellipses of several sizes on black, with texture."""
    y, x = np.mgrid[-1:1:32j, -1:1:32j]
    for index, name in enumerate(names):
        rng = np.random.default_rng([seed, index])
        a, b = rng.uniform(0.4, 0.9, 2)
        inside = (x / a) ** 2 + (y / b) ** 2 < 1
        save(folder / name, (inside * rng.integers(90, 255, (32, 32))).astype(np.uint8))


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, and a home folder, with the data that the README speaks of."""
    home, work = tmp_path / "home", tmp_path / "work"
    names = [f"P{p:02}_{k}.png" for p in range(20) for k in range(3)]
    for seed, folder in enumerate((home / "slices", home / "few", work / "slices")):
        heads(folder, names, seed)
    heads(home / "patients", names[:3], 3)
    heads(work, ["slice.png"], 4)
    save(work / "mask.png", np.pad(np.full((16, 16), 255, np.uint8), ((0, 16), (0, 16))))
    for name, preset in presets.PRESETS.items():
        monkeypatch.setitem(presets.PRESETS, name, small(preset))
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(work)
    return work


def run_command(line: str) -> None:
    """Run one command line in this process; making the environment and the demo is no part of it."""
    words = [str(Path(word).expanduser()) for word in shlex.split(line, comments=True)]
    if words[0] == "make":
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


def test_the_code_of_the_readme_runs_as_it_stands(work):
    for line in FIRST:
        run_command(line)
    shutil.rmtree(work / "runs")
    code = list(code_of((ROOT / "README.md").read_text()))
    kinds = [kind for kind, _ in code]
    assert kinds.count("command") > 10
    assert kinds.count("python") == 1
    for kind, text in code:
        if kind == "python":
            exec(text, {})
            continue
        run_command(text)
        if re.search(r"--level top.*then", text):  # "then middle, then bottom"
            for level in re.findall(r"then (\w+)", text):
                run_command(re.sub("--level top", f"--level {level}", text))
