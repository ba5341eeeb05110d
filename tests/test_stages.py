"""Every stage through its real command line: what it writes, how it goes on, and how it is stopped."""

import errno
import importlib
import json
import os
import re
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import picture, save, ten
from PIL import Image
from processes import start_script
from tiny_runs import CHAIN, PRIOR_FLAGS, ROOT, VQVAE_FLAGS, contents, stats

from vqvae2 import VQVAE, CodeStore, checkpoint, sampling
from vqvae2.__main__ import STAGES
from vqvae2.__main__ import main as vqvae2
from vqvae2.data import DataConfig, from_unit, open_data
from vqvae2.data.splits import assign
from vqvae2.presets import PRESETS
from vqvae2.stages import evaluate, extract_codes, sample, train_prior, train_vqvae

pytest_plugins = ["tiny_run_fixtures"]


@pytest.mark.parametrize("name", CHAIN)
def test_every_stage_of_the_chain_ends_well_and_names_the_next(chain, name):
    ended = chain.stages[name]
    assert ended.code == 0, ended.err
    assert "Traceback" not in ended.err
    following = {
        "train_vqvae": "extract_codes.py --run run\n",
        "extract_codes": "train_prior.py --run run --level top\n",
        "train_prior top": "train_prior.py --run run --level bottom\n",
        "train_prior bottom": "sample.py --run run\n",
        "sample": "evaluate.py --run run\n",
    }
    if name in following:  # in the form in which the stages are called
        assert f"next: {sys.executable} {ROOT}/{following[name]}" in ended.out
    assert "wrote run" in ended.out


def test_the_run_folder_holds_what_the_stages_share(chain):
    for folder in ("vqvae", "prior-top", "prior-bottom"):
        held = {path.name for path in (chain.run / folder).iterdir()}
        assert {"config.json", "model.safetensors", "stats.jsonl", "state", "figures"} <= held
        assert any(name.startswith("events.out.tfevents") for name in held)
        assert list((chain.run / folder / "figures").glob("*.png"))
        assert [path.name for path in (chain.run / folder / "state").iterdir()] == ["step-0000000003.pt"]
    assert {path.name for path in (chain.run / "codes").iterdir()} == {"data.mdb"}
    assert {path.name for path in (chain.run / "samples").iterdir()} == {
        *(f"{i:05d}.png" for i in range(5)),
        "grid.png",
        "codes.npz",
        "samples.json",
    }
    assert not [path for path in chain.run.rglob("*") if path.suffix in (".tmp", ".partial", ".pkl")]
    record = json.loads((chain.run / "run.json").read_text())
    assert record["train_vqvae"]["model"]["hidden_channels"] == 8
    assert record["train_prior_bottom"]["model"]["condition_levels"] == ["top"]
    assert record["data"]["phantom_images"] == 60


def test_the_figures_that_matter_are_in_the_log(chain):
    sharpness = {"val/ssim_foreground", "val/psnr_foreground_db", "val/blur_px", "val/power_2_4", "val/coherence_2_4"}
    held_out = sharpness | {
        "val/ssim",
        "val/psnr_db",
        "val/mse",
        "top/perplexity",
        "bottom/perplexity_foreground",
        "top/usage",
    }
    lines = stats(chain.run / "vqvae")
    assert [line["step"] for line in lines] == [1, 2, 3, 3]
    assert {"train/loss", "train/mse", "images_per_second"} <= lines[0].keys()
    assert held_out <= lines[-1].keys()
    for level in ("top", "bottom"):
        last = stats(chain.run / f"prior-{level}")[-1]
        assert last["val/gain"] == pytest.approx(last["val/position_nll"] - last["val/nll"], abs=1e-4)
        assert {"selection/nll", "val/unigram_nll", "val/accuracy", "val/reliance_own"} <= last.keys()
        assert ("val/reliance_top" in last) == (level == "bottom")


def test_the_code_store_holds_the_codes_of_the_images(chain):
    store = CodeStore(chain.run / "codes")
    store.verify()
    assert len(store) == 60
    assert store.shapes == ((4, 4), (8, 8))
    assert store.attributes == {"diagnosis": ("healthy", "atrophy")}
    assert {"train", "selection", "val"} <= set(store.splits)
    assert store.vqvae_sha256 == checkpoint.sha256_of(chain.run / "vqvae")


