"""What a user may get wrong, through the real command lines: exit code 2, one line, and nothing is written."""

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_runs import PRIOR_FLAGS, VQVAE_FLAGS, contents, stats

from vqvae2 import VQVAE, CodeStore, checkpoint, distributed, files, metrics
from vqvae2.__main__ import STAGES
from vqvae2.__main__ import main as vqvae2
from vqvae2.metrics import codes
from vqvae2.stages import compress, evaluate, export, extract_codes, sample, train_prior, train_vqvae
from vqvae2.stages.vqvae_tasks import VQVAETask

pytest_plugins = ["tiny_run_fixtures"]

OUT_OF_RANGE = {
    "train-vqvae": (
        "--decay 2",
        "--epsilon 0",
        "--commitment-cost -1",
        "--init-vectors -1",
        "--revival-threshold -1",
        "--num-embeddings 0 0",
        "--embedding-dim 4",
        "--strides 1 4",
        "--level-dropout 1",
        "--learning-rate 0",
        "--beta1 1",
        "--beta2 -1",
        "--weight-decay -1",
        "--patience -1",
        "--warmup-steps -1",
        "--final-learning-rate 2",
        "--max-steps 0",
        "--max-steps three",
        "--batch-size 0",
        "--ema-decay 1",
        "--muon-learning-rate 0",
    ),
    "train-prior": (
        "--kernel-size 1",
        "--patch 0",
        "--patch 3",
        "--patch-channels 0",
        "--num-heads 3 --attention-every 1",
        "--num-heads 0 --attention-every 1",
        "--num-layers 0",
        "--embedding-dim 0",
        "--dropout 1",
        "--label-dropout 2",
        "--max-minutes 0",
    ),
}


@pytest.mark.parametrize("stage", [name for name in STAGES if name != "train-vqvae"])
def test_a_missing_run_folder_is_told(stage, tmp_path, refused):
    flags = ["--level", "top"] if stage == "train-prior" else []
    line = refused(vqvae2, stage, "--run", tmp_path / "none", *flags)
    assert str(tmp_path / "none") in line
    assert "First run python -m vqvae2 train-vqvae" in line
    assert not (tmp_path / "none").exists()


def test_parts_that_are_missing_are_told_with_the_stage_that_makes_them(run, refused):
    shutil.rmtree(run / "prior-bottom")
    line = refused(sample.main, "--run", run)
    assert "prior-bottom" in line
    assert f"vqvae2 train-prior --run {run} --level bottom" in line
    shutil.rmtree(run / "codes")
    assert "there are no codes" in refused(train_prior.main, "--run", run, "--level", "bottom")
    (run / "vqvae" / "model.safetensors").unlink()
    assert "no weights" in refused(extract_codes.main, "--run", run)
    (run / "vqvae" / "config.json").unlink()
    assert "config.json" in refused(extract_codes.main, "--run", run)


def test_a_run_record_that_is_broken_or_newer_is_refused(run, refused):
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "format": 99}))
    for stage in ("extract-codes", "sample"):
        assert "newer" in refused(vqvae2, stage, "--run", run)
    (run / "run.json").write_text(json.dumps({**record, "preset": "brain512"}))
    assert "has no preset brain512" in refused(train_prior.main, "--run", run, "--level", "top", "--overwrite")
    (run / "run.json").write_text("{")
    assert "run.json" in refused(extract_codes.main, "--run", run)


def test_what_does_not_belong_together_is_refused(run, refused, call):
    config = checkpoint.load_config(run / "vqvae")
    torch.manual_seed(5)
    other = VQVAE(replace(VQVAE.from_pretrained(run / "vqvae").config, init_vectors=0))
    other.save_pretrained(run / "vqvae", config["data"])
    for main, flags in (
        (train_prior.main, ["--level", "top", "--overwrite", *PRIOR_FLAGS]),
        (sample.main, []),
    ):
        before = contents(run)
        line = refused(main, "--run", run, *flags)
        assert "not made by the VQ-VAE in" in line
        assert f"vqvae2 extract-codes --run {run} --overwrite" in line
        assert contents(run) == before
    assert call(extract_codes.main, "--run", run, "--overwrite", "--allow-collapse").code == 0
    line = refused(sample.main, "--run", run)
    assert "not trained on the codes in" in line
    assert f"vqvae2 train-prior --run {run} --level top --overwrite" in line


