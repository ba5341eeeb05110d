"""Stage 5: measure a run and write its report."""

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from vqvae2 import checkpoint, distributed, files, report
from vqvae2.codes import CodeStore
from vqvae2.data import ImageSet, from_unit
from vqvae2.errors import UserError
from vqvae2.pictures import channels_last, png_bytes
from vqvae2.prior import Prior
from vqvae2.progress import Progress
from vqvae2.report.album import Album
from vqvae2.sampling import sharpness_by_level
from vqvae2.stages.commands import command
from vqvae2.stages.common import Compute, RunFolder, check_fingerprints, locked
from vqvae2.stages.evaluated import Evaluated, commands, open_evaluated
from vqvae2.stages.flags import CommandLine
from vqvae2.stages.launch import run_stage
from vqvae2.stages.recognition import check, recognition
from vqvae2.stages.sample import describe, labels_to_sample
from vqvae2.stages.sample_folder import draw_samples
from vqvae2.version import __version__
from vqvae2.vqvae import VQVAE

_MOST_SAMPLES = 4096  # decoded and compared with training images, of a larger set
_COMPARED = 512  # images at most that stand for a whole split where each costs much: distances, NLL on training codes
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
    samples are recognised as their class, and the classification accuracy score. sample.py --reject needs it."""
    against: Path | None = None
    """Another run with a report: its figures stand beside this one's."""
    batch_size: int = 32
    """Images processed at once."""
    compute: Compute = field(default_factory=Compute)
    dry_run: bool = False
    """Print what would be measured, and exit."""


_GROUPS = {
    "data": ("data", "split"),
    "report": ("out", "save_reconstructions", "num_samples", "classifier", "against"),
    "running": ("run", "dry_run", "batch_size", "device", "seed"),
}


@dataclass(frozen=True)
class Models:
    """The models of a run folder: the VQ-VAE, and the codes and priors that exist and belong to it."""

    vqvae: VQVAE
    store: CodeStore | None
    priors: dict[str, Prior]
    hashes: dict[str, Any]
    missing: list[str]

    @property
    def complete(self) -> bool:
        """Whether the priors of all levels are there."""
        return len(self.priors) == len(self.vqvae.levels)


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
    if arguments.against is not None:
        _other_report(arguments.against)  # before the work
    models = _load(run, arguments)
    evaluated = open_evaluated(run, record, arguments.data, arguments.split)
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
        _measure(run, record, models, evaluated, arguments, out)


def _measure(
    run: RunFolder, record: dict[str, Any], models: Models, evaluated: Evaluated, arguments: Arguments, out: Path
) -> None:
    """Measure everything, and write the report."""
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
    codes = _images(found, models.vqvae, evaluated, arguments, out, album)
    _priors(found, models, evaluated, codes, arguments, album)
    if evaluated.val is not None:
        found["own"] = _own_figures(models, evaluated.val, _background(evaluated), arguments)
    sets = _samples(found, run, models, evaluated, codes, arguments, album)
    if not distributed.is_main():  # the rest is drawing and writing
        return
    _distances(found, models, evaluated, codes, sets)
    if arguments.classifier is not None:
        found["recognition"] = recognition(
            run,
            models.vqvae,
            evaluated,
            arguments.classifier,
            sets[0] if "samples" in found else None,
            arguments.compute.seed,
        )
        album.rejection(found["recognition"].get("curve", {}))
    if evaluated.like["source"] == "phantom" and evaluated.own and evaluated.train is not None and sets:
        classes = evaluated.like["attributes"]["diagnosis"]
        areas = report.ventricles(sets, models.vqvae, evaluated.train, classes)
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
    if arguments.against is not None:
        found["comparison"] = report.comparison(found, _other_report(arguments.against))
    files.write_json(out / "report.json", found)
    report.write_page(out / "index.html", found, album.widths)
    _print_figures(found)
    print(f"wrote {out}/report.json, scores.csv and {len(album.widths)} figures")
    if arguments.save_reconstructions:
        print(f"wrote {out}/reconstructions: {len(evaluated.images):,} images")
    print(f"report: {out}/index.html")


