"""The folder of a set of samples, written chunk by chunk, so that a set may be large and its making interrupted.

    grid.png       the first 64
    00000.png ...  all; of more than 10,000, a thousand to a folder: 000/00000.png
    codes.npz      by level (N, h, w), in the smallest unsigned type
    samples.json   how they were made, labels, and NLL by level

Until all are there they lie in ``.unfinished-<hash>``: images, and for each chunk its codes and NLL.
"""

import hashlib
import json
import math
import os
import re
import shutil
import zipfile
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqvae2 import checkpoint, distributed, files
from vqvae2.classifier import Classifier, probabilities
from vqvae2.data import from_unit
from vqvae2.data.sources import WRITING
from vqvae2.detail import DetailDecoder, ImageDecoder
from vqvae2.errors import UserError
from vqvae2.pictures import channels_last, grid, png_bytes, to_picture
from vqvae2.prior import Prior
from vqvae2.progress import Progress
from vqvae2.sampling import Samples, Sharpness, chunk_rows, sample_chunks
from vqvae2.stages.commands import command, flags_of
from vqvae2.stages.common import RunFolder
from vqvae2.stages.output_folder import UNFINISHED, begin, finish

_FLAT = 10_000  # images in one folder at most
_SHOWN = 64
_ABOUT = "set.json"
_OF_THE_SET = ("num", "arguments", "reject", "drawn", "classifier_sha256")  # what no single sample depends on

NEUTRAL = {name: getattr(Sharpness(), name) for name in ("min_p", "autoguidance")}
"""Values by which newer settings of sampling change nothing."""

HASHES = ("vqvae_sha256", "detail_sha256", "prior_sha256")
"""What `hashes_of` may name."""

__all__ = [
    "HASHES",
    "NEUTRAL",
    "Rejection",
    "begun_sets",
    "check_out",
    "draw_samples",
    "hashes_of",
    "image_path",
]


def image_path(index: int, num: int) -> str:
    """Return where a sample of ``num`` lies in its folder.

    Example:
        >>> image_path(12345, 64), image_path(12345, 50000)
        ('12345.png', '012/12345.png')
    """
    return f"{index:05d}.png" if num <= _FLAT else f"{index // 1000:03d}/{index:05d}.png"


def check_out(out: Path) -> None:
    """Raise UserError for a folder that holds files other than samples."""
    marked = (out / WRITING).is_file() and (out / WRITING).read_text() in ("", "samples.json")
    if out.is_dir() and not marked and not (out / "samples.json").is_file():
        others = sorted(path.name for path in out.iterdir() if not path.name.startswith("."))
        if others:
            raise UserError(
                f"this folder holds other files, such as {others[0]}", out, "Give --out a folder of its own"
            )


def hashes_of(model: ImageDecoder, run: RunFolder) -> dict[str, Any]:
    """Return the SHA-256 of the weights of the VQ-VAE, the priors there are, and the detail decoder, if it is one."""
    detail = {"detail_sha256": checkpoint.sha256_of(run.detail)} if isinstance(model, DetailDecoder) else {}
    return {
        **detail,
        "vqvae_sha256": checkpoint.sha256_of(run.vqvae),
        "prior_sha256": {
            level: checkpoint.sha256_of(run.prior(level))
            for level in model.levels
            if checkpoint.has_model(run.prior(level))
        },
    }


def begun_sets(out: Path) -> dict[Path, dict[str, Any]]:
    """Return the sets that were begun in a folder and not finished: where they lie, and their num and arguments."""
    about = {folder: folder / _ABOUT for folder in sorted(out.glob(f"{UNFINISHED}-*"))}
    return {folder: files.read_json(path) if path.is_file() else {} for folder, path in about.items()}


