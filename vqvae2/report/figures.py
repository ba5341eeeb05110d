"""The figures of the report, drawn by matplotlib without a display; each function returns one figure.

Images are (N, C, H, W) in [-1, 1].
"""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, ParamSpec

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from vqvae2 import files
from vqvae2.pictures import Picture, code_map, grid, to_picture
from vqvae2.report.measures import upper_name

P = ParamSpec("P")
Stats = Sequence[Mapping[str, float]]

# One colour for each role that images play, the same in all figures; they stay apart for colour-blind readers and in
# grey print (Okabe and Ito 2008). Levels have shades of their own, the coarsest the darkest.
SAMPLES, HELD_OUT, SELECTION, RECONSTRUCTIONS, TRAINING = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#767676"
NAIVE = "#333333"
_SHADES = ("#5C4508", "#A67C00", "#E0A900", "#F0CF65")


def level_colour(place: int) -> str:
    """The colour of a level by its place, the top's 0."""
    return _SHADES[place % len(_SHADES)]


_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.labelcolor": "#333333",
    "axes.edgecolor": "#888888",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "savefig.facecolor": "white",
}
_WIDTH = 10.0  # inches, of the widest figures
_DPI = 170
_LAYOUT: Literal["constrained"] | None = "constrained"


def _styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    @functools.wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with mpl.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return styled


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically."""
    with mpl.rc_context(_STYLE):
        # Without matplotlib's version in it, equal figures are equal files.
        files.write_atomic(path, lambda file: figure.savefig(file, format="png", dpi=_DPI, metadata={"Software": None}))


@_styled
def reconstructions(originals: Tensor, made: Tensor, titles: Sequence[str]) -> Figure:
    """Show originals, reconstructions and signed differences: one column each, with a title."""
    difference = (made - originals).mean(1).numpy()
    limit = max(0.1, float(np.percentile(np.abs(difference), 99.5)))
    colours = ScalarMappable(Normalize(-limit, limit), "RdBu_r")
    rows = {
        "original": _pictures(originals),
        "reconstruction": _pictures(made),
        "difference": [colours.to_rgba(image, bytes=True)[..., :3] for image in difference],
    }
    figure, cell = _sheet(rows, {"original": titles}, title=0.5, fontsize=6.8, right=0.7)
    width, height = figure.get_size_inches()
    place = ((width - 0.62) / width, 0.1 * cell / height, 0.1 / width, 0.8 * cell / height)
    bar = figure.colorbar(colours, cax=figure.add_axes(place))
    bar.ax.tick_params(labelsize=7)
    return figure


@_styled
def rows_of_images(rows: Mapping[str, Tensor], titles: Mapping[str, Sequence[str]] | None = None) -> Figure:
    """Show rows of images, each with its name at the left; ``titles`` stand over a row's images."""
    return _sheet({name: _pictures(images) for name, images in rows.items()}, titles or {})[0]


@_styled
def code_maps(images: Tensor, codes: Sequence[Tensor], num_embeddings: Sequence[int], levels: Sequence[str]) -> Figure:
    """Show images over the maps of their codes (N, h, w) by level, each code in a colour of its own."""
    size = (images.shape[2], images.shape[3])
    rows = {"original": _pictures(images)}
    for name, level, k in zip(levels, codes, num_embeddings, strict=True):
        label = f"{name}\n{level.shape[1]}×{level.shape[2]} of {k}"
        rows[label] = [code_map(own, k, size) for own in level]
    return _sheet(rows, {})[0]


@_styled
def sample_grid(images: Tensor, columns: int = 8) -> Figure:
    """Show images as a plain grid."""
    columns = min(columns, len(images))
    sheet = grid([to_picture(image) for image in images], columns)
    width = _WIDTH * columns / 10
    figure = Figure(figsize=(width, width * sheet.shape[0] / sheet.shape[1]))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.imshow(sheet, cmap="gray", vmin=0, vmax=255)
    axis.axis("off")
    return figure


