"""Several processes do what one does: trainings, extraction, sampling and evaluation under torchrun."""

import json
import shutil
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from joined_collectives import scanned, searched
from processes import joined
from tiny_runs import PRIOR_FLAGS, ROOT, VQVAE_FLAGS, Chain, stats
from torchrun import torchrun

from vqvae2 import CodeStore, checkpoint, distributed
from vqvae2.errors import UserError
from vqvae2.quantizer import Codebook
from vqvae2.stages import evaluate, extract_codes, recognition, sample

pytest_plugins = ["tiny_run_fixtures"]

TESTS = Path(__file__).parent


def test_one_process_moves_nothing():
    rows = torch.arange(6.0).view(3, 2)
    assert distributed.all_reduce_sum(rows) is rows
    assert distributed.all_gather_rows(rows) is rows
    assert distributed.on_main(lambda: 5) == 5
    assert distributed.own_part([1, 2, 3]) == [1, 2, 3]


def test_an_error_of_the_user_is_no_lost_connection(monkeypatch):
    told = UserError("the processes could not be joined (no address)", "backend gloo", "Check MASTER_ADDR")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert distributed.lost(RuntimeError("[gloo] Connection closed by peer"))
    assert not distributed.lost(told)
    monkeypatch.delenv("WORLD_SIZE")
    assert not distributed.lost(RuntimeError("[gloo] Connection closed by peer"))


