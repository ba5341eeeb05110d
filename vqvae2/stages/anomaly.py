"""`evaluate.py --anomaly`: where images differ from what a run's models expect."""

import csv
import io
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqvae2 import files, report
from vqvae2.anomaly import (
    FEATURES,
    Usual,
    anomaly_map,
    anomaly_parts,
    block_size,
    improbable,
    redraw_blocks,
    residual_map,
    restore_images,
)
from vqvae2.data import ImageSet, load_images
from vqvae2.errors import UserError
from vqvae2.inference import surprise
from vqvae2.metrics import foreground
from vqvae2.pictures import grid, png_bytes, to_picture
from vqvae2.prior import Prior
from vqvae2.progress import Progress
from vqvae2.stages.common import RunFolder, png_names
from vqvae2.stages.compared import background_of
from vqvae2.stages.evaluated import Evaluated
from vqvae2.stages.output_folder import begin, check_own, finish
from vqvae2.stages.sample_folder import hashes_of
from vqvae2.stages.sampled import exported
from vqvae2.stages.unlike import nats_per_code, range_of, unlike
from vqvae2.vqvae import VQVAE

__all__ = ["write_anomalies"]

_NORMAL = 32  # images from which the threshold is taken
_BATCH = 24
_SHOWN = 12
_HIGH = 0.99  # an image's score is this quantile of its map
_MOST = 0.3  # of the foreground; more of it above the threshold is no lesion


@dataclass(frozen=True)
class _Seen:
    """What is seen of N images.

    Attributes:
        parts: (N, P, H, W), of the map.
        masks: (N, H, W) bool, the foreground.
        residuals: (N, H, W), by `residual_map`.
        nats: (N, levels) what a code costs on average under the priors.
        improbable: by level, the NLL above which a code was redrawn for the restorations.
    """

    parts: Tensor
    masks: Tensor
    residuals: Tensor
    nats: NDArray[np.float64]
    improbable: list[float]

    def kept(self) -> dict[str, Any]:
        """What `of` takes: the maps in half precision."""
        return {
            "parts": self.parts.half().numpy(),
            "masks": self.masks.numpy(),
            "residuals": self.residuals.half().numpy(),
            "nats": self.nats,
            "improbable": np.array(self.improbable),
        }

    @classmethod
    def of(cls, kept: Mapping[str, Any]) -> "_Seen":
        """Take it up again."""
        parts, masks, residuals = (torch.from_numpy(kept[name]) for name in ("parts", "masks", "residuals"))
        return cls(parts.float(), masks, residuals.float(), kept["nats"], kept["improbable"].tolist())


@dataclass(frozen=True)
class _Drawn:
    """Means of the draws, (N, C, H, W): of the blocks, and of the restorations."""

    expected: Tensor
    restored: Tensor


@dataclass(frozen=True)
class _Scored:
    """Maps (N, H, W), foreground (N, H, W), and the deviations (N, P, H, W) by part."""

    maps: NDArray[np.float32]
    masks: NDArray[np.bool_]
    deviations: NDArray[np.float32]

    @classmethod
    def of(cls, seen: _Seen, usual: Usual) -> "_Scored":
        """Join the parts."""
        return cls(anomaly_map(seen.parts, usual).numpy(), seen.masks.numpy(), usual.deviations(seen.parts).numpy())

    def scores(self) -> NDArray[np.float64]:
        """Score of each image, (N,)."""
        pairs = zip(self.maps, self.masks, strict=True)
        return np.array([np.quantile(own[mask], _HIGH) if mask.any() else 0.0 for own, mask in pairs])


