"""Which figures a report shows: picks the images, names the curves, and writes each figure as it comes."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from vqvae2 import files
from vqvae2.data import ImageSet
from vqvae2.report import figures
from vqvae2.report.describe import spread_out
from vqvae2.report.measures import Scan, upper_name
from vqvae2.report.samples import Neighbours, SampleSet, Ventricles, decode
from vqvae2.vqvae import VQVAE

__all__ = ["Album", "contact_sheet", "read_stats"]

_SHOWN = 8
_COLOURS = {
    "samples": figures.SAMPLES,
    "held-out images": figures.HELD_OUT,
    "their reconstructions": figures.RECONSTRUCTIONS,
}


class Album:
    """The figures of one report.

    Args:
        folder: of the PNG files; those of an earlier report are removed.

    Attributes:
        widths: name of each figure written -> its width in inches.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = files.make_folder(folder)
        self.widths: dict[str, float] = {}
        self._held_out: Mapping[str, NDArray[Any]] = {}
        for old in folder.glob("*.png"):
            old.unlink(missing_ok=True)  # another process of the same run may have been first

    def add(self, name: str, figure: Figure) -> None:
        """Write a figure as ``NAME.png``."""
        figures.save(figure, self.folder / f"{name}.png")
        self.widths[name] = float(figure.get_figwidth())

    def images(self, model: VQVAE, images: ImageSet, found: Scan, levels: Mapping[str, Mapping[str, Any]]) -> None:
        """Show reconstructions, what each level carries, code maps, codebook usage and the spread of SSIM."""
        ssim = found.scores["all"]["ssim"]
        order = np.argsort(ssim, kind="stable")[::-1]
        kinds = _kinds(len(order))
        chosen = [int(order[place]) for _, place in kinds]
        titles = [
            f"{kind}\nSSIM {ssim[i]:.3f}\n{_short(images.keys[i])}" for (kind, _), i in zip(kinds, chosen, strict=True)
        ]
        originals, codes = images.at(chosen), [level[chosen] for level in found.codes]
        self.add("reconstructions", figures.reconstructions(originals, decode(model, codes), titles))

        chosen = spread_out(len(images), _SHOWN)
        originals, codes = images.at(chosen), [level[chosen] for level in found.codes]
        names = model.levels
        if len(names) > 1:
            rows = {"original": originals}
            for i in range(len(names)):
                upto = "all levels" if i + 1 == len(names) else upper_name(names, names[i])
                rows[upto] = decode(model, codes[: i + 1])
            self.add("levels", figures.rows_of_images(rows))
        kinds_of = {"all": "all levels", "mean_image": "mean training image"}
        kinds_of |= {f"upper.{name}": upper_name(names, name) for name in names[:-1]}
        shown = {kinds_of[name]: scores["ssim"] for name, scores in found.scores.items()}
        colours = {"all levels": figures.RECONSTRUCTIONS, "mean training image": figures.NAIVE}
        colours |= {upper_name(names, name): figures.level_colour(i) for i, name in enumerate(names[:-1])}
        self.add("ssim", figures.histograms({"": shown}, "SSIM", "share of images", colours))
        self.add("code_maps", figures.code_maps(originals, codes, model.config.num_embeddings, names))
        counts = {level: count.counts.cpu().numpy() for level, count in zip(names, found.counts, strict=True)}
        foreground = {
            level: count.counts_foreground.cpu().numpy() for level, count in zip(names, found.counts, strict=True)
        }
        use = {
            level: f"{level}: perplexity {f['perplexity_foreground']:.0f} of {f['num_embeddings']}"
            for level, f in levels.items()
        }
        self.add("codebook_use", figures.codebook_use(counts, foreground, use))

    def priors(
        self,
        maps: Mapping[str, tuple[NDArray[Any], NDArray[Any]]],
        held_out: Mapping[str, NDArray[Any]],
        backdrop: Tensor | None,
    ) -> None:
        """Show where codes are hard to predict, and keep the held-out NLLs (N,) for :meth:`samples`."""
        self.add("nll_maps", figures.nll_maps(maps, backdrop))
        self._held_out = held_out

    def samples(self, images: Tensor, samples: SampleSet, real: Tensor, near: Neighbours, train: ImageSet) -> None:
        """Show samples, their likelihood, and how close they are to training images."""
        self.add("samples", figures.sample_grid(images[:64]))
        panels = {
            level: {"samples": samples.nll[:, i], "held-out images": self._held_out[level]}
            for i, level in enumerate(samples.decoder.levels)
            if level in self._held_out
        }
        self.add("sample_nll", figures.histograms(panels, "nats per code", "share of images", _COLOURS))
        closest, real_closest = np.argsort(near.distance)[:_SHOWN], np.argsort(near.real)[:_SHOWN]
        shown = min(len(closest), len(real_closest))
        closest, real_closest = closest[:shown], real_closest[:shown]
        rows = {
            "sample": images[closest],
            "nearest\ntraining image": train.at(near.index[closest]),
            "held-out image": real[real_closest],
            "nearest\ntraining image ": train.at(near.real_index[real_closest]),
        }
        titles = {
            name: [f"d = {value:.3f}" for value in values]
            for name, values in (("sample", near.distance[closest]), ("held-out image", near.real[real_closest]))
        }
        self.add("neighbours", figures.rows_of_images(rows, titles))
        kinds = {"samples": near.distance, "held-out images": near.real, "their reconstructions": near.reconstructed}
        mark = {"1st percentile of held-out images": float(np.percentile(near.real, 1))}
        xlabel = "RMS difference, [−1, 1] scale"
        self.add("distances", figures.histograms({"": kinds}, xlabel, "share of images", _COLOURS, mark))

    def rejection(self, curves: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
        """Show precision, recall and the Fréchet distance by the share of the samples that is kept."""
        if curves:
            self.add("rejection", figures.precision_recall(curves))

    def by_class(
        self,
        images: Tensor,
        labels: NDArray[np.int64],
        real: Tensor,
        real_labels: NDArray[np.int64],
        attributes: Mapping[str, Sequence[str]],
    ) -> None:
        """Show up to five samples of each class beside up to three held-out images of it, a row for each class.

        Attributes are shown of which at least two classes have two images on both sides; of many attributes, and of
        many classes, only some.

        Args:
            images, labels: (N, C, H, W) samples and the classes (N, A) they were drawn for, -1 missing.
            real, real_labels: held-out images and their classes.
            attributes: name -> classes.
        """
        sides = ((images, labels, 5), (real, real_labels, 3))
        suitable = []
        for column, (attribute, classes) in enumerate(attributes.items()):
            made, true = (
                [pictures[np.flatnonzero(own[:, column] == k)[:most]] for k in range(len(classes))]
                for pictures, own, most in sides
            )
            pairs = zip([f"{attribute}\n{name}" for name in classes], made, true, strict=True)
            known = [pair for pair in pairs if len(pair[1]) > 1 and len(pair[2]) > 1]
            if len(known) > 1:
                suitable.append(known)
        suitable = [suitable[i] for i in spread_out(len(suitable), _SHOWN)]
        each = max(2, 2 * _SHOWN // max(1, len(suitable)))
        chosen = [known[i] for known in suitable for i in spread_out(len(known), each)]
        if not chosen:
            return
        widths = [max(len(row[side]) for row in chosen) for side in (1, 2)]

        def filled(some: Tensor, count: int) -> Tensor:
            """Blank places behind what there is."""
            return torch.cat([some, some.new_ones(count - len(some), *some.shape[1:])])

        rows = {name: torch.cat(list(map(filled, row, widths))) for name, *row in chosen}
        titles = ["sample"] * widths[0] + ["held-out image"] * widths[1]
        self.add("samples_by_class", figures.rows_of_images(rows, {next(iter(rows)): titles}))

    def ventricles(self, found: Ventricles) -> None:
        """Show the phantom's ventricle areas by label."""
        self.add("ventricles", figures.ventricle_areas(found.samples, found.true))

    def curves(
        self, run: Path, levels: Mapping[str, Mapping[str, Any]], naive: Mapping[str, Mapping[str, float]] | None
    ) -> None:
        """Show how the VQ-VAE and the priors of a run folder were trained."""
        stats = read_stats(run / "vqvae" / "stats.jsonl")
        if stats:
            least = [figures_of["least_perplexity"] for figures_of in levels.values()]
            beside = naive["ssim"]["mean"] if naive else None
            self.add("vqvae_curves", figures.vqvae_curves(stats, list(levels), least, beside))
        of_priors = {level: read_stats(run / f"prior-{level}" / "stats.jsonl") for level in levels}
        of_priors = {level: lines for level, lines in of_priors.items() if lines}
        if of_priors:
            self.add("prior_curves", figures.prior_curves(of_priors))


def read_stats(path: Path) -> list[dict[str, float]]:
    """Read a stats.jsonl as far as it is whole; nothing where there is none."""
    lines: list[dict[str, float]] = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            lines.append(json.loads(line))
        except ValueError:  # cut short by a crash, or being written just now
            break
    return lines


def contact_sheet(splits: Mapping[str, ImageSet], columns: int = 10) -> Figure:
    """Show some images of each split, evenly spread over it, each under its name; two rows of the training's."""
    rows: dict[str, Tensor] = {}
    titles: dict[str, list[str]] = {}
    for split, images in splits.items():
        chosen = spread_out(len(images), columns * (2 if split == "train" else 1))
        for start in range(0, len(chosen), columns):
            own = chosen[start : start + columns]
            name = split if start == 0 else f"{split} "  # a name of its own, that looks alike
            rows[name], titles[name] = images.at(own), [_short(images.keys[i], 13) for i in own]
    return figures.rows_of_images(rows, titles)


def _kinds(count: int) -> list[tuple[str, int]]:
    """Name the places of the three best, median and worst of ``count``; fewer where they overlap."""
    middle = count // 2
    wanted = [("best", i) for i in (0, 1, 2)]
    wanted += [("median", i) for i in (middle - 1, middle, middle + 1)]
    wanted += [("worst", i) for i in (count - 3, count - 2, count - 1)]
    places: dict[int, str] = {}
    for kind, i in wanted:
        if 0 <= i < count:
            places.setdefault(i, kind)
    return [(kind, i) for i, kind in sorted(places.items())]


def _short(key: str, length: int = 16) -> str:
    name = key.rsplit("/", 1)[-1].rsplit(".", 1)[0]
    return name if len(name) <= length else "…" + name[1 - length :]
