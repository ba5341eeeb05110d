"""Stage 5: measure a run and write its report."""

import csv
import io
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vqvae2 import checkpoint, distributed, files, report
from vqvae2.codes import CodeStore
from vqvae2.data import ImageSet, from_unit
from vqvae2.data.sources import WRITING
from vqvae2.errors import UserError
from vqvae2.metrics import named_features
from vqvae2.pictures import channels_last, png_bytes
from vqvae2.progress import Progress
from vqvae2.report.album import Album
from vqvae2.stages.anomaly import write_anomalies
from vqvae2.stages.commands import command
from vqvae2.stages.common import Compute, RunFolder, locked, png_names, refuse_torchrun
from vqvae2.stages.compared import COMPARED, Beside, background_of, measure_distances, measure_samples
from vqvae2.stages.evaluated import Evaluated, Models, commands, open_evaluated
from vqvae2.stages.flags import CommandLine
from vqvae2.stages.launch import run_stage
from vqvae2.stages.output_folder import begin, finish
from vqvae2.stages.recognition import check, recognition
from vqvae2.stages.sampled import exported
from vqvae2.stages.sharpening import trained_by_features
from vqvae2.version import __version__
from vqvae2.vqvae import VQVAE

_OURS = {"figures", "index.html", "reconstructions", "report.json", "scores.csv"}


@dataclass(frozen=True)
class Arguments:
    """Stage 5: measure a run and write its report."""

    run: Path
    """Run folder with a trained VQ-VAE; codes, priors and samples are measured if they exist."""
    data: str | None = None
    """Score other images than the run's own: a folder, phantom or torchvision:NAME."""
    split: Literal["train", "selection", "val", "test", "all"] | None = None
    """Split to score; default: test if it exists, else val. all: every image, in any folder."""
    out: Path | None = None
    """Folder of the report; default: report in the run folder, with the name of --data appended."""
    save_reconstructions: bool = False
    """Write every reconstruction as PNG, in the data's own values and under its own name."""
    num_samples: int = 64
    """Samples to draw if the run folder holds none; 0: none."""
    classifier: str | None = None
    """A label, by name: train a classifier of it on the training images (or take the run's), and measure whether
    samples are recognised as their class, and the classification accuracy score. Sampling with --reject needs it."""
    features: tuple[str, ...] = ()
    """Compare samples with real images in these features, too: a classifier of torchvision by name, such as resnet50;
    inception (the FID's, by torch-fidelity); or module:function, your own: images (N, C, H, W) in [-1, 1] -> (N, d).
    Weights are taken from torch's cache, and not downloaded."""
    against: Path | None = None
    """Another run with a report: its figures stand beside this one's."""
    anomaly: str | None = None
    """An image or a folder: in place of the report, map where these images differ from what the models expect there,
    given the rest of them. The images that are scored otherwise are taken as normal."""
    draws: int = 4
    """Of --anomaly: draws of each block, and restorations of each image, >= 2."""
    false_positives: float = 0.01
    """Of --anomaly: share of the normal images' foreground above each threshold, in (0, 1)."""
    overwrite: bool = False
    """Of --anomaly: replace what is in the folder."""
    batch_size: int = 32
    """Images processed at once."""
    compute: Compute = field(default_factory=Compute)
    dry_run: bool = False
    """Print what would be measured, and exit."""


_GROUPS = {
    "data": ("data", "split"),
    "report": ("out", "save_reconstructions", "num_samples", "classifier", "features", "against"),
    "anomalies": ("anomaly", "draws", "false_positives", "overwrite"),
    "running": ("run", "dry_run", "batch_size", "device", "seed"),
}


def main(argv: list[str] | None = None) -> int:
    """Run the stage; return its exit code."""
    return run_stage(partial(CommandLine, "evaluate", Arguments, _GROUPS), _story, argv)


def _story(line: CommandLine[Arguments]) -> None:
    arguments = line.settings()
    for flag, value, least in (("--batch-size", arguments.batch_size, 1), ("--num-samples", arguments.num_samples, 0)):
        if value < least:
            raise UserError(f"{flag} {value} is out of range", how=f"Give {least} or more")
    run = RunFolder(arguments.run)
    record = run.read()
    other = None if arguments.against is None else _other_report(arguments.against)  # before the work
    device, _ = arguments.compute.resolve()
    models = Models.of(run, device)
    further = {name: named_features(name) for name in arguments.features}
    if arguments.anomaly is not None:
        refuse_torchrun("--anomaly")
        _anomalies(line, arguments, run, record, models)
        return
    line.refuse_alone("anomaly", ("draws", "false_positives", "overwrite"), "anomalies")
    evaluated = open_evaluated(run, record, arguments.data, arguments.split)
    for features in further.values():  # before the work
        features(evaluated.images.at([0]))
    if arguments.classifier is not None:
        check(evaluated, arguments.classifier)
    out = _folder(arguments, run, evaluated)
    print(f"{len(evaluated.images):,} images, split {evaluated.split} of {evaluated.source}")
    for path, reason in evaluated.images.skipped[:10]:
        print(f"skipped    {path!r}: {reason}")
    if (
        arguments.save_reconstructions
        and evaluated.images.images.dtype.itemsize > 1
        and models.vqvae.config.channels > 1
    ):
        raise UserError("PNG cannot hold 16-bit colour", "--save-reconstructions", "Leave it out")
    if arguments.dry_run:
        print(f"would write {out}/index.html, report.json, scores.csv and figures/")
        print("\n".join(f"not measured: {line}" for line in models.missing))
        return
    distributed.on_main(lambda: files.make_folder(out) and None)
    with locked(out):
        _measure(run, record, models, evaluated, arguments, out, other, further)


