"""One run at a time works in a folder, and a lock ends with its process, however that ends."""

import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from processes import Started
from tiny_runs import VQVAE_FLAGS

from vqvae2 import files
from vqvae2.errors import UserError
from vqvae2.stages import evaluate, extract_codes, sample, train_prior, train_vqvae

pytest_plugins = ["tiny_run_fixtures"]


def hold(path: Path, held: Path) -> None:
    """Hold a lock until this process is killed."""
    with files.locked(path):
        held.touch()
        while True:
            time.sleep(60)


@pytest.fixture
def holder(tmp_path):
    """A function: lets another process hold a lock, and returns that process."""
    holding = []

    def start(path: Path) -> BaseProcess:
        held = tmp_path / f"held-{len(holding)}"
        started = Started(hold, path, held)
        holding.append(started.process)
        while not held.exists():
            assert started.process.is_alive(), started.wait()
            time.sleep(0.01)
        return started.process

    yield start
    for process in holding:
        process.kill()
        process.join()


def test_a_lock_is_refused_while_held_and_free_after_a_kill(tmp_path, holder):
    process = holder(tmp_path / ".lock")
    with pytest.raises(UserError, match="another process is using this folder"), files.locked(tmp_path / ".lock"):
        pass
    process.kill()
    process.join()
    with files.locked(tmp_path / ".lock"):
        pass


def test_an_error_inside_is_not_taken_for_the_lock_s(tmp_path):
    with pytest.raises(OSError, match="of the block"), files.locked(tmp_path / ".lock"):
        raise OSError("of the block")


@pytest.mark.parametrize(
    ("part", "main", "flags"),
    [
        ("vqvae", train_vqvae.main, [*VQVAE_FLAGS, "--overwrite"]),
        ("codes", extract_codes.main, ["--overwrite", "--allow-collapse"]),
        ("prior-top", train_prior.main, ["--level", "top", "--resume"]),
        ("samples", sample.main, ["--num", "1", "--overwrite"]),
        ("report", evaluate.main, []),
        # Codes that are made of a VQ-VAE under way would belong to none.
        ("vqvae", extract_codes.main, ["--overwrite", "--allow-collapse"]),
    ],
)
def test_every_stage_keeps_out_of_a_folder_in_use(run, holder, refused, part, main, flags):
    before = {path: path.stat().st_mtime_ns for path in (run / part).rglob("*")}
    holder(run / f".{part}.lock")
    assert "another process is using this folder" in refused(main, "--run", run, *flags)
    assert before == {path: path.stat().st_mtime_ns for path in (run / part).rglob("*")}
