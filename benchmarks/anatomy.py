"""Whether slices cut from volumes show the anatomy the right way up and the right way round.

    python benchmarks/anatomy.py --json FILE --bids DIR --slices DIR [--nifti DIR]

Slices of a BIDS tree against PNG of the same heads, paired by head and index along the vertical axis
(`sub-IXI012/..._k098` and `IXI012-HH-1211_k098.png`): the least correlation, and the same after mirroring, which must
be lower. And for a folder of volumes: voxels and voxel sizes against nibabel's own canonical form.
"""

import argparse
import json
import re
import sys
from pathlib import Path

import nibabel
import numpy as np

from vqvae2.data import DataConfig, open_data
from vqvae2.data.volume_files import is_volume, read_canonical


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", required=True, type=Path, help="file for the figures")
    parser.add_argument("--bids", required=True, type=Path, help="BIDS tree")
    parser.add_argument("--slices", required=True, type=Path, help="folder of PNG of the same heads")
    parser.add_argument("--nifti", type=Path, help="folder of volumes")
    arguments = parser.parse_args()
    cut, stored = (
        by_head(open_data(DataConfig(data=str(d), size="128x128"))) for d in (arguments.bids, arguments.slices)
    )
    common = sorted(cut.keys() & stored.keys())
    if not common:
        raise SystemExit("error: the two folders have no slice in common")
    right = [correlation(cut[name], stored[name]) for name in common]
    mirrored = [correlation(cut[name][:, ::-1], stored[name]) for name in common]
    turned = [correlation(cut[name][::-1], stored[name]) for name in common]
    figures = {
        "slices": len(common),
        "heads": len({head for head, _ in common}),
        "least_correlation": min(right),
        "bar": 0.99,
        "greatest_mirrored": max(mirrored),
        "greatest_upside_down": max(turned),
    }
    print(
        f"{figures['slices']} slices of {figures['heads']} heads: correlation at least {min(right):.4f} (bar 0.99); "
        f"mirrored at most {max(mirrored):.4f}, upside down {max(turned):.4f}"
    )
    volumes = []
    for path in sorted(p for p in arguments.nifti.iterdir() if is_volume(p.name)) if arguments.nifti else ():
        voxels, sizes, _ = read_canonical(path)
        own = nibabel.as_closest_canonical(nibabel.load(path))
        same = np.array_equal(voxels, own.get_fdata(dtype=np.float32)) and np.allclose(
            sizes, own.header.get_zooms()[:3]
        )
        volumes.append({"name": path.name, "shape": list(voxels.shape), "mm": list(sizes), "canonical": bool(same)})
        print(f"{path.name}: {voxels.shape}, mm {tuple(round(s, 3) for s in sizes)}: {'equal' if same else 'DIFFERS'}")
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(
        json.dumps({"claims": [{"name": "anatomy", **figures}], "volumes": volumes}, indent=2) + "\n"
    )
    print(f"wrote {arguments.json}")
    return 0 if min(right) >= 0.99 and all(volume["canonical"] for volume in volumes) else 1


def by_head(data: object) -> dict[tuple[str, str], np.ndarray]:
    found = {}
    for images in data.splits.values():  # type: ignore[attr-defined]
        for key, image in zip(images.keys, images.images, strict=True):
            name = key.rsplit("/", 1)[-1].removeprefix("sub-")
            if match := re.match(r"([A-Za-z]+\d+).*_k(\d+)", name):
                found[match[1], match[2]] = image[0].astype(float)
    return found


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


if __name__ == "__main__":
    sys.exit(main())