def _anomalies(
    line: CommandLine[Arguments], arguments: Arguments, run: RunFolder, record: dict[str, Any], models: Models
) -> None:
    """Map where other images differ from the run's."""
    line.refuse_beside(
        "anomaly", ("num_samples", "classifier", "against", "features", "save_reconstructions", "batch_size")
    )
    if arguments.draws < 2:
        raise UserError(f"--draws {arguments.draws} is too few", how="Give 2 or more")
    if not 0 < arguments.false_positives < 1:
        raise UserError(f"--false-positives {arguments.false_positives:g} is no share", how="Give more than 0, below 1")
    if not models.complete:
        raise UserError("anomalies need the priors of all levels", run.path, models.missing[0])
    source = arguments.anomaly or ""
    path = Path(source).expanduser()
    if not path.exists():
        raise UserError("there are no such images", path, "Give --anomaly an image or a folder")
    evaluated = open_evaluated(run, record, arguments.data, arguments.split)
    out = arguments.out or run.path / f"anomaly-{path.resolve().stem}"
    _, precision = arguments.compute.resolve()
    with nullcontext() if arguments.dry_run else locked(out):
        write_anomalies(
            run,
            models.vqvae,
            [models.priors[level].to(precision) for level in models.vqvae.levels],
            evaluated,
            source,
            out,
            arguments.draws,
            arguments.false_positives,
            arguments.overwrite,
            arguments.compute.seed,
            arguments.dry_run,
        )


def _measure(
    run: RunFolder,
    record: dict[str, Any],
    models: Models,
    evaluated: Evaluated,
    arguments: Arguments,
    out: Path,
    other: tuple[dict[str, Any], list[dict[str, str]]] | None,
    further: dict[str, report.Features],
) -> None:
    """Measure everything, and write the report."""
    distributed.on_main(lambda: _begin(out, arguments.save_reconstructions))
    album = Album(out / "figures")
    found: dict[str, Any] = {
        "format": checkpoint.FORMAT,
        "kind": "report",
        "version": __version__,
        "created": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "run": run.path.resolve().name,
        "data": {name: value for name, value in evaluated.like.items() if name != "bins"},
        "split": evaluated.describe(),
    }
    if trained_by_features(record) or models.detail is not None:
        found["decoder_trained_by"] = ["MobileNetV2", "mobilenet_v2"]  # ours, and --features mobilenet_v2
    codes = _images(found, models.vqvae, evaluated, arguments, out, album)
    _priors(found, models, evaluated, codes, arguments, album)
    if evaluated.val is not None:
        found["own"] = _own_figures(models, evaluated.val, background_of(evaluated), arguments)
    beside = Beside(models.vqvae, evaluated, codes)
    sets, made = measure_samples(
        found, run, models, evaluated, beside, arguments.num_samples, arguments.compute.seed, album
    )
    if not distributed.is_main():  # the rest is drawing and writing
        return
    drawn = sets[0] if made is not None else None
    measure_distances(found, models, evaluated, beside, drawn, made, further)
    if arguments.classifier is not None:
        found["recognition"] = recognition(
            run,
            models.vqvae,
            evaluated,
            arguments.classifier,
            drawn,
            arguments.compute.seed,
        )
        album.rejection(found["recognition"].get("curve", {}))
    if evaluated.like["source"] == "phantom" and evaluated.own and evaluated.train is not None and sets:
        classes = evaluated.like["attributes"]["diagnosis"]
        areas = report.ventricles(sets, evaluated.train, classes)
        found["phantom"] = report.ventricle_figures(areas, classes)
        album.ventricles(areas)
    album.curves(run.path, found["levels"], found["reconstruction"].get("mean_image"))
    found["missing"] = models.missing
    found["verdict"] = report.verdict(found)
    found["summary"], found["warnings"] = report.summary(found), report.warnings(found)
    found["commands"], found["hashes"] = (
        commands(run, record, {found_set.folder: found_set.how for found_set in sets}),
        models.hashes,
    )
    if other is not None:
        theirs, scores = other
        found["comparison"] = report.comparison(found, theirs, report.paired_errors(_scores(out), scores))
    report.write_page(out / "index.html", found, album.widths)
    finish(out, "report.json", found)
    _print_figures(found)
    print(f"wrote {out}/report.json, scores.csv and {len(album.widths)} figures")
    if arguments.save_reconstructions:
        print(f"wrote {out}/reconstructions: {len(evaluated.images):,} images")
    print(f"report: {out}/index.html")


