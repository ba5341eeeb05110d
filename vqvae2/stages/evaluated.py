"""What evaluate.py scores: images, the run's own images beside them, models, and the commands that made the run."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqvae2 import checkpoint, report
from vqvae2.codes import CodeStore
from vqvae2.data import DataConfig, ImageData, ImageSet, load_images, open_data
from vqvae2.data.pixel_file import Joined
from vqvae2.detail import DetailDecoder, ImageDecoder
from vqvae2.errors import UserError
from vqvae2.prior import Prior
from vqvae2.stages.commands import command, flags_of
from vqvae2.stages.common import RunFolder
from vqvae2.stages.data_report import check_subjects
from vqvae2.stages.detail import load_detail
from vqvae2.stages.sample_folder import hashes_of
from vqvae2.stages.sampled import exported, load_priors
from vqvae2.vqvae import VQVAE

__all__ = ["Evaluated", "Models", "commands", "open_evaluated"]


@dataclass(frozen=True)
class Models:
    """The models of a run folder: the VQ-VAE, and the codes and priors that exist and belong to it."""

    vqvae: VQVAE
    store: CodeStore | None
    priors: dict[str, Prior]
    hashes: dict[str, Any]
    missing: list[str]
    detail: DetailDecoder | None = None

    @property
    def decoders(self) -> list[ImageDecoder]:
        """What makes images of codes: the VQ-VAE, and perhaps a detail decoder, which samples are then made with."""
        return [self.vqvae, *([] if self.detail is None else [self.detail])]

    @property
    def complete(self) -> bool:
        """Whether the priors of all levels are there."""
        return len(self.priors) == len(self.vqvae.levels)

    @property
    def can_sample(self) -> bool:
        """Whether the priors of the levels that are drawn are there."""
        return all(level in self.priors for level in self.decoders[-1].levels)

    @classmethod
    def of(cls, run: RunFolder, device: torch.device) -> "Models":
        """Load the models that a run folder holds.

        Raises:
            UserError: there is no VQ-VAE, or two parts do not belong together.
        """
        if not checkpoint.has_model(run.vqvae):
            first = command("train-vqvae", "--run", run.path, "--data", "DATA")
            raise UserError("there is no VQ-VAE yet", run.vqvae, f"First run {first}")
        config = checkpoint.load_config(run.vqvae, kind="vqvae")
        if min(config["height"], config["width"]) < 11:
            raise UserError("images under 11x11 pixels have no SSIM", run.vqvae, "Train on larger images")
        model = VQVAE.from_pretrained(run.vqvae, device)
        there = [level for level in model.levels if checkpoint.has_model(run.prior(level))]
        absent = [level for level in model.levels if level not in there]
        hashes = hashes_of(model, run)
        if exported(run):
            priors = dict(zip(there, load_priors(run, there, device), strict=True))
            missing = [f"prior of level {level}, which was not exported" for level in absent]
            return cls(model, None, priors, hashes, [*missing, "NLL: codes are not there"])
        if not (run.codes / "data.mdb").exists():
            missing = [f"priors, which need codes: {command('extract-codes', '--run', run.path)}"]
            return cls(model, None, {}, hashes, missing)
        store, priors = CodeStore(run.codes), dict(zip(there, load_priors(run, there, device), strict=True))
        missing = [
            f"prior of level {name}: {command('train-prior', '--run', run.path, '--level', name)}" for name in absent
        ]
        detail = load_detail(run, device)
        needed = model.levels if detail is None else detail.levels
        missing += ["samples, which need these priors"] if any(level in absent for level in needed) else []
        if detail is not None:
            hashes["detail_sha256"] = checkpoint.sha256_of(run.detail)
        hashes["codes_fingerprint"] = store.fingerprint
        return cls(model, store, priors, hashes, missing, detail)


@dataclass(frozen=True)
class Evaluated:
    """The images that are scored.

    Attributes:
        images: all of them.
        split: its name; ``all`` for every image.
        source: the data's name.
        own: whether it is the run's own data.
        like: the data's record in the VQ-VAE's config.
        train: the run's training images; None if they cannot be read.
        val: the run's own held-out images, beside which other data are judged; None for the run's own data, or if they
            cannot be read.
        choice: which files of another folder are taken, by the flags of the run's own data.
    """

    images: ImageSet
    split: str
    source: str
    own: bool
    like: dict[str, Any]
    train: ImageSet | None
    val: ImageSet | None = None
    choice: DataConfig = field(default_factory=DataConfig)

    @property
    def held_out(self) -> bool:
        """Whether no image of it was used for training or for choosing a checkpoint."""
        return not self.own or self.split in ("val", "test")

    @functools.cached_property
    def mean_image(self) -> Tensor | None:
        """The mean of the run's training images, (C, H, W); to be asked for by all processes first."""
        return None if self.train is None else report.mean_image(self.train)

    def labels(self) -> Tensor:
        """Return the labels (N, A) int64, -1 missing."""
        return torch.from_numpy(self.images.labels)

    def describe(self) -> dict[str, Any]:
        """Return which images these are, and how many they share with the training images."""
        train = self.train if self.held_out else None
        shared = set(self.images.subjects) & set(train.subjects) if train and self.own else set()
        known = set(train.digests) - {b""} if train else set()
        same = sum(digest in known for digest in self.images.digests) if known else 0
        return {
            "name": self.split,
            "data": self.source,
            "own": self.own,
            "images": len(self.images),
            "subjects": len(set(self.images.subjects)),
            "held_out": self.held_out,
            "shared_subjects": len(shared),
            "identical_images": same,
        }