@_styled
def vqvae_curves(stats: Stats, levels: Sequence[str], least: Sequence[float], naive_ssim: float | None) -> Figure:
    """Draw the VQ-VAE's learning curves: loss, SSIM and the perplexity of each level, over training steps."""
    figure, (loss, quality, use) = _panels(3, height=3.9)
    _curve(loss, stats, "train/loss", "train", TRAINING, alpha=0.7)
    _curve(loss, stats, "selection/loss", "selection subjects", SELECTION, marker="o")
    loss.set(title="objective", ylabel="loss (commitment in train only)", yscale="log")
    _curve(quality, stats, "train/ssim", "train", TRAINING, alpha=0.7)
    _curve(quality, stats, "val/ssim", "val, all levels", HELD_OUT, marker="o")
    _curve(quality, stats, "val/ssim_foreground", "val, foreground", HELD_OUT, linestyle="--", marker="o")
    for i, level in enumerate(levels[:-1]):
        _curve(quality, stats, f"{level}/ssim_alone", f"val, {upper_name(levels, level)}", level_colour(i), marker="o")
    if naive_ssim is not None:
        _level_line(quality, naive_ssim, "mean training image")
    quality.set(title="SSIM", ylabel="SSIM (1 is perfect)")
    for i, (level, low) in enumerate(zip(levels, least, strict=True)):
        colour = level_colour(i)
        _curve(use, stats, f"{level}/perplexity_foreground", f"{level}, without constant cells", colour, marker="o")
        _curve(use, stats, f"{level}/perplexity", f"{level}, all cells", colour, linestyle="--", alpha=0.6)
        _level_line(use, low, "collapsed below" if i == 0 else None)
    use.set(title="codebook perplexity (val)", ylabel="codes in even use")
    use.set_ylim(bottom=0)
    return _finish(figure, (loss, quality, use), "training step")


@_styled
def prior_curves(stats: Mapping[str, Stats]) -> Figure:
    """Draw each prior's NLL while training, beside the unigrams of the same codes, over training steps."""
    figure, axes = _panels(len(stats), width=min(_WIDTH, 5 * len(stats)))
    for axis, (level, lines) in zip(axes, stats.items(), strict=True):
        _curve(axis, lines, "train/nll", "train", TRAINING, alpha=0.7)
        _curve(axis, lines, "selection/nll", "selection subjects", SELECTION, marker="o")
        _curve(axis, lines, "val/nll", "val", HELD_OUT, marker="o")
        for name, label, style in (
            ("val/position_nll", "position-wise unigram", "--"),
            ("val/unigram_nll", "unigram", ":"),
        ):
            known = [line[name] for line in lines if line.get(name) is not None]
            if known:
                _level_line(axis, known[-1], f"{label} ({known[-1]:.2f})", style)
        # Up to what a prior must beat; the first steps and the unigram lie far above.
        held_out = [line[name] for line in lines for name in ("val/nll", "val/position_nll") if line.get(name)]
        axis.set(title=f"{level} prior", ylabel="NLL (nats per code)")
        axis.set_ylim(0, 1.5 * max(held_out) if held_out else None)
    return _finish(figure, axes, "training step")


@_styled
def histograms(
    panels: Mapping[str, Mapping[str, NDArray[Any]]],
    xlabel: str,
    ylabel: str,
    colours: Mapping[str, str],
    lines: Mapping[str, float] | None = None,
) -> Figure:
    """Draw distributions over each other as shares.

    Args:
        panels: title -> name -> values.
        xlabel, ylabel: of the axes.
        colours: by name.
        lines: by name, what is marked vertically.
    """
    figure, axes = _panels(len(panels), width=min(_WIDTH, 6.5 if len(panels) == 1 else _WIDTH))
    for axis, (title, kinds) in zip(axes, panels.items(), strict=True):
        finite = {name: values[np.isfinite(values)] for name, values in kinds.items()}
        everything = np.concatenate(list(finite.values()))
        low, high = (float(everything.min()), float(everything.max())) if len(everything) else (0.0, 1.0)
        margin = 0.02 * (high - low) or 0.01
        # Few values would stand in forty bins one by one.
        count = int(np.clip(2 * np.sqrt(max(map(len, finite.values()))), 10, 40))
        bins = np.linspace(low - margin, high + margin, count + 1)
        for name, values in finite.items():
            weights = np.full(len(values), 1 / max(len(values), 1))
            style: dict[str, Any] = {"facecolor": mpl.colors.to_rgba(colours[name], 0.25), "edgecolor": colours[name]}
            style |= {"linewidth": 1.2, "label": f"{name} (mean {values.mean():.3g})"}
            axis.hist(values, bins.tolist(), weights=weights, histtype="stepfilled", **style)
        for name, value in (lines or {}).items():
            axis.axvline(value, color="#333333", linewidth=1, linestyle="--", label=name)
        axis.set(title=title, ylabel=ylabel)
    return _finish(figure, axes, xlabel)