def _begin(out: Path, with_images: bool) -> None:
    """Remove the report that is there, so that an interrupted evaluation leaves none whose figures are gone."""
    if with_images and any((out / name).is_file() for name in ("report.json", WRITING)):  # else they are no report's
        for old in list((out / "reconstructions").glob("**/*.png")):
            old.unlink()
    begin(out, "report.json", ["index.html"])


def _other_report(folder: Path) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """Read the report of another run and its scores of each image, by its run folder or its report's."""
    path = next((p for p in (folder / "report" / "report.json", folder / "report.json") if p.is_file()), None)
    if path is None:
        data = ("--data", "DATA") if exported(RunFolder(folder)) else ()
        first = command("evaluate", "--run", folder, *data)
        raise UserError("there is no report of that run", folder, f"First run {first}")
    found: dict[str, Any] = files.read_json(path)
    checkpoint.check_format(found.get("format", 0), path, found.get("version"))
    return found, _scores(path.parent)


def _scores(folder: Path) -> list[dict[str, str]]:
    """Read a report's scores of each image; none where they are not there."""
    path = folder / "scores.csv"
    return list(csv.DictReader(path.read_text().splitlines())) if path.is_file() else []


def _folder(arguments: Arguments, run: RunFolder, evaluated: Evaluated) -> Path:
    """Choose the report's folder; refuse one that holds other files or lies among the images."""
    name = "report" if evaluated.own else "report-" + Path(evaluated.source.replace(":", "-")).resolve().name
    out = arguments.out or run.path / name
    there = {path.name for path in out.iterdir() if not path.name.startswith(".")} if out.is_dir() else set()
    if others := sorted(there - _OURS):
        raise UserError(f"this folder holds other files, such as {others[0]}", out, "Give --out a folder of its own")
    source = Path(evaluated.source)
    if source.is_dir() and source.resolve().is_relative_to((out / "reconstructions").resolve()):
        raise UserError("the images lie where reconstructions are written", out, "Give --out another folder")
    inside = source.is_dir() and out.resolve().is_relative_to(source.resolve())
    if inside and not out.resolve().is_relative_to(run.path.resolve()):
        raise UserError("the report would be written among the images", out, "Give --out another folder")
    return out


def _images(
    found: dict[str, Any], model: VQVAE, evaluated: Evaluated, arguments: Arguments, out: Path, album: Album
) -> list:
    """Score the reconstructions and the codebooks; return the codes."""
    images = evaluated.images
    keep = _keeper(out / "reconstructions", images) if arguments.save_reconstructions else None
    work = len(distributed.own_part(range(len(images))))
    with Progress(work, "reconstructing", "images") as progress:
        seen = report.scan(
            model,
            images,
            naive=evaluated.mean_image,
            background=background_of(evaluated),
            batch_size=arguments.batch_size,
            each=keep,
            progress=progress,
        )
    found["reconstruction"] = report.reconstruction_figures(seen, images)
    found["levels"] = report.level_figures(seen, model)
    if not distributed.is_main():
        return seen.codes
    rows = [[*row] for row in zip(images.keys, images.subjects, *seen.scores["all"].values(), strict=True)]
    table = io.StringIO()
    csv.writer(table).writerows([["file", "subject", *seen.scores["all"]], *rows])
    files.write_atomic(out / "scores.csv", table.getvalue().encode())
    album.images(model, images, seen, found["levels"])
    return seen.codes


def _keeper(folder: Path, images: Any) -> Callable:
    """Return a function that writes reconstructions as PNG under the images' names."""
    paths = [folder / name for name in png_names(images.keys)]

    def keep(rows: Sequence[int], made: Any) -> None:
        for i, pixels in zip(rows, from_unit(made, images.value_range), strict=True):
            files.make_folder(paths[i].parent)
            files.write_atomic(paths[i], png_bytes(channels_last(pixels)))

    return keep


