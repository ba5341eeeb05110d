"""What the report says of sets with a known fault: which figure moves, and which verdict is given.

    python benchmarks/planted.py --run RUN --json FILE [--count 64]

RUN is a complete run with a report (`evaluate.py`). In place of its samples stand real images of the people that were
set aside to choose the checkpoint, as they are (there must be no alarm) and with a fault: copies of training images
among them, kinds of images missing, blur, noise, one image again and again, upside down. At last a codebook is made to
collapse, and the top's prior is trained on 32 training images alone for 150 steps. For the search for copies it then
plants each change of every chosen training image, and counts how many are found above the report's bound (half-way from
the 99th percentile of half of the held-out people to 1), and how many images of the other half lie above it. Phantom
slices are a fault only where RUN's own data are others.
"""

import argparse
import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqvae2 import VQVAE, CodeStore, Prior, checkpoint, files, report
from vqvae2.data import DataConfig, ImageSet, open_data
from vqvae2.errors import UserError
from vqvae2.metrics import aligned_nearest, features, gaussian_blur
from vqvae2.stages.common import RunFolder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, type=Path, help="a complete run with a report")
    parser.add_argument("--json", required=True, type=Path, help="file for the figures")
    parser.add_argument("--count", type=int, default=64, help="images of each set (default: %(default)s)")
    arguments = parser.parse_args()
    run = RunFolder(arguments.run)
    config = checkpoint.config_from(DataConfig, run.read()["train_vqvae"]["data"], run.path)
    model = VQVAE.from_pretrained(run.vqvae)
    base = files.read_json(run.path / "report" / "report.json")
    like = checkpoint.load_config(run.vqvae, kind="vqvae")["data"]
    held_out = base["split"]["name"]
    splits = open_data(config, None, like).splits
    if held_out not in ("val", "test") or not splits["selection"]:
        raise SystemExit("error: planted.py needs a report on val or test, and subjects set aside for selection.")
    count = min(arguments.count, len(splits["selection"]))
    spaces = {"encoder": report.encoder_features(model, some(splits[held_out], 512))}
    try:
        features(torch.zeros(0, 3, 32, 32))
        spaces["MobileNetV2"] = features
    except UserError as error:
        print(f"note: {error}")
    judge = Judge(model, splits["train"], splits[held_out], base, spaces, CodeStore(run.codes))
    rows = judge.samples(planted(splits, count))
    rows.append(judge.collapsed(count))
    rows.append(judge.overfitted(run))
    found = search(splits["train"], splits[held_out])
    tell(rows, found)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(arguments.json, {"sets": rows, "copies": found})
    print(f"wrote {arguments.json}")
    return 0


def some(images: ImageSet, count: int) -> Tensor:
    return images.at(report.spread_out(len(images), count))


