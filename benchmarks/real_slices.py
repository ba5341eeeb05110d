"""The whole pipeline on a folder of real slices: every figure of the README's results, by one command.

    python benchmarks/real_slices.py --data DIR --json FILE [--run runs/real-slices] [--preset brain128]

Runs the five stages one after the other through their command lines. Stages whose result is there already are passed
over, and one that was interrupted is resumed, so the command can be given again until it is done.
"""

import json
import random
from pathlib import Path

from common import stage, stages_parser, train
from PIL import Image, ImageDraw

from vqvae2 import CodeStore
from vqvae2.data import DataConfig, open_data


def main() -> int:
    parser = stages_parser(__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/real-slices"), help="run folder (default: %(default)s)")
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
        train("train_prior.py", run, f"train_prior_{level}", run / f"prior-{level}", level=level)
    if not (run / "samples" / "samples.json").exists():
        stage("sample.py", run, "--num", str(arguments.num))
    stage("evaluate.py", run)

    report = json.loads((run / "report" / "report.json").read_text())
    stored = json.loads((run / "run.json").read_text())
    outcomes = {
        name: entry["outcome"] for name, entry in stored.items() if isinstance(entry, dict) and "outcome" in entry
    }
    store = CodeStore(run / "codes")
    ratio = (run / "codes" / "data.mdb").stat().st_size / sum(level.nbytes for level in store.read())
    write_judgement(run, arguments.data)
    figures = {
        "preset": arguments.preset,
        "trainings": outcomes,
        "store": {"images": len(store), "bytes_ratio": ratio},
        "report": report,
    }
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    print(f"wrote {arguments.json}")
    return 0


def write_judgement(run: Path, data: str) -> None:
    """Shuffle 16 samples among 16 held-out slices onto sheets to be judged unlabelled, the key in a file of its own."""
    rng = random.Random(0)
    held_out = open_data(DataConfig(data=data), splits=["val"]).splits["val"]
    real = [Image.fromarray(held_out.images[i][0]) for i in rng.sample(range(len(held_out)), 16)]
    made = [Image.open(path).convert("L") for path in sorted((run / "samples").glob("0*.png"))[:16]]
    cases = [("real", image) for image in real] + [("sample", image) for image in made]
    rng.shuffle(cases)
    width, height = (3 * n for n in real[0].size)
    folder = run / "judgement"
    folder.mkdir(exist_ok=True)
    for sheet in range(4):
        canvas = Image.new("L", (4 * (width + 12) + 12, 2 * (height + 36) + 12), 40)
        for place, (_, image) in enumerate(cases[8 * sheet : 8 * sheet + 8]):
            left, top = 12 + place % 4 * (width + 12), 12 + place // 4 * (height + 36)
            canvas.paste(image.resize((width, height), Image.Resampling.BICUBIC), (left, top + 24))
            ImageDraw.Draw(canvas).text((left + 4, top + 4), str(8 * sheet + place + 1), fill=255)
        canvas.save(folder / f"sheet{sheet + 1}.png")
    (run / "judgement-key.json").write_text(json.dumps({i + 1: kind for i, (kind, _) in enumerate(cases)}) + "\n")
    print(f"wrote {folder}/sheet1.png to sheet4.png, and the key beside the folder")


if __name__ == "__main__":
    raise SystemExit(main())
