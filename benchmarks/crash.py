"""Kill every stage at random moments, continue it, and compare with a run that was never killed.

    python benchmarks/crash.py --json FILE [--times 20] [--kills 2] [--seed 0]

Each time one stage of a small run on the phantom is started, killed by SIGKILL, continued by the command that it would
itself name, killed again, and at last left to end. A stage that ends before its first kill, as when the machine was
busier while the undisturbed run was timed, is started again and killed sooner. Equal means: the same tensors in
model and state (but for the clock), the same lines in stats.jsonl, the same rows in key order in the store, the same
images, the same report.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from vqvae2 import CodeStore, checkpoint

ROOT = Path(__file__).resolve().parent.parent
_SMALL = "--hidden-channels 16 --residual-channels 8 --num-embeddings 32 32 --embedding-dim 8 8 --init-vectors 512"
_TRAINING = "--log-every 5 --evaluations 8 --compile off"
_PRIOR = f"--channels 16 --residual-channels 16 --num-layers 2 --condition-layers 1 --max-steps 60 {_TRAINING}"
STAGES = {
    "vqvae": f"train_vqvae.py --data phantom --phantom-images 300 --size 32x32 {_SMALL} --max-steps 120 {_TRAINING}",
    "codes": "extract_codes.py --allow-collapse --batch-size 4",
    "prior-top": f"train_prior.py --level top {_PRIOR}",
    "prior-bottom": f"train_prior.py --level bottom {_PRIOR}",
    "samples": "sample.py --num 24 --chunk-size 4",
    "report": "evaluate.py",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", required=True, type=Path, help="file for the figures")
    parser.add_argument("--times", type=int, default=20, help="stages killed (default: %(default)s)")
    parser.add_argument("--kills", type=int, default=2, help="kills of each at most (default: %(default)s)")
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES), help="first ones of a run")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        whole = Path(name) / "whole"
        needed = {}
        for stage in arguments.stages:
            snapshot(whole, stage)
            started = time.monotonic()
            finish(whole, stage, [])
            needed[stage] = time.monotonic() - started
        tries = [
            one(Path(name), whole, arguments.stages[i % len(arguments.stages)], needed, arguments.kills, rng)
            for i in range(arguments.times)
        ]
    equal = sum(not entry["differs"] for entry in tries)
    killed = sum(len(entry["killed_after_s"]) for entry in tries)
    print(f"{equal} of {len(tries)} equal, {killed} kills")
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(
        json.dumps({"equal": equal, "times": len(tries), "kills": killed, "tries": tries}, indent=2)
    )
    print(f"wrote {arguments.json}")
    return 0 if equal == len(tries) else 1


def snapshot(whole: Path, stage: str) -> None:
    """Keep the run as it stands before a stage."""
    if whole.exists():
        shutil.copytree(whole, whole.with_name(f"before-{stage}"))


def one(folder: Path, whole: Path, stage: str, needed: dict[str, float], kills: int, rng: random.Random) -> dict:
    """Kill a stage, continue it, and compare."""
    run, before = folder / "cut", whole.with_name(f"before-{stage}")
    moments: list[float] = []
    most = needed[stage]
    while len(moments) < kills:
        if not moments:
            shutil.rmtree(run, ignore_errors=True)
            if before.exists():
                shutil.copytree(before, run)
        moment = rng.uniform(0.1, 1) * most
        process = subprocess.Popen(
            command(run, stage), start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            process.wait(moment)
            if moments:
                break  # it was done sooner
            most /= 2
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            moments.append(round(moment, 2))
    finish(run, stage, moments)
    differs = compare(whole, run, stage)
    print(f"{stage:<13}killed after {moments} s of {needed[stage]:.1f}: {differs or 'equal'}", flush=True)
    return {"stage": stage, "killed_after_s": moments, "differs": differs}


def command(run: Path, stage: str) -> list[str]:
    """Name the command that begins a stage, or goes on with it."""
    script, *flags = STAGES[stage].split()
    if script.startswith("train"):
        level = [flag for flag in flags if flag in ("--level", "top", "bottom")]
        if checkpoint.has_state(run / stage / "state"):
            flags = [*level, "--resume"]
        elif (run / stage).exists():
            flags = [*flags, "--overwrite"]
    if stage == "codes" and (run / "codes" / "data.mdb").exists():
        flags = [*flags, "--overwrite"]
    # On a GPU sums round otherwise from run to run.
    return [sys.executable, str(ROOT / script), "--run", str(run), *flags, "--device", "cpu"]


def finish(run: Path, stage: str, moments: list[float]) -> None:
    done = subprocess.run(command(run, stage), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"error: {stage}, killed after {moments}, did not go on: {done.stderr}")


def compare(whole: Path, run: Path, stage: str) -> str:
    """Say what differs; empty: nothing."""
    checks: dict[str, Callable[[Path, Path], str]] = {"codes": compare_codes, "samples": compare_files}
    checks["report"] = compare_reports
    return checks.get(stage, compare_trainings)(whole / stage, run / stage)


def compare_trainings(whole: Path, run: Path) -> str:
    if (whole / "model.safetensors").read_bytes() != (run / "model.safetensors").read_bytes():
        return "model.safetensors"
    one, two = (checkpoint.load_state(folder / "state") for folder in (whole, run))
    for state in (one, two):
        del state["seconds"]
    if not same(one, two):
        return "state"
    logs = [[json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()] for folder in (whole, run)]
    for line in (line for log in logs for line in log):
        line.pop("seconds")
        line.pop("images_per_second", None)
    return "" if logs[0] == logs[1] else "stats.jsonl"


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    return a == b


def compare_codes(whole: Path, run: Path) -> str:
    one, two = CodeStore(whole), CodeStore(run)
    two.verify()
    if (one.keys, one.subjects, one.splits, one.fingerprint) != (two.keys, two.subjects, two.splits, two.fingerprint):
        return "keys or fingerprint"
    return "" if all((a == b).all() for a, b in zip(one.read(), two.read(), strict=True)) else "codes"


def compare_files(whole: Path, run: Path) -> str:
    one, two = (
        {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} for folder in (whole, run)
    )
    return ", ".join(sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name)))


def compare_reports(whole: Path, run: Path) -> str:
    one, two = (json.loads((folder / "report.json").read_text()) for folder in (whole, run))
    for found in (one, two):
        for name in ("created", "run", "commands"):
            found.pop(name)
    return ", ".join(name for name in one.keys() | two.keys() if one.get(name) != two.get(name))


if __name__ == "__main__":
    sys.exit(main())