def _check_begun(out: Path, own: Path, num: int, run: RunFolder) -> None:
    """Raise UserError where finishing a set would remove another one, or a larger one, that was begun."""
    for folder, about in begun_sets(out).items():
        if folder != own or about.get("num", 0) > num:
            if not about:  # of an earlier version
                raise UserError("samples were begun in this folder and not finished", out, "Add --overwrite")
            go_on = command("sample", *flags_of({"run": run.path, "out": out, **about["arguments"]}))
            raise UserError(
                f"{about['num']:,} samples were begun in this folder and not finished",
                out,
                f"Continue with {go_on}, or add --overwrite, which removes them",
            )


def draw_samples(
    out: Path,
    model: ImageDecoder,
    priors: Sequence[Prior],
    label: Tensor,
    sharpness: list[Sharpness],
    run: RunFolder,
    record: dict[str, Any],
    with_images: bool = True,
    rejection: "Rejection | None" = None,
    overwrite: bool = False,
) -> None:
    """Sample a set into a folder, with a progress bar; what an interrupted call of equal settings made is kept.

    Args:
        out: the folder.
        model, priors, sharpness: as of `sampling.sample_chunks`.
        label: (N, A) int64, -1 missing.
        run: whose models these are.
        record: what samples.json says of them: num, seed, chunk_size, and all else that they depend on.
        with_images: write each as PNG.
        rejection: which of the samples are kept; None: all.
        overwrite: whether other sets that were begun there may be removed.

    Raises:
        UserError: the folder holds other files or another set that was begun, or cannot be written.
    """
    distributed.on_main(lambda: check_out(out))
    how = {name: value for name, value in record.items() if name not in _OF_THE_SET}
    kept = _Unfinished(out, {**how, **hashes_of(model, run)}, model, run)
    if not overwrite:
        distributed.on_main(lambda: _check_begun(out, kept.folder, int(record["num"]), run))
    files.make_folder(kept.folder)
    distributed.on_main(lambda: kept.describe({"num": record["num"], "arguments": record["arguments"]}))
    size, num = int(record["chunk_size"]), len(label)
    # As the main process finds it: others may have begun to write meanwhile.
    done = distributed.on_main(
        lambda: {first for first in range(0, num, size) if kept.has(first, label[chunk_rows(first, size, num)])}
    )
    chunks = -(-num // (size * distributed.world_size()))  # of the main process
    total = chunks * size * sum(h * w for h, w in model.config.shapes)
    with Progress(total, "sampling", "codes") as progress:
        made = sample_chunks(model, priors, label, int(record["seed"]), sharpness, size, progress, done)
        for first, part in made:
            if with_images and rejection is None:
                kept.write_images(range(first, min(first + size, num)), part.images, num)
            kept.put(first, part)
    if with_images and rejection is None:
        for first in sorted(done)[distributed.rank() :: distributed.world_size()]:
            kept.complete_images(first, size, num)
    distributed.barrier()
    distributed.on_main(lambda: _finish(out, kept, label, record, with_images, rejection))


@dataclass(frozen=True)
class Rejection:
    """Which samples are kept: of each class those of which a classifier is surest (Razavi et al. 2019).

    Args:
        classifier: of one of the labels.
        column: which of them.
        share: of the samples that are left out, in (0, 1).
    """

    classifier: Classifier
    column: int
    share: float

    def drawn(self, num: int) -> int:
        """Return how many samples to draw so that ``num`` are kept."""
        return math.ceil(round(num / (1 - self.share), 6))

    def rows(self, confidence: Tensor, classes: Tensor, num: int) -> list[int]:
        """Choose among samples.

        Args:
            confidence: (M,) probability of each sample's own class.
            classes: (M,) int64, -1 missing.
            num: how many are kept, of each class the same share as near as whole numbers allow.

        Returns:
            The numbers of those that are kept, in order.
        """
        groups = [(classes == k).nonzero()[:, 0] for k in classes.unique().tolist()]
        exact = [len(group) * num / len(classes) for group in groups]
        quotas = [int(value) for value in exact]
        for i in sorted(range(len(groups)), key=lambda i: quotas[i] - exact[i])[: num - sum(quotas)]:
            quotas[i] += 1
        chosen = [
            group[confidence[group].argsort(descending=True, stable=True)[:quota]]
            for group, quota in zip(groups, quotas, strict=True)
        ]
        return sorted(torch.cat(chosen).tolist())


class _Unfinished:
    """What of a set is there already.

    Args:
        out: folder of the set.
        how: everything that the samples depend on; chunks of other settings are not found.
        model: what decodes the codes.
        run: its run.
    """

    def __init__(self, out: Path, how: dict[str, Any], model: ImageDecoder, run: RunFolder) -> None:
        # What earlier versions did not have is left out where it changes nothing.
        known = {name: value for name, value in how.items() if name not in NEUTRAL or set(value) != {NEUTRAL[name]}}
        if "detail_sha256" not in how:
            known.pop("levels", None)
        key = hashlib.sha256(json.dumps({"format": 3, **known}, sort_keys=True).encode()).hexdigest()[:16]
        self.folder, self.model = out / f"{UNFINISHED}-{key}", model
        self.hashes = {name: value for name, value in how.items() if name in HASHES}
        self.value_range = run.value_range

    def describe(self, about: dict[str, Any]) -> None:
        """Write down which set is made there."""
        files.write_json(self.folder / _ABOUT, about)

    def has(self, first: int, label: Tensor) -> bool:
        """Tell whether the chunk that starts with this sample is there, drawn for these labels."""
        return self._path(first).is_file() and torch.equal(self.get(first)["label"], label)

    def put(self, first: int, part: Samples) -> None:
        """Write a chunk's codes, NLL and labels, after its images."""
        tensors = {level: own.cpu().contiguous() for level, own in zip(self.model.levels, part.codes, strict=True)}
        tensors |= {"nll": part.nll.cpu(), "label": part.label.contiguous()}
        files.write_atomic(self._path(first), safetensors.torch.save(tensors))

    def get(self, first: int) -> dict[str, Tensor]:
        """Return a chunk: codes by level, and nll.

        Raises:
            UserError: another process made it, and wrote it elsewhere.
        """
        if not self._path(first).is_file():
            raise UserError(
                "samples of other processes are not here", self.folder, "Give --out a folder that all machines share"
            )
        return safetensors.torch.load_file(self._path(first))

    def write_images(self, indices: Sequence[int], images: Tensor, num: int, subfolder: str = "") -> None:
        """Write images of a set under their numbers, unsynced; the chunk written after them says that they are."""
        with files.told_as("cannot write the samples", self.folder, "Free the disk or choose another folder"):
            for index, image in zip(indices, from_unit(images[: len(indices)], self.value_range), strict=True):
                path = self.folder / subfolder / image_path(index, num)
                path.parent.mkdir(parents=True, exist_ok=True)
                partial = path.with_suffix(".part")
                partial.write_bytes(png_bytes(channels_last(image)))
                os.replace(partial, path)

    def complete_images(self, first: int, size: int, num: int) -> None:
        """Write the images of a chunk that was made without them, or for a smaller set."""
        indices = range(first, min(first + size, num))
        if not all((self.folder / image_path(i, num)).is_file() for i in indices):
            self.write_images(indices, self.decode(self.get(first)), num)

    @torch.no_grad()
    def decode(self, chunk: dict[str, Tensor]) -> Tensor:
        """Decode a chunk."""
        device = self.model.device
        return self.model.decode([chunk[level].to(device) for level in self.model.levels])

    def _path(self, first: int) -> Path:
        return self.folder / f"{first:08d}.safetensors"


def _finish(
    out: Path,
    kept: _Unfinished,
    label: Tensor,
    record: dict[str, Any],
    with_images: bool,
    rejection: Rejection | None,
) -> None:
    """Choose the samples, give their images their names, and write grid, codes and samples.json."""
    size, levels = int(record["chunk_size"]), kept.model.levels
    firsts = range(0, len(label), size)
    num = int(record["num"])
    rows: Sequence[int] = range(num)
    chosen = ""
    if rejection is not None:
        chosen = "chosen"  # their numbers are not those under which a set without rejection keeps its images
        rows = rejection.rows(_confidence(kept, firsts, label, rejection), label[:, rejection.column], num)

    def own(first: int) -> tuple[int, list[int]]:
        """How many of the rows lie before a chunk, and those in it, counted from its first."""
        low, high = bisect_left(rows, first), bisect_left(rows, first + size)
        return low, [row - first for row in rows[low:high]]

    shown: list[Any] = []
    nll: list[NDArray[np.float64]] = []
    for first in firsts:
        chunk, (before, places) = kept.get(first), own(first)
        nll.append(chunk["nll"][places].double().numpy())
        write = with_images and rejection is not None and places
        if len(shown) < min(_SHOWN, num) or write:
            images = kept.decode(chunk)[places]
            shown += [to_picture(image) for image in images[: min(_SHOWN, num) - len(shown)]]
            if write:
                kept.write_images(range(before, before + len(places)), images, num, chosen)
    begin(out, "samples.json", [])
    with files.told_as("cannot replace the samples", out, "Choose another folder"):
        for old in list(out.iterdir()):
            if re.fullmatch(r"\d{5,}\.png", old.name):
                old.unlink()
            elif re.fullmatch(r"\d{3,}", old.name) and old.is_dir() and not old.is_symlink():
                _remove_images(old)
        for index in range(num) if with_images else ():
            place = out / image_path(index, num)
            place.parent.mkdir(exist_ok=True)
            os.replace(kept.folder / chosen / image_path(index, num), place)
    files.write_atomic(out / "grid.png", png_bytes(grid(shown)))
    config = kept.model.config
    shapes = dict(zip(levels, zip(config.shapes, config.num_embeddings, strict=True), strict=True))
    files.write_atomic(
        out / "codes.npz",
        lambda file: _write_codes(
            file,
            {level: ((num, *shape), np.min_scalar_type(k - 1)) for level, (shape, k) in shapes.items()},
            lambda level: (kept.get(first)[level][own(first)[1]].numpy() for first in firsts),
        ),
    )
    columns = np.concatenate(nll).T
    about = {
        **record,
        "levels": list(levels),
        **kept.hashes,
        "nll_nats_per_code": {
            level: [round(float(v), 6) for v in column] for level, column in zip(levels, columns, strict=True)
        },
        "labels": label[list(rows)].tolist(),
    }
    finish(out, "samples.json", about)
    for folder in out.glob(f"{UNFINISHED}-*"):
        shutil.rmtree(folder)


def _remove_images(folder: Path) -> None:
    """Remove samples from a folder of a thousand, and the folder if nothing else is in it."""
    for path in folder.iterdir():
        if re.fullmatch(r"\d{5,}\.png", path.name):
            path.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()


def _confidence(kept: _Unfinished, firsts: range, label: Tensor, rejection: Rejection) -> Tensor:
    """Probability of each sample's own class; of the most probable one where it has none."""
    parts = []
    for first in firsts:
        images = kept.decode(kept.get(first))
        parts.append(probabilities(rejection.classifier, lambda rows: images[rows], len(images)))  # noqa: B023 - called at once
    all_classes = torch.cat(parts)[: len(label)]
    classes = label[:, rejection.column]
    of_own = all_classes.gather(1, classes.clamp_min(0)[:, None])[:, 0]
    return torch.where(classes >= 0, of_own, all_classes.amax(1))


def _write_codes(file: Any, arrays: dict[str, tuple[tuple[int, ...], Any]], parts: Any) -> None:
    """Write an archive as `numpy.savez_compressed` does, each array in parts."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, (shape, dtype) in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy")  # of a fixed date: the same samples are the same bytes
            entry.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(entry, "w", force_zip64=True) as member:
                header = {
                    "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
                    "fortran_order": False,
                    "shape": shape,
                }
                np.lib.format.write_array_header_1_0(member, header)
                pieces: Iterator[NDArray[Any]] = parts(name)
                for piece in pieces:
                    member.write(np.ascontiguousarray(piece, dtype).tobytes())