def open_evaluated(run: RunFolder, record: dict[str, Any], data: str | None, split: str | None) -> Evaluated:
    """Read the images to be scored, prepared as the run's VQ-VAE was trained on.

    Args:
        run: the run folder.
        record: its run.json.
        data: --data; None: the run's own.
        split: --split; None: test if it exists, else val.

    Raises:
        UserError: the data cannot be read, or has no such split.
    """
    like = checkpoint.load_config(run.vqvae, kind="vqvae")["data"]
    config = checkpoint.config_from(DataConfig, record["train_vqvae"]["data"], run.path)
    choice = DataConfig(
        data_root=config.data_root,
        exclude=config.exclude,
        include_masks=config.include_masks,
        bids_suffix=config.bids_suffix,
        bids_entity=config.bids_entity,
    )
    anywhere = config.data == "phantom" or config.data.startswith("torchvision:")
    alone = exported(run) and not anywhere  # the name of their folder says nothing of where it lies here
    if data is None and alone:
        raise UserError("exported models come without data", run.path, "Give --data a folder of images")
    if data is None or (not alone and _same(data, config.data)):
        config = replace(config, data=data or config.data)
        held_out = ("val", "test") if split is None else (split,)
        # All that training saw is read, so that its people are known under other names too.
        wanted = None if split == "all" else sorted({"train", "selection", *held_out})
        read = open_data(config, wanted, like)
        check_subjects(read, run.data_report)
        train = read.splits.get("train")
        images, name = _choose(read, split)
        return Evaluated(images, name, config.data, True, like, train, choice=choice)
    if split == "all" and data != "phantom" and not data.startswith("torchvision:"):
        images, name = load_images(data, like, choice), "all"
    else:
        wanted = None if split == "all" else ["val", "test"] if split is None else [split]
        images, name = _choose(open_data(replace(choice, data=data), wanted, like), split)
    known: dict[str, ImageSet] = {}
    try:
        known = {} if alone else open_data(config, ["train", "val"], like).splits
    except UserError as error:
        print(f"note: no figures of the run's own data, which cannot be read: {error}")
    return Evaluated(images, name, data, False, like, known.get("train"), known.get("val"), choice)


def commands(run: RunFolder, record: Mapping[str, Any], samples: Mapping[Path, Mapping[str, Any]]) -> list[str]:
    """Return the commands that repeat a run, from the arguments that each stage stored.

    Args:
        run: the run folder.
        record: its run.json.
        samples: samples.json by folder.
    """
    stages: list[tuple[str, dict[str, Any], Any]] = [
        ("import-rosinality", {}, record.get("import_rosinality")),
        ("train-vqvae", {}, record.get("train_vqvae")),
        ("extract-codes", {}, record.get("extract_codes")),
    ]
    for name in record:
        if name.startswith("train_prior_"):
            stages.append(("train-prior", {"level": name.removeprefix("train_prior_")}, record[name]))
    for folder, how in samples.items():
        stages.append(("sample", {} if folder.name == "samples" else {"out": folder}, how))
    lines = [
        command(stage, *flags_of({"run": run.path, **where, **kept["arguments"]}))
        for stage, where, kept in stages
        if kept and "arguments" in kept  # an earlier version stored none
    ]
    return [*lines, command("evaluate", "--run", run.path)]


def _same(given: str, own: str) -> bool:
    if given == own:
        return True
    a, b = Path(given).expanduser(), Path(own).expanduser()
    return a.is_dir() and b.is_dir() and a.samefile(b)


def _choose(data: ImageData, split: str | None) -> tuple[ImageSet, str]:
    """Return a split, or all joined; without a name test, else val."""
    sets = data.splits
    if split == "all":
        return _joined(list(sets.values()), data.skipped), "all"
    name = split or ("test" if "test" in sets else "val")
    if name not in sets:
        raise UserError(f"there is no split {name}", data.name, "Leave --split out, or give --split all")
    return replace(sets[name], skipped=data.skipped), name


def _joined(sets: list[ImageSet], skipped: list[tuple[str, str]]) -> ImageSet:
    images, files = Joined([one.images for one in sets]), [one.file for one in sets if one.file is not None]
    whole = len(files) == len(sets)
    return ImageSet(
        images,
        [key for one in sets for key in one.keys],
        [subject for one in sets for subject in one.subjects],
        np.concatenate([one.labels for one in sets]),
        sets[0].value_range,
        skipped,
        replace(files[0], index=np.concatenate([file.index for file in files]), images=images) if whole else None,
    )