def test_samples_are_their_decoded_codes_in_the_data_s_own_range(chain):
    folder = chain.run / "samples"
    arrays = np.load(folder / "codes.npz")
    codes = [torch.from_numpy(arrays[level]) for level in ("top", "bottom")]
    images = VQVAE.from_pretrained(chain.run / "vqvae").decode(codes)
    pixels = from_unit(images, (0, 255))
    for i in range(5):
        written = np.asarray(Image.open(folder / f"{i:05d}.png"))
        # Decoded in other batches: rounding may move a value to the next grey.
        assert np.abs(written.astype(int) - pixels[i, 0]).max() <= 1
    how = json.loads((folder / "samples.json").read_text())
    assert how["seed"] == 7
    assert how["label"] == {"diagnosis": "atrophy"}
    assert how["labels"] == [[1]] * 5
    assert how["vqvae_sha256"] == checkpoint.sha256_of(chain.run / "vqvae")
    assert [len(how["nll_nats_per_code"][level]) for level in how["levels"]] == [5, 5]


def test_fewer_samples_are_the_first_of_more_byte_for_byte(chain, tmp_path, call):
    flags = ["--chunk-size", 2, "--label", "atrophy", "--seed", 7, "--out", tmp_path]
    assert call(sample.main, "--run", chain.run, "--num", 3, *flags).code == 0
    for name in ("00000.png", "00001.png", "00002.png"):
        assert (tmp_path / name).read_bytes() == (chain.run / "samples" / name).read_bytes()
    (tmp_path / "123456.png").touch()  # of a set of more than 100,000
    assert call(sample.main, "--run", chain.run, "--num", 1, *flags, "--overwrite").code == 0
    assert {path.name for path in tmp_path.glob("*.png")} == {"00000.png", "grid.png"}


def test_samples_of_other_settings_are_replaced_only_with_overwrite(run, call, refused):
    before = contents(run / "samples")
    flags = ["--run", run, *CHAIN["sample"][1:]]
    for changed, told in (
        (["--num", 4], "of 5 images, not 4"),
        (["--label=diagnosis=healthy"], "cannot be both"),
        (["--seed", 8], "with seed 7, not 8"),
        (["--temperature", 0.5], "with temperature [1.0, 1.0], not [0.5, 0.5]"),
    ):
        assert told in refused(sample.main, *flags, *changed)
    line = refused(sample.main, "--run", run, "--num", 5, "--chunk-size", 2, "--seed", 7)
    assert "with label diagnosis=atrophy, not any" in line
    assert "Add --overwrite" in line
    assert contents(run / "samples") == before
    assert call(sample.main, *flags, "--num", 6).code == 0  # more of the same keep the first
    images = {path.name for path in (run / "samples").glob("0*.png")}
    assert images == {f"{i:05d}.png" for i in range(6)}
    assert call(sample.main, *flags, "--num", 2, "--overwrite").code == 0
    assert {path.name for path in (run / "samples").glob("0*.png")} == {"00000.png", "00001.png"}


def test_an_interrupted_set_is_gone_on_with_and_holds_the_same_bytes(run, tmp_path, call, monkeypatch):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    flags = ["--run", run, "--num", 5, "--chunk-size", 2, "--label", "diagnosis=atrophy"]
    assert call(sample.main, *flags, "--out", whole).code == 0
    made, sample_chunk = [], sampling.sample_chunk

    def interrupt_at_the_third(*args, **kwargs):
        made.append(list(args[2]))
        if len(made) == 3:
            raise KeyboardInterrupt
        return sample_chunk(*args, **kwargs)

    monkeypatch.setattr(sampling, "sample_chunk", interrupt_at_the_third)
    assert call(sample.main, *flags, "--out", stopped).code == 130
    assert not list(stopped.glob("*.png"))
    assert call(sample.main, *flags, "--out", stopped).code == 0
    assert made == [[0, 1], [2, 3], [4, 5], [4, 5]]
    assert {path.name: path.read_bytes() for path in stopped.iterdir()} == {
        path.name: path.read_bytes() for path in whole.iterdir()
    }


