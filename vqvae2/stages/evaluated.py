"""What evaluate.py scores: which images, beside which training images, and the commands that made the run."""

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqvae2 import checkpoint
from vqvae2.data import AugmentationConfig, DataConfig, ImageData, ImageSet, load_images, open_data
from vqvae2.data.decoding import digest_of
from vqvae2.errors import UserError
from vqvae2.presets import PRESETS
from vqvae2.stages.common import RunFolder, merged
from vqvae2.stages.data_report import check_subjects
from vqvae2.stages.vqvae_tasks import SharpeningConfig

__all__ = ["Evaluated", "commands", "open_evaluated"]


@dataclass(frozen=True)
class Evaluated:
    """The images that are scored.

    Attributes:
        images: all of them.
        split: its name; ``all`` for every image.
        source: the data's name.
        own: whether it is the run's own data.
        like: what the run says of its data.
        train: the run's training images; None where they could not be read.
    """

    images: ImageSet
    split: str
    source: str
    own: bool
    like: dict[str, Any]
    train: ImageSet | None

    @property
    def held_out(self) -> bool:
        """Whether no image of it was trained or chosen on."""
        return not self.own or self.split in ("val", "test")

    def labels(self) -> Tensor:
        """Return the labels (N, A) int64, -1 missing."""
        return torch.from_numpy(self.images.labels)

    def describe(self) -> dict[str, Any]:
        """Say which images these are, and what they share with the training images."""
        train = self.train if self.held_out else None
        shared = set(self.images.subjects) & set(train.subjects) if train and self.own else set()
        known = {digest_of(image) for image in train.images} - {b""} if train else set()
        same = sum(digest_of(image) in known for image in self.images.images)
        return {
            "name": self.split,
            "data": self.source,
            "images": len(self.images),
            "subjects": len(set(self.images.subjects)),
            "held_out": self.held_out,
            "shared_subjects": len(shared),
            "identical_images": same,
        }


def open_evaluated(run: RunFolder, record: dict[str, Any], data: str | None, split: str | None) -> Evaluated:
    """Read the images that are to be scored, as the run's VQ-VAE takes them.

    Args:
        run: the run folder.
        record: its run.json.
        data: --data; None: the run's own.
        split: --split; None: test if there is one, else val.

    Raises:
        UserError: the data cannot be read, or has no such split.
    """
    like = checkpoint.load_config(run.vqvae, kind="vqvae")["data"]
    config = merged(DataConfig(), record["train_vqvae"]["data"], run.path)
    if data is None or _same(data, config.data):
        config = replace(config, data=data or config.data)
        wanted = None if split == "all" else sorted({"train", *(("val", "test") if split is None else (split,))})
        read = open_data(config, wanted, like)
        check_subjects(read, run.data_report)
        train = read.splits.get("train")
        images, name = _choose(read, split)
        return Evaluated(images, name, config.data, True, like, train)
    other = DataConfig(
        data=data, data_root=config.data_root, bids_suffix=config.bids_suffix, bids_entity=config.bids_entity
    )
    if split == "all" and data != "phantom" and not data.startswith("torchvision:"):
        images, name = load_images(data, like), "all"
    else:
        wanted = None if split == "all" else ["val", "test"] if split is None else [split]
        images, name = _choose(open_data(other, wanted, like), split)
    try:
        train = open_data(config, ["train"], like).splits.get("train")
    except UserError as error:
        print(f"note: no naive figures, as the run's own training images cannot be read: {error}")
        train = None
    return Evaluated(images, name, data, False, like, train)