def test_training_and_extraction_call_the_same_codebooks_collapsed(tmp_path, call, monkeypatch):
    # As if there were so few cells that even one code used is enough.
    monkeypatch.setattr(metrics, "least_perplexity", lambda k: k + 1)
    monkeypatch.setattr(metrics.CodeCounts, "least_perplexity", 0.5)
    ended = call(train_vqvae.main, "--run", tmp_path / "run", *VQVAE_FLAGS)
    assert "collapsed" not in ended.out
    assert call(extract_codes.main, "--run", tmp_path / "run").code == 0


def test_a_collapsed_codebook_is_reported_and_stops_the_extraction(tmp_path, call, refused, monkeypatch):
    run = tmp_path / "run"
    flags = [*VQVAE_FLAGS, "--num-embeddings", "3", "3"]
    for place in (metrics, codes):  # no codebook reaches more than the number of its codes
        monkeypatch.setattr(place, "least_perplexity", lambda k: k + 1)
    ended = call(train_vqvae.main, "--run", run, *flags)
    assert ended.code == 0
    for level in ("top", "bottom"):
        assert f"codebook of level {level} has collapsed" in ended.out
    line = refused(extract_codes.main, "--run", run)
    assert "collapsed" in line
    assert "--allow-collapse" in line
    assert not (run / "codes").exists()
    assert "Extract the codes" in refused(train_prior.main, "--run", run, "--level", "top")
    ended = call(extract_codes.main, "--run", run, "--allow-collapse")
    assert ended.code == 0
    assert "held-out perplexity" in ended.out
    CodeStore(run / "codes").verify()
    assert not list(run.glob("*.partial"))


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--size 60x44", "--size 56x40 or --size 64x48"),
        ("--size 36x36 --strides 5 5", "--size 25x25 or --size 50x50"),
        ("--size abc", "abc"),
        ("--size 8x8", "8x8"),
        ("--phantom-images 5", "--phantom-images"),
        ("--data /does/not/exist", "/does/not/exist"),
        ("--preset nosuch", "demo"),
        ("--config nosuch.json", "nosuch.json"),
        ("--seed -1", "--seed"),
        ("--num-workers -1", "--num-workers"),
        ("--resume", "not a run folder"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused_before_anything_is_written(tmp_path, refused, flags, told):
    line = refused(train_vqvae.main, "--run", tmp_path / "run", *VQVAE_FLAGS, *flags.split())
    assert told in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("stage", "flags", "told"),
    [
        ("train-prior", "--level nosuch", "top, bottom"),
        (
            "train-prior",
            "--level bottom --mirrored",
            "--mirrored is for the top alone: these codes are drawn given coarser",
        ),
        ("sample", "--num 0", "--num"),
        ("sample", "--chunk-size 0", "--chunk-size"),
        ("sample", "--temperature 0", "--temperature 0 is out of range. Give values > 0."),
        ("sample", "--temperature 1 2 3", "3 values for 2 levels. Give 1 or 2 values."),
        ("sample", "--top-k -1", "--top-k -1"),
        ("sample", "--top-p 1.5", "--top-p 1.5"),
        ("sample", "--seed -1", "--seed"),
        ("sample", "--label diagnosis=sick", "healthy, atrophy"),
        ("sample", "--label age=old", "diagnosis"),
        ("sample", "--label diagnosis=healthy --label atrophy", "cannot be both healthy and atrophy"),
        ("extract-codes", "--overwrite --batch-size 0", "--batch-size"),
    ],
)
def test_later_stages_refuse_what_cannot_be_meant(run, refused, stage, flags, told):
    before = contents(run)
    assert told in refused(vqvae2, stage, "--run", run, *flags.split())
    assert contents(run) == before