@pytest.mark.parametrize("name", ["train-vqvae", "train-prior"])
def test_a_training_goes_on_where_it_stopped_with_its_own_settings(run, call, name):
    main, flags, folder, key = {
        "train-vqvae": (train_vqvae.main, [], run / "vqvae", "train_vqvae"),
        "train-prior": (train_prior.main, ["--level", "bottom"], run / "prior-bottom", "train_prior_bottom"),
    }[name]
    before = stats(folder)
    ended = call(main, "--run", run, *flags, "--resume", "--max-steps", 5)
    assert ended.code == 0, ended.err
    assert "resumed at step 3" in ended.out
    after = stats(folder)
    assert after[: len(before)] == before
    assert [line["step"] for line in after[len(before) :]] == [4, 5, 5]
    assert {path.name for path in (folder / "state").iterdir()} == {"step-0000000003.pt", "step-0000000005.pt"}
    record = json.loads((run / "run.json").read_text())[key]
    assert record["training"]["max_steps"] == 5
    assert record["training"]["batch_size"] == 8
    assert record["model"]["residual_channels"] == (4 if name == "train-vqvae" else 8)
    # There is nothing left to do: it says so, and does not train on.
    assert call(main, "--run", run, *flags, "--resume").code == 0
    assert stats(folder) == after


def test_a_dry_run_tells_what_would_happen_and_writes_the_data_report_alone(run, tmp_path, call):
    ended = call(train_vqvae.main, "--run", tmp_path / "new", *VQVAE_FLAGS, "--dry-run")
    assert ended.code == 0
    written = sorted(contents(tmp_path / "new"))
    assert written == [
        f"data-report/{name}"
        for name in ("contact-sheet.png", "data-report.json", "images.csv", "report.txt", "subjects.csv")
    ]
    for told in (
        "train            44",
        "32 x 32",
        "parameters",
        "top 4x4 of 16",
        "bottom 8x8 of 16",
        "memory",
        "budget     VQ-VAE",
        "budget     prior of top",
        "budget     prior of bottom",
        "ends after 3 steps",
    ):
        assert told in ended.out
    before = contents(run)
    stages = [
        (extract_codes.main, ["--overwrite"], "60 images"),
        (train_prior.main, ["--level", "bottom", *PRIOR_FLAGS], "budget     prior of bottom"),
        (sample.main, ["--num", "9", "--overwrite"], "9 images of 16 top + 64 bottom"),
    ]
    for main, flags, told in stages:
        ended = call(main, "--run", run, *flags, "--dry-run")
        assert ended.code == 0
        assert told in ended.out
    assert contents(run) == before