def write_anomalies(
    run: RunFolder,
    model: VQVAE,
    priors: list[Prior],
    evaluated: Evaluated,
    source: str,
    out: Path,
    draws: int,
    false_positives: float,
    overwrite: bool,
    seed: int,
    dry_run: bool,
) -> None:
    """Score images and write maps, pictures and a table.

    Args:
        run: whose models these are.
        model, priors: of all levels.
        evaluated: held-out images of the run's own data, taken as normal.
        source: an image, or a folder of them.
        out: the folder.
        draws: of each block, >= 2.
        false_positives: share of the normal images' foreground that lies above the threshold, in (0, 1).
        overwrite: replace what is in the folder.
        seed: of the draws.
        dry_run: say what would be done.
    """
    check_own(out, "anomaly.json", overwrite)
    images = load_images(source, evaluated.like, evaluated.choice)
    normal = evaluated.images.some(report.spread_out(len(evaluated.images), _NORMAL))
    tall, wide = block_size(model)
    print(f"{len(images):,} images of {source}; {len(normal)} of split {evaluated.split} as normal ones")
    for name, reason in images.skipped[:10]:
        print(f"skipped    {name!r}: {reason}")
    print(f"{draws} draws of each block of {tall}x{wide} pixels, given the codes before it, and {draws} restorations")
    if dry_run:
        return
    background = background_of(evaluated)
    each = 5 * draws * sum(h * w for h, w in model.config.shapes)  # four turns of blocks, and the restoration
    precision = str(next(priors[0].parameters()).dtype)
    hashes = hashes_of(model, run)
    # Other images of the same names have another checksum.
    what = {"keys": normal.keys, "checksum": normal.checksum, "background": background}
    how = {"format": 5, **hashes, **what, "draws": draws, "seed": seed, "precision": precision}
    with Progress((len(images) + len(normal)) * each, "redrawing", "codes") as progress:

        def look(some: ImageSet, improbable: list[float] | None = None) -> tuple[_Seen, _Drawn]:
            return _look(model, priors, some, background, draws, improbable, seed, progress)

        kept = run.path / "anomaly-normal.npz"
        key = json.dumps(how, sort_keys=True)
        normal_seen = _kept(kept, key)
        if normal_seen is None:
            normal_seen = _Seen.of(look(normal)[0].kept())  # as a later call will find it
            if not exported(run):  # models that are passed on say nothing of somebody's images
                with suppress(UserError):  # a folder that cannot be written to: the next call looks again
                    _keep(kept, key, normal_seen)
        else:
            progress(len(normal) * each)
        if not normal_seen.masks.any():
            raise UserError(
                "the images that are taken as normal show nothing but background",
                evaluated.source,
                "Give --data other images, or --split another part",
            )
        seen, drawn = look(images, normal_seen.improbable)
    usual = Usual.of(normal_seen.parts, normal_seen.masks)
    normal_found, found = _Scored.of(normal_seen, usual), _Scored.of(seen, usual)
    threshold, residual_threshold = (
        float(np.quantile(maps[normal_found.masks], 1 - false_positives))
        for maps in (normal_found.maps, normal_seen.residuals.numpy())
    )
    usual_nats = range_of(normal_seen.nats)
    names = (*FEATURES, *(f"codes of {level}" for level in model.levels))
    about = {
        "source": source,
        "threshold": threshold,
        "residual_threshold": residual_threshold,
        "improbable": {level: round(nll, 3) for level, nll in zip(model.levels, normal_seen.improbable, strict=True)},
        "false_positives": false_positives,
        "normal": {"split": evaluated.split, "images": len(normal), "subjects": len(set(normal.subjects))},
        "nats_per_code": {key: own.round(3).tolist() for key, own in zip(images.keys, seen.nats, strict=True)},
        "normal_nats_per_code": dict(zip(model.levels, np.round(usual_nats, 3).tolist(), strict=True)),
        "normal_scores": sorted(round(float(score), 3) for score in normal_found.scores()),
        "draws": draws,
        "block": [tall, wide],
        "seed": seed,
        **hashes,
    }
    residuals = seen.residuals.numpy()
    above = (residuals > residual_threshold) & found.masks
    rows = _rows(images.keys, found, normal_found, threshold, above, names)
    _write(out, images, found, residuals, drawn, rows, about)
    print(f"threshold {threshold:.2f}: {false_positives:.1%} of the normal images' foreground lie above it")
    for row in rows[:5]:
        part = "more than all normal images" if row["above_normal"] == 1 else f"more than {row['above_normal']:.0%}"
        print(f"{row['file']}: score {row['score']:.2f} ({part}), {row['share']:.1%} of it above the threshold")
    if everywhere := sum(row["share"] > _MOST for row in rows):
        print(
            f"note: in {everywhere:,} of {len(images):,} images more than {_MOST:.0%} of the foreground lies above the "
            "threshold, which speaks for another kind of image, not for a lesion"
        )
    count, words = unlike(seen.nats, usual_nats, model.levels)
    if count:
        print(f"note: {count:,} of {len(images):,} images are unlike the normal ones, so maps may mean little: {words}")
    print(f"wrote {out}/grid.png, scores.csv, maps.npz, anomaly.json and {len(rows)} pictures")


def _kept(path: Path, key: str) -> _Seen | None:
    """What an earlier call found of the same normal images; None if there is nothing of that key."""
    if path.is_file():
        broken = (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, zlib.error)
        with suppress(*broken), np.load(path) as kept:
            if str(kept["key"]) == key:
                return _Seen.of(kept)
    return None


def _keep(path: Path, key: str, found: _Seen) -> None:
    """Keep what was found of the normal images."""
    files.write_atomic(path, lambda file: np.savez_compressed(file, **found.kept(), key=np.array(key)))


