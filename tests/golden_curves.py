"""Loss curves of 200 steps from a fixed seed; ``python tests/golden_curves.py`` writes them anew, on purpose alone.

A change that is meant to leave training as it is must leave the curves as they are.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch

from vqvae2.stages import extract_codes, train_prior, train_vqvae

GOLDEN = Path(__file__).parent / "golden" / "loss-curves.json"
DATA = ["--data", "phantom", "--phantom-images", "300", "--size", "32x32"]
TRAINING = ["--batch-size", "8", "--max-steps", "200", "--evaluations", "1", "--log-every", "20"]
RUNNING = ["--device", "cpu", "--precision", "fp32", "--compile", "off", "--seed", "0"]
VQVAE = ["--hidden-channels", "16", "--residual-channels", "8", "--num-embeddings", "32", "32"]
VQVAE += ["--embedding-dim", "8", "8", "--init-vectors", "512", "--level-dropout", "0.3", "--ssim-weight", "0.5"]
PRIOR = ["--embedding-dim", "8", "--channels", "16", "--residual-channels", "16", "--num-layers", "3"]
PRIOR += ["--attention-every", "2", "--num-heads", "2", "--condition-layers", "1", "--no-position-logits"]


def curves(run: Path) -> dict[str, list[float]]:
    """Train the VQ-VAE and both priors in a run folder; the mean loss of every 20 steps, by training."""
    common = ["--run", str(run)]
    assert train_vqvae.main([*common, *DATA, *VQVAE, *TRAINING, *RUNNING]) == 0
    assert extract_codes.main([*common, "--allow-collapse", "--device", "cpu"]) == 0
    for level in ("top", "bottom"):
        assert train_prior.main([*common, "--level", level, *PRIOR, *TRAINING, *RUNNING]) == 0
    found = {}
    for folder in ("vqvae", "prior-top", "prior-bottom"):
        lines = [json.loads(line) for line in (run / folder / "stats.jsonl").read_text().splitlines()]
        found[folder] = [line["train/loss"] for line in lines if "train/loss" in line]
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        made = curves(Path(folder) / "run")
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else GOLDEN
    target.write_text(json.dumps({"torch": torch.__version__, **made}, indent=1) + "\n")
    print(f"wrote {target}")
