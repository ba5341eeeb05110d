"""The pictures of docs/in-pictures.md: what codes, levels and priors are, shown on two held-out images and one sample.

    python benchmarks/in_pictures.py --run weights/ixi128 --images A.png B.png [--seed 0] [--out docs/images]

Codes are coloured by the three directions in which their level's codebook varies most, so that codes that mean alike
look alike.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vqvae2 import VQVAE, Prior
from vqvae2.checkpoint import load_config
from vqvae2.data import load_images
from vqvae2.pictures import grid, to_picture
from vqvae2.sampling import sample

SIDE = 192
"""Pixels of a picture's side, as it is shown."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="run folder, or exported models")
    parser.add_argument("--images", type=Path, nargs=2, required=True, help="two held-out images")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="folder (default: %(default)s)")
    arguments = parser.parse_args()
    model = VQVAE.from_pretrained(arguments.run / "vqvae").eval()
    priors = [Prior.from_pretrained(arguments.run / f"prior-{level}").eval() for level in model.levels]
    like = load_config(arguments.run / "vqvae")["data"]
    found = load_images([str(path) for path in arguments.images], like)
    pair = found.at([0, 1])
    arguments.out.mkdir(parents=True, exist_ok=True)

    codes = model.encode(pair)
    one = [level[:1] for level in codes]
    maps = [coloured(model, i, level[0]) for i, level in enumerate(one)]
    write(arguments.out / "levels.png", [[shown(pair[0]), *maps], [None, *partly(model, one)]])

    swapped = [
        model.decode([level[[1 if i < upto else 0]] for i, level in enumerate(codes)])[0]
        for upto in range(len(codes) + 1)
    ]
    write(arguments.out / "levels-of-two.png", [[shown(image) for image in swapped]])

    drawn = sample(model, priors, num=1, seed=arguments.seed)
    top = drawn.codes[0][0]
    rows = [round(len(top) * share) for share in (0.25, 0.5, 0.75, 1)]
    write(arguments.out / "drawing-top.png", [[coloured(model, 0, top, upto) for upto in rows]])
    maps = [coloured(model, i, level[0]) for i, level in enumerate(drawn.codes)]
    write(arguments.out / "drawing-levels.png", [maps, partly(model, drawn.codes)])
    return 0


def partly(model: VQVAE, codes: list[Tensor]) -> list[NDArray[np.uint8]]:
    """Decode from the top alone, from the two upper levels, and so on."""
    return [shown(model.decode(codes[: upto + 1])[0]) for upto in range(len(codes))]


def shown(image: Tensor) -> NDArray[np.uint8]:
    return resized(to_picture(image), Image.Resampling.BICUBIC)


def coloured(model: VQVAE, index: int, codes: Tensor, rows: int | None = None) -> NDArray[np.uint8]:
    """A level's codes (h, w) in the colours of their vectors; dark below the first ``rows``."""
    book = model.codebooks[index].embedding
    _, _, directions = torch.linalg.svd(book - book.mean(0), full_matrices=False)
    place = (book - book.mean(0)) @ directions[:3].T
    low, high = place.quantile(0.02, dim=0), place.quantile(0.98, dim=0)
    colours = ((place - low) / (high - low)).clamp(0, 1).mul(200).add(40).round().to(torch.uint8)
    picture = colours[codes].numpy()
    if rows is not None:
        picture[rows:] = 24
    return resized(picture, Image.Resampling.NEAREST)


def resized(picture: NDArray[np.uint8], how: Image.Resampling) -> NDArray[np.uint8]:
    return np.array(Image.fromarray(picture).resize((SIDE, SIDE), how))


def write(path: Path, rows: Sequence[Sequence[NDArray[np.uint8] | None]]) -> None:
    """Lay out pictures in rows; None leaves a place empty."""
    blank = np.full((SIDE, SIDE), 32, np.uint8)
    pictures = [blank if picture is None else picture for row in rows for picture in row]
    Image.fromarray(grid(pictures, len(rows[0]))).save(path, optimize=True)
    print(f"wrote {path}")


if __name__ == "__main__":
    raise SystemExit(main())