def _look(
    model: VQVAE,
    priors: list[Prior],
    images: ImageSet,
    background: float | None,
    draws: int,
    threshold: list[float] | None,
    seed: int,
    progress: Progress,
) -> tuple[_Seen, _Drawn]:
    """Redraw the blocks of images, then their codes above ``threshold``; None: that of these images.

    Labels are not used, so that normal ones and others are judged alike.
    """
    device = model.device
    parts, masks, expected, codes, surprised, nats = [], [], [], [], [], []
    for x in (x.to(device) for x in images.in_parts(_BATCH)):
        drawn = redraw_blocks(model, priors, x, draws, seed=seed, progress=progress)
        codes.append(model.encode(x))
        surprised.append([own for own, _ in surprise(priors, codes[-1])])
        nats.append(nats_per_code(surprised[-1]))
        parts.append(anomaly_parts(x, drawn, surprised[-1]).cpu())
        masks.append(foreground(x, background).cpu())
        expected.append(drawn.mean(1).cpu())
    mask = torch.cat(masks)
    if threshold is None:
        threshold = improbable([torch.cat(level) for level in zip(*surprised, strict=True)], mask.to(device))
    residuals, restored = [], []
    for x, own in zip(images.in_parts(_BATCH), codes, strict=True):
        drawn = restore_images(model, priors, own, threshold, draws, seed, progress)
        residuals.append(residual_map(x.to(device), drawn).cpu())
        restored.append(drawn.mean(1).cpu())
    seen = _Seen(torch.cat(parts), mask, torch.cat(residuals), np.concatenate(nats), threshold)
    return seen, _Drawn(torch.cat(expected), torch.cat(restored))


def _rows(
    keys: list[str],
    found: _Scored,
    usual: _Scored,
    threshold: float,
    above_residual: NDArray[np.bool_],
    names: Sequence[str],
) -> list[dict[str, Any]]:
    """The table, highest score first; ``above_residual`` is where the residual is above its own threshold."""
    scores, normal = found.scores(), usual.scores()
    rows = []
    for i in np.argsort(-scores, kind="stable").tolist():
        above = (found.maps[i] > threshold) & found.masks[i]
        count = max(int(found.masks[i].sum()), 1)
        y, x = np.unravel_index(np.where(found.masks[i], found.maps[i], -1).argmax(), above.shape)
        most = int(np.abs(found.deviations[i, :, y, x]).argmax())
        rows.append(
            {
                "file": keys[i],
                "score": float(scores[i]),
                "above_normal": float((normal < scores[i]).mean()),
                "share": float(above.sum() / count),
                "share_by_residual": float(above_residual[i].sum() / count),
                "row": int(y),
                "column": int(x),
                "feature": names[most],
                "deviations": float(found.deviations[i, most, y, x]),
                "index": i,
            }
        )
    return rows


def _write(
    out: Path,
    images: ImageSet,
    found: _Scored,
    residuals: NDArray[np.float32],
    drawn: _Drawn,
    rows: list[dict[str, Any]],
    about: dict[str, Any],
) -> None:
    begin(out, "anomaly.json", ["pictures/**/*.png"])
    sheets: list[NDArray[np.uint8]] = []
    names = png_names(images.keys)
    threshold = about["threshold"]
    for row in rows:
        i = row["index"]
        image = images[i]["image"]
        picture = to_picture(image)
        heat = _heat(np.where(found.masks[i], found.maps[i], 0), threshold)
        above = (found.maps[i] > threshold) & found.masks[i]
        residual = _heat(np.where(found.masks[i], residuals[i], 0), about["residual_threshold"])
        expected, restored = to_picture(drawn.expected[i]), to_picture(drawn.restored[i])
        strip = [picture, expected, heat, _outlined(picture, above), restored, residual]
        path = out / "pictures" / names[i]
        files.make_folder(path.parent)
        files.write_atomic(path, png_bytes(grid(strip, len(strip))))
        if len(sheets) < len(strip) * _SHOWN:
            sheets += strip
    files.write_atomic(out / "grid.png", png_bytes(grid(sheets, 6)))
    table = io.StringIO()
    columns = [name for name in rows[0] if name != "index"] if rows else []
    writer = csv.DictWriter(table, columns, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    files.write_atomic(out / "scores.csv", table.getvalue().encode())
    maps: dict[str, Any] = {
        "maps": found.maps.astype(np.float16),
        "residuals": residuals.astype(np.float16),
        "foreground": found.masks,
        "keys": np.array(images.keys),
    }
    files.write_atomic(out / "maps.npz", lambda file: np.savez_compressed(file, **maps))
    finish(out, "anomaly.json", about)


def _heat(own: NDArray[np.float32], threshold: float) -> NDArray[np.uint8]:
    """Colour a map from black (0) over red (the threshold) and yellow to white (three times that)."""
    level = np.clip(own / threshold, 0, 3)
    red, green, blue = np.clip(level, 0, 1), np.clip(level - 1, 0, 1), np.clip(level - 2, 0, 1)
    return np.asarray(np.stack([red, green, blue], -1) * 255, np.uint8)


def _outlined(picture: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Draw the edge of a mask into a picture, in red."""
    colour = np.array(picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, 2))
    inner = mask.copy()
    for axis in (0, 1):
        for step in (-1, 1):
            inner &= np.roll(mask, step, axis)
    colour[mask & ~inner] = (255, 60, 60)
    return colour
