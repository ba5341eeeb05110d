"""Samples and reconstructions beside the scored images, as the report needs them."""

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqvae2 import distributed, report
from vqvae2.detail import DetailDecoder, ImageDecoder
from vqvae2.progress import Progress
from vqvae2.report.album import Album
from vqvae2.sampling import SETTINGS
from vqvae2.stages.commands import command
from vqvae2.stages.common import RunFolder, locked
from vqvae2.stages.evaluated import Evaluated, Models
from vqvae2.stages.sample_folder import begun_sets, draw_samples
from vqvae2.stages.sampled import describe, labels_to_sample, usual_sharpness
from vqvae2.vqvae import VQVAE

__all__ = ["COMPARED", "Beside", "background_of", "measure_distances", "measure_samples"]

COMPARED = 512
"""Images at most that stand for a whole split where each costs much."""
_LEARNED = 2048  # training images from which the number that an image shows is learned
_MOST_SAMPLES = 4096  # decoded and compared with training images, of a larger set


class Beside:
    """The scored images, or as many as stand for them, with which samples are compared.

    Args:
        model: the VQ-VAE.
        evaluated: the scored images.
        codes: of all of them, by level.
    """

    def __init__(self, model: VQVAE, evaluated: Evaluated, codes: list) -> None:
        self.model, self.images, self.codes = model, evaluated.images, codes
        self.rows = report.spread_out(len(evaluated.images), COMPARED)

    @property
    def subjects(self) -> list[str]:
        """Whose images these are."""
        return [self.images.subjects[i] for i in self.rows]

    @functools.cached_property
    def real(self) -> Tensor:
        """The images, (N, C, H, W)."""
        return self.images.at(self.rows)

    @functools.cached_property
    def again(self) -> Tensor:
        """Their reconstructions."""
        return self.decoded(self.model)

    def decoded(self, decoder: ImageDecoder) -> Tensor:
        """Decode their codes, of as many levels as a decoder takes."""
        return report.decode(decoder, [level[self.rows] for level in self.codes[: len(decoder.levels)]])


def background_of(evaluated: Evaluated) -> float | None:
    """Look for the background in the training images, as the training did; in those that are scored without them."""
    return report.background_of(evaluated.images if evaluated.train is None else evaluated.train)


def measure_samples(
    found: dict[str, Any],
    run: RunFolder,
    models: Models,
    evaluated: Evaluated,
    beside: Beside,
    num_samples: int,
    seed: int,
    album: Album,
) -> tuple[list[report.SampleSet], Tensor | None]:
    """Measure samples, drawing some if there are none.

    Returns:
        All sets of the present models, that one first, and its images; None where it was not measured.
    """
    if not models.can_sample:
        return [], None
    if models.store is None:
        models.missing.append("samples, which are compared with the run's codes: exported models have none")
        return [], None
    if not (evaluated.own and evaluated.held_out and evaluated.train is not None):
        models.missing.append(
            f"samples, which are compared with the run's own held-out images: {command('evaluate', '--run', run.path)}"
        )
        return [], None
    model, train = models.vqvae, evaluated.train
    whole = report.read_samples(run.path / "samples", models.decoders, models.hashes)
    folder, usual = run.path / "samples", {"num": num_samples, "seed": seed}  # arguments of what is drawn here
    begun = distributed.on_main(lambda: any(about.get("arguments") != usual for about in begun_sets(folder).values()))
    if whole is None and num_samples and not begun and not (folder / "samples.json").exists():
        _draw(run, models, num_samples, seed)
        whole = report.read_samples(folder, models.decoders, models.hashes)
    if whole is not None:
        numbers_of = report.spread_out(len(whole), _MOST_SAMPLES)
        found_set = whole.some(_MOST_SAMPLES)
        images, real, again = found_set.images(), beside.real, beside.again
        own = distributed.own_part(range(len(train)))
        with Progress(4 * len(own), "comparing with training images", "images") as progress:
            near = report.neighbours(images, real, again, train, model.device, progress)
            regions = report.region_figures(images, real, again, train, progress)
    if not distributed.is_main():
        return [], None
    sets = [] if whole is None else [found_set]
    for further in sorted(run.path.glob("samples?*")):
        other = report.read_samples(further, models.decoders, models.hashes)
        sets += [other] if other else []
        if other is None and (further / "samples.json").exists():
            models.missing.append(f"{further.name}, which other models made: sample it again")
    if whole is None:
        others = (folder / "samples.json").exists()
        what = "samples" + (", which other models made" if others else ", which were begun and not finished" * begun)
        models.missing.append(f"{what}: {command('sample', '--run', run.path, *['--overwrite'] * others)}")
        return sets, None
    rows = models.store.indices("train")
    own_codes = [models.store.level(name, rows) for name in found_set.decoder.levels]
    found["samples"] = {
        "folder": found_set.folder.name,
        "count": len(whole),
        "levels": list(found_set.decoder.levels),
        "judged": len(found_set),
        "reject": found_set.how.get("reject", 0.0),
        **{name: found_set.how[name] for name in ("label", *SETTINGS, "seed", "chunk_size") if name in found_set.how},
        "nll": {
            level: report.spread(column) for level, column in zip(found_set.decoder.levels, whole.nll.T, strict=True)
        },
        "nll_by_sample": dict(zip(found_set.decoder.levels, whole.nll.T.tolist(), strict=True)),
        "diversity": report.diversity_figures(images, real, again, beside.subjects),
        "memorisation": report.memorisation_figures(near, found_set, train, own_codes, model),
    }
    rows = report.spread_out(len(train), COMPARED)
    known, subjects = train.at(rows), {"real": beside.subjects, "train": [train.subjects[i] for i in rows]}
    anatomy = report.anatomy_figures(images, real, known, background_of(evaluated), subjects)
    if anatomy is not None and not found_set.how["label"]:
        found["samples"] |= {"anatomy": anatomy, "anatomy_counts": {"real": len(real), "train": len(known)}}
    found["samples"]["regions"] = regions
    for figures in (found["samples"]["memorisation"], regions):
        for one in figures["nearest"] if figures else ():
            one["sample"] = numbers_of[one["sample"]]  # in the folder, of which some were measured
    found["samples"]["numbers"] = _measure_numbers(evaluated, beside, found_set, images)
    album.samples(images, found_set, real, near, train)
    numbers = evaluated.like.get("numbers", ())
    classes = {name: () if name in numbers else own for name, own in evaluated.like["attributes"].items()}
    album.by_class(images, found_set.labels, real, evaluated.images.labels[beside.rows], classes)
    return sets, images


