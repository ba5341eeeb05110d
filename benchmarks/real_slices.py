"""The whole pipeline on a folder of real slices: every figure of the README's results, by one command.

    python benchmarks/real_slices.py --data DIR --json FILE [--run runs/real-slices] [--preset brain128]

Runs the five stages one after the other through their command lines. Stages whose result is there already are passed
over, and one that was interrupted is resumed, so the command can be given again until it is done.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of images; see the README for the layouts")
    parser.add_argument("--json", required=True, type=Path, help="file for the figures")
    parser.add_argument("--run", type=Path, default=Path("runs/real-slices"), help="run folder (default: %(default)s)")
    parser.add_argument("--preset", default="brain128", help="settings (default: %(default)s)")
    parser.add_argument("--num", type=int, default=64, help="samples (default: %(default)s)")
    arguments = parser.parse_args()
    run = arguments.run

    train(
        "train_vqvae.py",
        run,
        "train_vqvae",
        run / "vqvae",
        "--data",
        arguments.data,
        "--preset",
        arguments.preset,
    )
    if not (run / "codes" / "data.mdb").exists():
        stage("extract_codes.py", run)
    for level in json.loads((run / "run.json").read_text())["levels"]:
        train("train_prior.py", run, f"train_prior_{level}", run / f"prior-{level}", "--level", level)
    if not (run / "samples" / "samples.json").exists():
        stage("sample.py", run, "--num", str(arguments.num))
    stage("evaluate.py", run)

    report = json.loads((run / "report" / "report.json").read_text())
    stored = json.loads((run / "run.json").read_text())
    outcomes = {
        name: entry["outcome"] for name, entry in stored.items() if isinstance(entry, dict) and "outcome" in entry
    }
    figures = {"preset": arguments.preset, "trainings": outcomes, "report": report}
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    print(f"wrote {arguments.json}")
    return 0


def train(script: str, run: Path, name: str, folder: Path, *arguments: str) -> None:
    """Run a training unless it is complete; go on where it was interrupted."""
    record = json.loads((run / "run.json").read_text()) if (run / "run.json").exists() else {}
    if "outcome" in record.get(name, {}):
        return
    started = any((folder / "state").glob("*.pt"))
    stage(script, run, *arguments, "--resume" if started else "--overwrite")


def stage(script: str, run: Path, *arguments: str) -> None:
    """Run one stage as a user would; stop here if it fails."""
    command = [sys.executable, str(ROOT / script), "--run", str(run), *arguments]
    print("$", " ".join(command), flush=True)
    started = time.monotonic()
    code = subprocess.run(command, check=False).returncode
    print(f"# {time.monotonic() - started:.0f} s", flush=True)
    if code:
        raise SystemExit(code)


if __name__ == "__main__":
    raise SystemExit(main())