def _load(run: RunFolder, arguments: Arguments) -> Models:
    """Load the models that the run folder holds.

    Raises:
        UserError: there is no VQ-VAE, or two parts do not belong together.
    """
    device, _ = arguments.compute.resolve()
    if not checkpoint.has_model(run.vqvae):
        raise UserError("there is no VQ-VAE yet", run.vqvae, f"First run {command('train-vqvae', '--run', run.path)}")
    model = VQVAE.from_pretrained(run.vqvae, device)
    if min(model.config.height, model.config.width) < 11:
        raise UserError("images under 11x11 pixels have no SSIM", run.vqvae, "Train on larger images")
    hashes: dict[str, Any] = {"vqvae_sha256": checkpoint.sha256_of(run.vqvae)}
    if not (run.codes / "data.mdb").exists():
        missing = [f"priors, which need codes: {command('extract-codes', '--run', run.path)}"]
        return Models(model, None, {}, hashes, missing)
    store = CodeStore(run.codes)
    there = [level for level in model.levels if checkpoint.has_model(run.prior(level))]
    check_fingerprints(run, store, there)
    absent = [level for level in model.levels if level not in there]
    missing = [
        f"prior of level {name}: {command('train-prior', '--run', run.path, '--level', name)}" for name in absent
    ]
    missing += ["samples, which need the priors of all levels"] if absent else []
    hashes["codes_fingerprint"] = store.fingerprint
    hashes["prior_sha256"] = {level: checkpoint.sha256_of(run.prior(level)) for level in there}
    priors = {level: Prior.from_pretrained(run.prior(level), device) for level in there}
    return Models(model, store, priors, hashes, missing)


def _other_report(folder: Path) -> dict[str, Any]:
    """Read the report of another run, by its run folder or its report's."""
    path = next((p for p in (folder / "report" / "report.json", folder / "report.json") if p.is_file()), None)
    if path is None:
        raise UserError("there is no report of that run", folder, f"First run {command('evaluate', '--run', folder)}")
    found: dict[str, Any] = files.read_json(path)
    checkpoint.check_format(found.get("format", 0), path, found.get("version"))
    return found


def _folder(arguments: Arguments, run: RunFolder, evaluated: Evaluated) -> Path:
    """Choose the report's folder; refuse one that holds other files or lies among the images."""
    name = "report" if evaluated.own else "report-" + Path(evaluated.source.replace(":", "-")).resolve().name
    out = arguments.out or run.path / name
    there = {path.name for path in out.iterdir() if not path.name.startswith(".")} if out.is_dir() else set()
    if others := sorted(there - _OURS):
        raise UserError(f"this folder holds other files, such as {others[0]}", out, "Give --out a folder of its own")
    source = Path(evaluated.source)
    inside = source.is_dir() and out.resolve().is_relative_to(source.resolve())
    if inside and not out.resolve().is_relative_to(run.path.resolve()):
        raise UserError("the report would be written among the images", out, "Give --out another folder")
    return out