def _measure_numbers(
    evaluated: Evaluated, beside: Beside, found_set: report.SampleSet, images: Tensor
) -> dict[str, Any]:
    """Whether samples show the numbers that they were asked for, by attribute."""
    like, train = evaluated.like, evaluated.train
    found: dict[str, Any] = {}
    assert train is not None
    names = list(like["attributes"])
    if not like.get("numbers"):
        return found
    rows = report.spread_out(len(train), _LEARNED)
    known, real = train.some(rows), beside.images.some(beside.rows)
    features = report.encoder_features(beside.model, beside.real)
    of_known = torch.cat([features(part) for part in known.in_parts(256)])
    of_real, of_again, of_samples = (features(some) for some in (beside.real, beside.again, images))
    for name in like["numbers"]:
        values = np.append(np.array(like["attributes"][name], np.float64), np.nan)  # the last stands for a missing one
        column = names.index(name)
        found[name] = report.number_figures(
            (of_known, values[known.labels[:, column]], known.subjects),
            (of_real, values[real.labels[:, column]], real.subjects),
            of_again,
            (of_samples, values[found_set.labels[:, column]]),
        )
    return {name: figures for name, figures in found.items() if figures is not None}


def measure_distances(
    found: dict[str, Any],
    models: Models,
    evaluated: Evaluated,
    beside: Beside,
    drawn: report.SampleSet | None,
    samples: Tensor | None,
    further: dict[str, report.Features],
) -> None:
    """Measure how far reconstructions and samples are from the scored images, in features of one network or several.

    Where a detail decoder painted the samples, so are the scored images painted from their own codes. In ``further``
    features the Fréchet distance is also taken over all samples and all scored images, however many.
    """
    made = {"reconstructions": beside.again}
    if drawn is not None and isinstance(drawn.decoder, DetailDecoder):
        made["painted"] = beside.decoded(drawn.decoder)
    if samples is not None:
        made["samples"] = samples[report.spread_out(len(samples), COMPARED)]
    if evaluated.train is not None and evaluated.own and evaluated.held_out:
        rows = report.spread_out(len(evaluated.train), COMPARED)
        made["training_images"] = evaluated.train.at(rows)
    made = {name: images for name, images in made.items() if len(images) > 1}
    if len(beside.rows) < 2:
        return
    spaces = report.feature_spaces(models.vqvae, beside.real, models.missing) | further
    found["distances"] = report.set_distances(beside.real, made, spaces)
    whole = report.read_samples(drawn.folder, models.decoders, models.hashes) if drawn is not None and further else None
    if whole is not None and max(len(whole), len(beside.images)) > COMPARED:
        for space, features_of in further.items():
            found["distances"][space]["samples"] |= report.frechet_of_all(whole, beside.images, features_of)
    if "samples" in made and "training_images" in made and evaluated.train is not None:
        space, _ = report.nearest_features(found)
        known = report.training_features(evaluated.train, spaces[space])
        decoded = made.get("painted", made["reconstructions"])
        found["samples"]["feature_neighbours"] = {"space": space} | report.feature_neighbours(
            known, *map(spaces[space], (beside.real, decoded, made["samples"]))
        )


def _draw(run: RunFolder, models: Models, num: int, seed: int) -> None:
    """Draw samples into the run folder as sample.py does."""
    decoder = models.decoders[-1]
    priors = [models.priors[level] for level in decoder.levels]
    chunk_size = 16
    print(f"there are no samples in {run.path}/samples: drawing {num}")
    label = labels_to_sample(run, priors[0].config, {}, num, seed)
    sharpness = usual_sharpness(run, priors)
    how: dict[str, Any] = {
        "num": num,
        **describe(run, priors, {}, sharpness, seed, chunk_size),
    }
    how["arguments"] = {"num": num, "seed": seed}
    with locked(run.path / "samples"):
        draw_samples(run.path / "samples", decoder, priors, label, sharpness, run, how)
