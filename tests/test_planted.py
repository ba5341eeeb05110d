"""The benchmark of planted faults, on a run so small that its verdicts mean nothing: it plants what it says."""

import json
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import planted

pytest_plugins = ["tiny_run_fixtures"]


def test_every_fault_gets_its_row_and_copies_are_found(chain, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "sys.argv", ["-", "--run", str(chain.run), "--json", str(tmp_path / "out.json"), "--count", "6"]
    )
    assert planted.main() == 0
    found = json.loads((tmp_path / "out.json").read_text())
    copies = {row["set"]: row["figures"]["memorisation"]["copied"] for row in found["sets"][:-2]}
    assert len(copies) >= 10
    assert copies["real"] == 0
    assert copies["half copies, shifted by 2 pixels"] > 0
    *_, collapsed, overfitted = found["sets"]
    assert collapsed["reconstructs"]["band"] == "fail"
    assert overfitted["figures"]["train_nll"] < overfitted["figures"]["nll"]
    near = {row["set"]: row["figures"]["feature_neighbours"]["closer_share"] for row in found["sets"][:-2]}
    assert near["half copies, shifted by 2 pixels"] >= near["real"]
    assert found["copies"]["found"]["exact"] == 1