def _images(
    found: dict[str, Any], model: VQVAE, evaluated: Evaluated, arguments: Arguments, out: Path, album: Album
) -> list:
    """Score the reconstructions and the codebooks; return the codes."""
    images = evaluated.images
    naive = None if evaluated.train is None else report.mean_image(evaluated.train)
    keep = _keeper(out / "reconstructions", images) if arguments.save_reconstructions else None
    work = len(distributed.own_part(range(len(images))))
    with Progress(work, "reconstructing", "images") as progress:
        seen = report.scan(
            model,
            images,
            naive=naive,
            background=_background(evaluated),
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
    names: dict[str, int] = {}  # a.png and a.jpg may both exist
    for i, key in enumerate(images.keys):
        name = Path(key.lstrip("/")).with_suffix(".png").as_posix()
        names[name if name not in names else f"{key.lstrip('/')}.png"] = i
    paths = [folder / name for name in names]

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
    train_codes = store.read(train)
    known = store.__getitems__([train[i] for i in report.spread_out(len(train), _COMPARED)])
    maps, nll, size = {}, {}, arguments.batch_size
    work = len(models.priors) * sum(len(distributed.own_part(range(n))) for n in (len(labels), len(known["label"])))
    with Progress(work, "scoring codes", "images") as progress:
        for i, (level, k) in enumerate(zip(model.levels, model.config.num_embeddings, strict=True)):
            figures, position_map = report.table_figures(codes[i].numpy(), train_codes[i], k)
            if level in models.priors:
                prior, upto = models.priors[level], i + 1
                held_out = report.score_codes(prior, codes[:upto], labels, size, progress)
                seen = report.score_codes(prior, known["codes"][:upto], known["label"], size, progress)
                figures |= report.prior_figures(held_out, seen, figures["position_nll"], evaluated.images.subjects)
                maps[level], nll[level] = (held_out.nll_map, position_map), held_out.nll
            found["levels"][level] |= figures
    if models.complete:
        config = model.config
        found["bits_per_dim"] = report.bits_per_dim(found["levels"], config.channels * config.height * config.width)
    if maps and distributed.is_main():
        album.priors(maps, nll, None if evaluated.train is None else report.mean_image(evaluated.train))


def _background(evaluated: Evaluated) -> float | None:
    """Look for the background in the training images, as the training did; in those that are scored without them."""
    return report.background_of(evaluated.images if evaluated.train is None else evaluated.train)


def _own_figures(models: Models, val: ImageSet, background: float | None, arguments: Arguments) -> dict[str, Any]:
    """Measure the run's own held-out images, for comparison with other data: reconstruction, and NLL by level."""
    rows = report.spread_out(len(val), _COMPARED)
    images = replace(
        val,
        images=val.images[rows],
        keys=[val.keys[i] for i in rows],
        subjects=[val.subjects[i] for i in rows],
        labels=val.labels[rows],
        file=None,
    )
    seen = report.scan(models.vqvae, images, background=background, batch_size=arguments.batch_size)
    figures: dict[str, Any] = {name: report.spread(values) for name, values in seen.scores["all"].items()}
    labels = torch.from_numpy(images.labels)
    scores = {
        level: report.score_codes(
            prior, seen.codes[: models.vqvae.levels.index(level) + 1], labels, arguments.batch_size
        )
        for level, prior in models.priors.items()
    }
    return {
        **figures,
        "count": len(images),
        "nll": {level: report.spread(found.nll) for level, found in scores.items()},
    }


def _samples(
    found: dict[str, Any],
    run: RunFolder,
    models: Models,
    evaluated: Evaluated,
    codes: list,
    arguments: Arguments,
    album: Album,
) -> list[report.SampleSet]:
    """Measure samples, drawing some if there are none; return all sets of the present models, that one first."""
    if not models.complete:
        return []
    if not (evaluated.own and evaluated.held_out and evaluated.train is not None):
        models.missing.append(
            f"samples, which are compared with the run's own held-out images: {command('evaluate', '--run', run.path)}"
        )
        return []
    model, train = models.vqvae, evaluated.train
    found_set = report.read_samples(run.path / "samples", model, models.hashes)
    if found_set is None and arguments.num_samples and not (run.path / "samples" / "samples.json").exists():
        _draw(run, models, arguments)
        found_set = report.read_samples(run.path / "samples", model, models.hashes)
    if not distributed.is_main():
        return []
    sets = [found_set] if found_set else []
    for folder in sorted(run.path.glob("samples?*")):
        other = report.read_samples(folder, model, models.hashes)
        sets += [other] if other else []
        if other is None and (folder / "samples.json").exists():
            models.missing.append(f"{folder.name}, which other models made: sample it again")
    if found_set is None:
        others = (run.path / "samples" / "samples.json").exists()
        what = "samples, which other models made" if others else "samples"
        models.missing.append(f"{what}: {command('sample', '--run', run.path, *['--overwrite'] * others)}")
        return sets
    assert models.store is not None
    whole, found_set = found_set, found_set.some(_MOST_SAMPLES)
    sets[0] = found_set
    images = report.decode(model, found_set.codes)
    some = report.spread_out(len(evaluated.images), _COMPARED)
    real = evaluated.images.__getitems__(some)["image"]
    again = report.decode(model, [level[some] for level in codes])
    near = report.neighbours(images, real, again, train)
    own_codes = models.store.read(models.store.indices("train"))
    found["samples"] = {
        "folder": found_set.folder.name,
        "count": len(whole),
        "judged": len(found_set),
        "reject": found_set.how.get("reject", 0.0),
        **{name: found_set.how[name] for name in ("label", "temperature", "top_k", "top_p", "seed", "chunk_size")},
        "nll": {level: report.spread(column) for level, column in zip(model.levels, whole.nll.T, strict=True)},
        "nll_by_sample": dict(zip(model.levels, whole.nll.T.tolist(), strict=True)),
        "diversity": report.diversity_figures(images, real, again),
        "memorisation": report.memorisation_figures(near, found_set, train, own_codes, model),
    }
    known = train.__getitems__(report.spread_out(len(train), _COMPARED))["image"]
    anatomy = report.anatomy_figures(images, real, known, _background(evaluated))
    if anatomy is not None and not found_set.how["label"]:
        found["samples"]["anatomy"] = anatomy
    album.samples(images, found_set, real, near, train)
    album.by_class(images, found_set.labels, real, evaluated.images.labels[some], evaluated.like["attributes"])
    return sets


def _distances(
    found: dict[str, Any], models: Models, evaluated: Evaluated, codes: list, sets: list[report.SampleSet]
) -> None:
    """Measure how far reconstructions and samples are from the scored images, in features of one or two networks."""
    some = report.spread_out(len(evaluated.images), _COMPARED)
    made = {"reconstructions": report.decode(models.vqvae, [level[some] for level in codes])}
    if "samples" in found:
        rows = report.spread_out(len(sets[0]), _COMPARED)
        made["samples"] = report.decode(models.vqvae, [level[rows] for level in sets[0].codes])
    if evaluated.train is not None and evaluated.own and evaluated.held_out:
        rows = report.spread_out(len(evaluated.train), _COMPARED)
        made["training_images"] = evaluated.train.__getitems__(rows)["image"]
    made = {name: images for name, images in made.items() if len(images) > 1}
    if len(some) < 2:
        return
    real = evaluated.images.__getitems__(some)["image"]
    spaces = report.feature_spaces(models.vqvae, real, models.missing)
    found["distances"] = report.set_distances(real, made, spaces)


def _draw(run: RunFolder, models: Models, arguments: Arguments) -> None:
    """Draw samples at temperature 1 into the run folder."""
    priors = [models.priors[level] for level in models.vqvae.levels]
    num, seed, chunk_size = arguments.num_samples, arguments.compute.seed, 16
    print(f"there are no samples in {run.path}/samples: drawing {num}")
    label = labels_to_sample(run, priors[0].config.attributes, {}, num, seed)
    sharpness = sharpness_by_level(1.0, 0, 1.0, len(priors))
    how: dict[str, Any] = {
        "num": num,
        **describe({}, sharpness, seed, chunk_size, next(models.vqvae.parameters()).device),
    }
    how["arguments"] = {"num": num, "seed": seed}
    with locked(run.path / "samples"):
        draw_samples(run.path / "samples", models.vqvae, priors, label, sharpness, run, how)


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
    for line in found["summary"][-3:] if "samples" in found else ():
        print(line)
    for line in found["verdict"]:
        print(f"{line['band']:<13}{line['question']} {line['reason']}")
    for line in found["warnings"]:
        print(f"warning: {line}")
    for line in found["missing"]:
        print(f"not measured: {line}")