@pytest.mark.parametrize(
    ("stage", "flags"), [(stage, flags) for stage, several in OUT_OF_RANGE.items() for flags in several]
)
def test_a_flag_whose_value_is_out_of_range_is_refused_by_name(run, refused, stage, flags):
    before = contents(run)
    needed = ["--level", "top"] if stage == "train-prior" else ["--data", "phantom"]
    line = refused(vqvae2, stage, "--run", run, *needed, "--overwrite", *flags.split())
    assert flags.split()[0] in line
    assert contents(run) == before


def test_strides_are_held_against_the_data_s_size_alone(tmp_path, call):
    flags = [*VQVAE_FLAGS, "--size", "50x100", "--strides", "5", "5", "--dry-run"]
    ended = call(train_vqvae.main, "--run", tmp_path / "run", *flags)
    assert ended.code == 0, ended.err
    assert "top 2x4 of 16  bottom 10x20 of 16" in ended.out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_told(tmp_path, refused):
    assert "--device cuda" in refused(train_vqvae.main, "--run", tmp_path / "run", *VQVAE_FLAGS, "--device", "cuda")


def test_resume_without_a_state_is_told(run, refused):
    shutil.rmtree(run / "prior-top" / "state")
    assert "no state" in refused(train_prior.main, "--run", run, "--level", "top", "--resume")
    shutil.rmtree(run / "prior-top")
    assert "no state" in refused(train_prior.main, "--run", run, "--level", "top", "--resume")


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="there is no folder here that nobody may write")
def test_a_folder_that_nobody_may_write_is_told_in_one_line(run, refused):
    place = "/sys/kernel/vqvae2"
    assert "/sys/kernel/" in refused(train_vqvae.main, "--run", place, *VQVAE_FLAGS)
    assert "/sys/kernel/" in refused(train_vqvae.main, "--run", place, *VQVAE_FLAGS, "--dry-run")
    before = contents(run)
    assert "/sys/kernel/" in refused(sample.main, "--run", run, "--num", 2, "--out", place)
    assert "/sys/kernel/" in refused(evaluate.main, "--run", run, "--out", place)
    assert contents(run) == before


def test_nothing_is_trained_or_extracted_over_without_being_told(run, refused, call):
    before = contents(run)
    for main, flags in (
        (train_vqvae.main, VQVAE_FLAGS),
        (train_prior.main, ["--level", "top", *PRIOR_FLAGS]),
        (extract_codes.main, ["--allow-collapse"]),
    ):
        line = refused(main, "--run", run, *flags)
        assert "already" in line
        assert "--overwrite" in line
    assert "exclude each other" in refused(train_vqvae.main, "--run", run, "--resume", "--overwrite")
    assert contents(run) == before
    old = checkpoint.sha256_of(run / "vqvae")
    assert call(train_vqvae.main, "--run", run, *VQVAE_FLAGS, "--seed", 1, "--overwrite").code == 0
    assert checkpoint.sha256_of(run / "vqvae") != old
    assert [line["step"] for line in stats(run / "vqvae")] == [1, 2, 3, 3]


def test_samples_are_not_written_among_other_files(run, tmp_path, refused):
    slice_of_a_patient = tmp_path / "slices" / "388206_78.png"
    slice_of_a_patient.parent.mkdir()
    slice_of_a_patient.write_bytes(b"not to be lost")
    line = refused(sample.main, "--run", run, "--num", 1, "--out", slice_of_a_patient.parent)
    assert "388206_78.png" in line
    assert slice_of_a_patient.read_bytes() == b"not to be lost"


@pytest.mark.parametrize(
    ("main", "flags", "name"),
    [
        (train_vqvae.main, ["--hidden-channels", 16], "hidden_channels"),
        (train_vqvae.main, ["--preset", "demo"], "--preset"),
        (train_prior.main, ["--level", "top", "--channels", 16], "channels"),
    ],
)
def test_a_resume_with_another_model_is_refused_and_the_run_left_as_it_was(run, refused, main, flags, name):
    before = contents(run)
    assert name in refused(main, "--run", run, "--resume", *flags)
    assert contents(run) == before


