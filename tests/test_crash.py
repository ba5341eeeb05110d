"""The short form of benchmarks/crash.py: stages killed at random moments end as if they had not been."""

import json
import subprocess
import sys

from tiny_runs import ROOT


def test_killed_stages_go_on_to_the_same_end(tmp_path):
    command = [sys.executable, ROOT / "benchmarks" / "crash.py", "--json", "crash.json", "--times", "2", "--kills", "1"]
    done = subprocess.run([*command, "--stages", "vqvae", "codes"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "crash.json").read_text())
    assert found["equal"] == found["times"] == 2
    assert found["kills"] >= 2, "each is killed at least once"