def test_the_data_report_is_kept_with_the_run_and_never_read_as_data(run, tmp_path, call):
    record = json.loads((run / "data-report" / "data-report.json").read_text())
    assert record["splits"]["train"]["images"] == 44
    labels = record["splits"]["train"]["labels"]["diagnosis"]
    assert sum(labels.values()) == 44
    assert record["splits"]["train"]["labels_missing"] == {"diagnosis": 0}
    assert "train            44" in (run / "data-report" / "report.txt").read_text()
    with Image.open(run / "data-report" / "contact-sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("L"))
    assert pixels.shape[1] > 600
    assert pixels.std() > 20  # images, not an empty page
    folder = ten(tmp_path / "images", 30)
    shutil.copytree(run / "data-report", folder / "trial" / "data-report")
    data = open_data(DataConfig(data=str(folder)))
    assert sum(map(len, data.splits.values())) == 30
    assert ("a data report, not data") in dict(data.skipped).values()


def test_a_dry_run_leaves_the_report_of_a_training_that_has_only_a_state(tmp_path, call):
    run = tmp_path / "run"
    assert call(train_vqvae.main, "--run", run, *VQVAE_FLAGS).code == 0
    (run / "vqvae" / "model.safetensors").unlink()
    before = contents(run)
    assert call(train_vqvae.main, "--run", run, *VQVAE_FLAGS, "--split-seed", 5, "--dry-run").code == 0
    assert contents(run) == before


def test_nobody_moves_to_another_split_between_two_stages(tmp_path, call, refused):
    def people(count: int) -> list[str]:
        return [f"p{i}" for i in range(count)]

    before = dict(zip(people(6), assign(people(6), [None] * 6, 0), strict=True))
    # A new one takes the place of somebody who had filled a split that was empty.
    newcomers = (f"q{i}" for i in range(1000))
    new = next(q for q in newcomers if assign([*people(6), q], [None] * 7, 0)[:6] != list(before.values()))
    folder = tmp_path / "data"
    for who in people(6):
        for k in range(2):
            save(folder / f"{who}_{k}.png", picture(7 * int(who[1:]) + k, (32, 32)))
    flags = list(VQVAE_FLAGS)
    flags[flags.index("--data") + 1] = str(folder)
    run = tmp_path / "run"
    assert call(train_vqvae.main, "--run", run, *flags).code == 0
    save(folder / f"{new}_0.png", picture(1, (32, 32)))
    moved = "subjects are in another split than when the VQ-VAE was trained"
    assert moved in refused(extract_codes.main, "--run", run, "--allow-collapse")
    assert moved in refused(train_vqvae.main, "--run", run, "--resume", "--max-steps", 9)
    assert moved in refused(evaluate.main, "--run", run)
    (folder / f"{new}_0.png").unlink()
    stays = next(q for q in newcomers if assign([*people(6), q], [None] * 7, 0)[:6] == list(before.values()))
    save(folder / f"{stays}_0.png", picture(1, (32, 32)))
    assert call(extract_codes.main, "--run", run, "--allow-collapse").code == 0


def test_a_set_whose_writing_breaks_off_is_gone_on_with(run, call, refused, monkeypatch):
    flags = ["--run", run, *CHAIN["sample"][1:]]
    write = Path.write_bytes

    def full(path, content):
        if path.name == "00002.part":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, content)

    before = contents(run / "samples")
    images = {path.name: path.read_bytes() for path in (run / "samples").glob("*.*") if path.suffix != ".json"}
    monkeypatch.setattr(Path, "write_bytes", full)
    assert "No space left" in refused(sample.main, *flags)
    monkeypatch.undo()
    now = contents(run / "samples")
    assert now.items() >= before.items()  # the earlier set is whole until the new one is
    assert any(name.startswith(".unfinished-") and name.endswith("00001.png") for name in now)
    made = []
    monkeypatch.setattr(
        sampling, "sample_chunk", lambda *a, _make=sampling.sample_chunk: (made.append(a), _make(*a))[1]
    )
    assert call(sample.main, *flags).code == 0
    assert len(made) == 2  # of three chunks
    assert contents(run / "samples").keys() == before.keys()
    assert {name: (run / "samples" / name).read_bytes() for name in images} == images


def test_a_config_file_gives_settings_that_flags_override(tmp_path, call, refused):
    path = tmp_path / "settings.json"
    path.write_text(json.dumps({"num_embeddings": [9, 10], "hidden_channels": 6, "max_steps": 8}))
    flags = ["--run", tmp_path / "run", "--data", "phantom", "--phantom-images", 20, "--size", "32x32"]
    flags += ["--config", path, "--dry-run"]
    told = call(train_vqvae.main, *flags, "--hidden-channels", 4).out
    assert "top 4x4 of 9" in told
    assert "hidden 4" in told
    assert "ends after 8 steps" in told
    for content, named in (('{"hiden": 1}', "hiden"), ("[1]", "object"), ("{", "cannot read")):
        path.write_text(content)
        assert named in refused(train_vqvae.main, *flags)


@pytest.mark.parametrize("stage", STAGES)
def test_help_ends_with_0_and_a_wrong_flag_with_2(stage, call):
    main = importlib.import_module(f"vqvae2.stages.{stage.replace('-', '_')}").main
    for prefix, entry in (([], main), ([stage], vqvae2)):
        helped = call(entry, *prefix, "--help")
        assert helped.code == 0
        assert "--run" in helped.out
        wrong = call(entry, *prefix, "--run", "x", "--bogus", "3")
        assert wrong.code == 2
        assert "bogus" in wrong.err or "not a run folder" in wrong.err
        assert "Traceback" not in wrong.err
        assert call(entry, *prefix, "--version").out.startswith("vqvae2 ")