def test_a_prior_of_other_codes_is_not_resumed(run, call, refused):
    flags = ["--overwrite", "--copies", 1, "--augment-shift", 0.1, "--allow-collapse"]
    assert call(extract_codes.main, "--run", run, *flags).code == 0
    line = refused(train_prior.main, "--run", run, "--level", "top", "--resume", "--max-steps", 9)
    assert "other codes" in line
    assert "--overwrite" in line


def test_what_left_no_state_is_started_again_by_the_same_command(tmp_path, call, monkeypatch):
    run = tmp_path / "run"

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(VQVAETask, "loss", interrupted)
        ended = call(train_vqvae.main, "--run", run, *VQVAE_FLAGS)
    assert ended.code == 130
    (run / "vqvae" / "state").mkdir(exist_ok=True)
    argv = shlex.split(ended.err.split("Continue with: python -m vqvae2 train-vqvae ")[1])
    assert "--resume" not in argv
    ended = call(train_vqvae.main, *argv)
    assert ended.code == 0, ended.err
    preset = files.read_json(run / "run.json")["preset"]
    ended = call(train_vqvae.main, "--run", run, "--resume", "--preset", preset, "--max-steps", 4)
    assert ended.code == 0, ended.err


def test_a_resume_keeps_seed_and_compute_settings(tmp_path, call):
    flags = ["--run", tmp_path / "run", *VQVAE_FLAGS]
    assert call(train_vqvae.main, *flags, "--seed", 5, "--precision", "fp32").code == 0
    assert call(train_vqvae.main, "--run", tmp_path / "run", "--resume", "--max-steps", 4).code == 0
    kept = files.read_json(tmp_path / "run" / "run.json")["train_vqvae"]["compute"]
    assert (kept["seed"], kept["precision"]) == (5, "fp32")


def test_images_too_small_for_ssim_are_refused_before_the_training(tmp_path, refused):
    line = refused(train_vqvae.main, "--run", tmp_path / "run", *VQVAE_FLAGS, "--size", "8x8")
    assert "8x8" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("main", "flags"),
    [
        (sample.main, ["--complete", "a.png"]),
        (sample.main, ["--sweep", "diagnosis"]),
        (evaluate.main, ["--anomaly", "a.png"]),
        (export.main, ["--out", "models"]),
        (compress.main, ["--out", "a.vq"]),
    ],
)
def test_what_one_process_does_is_refused_to_several(run, refused, monkeypatch, main, flags):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    assert "runs in one process: torchrun. Start it without torchrun" in refused(main, "--run", run, *flags)


def test_the_data_s_folder_is_no_run_folder(tmp_path, refused):
    line = refused(train_vqvae.main, "--run", tmp_path, "--data", tmp_path)
    assert str(tmp_path) in line
    assert not list(tmp_path.iterdir())


def test_the_vqvae_has_no_average_of_its_weights(tmp_path, refused):
    assert "--ema-decay" in refused(train_vqvae.main, "--run", tmp_path / "run", *VQVAE_FLAGS, "--ema-decay", 0.9)


def test_random_codebooks_are_not_extracted(tmp_path, call, refused):
    flags = ["--run", tmp_path / "run", *VQVAE_FLAGS, "--init-vectors", 100_000]
    ended = call(train_vqvae.main, *flags)
    # 100,000 vectors of 16 cells for each of 8 images are those of 782 batches.
    told = "training ended before the codebooks were initialised (after 782 batches)"
    again = f"python -m vqvae2 train-vqvae --run {tmp_path / 'run'} --resume --max-steps 7820"
    assert f"warning: {told}" in ended.out
    assert f"next: {again}\n" in ended.out
    line = refused(extract_codes.main, "--run", tmp_path / "run", "--allow-collapse")
    assert told in line
    assert f"Continue with {again}." in line


def test_labels_given_twice_are_refused_and_of_other_flags_the_last_counts(tmp_path, refused, call):
    run = ("--run", tmp_path / "run", "--data", "phantom", "--dry-run")
    assert "--labels is given twice" in refused(
        train_vqvae.main, *run, "--labels", "a.csv:sex", "--labels", "a.csv:age"
    )
    assert call(train_vqvae.main, *run, "--max-steps", "5", "--max-steps", "7").code == 0
