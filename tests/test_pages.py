"""The commands and the Python of README and pages, run as they stand, with presets made small."""

import importlib
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from case_trees import head, volume
from pictures import save
from random_weights import random_weights

from vqvae2 import __main__, presets
from vqvae2.stages.commands import STAGES

ROOT = Path(__file__).resolve().parents[1]
FIRST = [  # the run that every page but README and start supposes
    "python train_vqvae.py --run runs/brain --data ~/slices --preset brain128"
    " --labels slices.csv:sex,age --bins age=40,70",
    "python extract_codes.py --run runs/brain",
    *(f"python train_prior.py --run runs/brain --level {level}" for level in ("top", "middle", "bottom")),
]
DEMO = [  # what `make demo` trains
    "python train_vqvae.py --run runs/demo --data phantom --preset demo",
    "python extract_codes.py --run runs/demo",
    *(f"python train_prior.py --run runs/demo --level {level}" for level in ("top", "bottom")),
]
MADE_HERE = ("README.md", "docs/start.md", "docs/tutorials.md")  # these train the runs that they speak of
# Each page, and how many command lines of the package it has at least.
PAGES = {"README.md": 11, "docs/start.md": 12, "docs/tutorials.md": 14, "docs/inference.md": 7, "docs/formats.md": 1}
SIDE = 16  # of images here, in pixels
# What is made smaller: limits, numbers of samples, and a box in pixels of slices of 128x128.
LIMITS = ("--max-minutes 2", "--max-steps 1500", "--max-steps 600")
SMALLER = {
    **dict.fromkeys(LIMITS, "--max-steps 10"),
    "--num 64": "--num 8",
    "--num 16": "--num 4",
    "0,0,64,128": f"0,0,{SIDE // 2},{SIDE}",
}


def small(preset: presets.Preset, side: int) -> presets.Preset:
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
    prior = {"embedding_dim": 4, "channels": 8, "residual_channels": 8, "num_layers": 1, "num_heads": 2}
    steps = {"max_steps": 10, "batch_size": 4, "evaluations": 1}
    return replace(
        preset,
        vqvae=vqvae,
        vqvae_training=replace(preset.vqvae_training, **steps),
        priors=tuple(replace(one, **prior) for one in preset.priors),
        prior_training=tuple(replace(one, **steps) for one in preset.prior_training),
        copies=min(preset.copies, 1),
        sharpening={},
        size=f"{side}x{side}",
        phantom_images=60,
    )


def heads(folder: Path, names: list[str], seed: int) -> None:
    """Slices that differ: bright ellipses of several sizes on black, with texture."""
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    for index, name in enumerate(names):
        rng = np.random.default_rng([seed, index])
        a, b = rng.uniform(0.4, 0.9, 2)
        inside = (x / a) ** 2 + (y / b) ** 2 < 1
        save(folder / name, (inside * rng.integers(90, 255, (SIDE, SIDE))).astype(np.uint8))


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
    save(work / "mask.png", np.pad(np.full((SIDE // 2, SIDE // 2), 255, np.uint8), (0, SIDE // 2)))
    for p in range(20):
        volume(home / "bids" / f"sub-{p:02}" / "anat" / f"sub-{p:02}_T1w.nii.gz", head(p), np.diag([8.0, 8, 8, 1]))
    people = ["participant_id\tsex\tage", *(f"sub-{p:02}\t{'FM'[p % 2]}\t{30 + 3 * p}" for p in range(20))]
    (home / "bids" / "participants.tsv").write_text("\n".join(people) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        for name, preset in presets.PRESETS.items():
            patch.setitem(presets.PRESETS, name, small(preset, 32 if name == "demo" else SIDE))  # the phantom's least
        patch.setenv("HOME", str(home))
        patch.setenv("TORCH_HOME", str(place / "torch"))
        random_weights(place / "torch")  # the pages have the weights of MobileNetV2 downloaded
        patch.chdir(work)
        for line in FIRST:
            run_command(line)
        run_command("vqvae2 export --run runs/brain --out weights/ixi128")
        yield work


def run_command(line: str) -> bool:
    """Run one command line of a page in this process; False where it is none of the package's."""
    for large, little in SMALLER.items():
        line = line.replace(large, little)
    words = [str(Path(word).expanduser()) for word in shlex.split(line, comments=True)]
    if words[:1] == ["vqvae2"]:
        code = __main__.main(words[1:])
    elif words[:1] == ["python"] and words[1] not in ("-m", "-c"):
        name = Path(words[1]).stem
        assert name.replace("_", "-") in STAGES, line
        more = ["--allow-collapse"] if name == "extract_codes" else []  # models made small use few codes
        code = importlib.import_module(f"vqvae2.stages.{name}").main([*words[2:], *more])
    else:
        return False
    assert code == 0, line
    return True


def code_of(page: str) -> Iterator[tuple[str, str]]:
    """The code of a page in its order: ("python", a fenced block) and ("command", a line of an indented one)."""
    for match in re.finditer(r"```python\n(?P<python>.*?)```|(?P<commands>(?:^    [^\n]*\n)+)", page, re.M | re.S):
        if match["python"]:
            yield "python", match["python"]
        else:
            yield from (("command", line) for line in match["commands"].replace("\\\n", " ").splitlines())


@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs_as_it_stands(page, made, tmp_path, monkeypatch):
    work = shutil.copytree(made, tmp_path / "work")
    monkeypatch.chdir(work)
    if page in MADE_HERE:
        shutil.rmtree(work / "runs")
    for line in DEMO if page == "docs/tutorials.md" else []:  # other pages only name it, or give its commands
        run_command(line)
    names: dict[str, object] = {}
    ran = 0
    for kind, code in code_of((ROOT / page).read_text()):
        if kind == "python":
            exec(code, names)
            continue
        ran += run_command(code)
        if match := re.search(r"--level top.*then", code):  # "then middle, then bottom"
            for level in re.findall(r"then (\w+)", match[0] + code[match.end() :]):
                run_command(re.sub("--level top", f"--level {level}", code))
    assert ran >= PAGES[page]


def test_the_speedrun_runs_as_it_stands(made, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    script = (ROOT / "benchmarks" / "speedrun.sh").read_text()
    lines = re.findall(r'timed "\$python" (.+)', script)
    flags = '${flags[@]+"${flags[@]}"}'
    given = {'"$run"': "runs/speedrun", '"$data"': "~/slices", flags: "--labels slices.csv:sex"}
    lines.sort(key=lambda line: line.endswith("--resume"))  # what begins a training, then what goes on with it
    for line in lines:
        for name, value in given.items():
            line = line.replace(name, value)
        assert run_command(f"python {line}")
    assert len(lines) == 7
    monkeypatch.setattr("sys.argv", ["-", "runs/speedrun/report/report.json", "0", *"12345"])
    capsys.readouterr()
    exec(script.split("<< 'END'\n")[1].removesuffix("END\n"), {})
    assert "1.0 + 2.0 + 3.0 + 4.0 + 5.0 = **15.0**" in capsys.readouterr().out