def test_the_entry_point_names_its_stages(call, refused):
    assert all(stage in call(vqvae2, "--help").out for stage in STAGES)
    assert "train-vqvae" in refused(vqvae2, "trian-vqvae")
    assert "train-vqvae" in refused(vqvae2)


def test_a_short_run_is_eager_evaluated_twice_and_says_how_it_is_shared(tmp_path, call):
    flags = ["--run", tmp_path / "run", "--data", "phantom", "--phantom-images", 60, "--preset", "demo"]
    flags += ["--size", "32x32", "--max-steps", 30, "--init-vectors", 128]
    ended = call(train_vqvae.main, *flags, "--sharpen-share", 0.3)
    assert ended.code == 0, ended.err
    assert "21 steps for the VQ-VAE, then 9 steps for its decoder alone" in ended.out
    assert ended.out.count("eager: torch.compile pays") == 2
    assert "minutes or" not in ended.out  # the preset's own limit gives way to the one that is typed
    shown = [line for line in ended.out.splitlines() if " min  " in line]
    assert len(shown) == 2
    assert max(map(len, shown)) < 100
    words = r"\* step 21  \d+\.\d min  loss \d\.\d{4}  SSIM -?\d\.\d{3}  perplexity top \d+, bottom \d+"
    assert re.fullmatch(words, shown[0])
    assert "* marks the lowest selection/loss so far: that model is kept" in ended.out


def test_the_help_names_every_preset(call):
    told = call(train_vqvae.main, "--help").out
    assert all(name in told for name in PRESETS)


@pytest.mark.parametrize("kind", ["ctrl-c", "whole group"])
def test_a_signal_saves_the_state_and_the_training_goes_on(tmp_path, call, kind):
    """SIGINT as from a terminal; SIGTERM to a job's whole group of processes, the loading ones among them."""
    run = tmp_path / "run"
    # It would train for days: the signal always comes in time.
    endless = ["--max-steps", "1000000000", "--compile", "off", "--num-workers", str(int(kind != "ctrl-c"))]
    started = start_script(ROOT / "train_vqvae.py", "--run", run, *VQVAE_FLAGS, *endless)
    log = run / "vqvae" / "stats.jsonl"
    while not (log.exists() and log.stat().st_size) and started.process.is_alive():
        time.sleep(0.05)
    if kind == "ctrl-c":
        os.kill(started.pid, signal.SIGINT)
    else:
        os.killpg(started.pid, signal.SIGTERM)
    code, out, err = started.wait()
    assert code == 130, (out, err)
    assert err.count("\n") == 1
    step = stats(run / "vqvae")[-1]["step"]
    assert f"stopped at step {step}" in err
    assert f"{sys.executable} {ROOT}/train_vqvae.py --run {run} --resume" in err
    ended = call(train_vqvae.main, "--run", run, "--resume", "--max-steps", step + 2)
    assert ended.code == 0
    assert f"resumed at step {step}," in ended.out
    assert [line["step"] for line in stats(run / "vqvae")] == [*range(1, step + 3), step + 2]
    assert checkpoint.has_model(run / "vqvae")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_prior_names_the_command_that_goes_on(run, call, monkeypatch, number):
    predict, calls = train_prior.PriorTask.loss, []

    def interrupted(task, batch):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), number)
        return predict(task, batch)

    monkeypatch.setattr(train_prior.PriorTask, "loss", interrupted)
    flags = ["--level", "bottom", "--overwrite", *PRIOR_FLAGS]
    ended = call(train_prior.main, "--run", run, *flags)
    assert ended.code == 130
    assert "stopped at step 2" in ended.err
    argv = shlex.split(ended.err.split("Continue with: python -m vqvae2 train-prior ")[1])
    ended = call(train_prior.main, *argv)
    assert ended.code == 0, ended.err
    assert "resumed at step 2" in ended.out
    assert [line["step"] for line in stats(run / "prior-bottom")] == [1, 2, 3, 3]