def planted(splits: dict[str, ImageSet], count: int) -> dict[str, Tensor]:
    """Build the sets by name; each begins from the same real images."""
    other, train = splits["selection"], some(splits["train"], count)
    real = some(other, count)
    few = max(1, count // 20)
    generator = torch.Generator().manual_seed(0)
    # Kinds are the classes of the first label where there is one, else images from dark to bright.
    first = other.labels[:, 0].astype(float) if other.labels.shape[1] else np.asarray(other.images).mean((1, 2, 3))
    kinds = np.unique(first[first >= 0])
    half = np.flatnonzero((first >= 0) & (first < kinds[len(kinds) // 2]))
    chosen = [int(half[i]) for i in report.spread_out(len(half), count)]
    of_first = np.flatnonzero(first <= (kinds[0] if len(kinds) < len(first) / 4 else np.quantile(first, 0.25)))
    rest = np.setdiff1d(np.arange(len(first)), of_first[::2])
    height, width = other.images.shape[2:]
    drawn = open_data(DataConfig(data="phantom", phantom_images=10 * count, size=f"{height}x{width}"), ["val"])
    sets = {
        "real": real,
        "5 % copies": torch.cat([train[:few], real[few:]]),
        "half copies, shifted by 2 pixels": torch.cat([train[: count // 2].roll((2, -2), (2, 3)), real[count // 2 :]]),
        "half copies, mirrored and darker": torch.cat([train[: count // 2].flip(-1) * 0.9 - 0.1, real[count // 2 :]]),
        "half of the first kind missing": other.at([int(rest[i]) for i in report.spread_out(len(rest), count)]),
        "half of the kinds missing": other.at(chosen),
        "blurred by 0.7 pixels": gaussian_blur(real, 0.7),
        "blurred by 1.5 pixels": gaussian_blur(real, 1.5),
        "noise of 0.1": (real + 0.1 * torch.randn(real.shape, generator=generator)).clamp(-1, 1),
        "one image again and again": (real[:1] + 0.01 * torch.randn(real.shape, generator=generator)).clamp(-1, 1),
        "upside down": real.flip(-2),
        "other data, the phantom": some(drawn.splits["val"], count).expand(-1, real.shape[1], -1, -1),
    }
    return {name: images for name, images in sets.items() if len(images) > 1}


class Judge:
    """Gives the verdict of a report in which one part was replaced."""

    def __init__(
        self,
        model: VQVAE,
        train: ImageSet,
        scored: ImageSet,
        base: dict[str, Any],
        spaces: dict[str, Any],
        store: CodeStore,
    ) -> None:
        self.model, self.train, self.scored, self.base, self.spaces = model, train, scored, base, spaces
        self.real = some(scored, 512)
        with torch.no_grad():
            self.again = report.decode(model, self._encode(self.real))
        self.store = store
        self.train_codes = store.read(store.indices("train"))

    @torch.no_grad()
    def _encode(self, images: Tensor) -> list[Tensor]:
        return [torch.cat(level) for level in zip(*map(self.model.encode, images.split(32)), strict=True)]

    def samples(self, sets: dict[str, Tensor]) -> list[dict[str, Any]]:
        """Judge sets of images as if each were the samples."""
        beside = {"reconstructions": self.again, "training_images": some(self.train, 512)}
        distances = report.set_distances(self.real, {**beside, **sets}, self.spaces)
        near = report.neighbours(next(iter(sets.values())), self.real, self.again, self.train)
        space, _ = report.nearest_features({**self.base, "distances": distances})
        features_of = self.spaces[space]
        known = report.training_features(self.train, features_of)
        real, again = features_of(self.real), features_of(self.again)
        rows = []
        for name, images in sets.items():
            codes = self._encode(images)
            nothing, unknown = np.zeros((len(images), len(codes))), -np.ones((len(images), 1), np.int64)
            as_set = report.SampleSet(Path("samples"), codes, nothing, unknown, {}, self.model)
            index, distance = report.nearest_training(images, self.train)
            mirrored_index, mirrored = report.nearest_training(images.flip(-1), self.train)
            own = replace(
                near,
                index=index,
                distance=distance,
                mirrored_index=mirrored_index,
                mirrored=mirrored,
                aligned=aligned_nearest(images, self.train.images),
            )
            found = copy.deepcopy(self.base)
            by_features = {"space": space} | report.feature_neighbours(known, real, again, features_of(images))
            memory = report.memorisation_figures(own, as_set, self.train, self.train_codes, self.model)
            diversity = report.diversity_figures(images, self.real, self.again)
            found["samples"] = {"label": {}, "diversity": diversity, "memorisation": memory}
            found["samples"]["feature_neighbours"] = by_features
            found["distances"] = {
                space: {"samples": figures[name], **{other: figures[other] for other in figures if other not in sets}}
                for space, figures in distances.items()
            }
            _, looks, new = report.verdict(found)
            figures = {space: figures["samples"] for space, figures in found["distances"].items()}
            figures["memorisation"] = {key: value for key, value in memory.items() if key != "nearest"}
            figures["feature_neighbours"] = by_features
            rows.append({"set": name, "looks": looks, "new": new, "figures": figures})
        return rows

    def collapsed(self, count: int) -> dict[str, Any]:
        """Judge the reconstructions of a model whose finest codebook holds one vector only."""
        broken = copy.deepcopy(self.model)
        with torch.no_grad():
            for name, value in broken.codebooks[-1].state_dict().items():
                if value.ndim == 2:
                    broken.codebooks[-1].state_dict()[name].copy_(value[:1].expand_as(value))
        rows = report.spread_out(len(self.scored), count)
        images = ImageSet(
            self.scored.images[rows],
            [self.scored.keys[i] for i in rows],
            [self.scored.subjects[i] for i in rows],
            self.scored.labels[rows],
            self.scored.value_range,
            [],
        )
        seen = report.scan(
            broken, images, naive=report.mean_image(self.train), background=report.background_of(self.train)
        )
        found = copy.deepcopy(self.base)
        found["reconstruction"] = report.reconstruction_figures(seen, images)
        found["levels"] = report.level_figures(seen, broken)
        return {"set": "finest codebook of one vector", "reconstructs": report.verdict(found)[0], "figures": {}}

    def overfitted(self, run: RunFolder) -> dict[str, Any]:
        """Judge the top's prior after it was trained on few images alone."""
        level = self.model.levels[0]
        prior = Prior.from_pretrained(run.prior(level))
        parts = {}
        for name, wanted in (("train", 32), (self.base["split"]["name"], 320)):
            rows = self.store.indices(name)
            batch = self.store.__getitems__([rows[i] for i in report.spread_out(len(rows), wanted)])
            parts[name] = batch["codes"][:1], batch["label"]
        (codes,), label = parts["train"]
        optimizer = torch.optim.AdamW(prior.parameters(), 1e-3)
        generator = torch.Generator().manual_seed(0)
        prior.train()
        for _ in range(150):
            some_rows = torch.randint(len(codes), (8,), generator=generator)
            own = codes[some_rows].long()
            loss = torch.nn.functional.cross_entropy(prior(own, label=label[some_rows]), own)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        prior.eval()
        seen, held_out = (report.score_codes(prior, *part) for part in parts.values())
        found = copy.deepcopy(self.base)
        own_figures = found["levels"][level]
        figures = report.prior_figures(held_out, seen, own_figures["position_nll"], [""] * len(held_out.nll))
        own_figures |= figures
        new = sorted(set(report.warnings(found)) - set(report.warnings(self.base)))
        told = {"band": "said" if new else "no", "question": "Does a prior overfit?", "reason": " ".join(new)}
        return {"set": "top prior of 32 training images", "overfits": told, "figures": figures}


def search(train: ImageSet, held_out: ImageSet) -> dict[str, Any]:
    """Measure how many planted copies are found, at which rate of false alarms on people never seen."""
    people = sorted(set(held_out.subjects))
    first = np.isin(held_out.subjects, people[::2])
    known, others = (held_out.at(np.flatnonzero(side).tolist()) for side in (first, ~first))
    bound = (1 + float(np.percentile(aligned_nearest(known, train.images).correlation.numpy(), 99))) / 2
    images = some(train, 128)
    changes = {
        "exact": images,
        "shifted by 2 pixels": images.roll((2, -2), (2, 3)),
        "re-lit by 0.8, gamma 0.9": 2 * (0.8 * ((images + 1) / 2) ** 0.9) - 1,
        "mirrored": images.flip(-1),
        "blurred by 0.7 pixels": gaussian_blur(images, 0.7),
    }
    shares = {
        name: float((aligned_nearest(changed, train.images).correlation > bound).double().mean())
        for name, changed in changes.items()
    }
    alarms = float((aligned_nearest(others, train.images).correlation > bound).double().mean())
    return {"bound": bound, "found": shares, "false_alarms": alarms, "planted": len(images), "others": len(others)}


def tell(rows: list[dict[str, Any]], found: dict[str, Any]) -> None:
    """Print the bands and the figures."""
    for row in rows:
        for name in ("looks", "new", "reconstructs", "overfits"):
            if name in row:
                print(f"{row['set']:<34}{row[name]['band']:<6}{row[name]['question']} {row[name]['reason']}")
    print(f"\ncopies above a correlation of {found['bound']:.4f}: ", end="")
    print(", ".join(f"{name} {share:.1%}" for name, share in found["found"].items()), end="")
    print(f"; false alarms {found['false_alarms']:.1%} of {found['others']} images of other people")


if __name__ == "__main__":
    raise SystemExit(main())