@_styled
def precision_recall(curves: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """Draw precision against recall, and the Fréchet distance, by the ``share`` of the samples that is kept.

    Args:
        curves: name of the features -> points, the first of all samples.
    """
    figure, (left, right) = _panels(2)
    for (name, points), dashes in zip(curves.items(), itertools.cycle(("-", "--", ":", "-."))):
        recall, precision, share, frechet = (
            [point[key] for point in points] for key in ("recall", "precision", "share", "frechet")
        )
        left.plot(recall, precision, dashes, marker="o", color=SAMPLES, label=name)
        for place, kept in zip(zip(recall, precision, strict=True), share, strict=True):
            left.annotate(f"{kept:.0%}", place, textcoords="offset points", xytext=(6, 4), fontsize=8)
        right.plot(share, np.array(frechet) / frechet[0], dashes, marker="o", color=SAMPLES, label=name)
    left.set(title="precision and recall", ylabel="precision", xlabel="recall")
    right.set(title="Fréchet distance", ylabel="divided by that of all samples", xlabel="share of the samples kept")
    left.margins(0.15)  # the points lie close together
    right.invert_xaxis()
    return _finish(figure, (left, right))


@_styled
def codebook_use(
    counts: Mapping[str, NDArray[Any]], foreground: Mapping[str, NDArray[Any]], titles: Mapping[str, str]
) -> Figure:
    """Draw how often each code (K,) of each level is used, sorted, over all cells and without constant ones."""
    figure, axes = _panels(len(counts), width=min(_WIDTH, 5 * len(counts)))
    for i, (axis, level) in enumerate(zip(axes, counts, strict=True)):
        for values, label, style in (
            (foreground[level], "without constant cells", {"color": level_colour(i)}),
            (counts[level], "all cells", {"color": level_colour(i), "linestyle": "--", "alpha": 0.6}),
        ):
            ordered = np.sort(values)[::-1].astype(float)
            ordered = ordered[ordered > 0] / max(ordered.sum(), 1)
            axis.plot(np.arange(1, len(ordered) + 1), ordered, label=label, **style)
        k = len(counts[level])
        _level_line(axis, 1 / k, f"all {k} codes alike")
        axis.set(title=titles[level], ylabel="share of cells", yscale="log", xlim=(0, k))
    return _finish(figure, axes, "codes, most used first")


@_styled
def nll_maps(maps: Mapping[str, tuple[NDArray[Any], NDArray[Any]]], backdrop: Tensor | None) -> Figure:
    """Draw, by level, the NLL at each position (h, w) of the prior and of the position-wise unigram."""
    columns = 2 + (backdrop is not None)
    figure = Figure(figsize=(2.9 * columns, 2.75 * len(maps)), layout=_LAYOUT)
    axes = np.atleast_2d(figure.subplots(len(maps), columns))
    for line, (level, (prior, table)) in zip(axes, maps.items(), strict=True):
        high = float(max(prior.max(), table.max()))
        for axis, values, title in zip(line, (prior, table), ("prior", "position-wise unigram"), strict=False):
            shown = axis.imshow(values, cmap="viridis", vmin=0, vmax=high)
            axis.set_title(f"{level}: {title}, mean {values.mean():.2f}", fontsize=8.5)
        figure.colorbar(shown, ax=line[:2].tolist(), fraction=0.05, pad=0.02).set_label("nats per code", fontsize=8)
        if backdrop is not None:
            line[2].imshow(to_picture(backdrop), cmap="gray", vmin=0, vmax=255)
            line[2].set_title("mean training image", fontsize=8.5)
    for axis in axes.flat:
        axis.axis("off")
    return figure


@_styled
def ventricle_areas(samples: Mapping[str, NDArray[Any]], true: Mapping[str, NDArray[Any]]) -> Figure:
    """Draw measured ventricle areas, as shares of the brain's area, of samples by label beside training images."""
    names = list(dict.fromkeys([*true, *samples]))
    figure, (axis,) = _panels(1, width=6.5)
    noise = np.random.default_rng(0)
    for i, name in enumerate(names):
        for kind, offset, colour in ((true, -0.17, TRAINING), (samples, 0.17, SAMPLES)):
            values = kind.get(name, np.zeros(0))
            values = values[np.isfinite(values)]
            if len(values):
                x = i + offset + noise.uniform(-0.1, 0.1, len(values))
                axis.scatter(x, values, s=9, color=colour, alpha=0.45, linewidths=0)
                axis.hlines(values.mean(), i + offset - 0.14, i + offset + 0.14, color="#111111", linewidth=2)
    axis.scatter([], [], s=20, color=TRAINING, label="training images")
    axis.scatter([], [], s=20, color=SAMPLES, label="samples asked for")
    axis.plot([], [], color="#111111", linewidth=2, label="mean")
    axis.set_xticks(range(len(names)), names)
    axis.set(ylabel="ventricle area / brain area")
    axis.set_ylim(bottom=0)
    axis.grid(axis="x", visible=False)
    return _finish(figure, [axis], "")


def _sheet(
    rows: Mapping[str, Sequence[Picture]],
    titles: Mapping[str, Sequence[str]],
    *,
    title: float = 0.2,
    fontsize: float = 8,
    right: float = 0.0,
) -> tuple[Figure, float]:
    """Draw rows of pictures of one size, each row beside its name; in one axis, since one for each picture is slow.

    Args:
        rows: name, which stands at the left -> pictures (H, W) or (H, W, 3).
        titles: name of a row -> what stands over its pictures.
        title, right: inches left for the titles of a row, and empty at the right.
        fontsize: of the titles.

    Returns:
        ``(figure, height)``: the height of a picture in inches.
    """
    columns, left, gap = max(map(len, rows.values())), 0.45, 0.03
    height, width = next(iter(rows.values()))[0].shape[:2]
    cell = min((_WIDTH - left - right) / columns, 2.2)
    tall = cell * height / width
    size = (left + cell * columns + right, len(rows) * tall + title * len(titles) + gap)
    figure = Figure(figsize=size)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.axis("off")
    top = gap
    for name, pictures in rows.items():
        if name in titles:
            top += title
            for i, text in enumerate(titles[name]):  # $ in a file name is no formula
                place = left + (i + 0.5) * cell, top - 0.02
                axis.text(*place, text, fontsize=fontsize, ha="center", va="bottom", parse_math=False)
        side: dict[str, Any] = {"rotation": 90, "ha": "right", "va": "center", "color": "#333333", "parse_math": False}
        axis.text(left - 0.08, top + tall / 2, name, **side)
        for i, picture in enumerate(pictures):
            x = left + i * cell
            extent = (x, x + cell - gap, top + tall - gap, top)
            axis.imshow(picture, cmap="gray", vmin=0, vmax=255, extent=extent, aspect="auto")
        top += tall
    axis.set(xlim=(0, size[0]), ylim=(size[1], 0))  # in inches from the top left
    return figure, tall


def _pictures(images: Tensor) -> list[Picture]:
    return [to_picture(image) for image in images]


def _panels(count: int, width: float = _WIDTH, height: float = 3.4) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout=_LAYOUT)
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def _finish(figure: Figure, axes: Sequence[Axes], xlabel: str | None = None) -> Figure:
    for axis in axes:
        if xlabel is not None:
            axis.set_xlabel(xlabel)
        if axis.get_legend_handles_labels()[0]:
            # Under the axes, where no curve can lie beneath it.
            axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=1 if len(axes) > 2 else 2)
    return figure


def _curve(axis: Axes, stats: Stats, name: str, label: str, colour: str, marker: str = "", **style: Any) -> None:
    points = [(line["step"], line[name]) for line in stats if line.get(name) is not None]
    if points:
        # A single evaluation is a point, which a line would not show.
        marker = marker or ("." if len(points) == 1 else "")
        axis.plot(*zip(*points, strict=True), label=label, color=colour, marker=marker, markersize=3.5, **style)


def _level_line(axis: Axes, value: float, label: str | None, style: str = ":") -> None:
    axis.axhline(value, color="#333333", linewidth=1.1, linestyle=style, label=label)
