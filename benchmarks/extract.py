"""Images per second of the extraction of codes, store included, against the usual code.

    python benchmarks/extract.py --json FILE [--peer PATH]

From a folder of 600 colour PNG of 128x128 pixels to LMDB, with untrained models of one architecture: two levels, hidden
128, residual 32, K = 512, D = 64, decoded upper levels of 64 channels. Ours is the stage `extract_codes.py` from the
data's opening to the finished store; the peer's is its `extract` with its data set and loader. Each side works in a
process of its own.
"""

import contextlib
import io
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import lmdb
import numpy as np
from common import apart, in_pairs, parse, peer_module, tell, write
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms

from vqvae2.data import DataConfig, open_data
from vqvae2.stages import extract_codes, train_vqvae

COUNT, SIZE, BAR = 600, 128, 3


def main() -> int:
    arguments = parse(__doc__, 5, ["extract"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder / "images")
        ours, narrow = apart(our_extractions, folder), apart(our_extractions, folder, "--precision", "bf16")
        peer = apart(peer_extractions, arguments.peer, folder) if arguments.peer else None
        for call in (ours, narrow, peer):
            if call is not None:
                call()
        timed = in_pairs(ours, peer, arguments.repeats)
        bf16 = in_pairs(narrow, None, 3)["ours_s"]
    rate, other = (COUNT / timed[side] if timed[side] else None for side in ("ours_s", "peer_s"))
    told = f"ours {rate:.0f} images/s, with --precision bf16 {COUNT / bf16:.0f}" + (
        f", peer {other:.0f}" if other else ""
    )
    claim = {"name": "extract", "bar": BAR, **timed, "ours_bf16_s": bf16, "told": told}
    tell(claim)
    return write(arguments.json, [claim])


def write_images(folder: Path) -> None:
    """Write the phantom in colour, each image of a subject of its own."""
    (folder / "class").mkdir(parents=True)
    phantom = open_data(DataConfig(data="phantom", phantom_images=COUNT, size=f"{SIZE}x{SIZE}"))
    pixels = np.concatenate([images.images for images in phantom.splits.values()])[:COUNT]
    rng = np.random.default_rng(0)
    for i, image in enumerate(pixels):
        grey = image[0].astype(float)[..., None] * rng.uniform(0.6, 1, 3)
        Image.fromarray(grey.astype(np.uint8)).save(folder / "class" / f"s{i:04d}_0.png")


def our_extractions(folder: Path, *more: str) -> Iterator[None]:
    """Train for one step; then extract anew at each step."""
    run = folder / "-".join(["run", *more])
    flags = ["--run", str(run), "--data", str(folder / "images"), "--hidden-channels", "128", "--init-vectors", "0"]
    flags += ["--joint-channels", "64"]
    flags += ["--residual-channels", "32", "--max-steps", "1", "--evaluations", "1"]
    quiet(train_vqvae.main, flags)
    while True:
        quiet(extract_codes.main, ["--run", str(run), "--overwrite", "--allow-collapse", *more])
        yield


def quiet(main: Callable[[list[str]], int], argv: list[str]) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        code = main(argv)
    if code:
        raise SystemExit(code)


def peer_extractions(path: Path, folder: Path) -> Iterator[None]:
    """Extract anew at each step."""
    module, dataset = peer_module(path, "extract_code"), peer_module(path, "dataset")
    model = peer_module(path, "vqvae").VQVAE().eval()
    steps = [
        transforms.Resize(SIZE),
        transforms.CenterCrop(SIZE),
        transforms.ToTensor(),
        transforms.Normalize([0.5] * 3, [0.5] * 3),
    ]
    while True:
        shutil.rmtree(folder / "peer", ignore_errors=True)
        images = dataset.ImageFileDataset(str(folder / "images"), transform=transforms.Compose(steps))
        loader = DataLoader(images, batch_size=128, shuffle=False, num_workers=4)
        env = lmdb.open(str(folder / "peer"), map_size=1 << 33)
        module.extract(env, loader, model, "cpu")
        env.close()
        yield


if __name__ == "__main__":
    sys.exit(main())