@pytest.fixture(scope="module")
def collectives(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What three processes saw, by rank."""
    folder = tmp_path_factory.mktemp("collectives")
    ended = joined(3, TESTS / "joined_collectives.py", folder=folder)
    assert [rank.code for rank in ended] == [0, 0, 0], ended
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(3)]


def test_shares_are_contiguous_and_complete(collectives):
    assert [seen["part"] for seen in collectives] == [[0, 1], [2, 3], [4, 5, 6]]


def test_rows_of_different_number_are_joined_in_order(collectives):
    assert all(seen["rows"] == [[1, 1], [2, 2], [2, 2]] for seen in collectives)


def test_a_sum_is_the_same_everywhere(collectives):
    assert all(seen["sum"] == [3, 3] for seen in collectives)


def test_what_the_main_process_returns_or_fails_with_reaches_all(collectives):
    assert all(seen["main"] == {"rank": 0} for seen in collectives)
    assert [seen["failure"] for seen in collectives] == ["ValueError", "Elsewhere", "Elsewhere"]


def test_fewer_images_than_processes_are_scanned_as_in_one_process(collectives):
    one = scanned()
    for seen in collectives:
        assert seen["scan"]["codes"] == one["codes"]
        assert_near(seen["scan"]["scores"], one["scores"], "scores")


@pytest.mark.parametrize("references", ["1", "2", "40"])
def test_several_processes_find_the_copies_that_one_finds(collectives, references):
    one = searched(references)
    if references == "40":
        assert one["index"] == [20, 13]
    for seen in collectives:
        assert_near(seen["search"][references], one, references)


def test_a_batch_that_does_not_divide_is_refused_everywhere(collectives):
    assert all("does not divide among 3 processes" in seen["batch"] for seen in collectives)
    assert all("2 training items for 3 processes" in seen["few"] for seen in collectives)
    assert [len(seen["rest"]) for seen in collectives] == [2, 2, 2]  # of 7 items 6


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The same trainings in one process and in two, each with half of every batch."""
    folder = tmp_path_factory.mktemp("trainings")
    for processes in (1, 2):
        ended = joined(processes, TESTS / "joined_training.py", folder / str(processes), folder=folder)
        assert not any(rank.code for rank in ended), ended
    return {processes: folder / str(processes) for processes in (1, 2)}


@pytest.mark.parametrize("codebook", get_args(Codebook))
def test_two_processes_train_the_same_parameters_and_codebooks_as_one(trainings, codebook):
    one, two = (checkpoint.load_state(trainings[n] / codebook / "state") for n in (1, 2))
    assert one["step"] == two["step"] == 20
    weights, others = one["modules"]["vqvae"], two["modules"]["vqvae"]
    assert weights.keys() == others.keys()
    for name, value in weights.items():
        torch.testing.assert_close(others[name], value, rtol=0, atol=1e-10, msg=name)
    assert all(int(weights[f"quantizers.{i}.updates"]) > 10 for i in (0, 1))


@pytest.mark.parametrize("codebook", get_args(Codebook))
def test_two_processes_log_what_one_logs(trainings, codebook):
    one, two = (stats(trainings[n] / codebook) for n in (1, 2))
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for mine, other in zip(one, two, strict=True):
        assert mine.keys() == other.keys()
        for name in mine.keys() - {"seconds", "images_per_second"}:
            assert other[name] == pytest.approx(mine[name], rel=2e-5, abs=1e-9), name


SHARED = [
    (sample, ["sample.py", "--num", "5", "--chunk-size", "2", "--label", "diagnosis=atrophy", "--seed", "7"]),
    (evaluate, ["evaluate.py"]),
    (sample, ["sample.py", "--num", "5", "--chunk-size", "2", "--reject", "0.5", "--out", "run/chosen"]),
    (extract_codes, ["extract_codes.py", "--allow-collapse", "--overwrite", "--batch-size", "16"]),
]


@pytest.fixture(scope="module")
def shared(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The stages after the finished run's trainings, done again by one process and by two.

    Each of one thread: codes near the middle between two others fall by rounding, which depends on that.
    """
    folder = tmp_path_factory.mktemp("shared")
    threads = torch.get_num_threads()
    shutil.copytree(chain.run, folder / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recognition, "STEPS", 2)
        assert evaluate.main(["--run", str(folder / "run"), "--classifier", "diagnosis"]) == 0
    for processes in (1, 2):
        place = folder / str(processes)
        shutil.copytree(folder / "run", place / "run")
        for name in ("samples", "report"):
            shutil.rmtree(place / "run" / name)
        for stage, (script, *flags) in SHARED:
            if processes == 1:
                torch.set_num_threads(1)
                own = [str(place / flag) if flag.startswith("run/") else flag for flag in flags]
                code = stage.main(["--run", str(place / "run"), *own])
                torch.set_num_threads(threads)
                assert code == 0
                continue
            main, other = joined(2, ROOT / script, "--run", "run", *flags, folder=place)
            assert (main.code, other.code) == (0, 0), (script, main, other)
            told = chain.stages[script.removesuffix(".py")].out
            assert main.out.count("wrote ") == told.count("wrote "), main
            assert "wrote " not in other.out
    return {processes: folder / str(processes) / "run" for processes in (1, 2)}


def test_two_processes_extract_the_same_codes(shared):
    one, two = (CodeStore(shared[n] / "codes") for n in (1, 2))
    assert (one.keys, one.splits, one.fingerprint) == (two.keys, two.splits, two.fingerprint)
    assert all(np.array_equal(a, b) for a, b in zip(one.read(), two.read(), strict=True))


@pytest.mark.parametrize("folder", ["samples", "chosen"])
def test_two_processes_sample_the_same_bytes(shared, folder):
    names = {path.name for path in (shared[1] / folder).iterdir()}
    assert {path.name for path in (shared[2] / folder).iterdir()} == names
    assert {"00004.png", "grid.png", "samples.json"} <= names
    for name in names - {"samples.json"}:
        assert (shared[1] / folder / name).read_bytes() == (shared[2] / folder / name).read_bytes(), name
    one, two = (json.loads((shared[n] / folder / "samples.json").read_text()) for n in (1, 2))
    assert {**one, "arguments": two["arguments"]} == two  # but for --out as it was typed


def test_two_processes_report_the_same_figures(shared):
    one, two = (json.loads((shared[n] / "report" / "report.json").read_text()) for n in (1, 2))
    for part in ("reconstruction", "levels", "bits_per_dim", "samples"):
        assert_near(one[part], two[part], part)
    lines = [len((shared[n] / "report" / "scores.csv").read_text().splitlines()) for n in (1, 2)]
    assert lines[0] == lines[1] > 3


def assert_near(a: object, b: object, where: str) -> None:
    if isinstance(a, dict):
        assert isinstance(b, dict), where
        assert a.keys() == b.keys(), where
        for key in a:
            assert_near(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, float):
        assert b == pytest.approx(a, rel=1e-5, abs=1e-7), where
    elif isinstance(a, list) and a and isinstance(a[0], dict | float):
        for i, (one, other) in enumerate(zip(a, b, strict=True)):
            assert_near(one, other, f"{where}[{i}]")
    else:
        assert a == b, where


def test_both_trainings_run_in_two_processes_and_resume(run):
    commands = [
        ["train_vqvae.py", "--overwrite", *VQVAE_FLAGS],
        ["train_prior.py", "--level", "bottom", "--overwrite", *PRIOR_FLAGS],
        ["train_prior.py", "--level", "bottom", "--resume", "--max-steps", "5"],
    ]
    shutil.copytree(run / "vqvae", run / "kept")
    for script, *flags in commands:
        ended = joined(2, ROOT / script, "--run", "run", *flags, folder=run.parent)
        assert [rank.code for rank in ended] == [0, 0], (script, flags, ended)
        if script == "train_vqvae.py":  # the codes are of the first one
            assert [line["step"] for line in stats(run / "vqvae") if "images_per_second" in line] == [1, 2, 3]
            shutil.rmtree(run / "vqvae")
            (run / "kept").rename(run / "vqvae")
    steps = [line["step"] for line in stats(run / "prior-bottom") if "images_per_second" in line]
    assert steps == [1, 2, 3, 4, 5]  # each line once: one process writes


def test_a_mistake_is_told_once(tmp_path):
    flags = ["--run", "run", "--data", "phantom", "--preset", "no-such-preset"]
    done = torchrun(2, ROOT / "train_vqvae.py", *flags, cwd=tmp_path)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if "error: there is no preset" in line]
    assert len(lines) == 1, done.stderr


@pytest.mark.parametrize("fails", ["0", "1", "both", "elsewhere", "bug"])
def test_a_failure_is_reported_once_by_whichever_process_failed(tmp_path, fails):
    """In one process while the other waits for it, in both alike, in the main one while the other waits, by a bug."""
    if fails == "1":  # by torchrun itself
        done = torchrun(2, TESTS / "joined_failure.py", fails, cwd=tmp_path)
        code, err = done.returncode, done.stderr
    else:
        ended = joined(2, TESTS / "joined_failure.py", fails, folder=tmp_path)
        code, err = max(abs(rank.code) for rank in ended), "".join(rank.err for rank in ended)
    assert code != 0
    word = "ZeroDivisionError: " if fails == "bug" else "error: broken: "
    lines = [line for line in err.splitlines() if word in line]
    assert len(lines) == 1, err
    assert "lost the connection to another process" not in err
