"""Make every collective call once and write what came of it; run by test_distributed.py in three processes."""

import json
from pathlib import Path

import numpy as np
import torch

from vqvae2 import VQVAE, VQVAEConfig, distributed, report
from vqvae2.batches import EpochBatches
from vqvae2.data import ImageSet
from vqvae2.errors import UserError
from vqvae2.metrics import aligned_nearest, nearest, region_nearest


def main() -> None:
    with distributed.process_group():
        rank = distributed.rank()
        seen: dict[str, object] = {"part": list(distributed.own_part(range(7)))}
        seen["rows"] = distributed.all_gather_rows(torch.full((rank, 2), rank)).tolist()
        seen["sum"] = distributed.all_reduce_sum(torch.tensor([rank, 1])).tolist()
        seen["main"] = distributed.on_main(lambda: {"rank": distributed.rank()})
        try:
            distributed.on_main(fail)
        except (ValueError, distributed.Elsewhere) as error:
            seen["failure"] = type(error).__name__
        try:
            EpochBatches(100, 8, 0)
        except UserError as error:
            seen["batch"] = str(error)
        try:
            EpochBatches(2, 3, 0)
        except UserError as error:
            seen["few"] = str(error)
        seen["rest"] = next(iter(EpochBatches(7, 9, 0)))
        seen["scan"] = scanned()
        seen["search"] = {references: searched(references) for references in ("1", "2", "40")}
        Path(f"{rank}.json").write_text(json.dumps(seen))


def scanned() -> dict[str, object]:
    """Scan fewer images than there are processes."""
    torch.manual_seed(0)
    model = VQVAE(VQVAEConfig(height=16, width=16, hidden_channels=4, residual_channels=4, init_vectors=0)).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (2, 1, 16, 16)).astype(np.uint8)
    images = ImageSet(pixels, ["0.png", "1.png"], ["a", "b"], np.zeros((2, 0), np.int64), (0, 255))
    found = report.scan(model, images, naive=report.mean_image(images))
    scores = {name: {figure: values.tolist() for figure, values in own.items()} for name, own in found.scores.items()}
    return {"codes": [level.tolist() for level in found.codes], "scores": scores}


def searched(references: str) -> dict[str, object]:
    """Search so many references for copies of two queries, among equal ones for the first."""
    known = np.random.default_rng(1).integers(0, 256, (int(references), 1, 32, 32)).astype(np.uint8)
    queries = torch.from_numpy(known[[-1, len(known) // 3]].copy())
    queries[1, 0, 8:16] = queries[0, 0, 8:16]
    aligned, regions = (search(queries.float(), known) for search in (aligned_nearest, region_nearest))
    known[len(known) // 2] = known[-1]
    index, distance = nearest(queries, known, chunk=4)
    return {
        "index": index.tolist(),
        "distance": distance.tolist(),
        "aligned": aligned.index.tolist(),
        "correlation": aligned.correlation.tolist(),
        "mirrored": aligned.mirrored.tolist(),
        "regions": regions.index.tolist(),
        "regions_correlation": regions.correlation.flatten().tolist(),
    }


def fail() -> None:
    raise ValueError("on purpose")


if __name__ == "__main__":
    main()