def _priors(
    found: dict[str, Any], models: Models, evaluated: Evaluated, codes: list, arguments: Arguments, album: Album
) -> None:
    """Score the codes under tables of counts and under the priors that exist."""
    if models.store is None:
        return
    model, store, labels = models.vqvae, models.store, evaluated.labels()
    train = store.indices("train")
    count = min(COMPARED, max(len(labels), 64))  # as many as are held out
    known = store.__getitems__([train[i] for i in report.spread_out(len(train), count)])
    maps, nll, size = {}, {}, arguments.batch_size
    work = len(models.priors) * sum(len(distributed.own_part(range(n))) for n in (len(labels), len(known["label"])))
    with Progress(work, "scoring codes", "images") as progress:
        for i, (level, k) in enumerate(zip(model.levels, model.config.num_embeddings, strict=True)):
            figures, position_map = distributed.on_main(partial(_tables, store, train, level, codes[i], k))
            if level in models.priors:
                prior, upto = models.priors[level], i + 1
                held_out = report.score_codes(prior, codes[:upto], labels, size, progress)
                seen = report.score_codes(prior, known["codes"][:upto], known["label"], size, progress)
                scores = report.prior_figures(held_out, seen, figures["position_nll"], evaluated.images.subjects)
                scores["reliance"] = report.reliance(prior, codes[:upto], labels, size)
                figures |= scores
                maps[level], nll[level] = (held_out.nll_map, position_map), held_out.nll
            found["levels"][level] |= figures
    if models.complete:
        config = model.config
        found["bits_per_dim"] = report.bits_per_dim(found["levels"], config.channels * config.height * config.width)
    if maps and distributed.is_main():
        album.priors(maps, nll, evaluated.mean_image)


def _tables(store: CodeStore, train: list[int], level: str, codes: Tensor, k: int) -> tuple[dict[str, float], Any]:
    """Score a level's codes under tables of counts of its training codes."""
    return report.table_figures(codes.numpy(), store.level(level, train), k)


def _own_figures(models: Models, val: ImageSet, background: float | None, arguments: Arguments) -> dict[str, Any]:
    """Measure the run's own held-out images, for comparison with other data: reconstruction, and NLL by level."""
    rows = report.spread_out(len(val), COMPARED)
    images = val.some(rows)
    seen = report.scan(models.vqvae, images, background=background, batch_size=arguments.batch_size)
    figures: dict[str, Any] = {name: report.spread(values) for name, values in seen.scores["all"].items()}
    labels = torch.from_numpy(images.labels)
    scores = {
        level: report.score_codes(
            prior, seen.codes[: models.vqvae.levels.index(level) + 1], labels, arguments.batch_size
        )
        for level, prior in (models.priors.items() if models.store is not None else ())
    }
    return {
        **figures,
        "count": len(images),
        "nll": {level: report.spread(found.nll) for level, found in scores.items()},
    }


def _print_figures(found: dict[str, Any]) -> None:
    """Print the main figures, each beside the naive one and, for other data, beside the run's own held-out images."""
    naive, own = found["reconstruction"].get("mean_image"), found.get("own")
    print(f"\n{'reconstruction':<26}{'measured':>12}{'mean image':>14}" + (f"{'own val images':>18}" if own else ""))
    told = {
        "ssim": ("SSIM", 4),
        "psnr_db": ("PSNR (dB)", 2),
        "mse": ("MSE ([-1, 1] scale)", 4),
        "ssim_foreground": ("SSIM, foreground", 4),
        "psnr_foreground_db": ("PSNR (dB), foreground", 2),
    }
    for name, (words, digits) in told.items():
        beside = f"{naive[name]['mean']:.{digits}f}" if naive else "-"
        others = f"{own[name]['mean']:>18.{digits}f}" if own and name in own else ""
        print(f"{words:<26}{found['reconstruction'][name]['mean']:>12.{digits}f}{beside:>14}{others}")
    print(
        f"\n{'level':<10}{'perplexity':>11}{'foreground':>11}{'of':>6}{'usage':>7}{'nll':>8}{'position':>9}{'gain':>8}"
    )
    for level, f in found["levels"].items():
        text = f"{level:<10}{f['perplexity']:>11.1f}{f['perplexity_foreground']:>11.1f}{f['num_embeddings']:>6}"
        nats = "".join(f"{f.get(name, math.nan):>{w}.3f}" for name, w in (("nll", 8), ("position_nll", 9), ("gain", 8)))
        print(f"{text}{f['usage']:>7.0%}{nats.replace('nan', '  -')}")
    if other := found.get("comparison"):
        print(f"\n{'':<52}{found['run'][:14]:>16}{other['run'][:14]:>16}")
        for row in other["rows"]:
            print(f"{row['name']:<52}{row['here']:>16.3f}{row['there']:>16.3f}")
        for doubt in other["doubts"]:
            print(f"beware: {doubt}")
    print()
    for line in report.sample_summary(found):
        print(line)
    for line in found["verdict"]:
        print(f"{line['band']:<13}{line['question']} {line['reason']}")
    for line in found["warnings"]:
        print(f"warning: {line}")
    for line in found["missing"]:
        print(f"not measured: {line}")
