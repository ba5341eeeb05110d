"""What augmented copies of the training images do for the priors: held-out NLL at N copies of each.

    python benchmarks/copies.py --data DIR --json FILE [--work DIR] [--counts 0 4 16] [--steps 1600 2900 2700]

One VQ-VAE is trained; its codes are then extracted with N changed copies of each training image, for each N, and the
priors of all levels trained on them: the same settings, start, and number of steps, so that copies take the place of
repetitions. The NLL is that of the `val` slices as they are. It can be given again until it is done.
"""

import json
import shutil
from pathlib import Path

from common import stage, stages_parser, train

from vqvae2.codes import CodeStore

CHANGES = {"shift": 0.03, "rotate": 5.0, "scale": 0.05, "light": 0.1}


def main() -> int:
    parser = stages_parser(__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/copies"), help="folder of the runs")
    parser.add_argument("--counts", nargs="+", type=int, default=[0, 4, 16], help="copies (default: %(default)s)")
    parser.add_argument(
        "--steps", nargs="+", type=int, default=[1600, 2900, 2700], help="of the VQ-VAE, then of each level's prior"
    )
    for name, value in CHANGES.items():
        parser.add_argument(f"--{name}", type=float, default=value, help=f"--augment-{name} (default: %(default)s)")
    arguments = parser.parse_args()
    changes = [text for name in CHANGES for text in (f"--augment-{name}", str(getattr(arguments, name)))]

    first = arguments.work / "vqvae-only"
    settings = ["--data", arguments.data, "--preset", arguments.preset, "--sharpen-share", "0"]
    train("train_vqvae.py", first, "train_vqvae", first / "vqvae", *settings, "--max-steps", str(arguments.steps[0]))
    levels = json.loads((first / "run.json").read_text())["levels"]
    figures = []
    for count in arguments.counts:
        run = arguments.work / f"copies-{count}"
        if not run.exists():
            partial = run.with_name(f"{run.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(first, partial).rename(run)
        if not (run / "codes" / "data.mdb").exists():
            stage("extract_codes.py", run, "--copies", str(count), *changes)
        for level, steps in zip(levels, arguments.steps[1:], strict=True):
            limit = ["--max-steps", str(steps), "--max-minutes", "100000"]
            train("train_prior.py", run, f"train_prior_{level}", run / f"prior-{level}", *limit, level=level)
        figures.append({"copies": count, "images": len(CodeStore(run / "codes")), "levels": read(run, levels)})
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        report = {"changes": changes, "steps": arguments.steps, "counts": figures}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    for figure in figures:
        told = "  ".join(
            f"{level} {found['val/nll']:.4f} at step {found['step']:,} (unigram by position "
            f"{found['val/position_nll']:.4f})"
            for level, found in figure["levels"].items()
        )
        print(f"{figure['copies']:>3} copies: val NLL {told}")
    print(f"wrote {arguments.json}")
    return 0


def read(run: Path, levels: list[str]) -> dict[str, dict[str, float]]:
    """Return what each level's prior reached at the step that the selection subjects chose."""
    record = json.loads((run / "run.json").read_text())
    outcomes = {level: record[f"train_prior_{level}"]["outcome"] for level in levels}
    return {level: {**outcome["best"], "step": outcome["best_step"]} for level, outcome in outcomes.items()}


if __name__ == "__main__":
    raise SystemExit(main())