def commands(run: RunFolder, record: Mapping[str, Any], samples: Mapping[str, Any] | None) -> list[str]:
    """Write the commands that repeat a run: what differs from its preset, as flags.

    Args:
        run: the run folder.
        record: its run.json.
        samples: how samples were made, where there are any.
    """
    chosen, data = PRESETS.get(record["preset"]), record["train_vqvae"]["data"]
    path, lines = shlex.quote(str(run.path)), list[str]()
    if chosen is None:
        return lines
    usual = {**asdict(DataConfig()), "size": chosen.size, "fit": chosen.fit, "phantom_images": chosen.phantom_images}
    flags = [f"--data {shlex.quote(data['data'])} --preset {record['preset']}"]
    flags += _flags({name: value for name, value in data.items() if name != "data"}, usual)
    flags += _flags(record["train_vqvae"]["model"], asdict(chosen.vqvae), ("channels", "height", "width"))
    flags += _flags(record["train_vqvae"]["training"], asdict(chosen.vqvae_training))
    kept = record["train_vqvae"]
    flags += _flags(kept.get("augmentation", {}), asdict(AugmentationConfig()))
    flags += _flags(kept.get("sharpening", {}), asdict(SharpeningConfig(sharpen_share=chosen.sharpen_share)))
    flags += [f"--seed {record['seed']}"] if record.get("seed") else []
    lines.append(" ".join([f"python train_vqvae.py --run {path}", *flags]))
    flags = _flags(record.get("extract_codes", {}), {**kept.get("augmentation", {}), "copies": 0})
    lines.append(" ".join([f"python extract_codes.py --run {path}", *flags]))
    taken = [name for name in record if name.startswith("train_prior_")]
    for name in taken:
        level, kept = name.removeprefix("train_prior_"), record[name]
        index = min(len(kept["model"]["condition_levels"]), len(chosen.priors) - 1)
        told = ("level", "height", "width", "num_embeddings", "attributes")
        told += tuple(
            field for field in kept["model"] if field.startswith("condition_") and field != "condition_layers"
        )
        flags = _flags(kept["model"], asdict(chosen.priors[index]), told)
        flags += _flags(kept["training"], asdict(chosen.prior_training[index]))
        seed = kept.get("compute", {}).get("seed")
        flags += [f"--seed {seed}"] if seed else []
        lines.append(" ".join([f"python train_prior.py --run {path} --level {level}", *flags]))
    if samples:
        flags = [
            f"--num {samples['count']}",
            *(f"--label {shlex.quote(f'{k}={v}')}" for k, v in samples["label"].items()),
        ]
        plain = {"temperature": 1, "top_k": 0, "top_p": 1, "seed": 0, "chunk_size": 16}
        for name, value in plain.items():
            given = samples[name] if isinstance(samples[name], list) else [samples[name]]
            if any(v != value for v in given):
                flags.append(f"--{name.replace('_', '-')} {' '.join(f'{v:g}' for v in given)}")
        lines.append(" ".join([f"python sample.py --run {path}", *flags]))
    return [*lines, f"python evaluate.py --run {path}"]


def _flags(kept: Mapping[str, Any], usual: Mapping[str, Any], without: tuple[str, ...] = ()) -> list[str]:
    """Write settings that differ from the usual ones as flags."""
    flags = []
    for name, value in kept.items():
        usually = usual.get(name)
        usually = list(usually) if isinstance(usually, tuple) else usually
        if name in without or value is None or value == usually:
            continue
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
            continue
        text = " ".join(shlex.quote(str(v)) for v in (value if isinstance(value, list) else [value]))
        flags.append(f"--{flag} {text}")
    return flags


def _same(given: str, own: str) -> bool:
    if given == own:
        return True
    a, b = Path(given).expanduser(), Path(own).expanduser()
    return a.is_dir() and b.is_dir() and a.samefile(b)


def _choose(data: ImageData, split: str | None) -> tuple[ImageSet, str]:
    """Pick a split, or join all; test before val where none is asked for."""
    sets = data.splits
    if split == "all":
        return _joined(list(sets.values()), data.skipped), "all"
    name = split or ("test" if "test" in sets else "val")
    if name not in sets:
        raise UserError(f"there is no split {name}", data.name, "Leave --split out, or give --split all")
    return replace(sets[name], skipped=data.skipped), name


def _joined(sets: list[ImageSet], skipped: list[tuple[str, str]]) -> ImageSet:
    return ImageSet(
        np.concatenate([images.images for images in sets]),
        [key for images in sets for key in images.keys],
        [subject for images in sets for subject in images.subjects],
        np.concatenate([images.labels for images in sets]),
        sets[0].value_range,
        skipped,
    )
