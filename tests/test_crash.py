"""The short form of benchmarks/crash.py: stages killed at random moments end as if they had not been."""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

from processes import run_script, start_script

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import crash


class Forked:
    """A process as `subprocess.Popen` has it, forked from one that has imported the package."""

    def __init__(self, words: list[str], **_: object) -> None:
        self.words, self.started = words, start_script(Path(words[1]), *words[2:])
        self.pid = self.started.pid
        with contextlib.suppress(ProcessLookupError):  # it has ended
            while os.getpgid(self.pid) != self.pid:
                time.sleep(0.01)  # until it leads a group of its own, which can be killed

    def wait(self, timeout: float | None = None) -> int:
        self.started.process.join(timeout)
        if self.started.process.exitcode is None:
            raise subprocess.TimeoutExpired(self.words, timeout or 0)
        return self.started.process.exitcode


def run(words: list[str], **_: object) -> SimpleNamespace:
    """A stage to its end, as `subprocess.run` does it."""
    ended = run_script(Path(words[1]), *words[2:])
    return SimpleNamespace(returncode=ended.code, stderr=ended.err)


def test_killed_stages_go_on_to_the_same_end(tmp_path, monkeypatch):
    forked = SimpleNamespace(
        Popen=Forked, run=run, DEVNULL=subprocess.DEVNULL, TimeoutExpired=subprocess.TimeoutExpired
    )
    monkeypatch.setattr(crash, "subprocess", forked)
    vqvae = crash.STAGES["vqvae"].replace("--max-steps 120", "--max-steps 40").replace("-images 300", "-images 100")
    monkeypatch.setitem(crash.STAGES, "vqvae", vqvae)
    flags = ["--times", "2", "--kills", "1", "--stages", "vqvae", "codes"]
    monkeypatch.setattr("sys.argv", ["-", "--json", str(tmp_path / "crash.json"), *flags])
    assert crash.main() == 0
    found = json.loads((tmp_path / "crash.json").read_text())
    assert found["equal"] == found["times"] == 2
    assert found["kills"] >= 2, "each is killed at least once"
