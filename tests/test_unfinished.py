"""What an interruption leaves is neither lost nor taken for whole, and nothing that a user asks for is ignored."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import contents

from vqvae2 import VQVAE, sampling
from vqvae2.data import load_images
from vqvae2.detail import DetailDecoder
from vqvae2.errors import UserError
from vqvae2.metrics import CodeCounts, least_perplexity
from vqvae2.stages import compress, decompress, evaluate, export, sample, sample_folder, train_vqvae
from vqvae2.stages.common import RunFolder, longer_training

pytest_plugins = ["tiny_run_fixtures"]


@pytest.fixture
def begun(run, call, monkeypatch):
    """A run of whose 500 samples two chunks are there, and no other samples."""
    shutil.rmtree(run / "samples")
    made = []

    def interrupt_at_the_third(*args, _make=sampling.sample_chunk, **kwargs):
        made.append(args)
        if len(made) == 3:
            raise KeyboardInterrupt
        return _make(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(sampling, "sample_chunk", interrupt_at_the_third)
        assert call(sample.main, "--run", run, "--num", 500, "--chunk-size", 2, "--seed", 3).code == 130
    return run


def chunks(run):
    return sorted(path.name for path in (run / "samples").glob(".unfinished-*/*.safetensors"))


def test_samples_that_were_begun_are_not_removed_by_others(begun, call, refused):
    kept = chunks(begun)
    assert len(kept) == 2
    flags = ["--run", begun, "--chunk-size", 2, "--seed", 3]
    for other in (["--run", begun, "--num", 2], [*flags, "--num", 4], [*flags, "--temperature", 0.5]):
        told = refused(sample.main, *other)
        assert "500 samples were begun in this folder and not finished" in told
        assert f"sample --run {begun} --out {begun}/samples --num 500 --chunk-size 2 --seed 3" in told
        assert chunks(begun) == kept
    ended = call(evaluate.main, "--run", begun, "--num-samples", 4)
    assert ended.code == 0, ended.err
    assert (
        "which were begun and not finished" in json.loads((begun / "report" / "report.json").read_text())["missing"][0]
    )
    assert chunks(begun) == kept
    assert call(sample.main, *flags, "--num", 4, "--overwrite").code == 0
    assert not list((begun / "samples").glob(".unfinished-*"))
    assert (begun / "samples" / "00003.png").exists()


def test_samples_that_an_evaluation_began_are_drawn_by_the_next_one(run, call, monkeypatch):
    shutil.rmtree(run / "samples")
    with monkeypatch.context() as patch:
        patch.setattr(sample_folder, "begin", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert call(evaluate.main, "--run", run, "--num-samples", 4).code == 130
    assert list((run / "samples").glob(".unfinished-*"))
    assert call(evaluate.main, "--run", run, "--num-samples", 4).code == 0
    assert json.loads((run / "samples" / "samples.json").read_text())["num"] == 4


def test_an_interrupted_evaluation_leaves_no_report_of_figures_that_are_gone(run, call, monkeypatch):
    assert (run / "report" / "report.json").is_file()
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "_priors", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert call(evaluate.main, "--run", run).code == 130
    assert not (run / "report" / "report.json").exists()
    assert not (run / "report" / "index.html").exists()
    assert call(evaluate.main, "--run", run).code == 0
    assert (run / "report" / "report.json").is_file()


def test_a_detail_decoder_of_another_vqvae_is_not_exported(run, tmp_path, refused):
    model = VQVAE.from_pretrained(run / "vqvae")
    DetailDecoder.of(model, 1).save_pretrained(run / "vqvae" / "detail", {"vqvae_sha256": "of another"})
    assert "trained for another VQ-VAE" in refused(export.main, "--run", run, "--out", tmp_path / "models")
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    "flags",
    [
        ["--bids-suffix", "T1w"],
        ["--bids-entity", "space=MNI152"],
        ["--slice-range", "20%:80%"],
        ["--slice-every", "4"],
        ["--spacing", "2"],
        ["--min-foreground", "0.2"],
        ["--clip-high", "99"],
    ],
)
def test_a_choice_of_volumes_is_not_ignored_for_images(tmp_path, refused, flags):
    for i in range(6):
        (tmp_path / "data").mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8), 20 * i, np.uint8)).save(tmp_path / "data" / f"sub-0{i}_T1w.png")
    line = ["--run", tmp_path / "run", "--data", tmp_path / "data", "--dry-run"]
    told = refused(train_vqvae.main, *line, *flags)
    assert f"{flags[0]} is for volumes, and these are images" in told


def test_labels_that_a_training_began_without_are_refused_when_it_is_resumed(run, refused):
    (run / "t.csv").write_text("subject,sex\np000,F\np001,M\n")
    before = contents(run)
    told = refused(train_vqvae.main, "--run", run, "--resume", "--labels", run / "t.csv:sex", "--dry-run")
    assert "began without labels, now they are sex" in told
    assert contents(run) == before


def sixteen_bits(folder, highest):
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):
        pixels = rng.integers(0, highest + 1, (32, 32)).astype(np.uint16)
        pixels[0, 0] = highest
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def test_dark_images_of_16_bits_are_compressed_without_loss(run, tmp_path, call):
    data = sixteen_bits(tmp_path / "dark", 243)
    flags = ["--run", run, "--out", tmp_path / "file.vq", "--data", data, "--chunk-size", 2, "--lossless"]
    ended = call(compress.main, *flags)
    assert ended.code == 0, ended.err
    assert call(decompress.main, "--run", run, "--file", tmp_path / "file.vq", "--out", tmp_path / "again").code == 0
    for i in range(3):
        given, again = (np.asarray(Image.open(folder / f"{i}.png")) for folder in (data, tmp_path / "again"))
        np.testing.assert_array_equal(again, given)


def test_dark_images_of_16_bits_belong_to_a_run_of_16_bits_and_images_of_8_do_not(tmp_path):
    like = {
        "height": 32, "width": 32, "channels": 1, "value_range": [0.0, 4095.0], "fit": "shrink",
        "attributes": {}, "bins": {}, "numbers": [], "slices": None,
    }  # fmt: skip
    dark = load_images(sixteen_bits(tmp_path / "dark", 243), like)
    assert float(dark.at([0]).max()) == pytest.approx(2 * 243 / 4095 - 1)
    (tmp_path / "narrow").mkdir()
    Image.fromarray(np.full((32, 32), 9, np.uint8)).save(tmp_path / "narrow" / "a.png")
    with pytest.raises(UserError, match="same bit depth"):
        load_images(tmp_path / "narrow", like)


def test_a_small_codebook_that_is_used_has_not_collapsed():
    assert [least_perplexity(k) for k in (2, 4, 7, 8, 200, 512)] == [1.5, 2.5, 4, 4, 4, 10.24]
    for k in (2, 4):
        used, dead = CodeCounts(k), CodeCounts(k)
        codes = torch.arange(64).view(1, 8, 8) % k
        used.update(codes, codes >= 0)
        dead.update(0 * codes, codes >= 0)
        assert (used.collapsed, dead.collapsed) == (False, True)


def test_a_vqvae_without_a_training_to_go_on_with_is_the_start_of_a_new_run(run):
    assert "--resume" in longer_training(RunFolder(run))
    shutil.rmtree(run / "vqvae" / "state")
    told = longer_training(RunFolder(run))
    assert "--resume" not in told
    assert f"train-vqvae --run NEW --data DATA --init {run}" in told


def test_messages_name_a_way_that_is_open(run, tmp_path, call, refused):
    models = tmp_path / "models"
    assert call(export.main, "--run", run, "--out", models).code == 0
    assert "Give --classifier FOLDER" in refused(sample.main, "--run", models, "--reject", 0.5)
    assert f"--run {models} --data DATA" in refused(evaluate.main, "--run", run, "--against", models)
    (tmp_path / "images").mkdir()
    flags = ["--run", tmp_path / "new", "--data", "phantom", "--init", tmp_path / "images"]
    assert "Give --init a run folder" in refused(train_vqvae.main, *flags)
    assert "--data DATA" in refused(sample.main, "--run", tmp_path / "images")
