"""Procedural axial T1 slices of a head whose anatomy and diagnosis are known exactly.

The phantom is the embedded data set: nothing to download, and because its ventricles follow a stated law,
samples that were asked for as ``atrophy`` can be measured and not only looked at. It is no model of disease
and no substitute for patients.

The law. The picture shows skin fat, skull, a gap of fluid, a brain with a folded grey ribbon around white
matter, two lateral ventricles and a third. With z the sum of two uniform numbers on [-1/2, 1/2], so that -1
<= z <= 1 with mean zero,

    ventricle area / brain area = 0.050 + 0.020 z   (healthy)
    ventricle area / brain area = 0.120 + 0.040 z   (atrophy)

where the brain area is all within the outline of the brain: ribbon, sulci, white matter and ventricles. The
ventricles' outline is moved until the antialiased area on the pixel grid fits the drawn share, so the law
holds for each picture and not only on average. Atrophy besides widens the sulci by half. Head size,
proportions, tilt, position, asymmetry, folds, gain and texture are drawn alike for both diagnoses. The
background is exactly zero.
"""

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

DIAGNOSES: Final = ("healthy", "atrophy")
VENTRICLE_SHARE: Final = {
    "healthy": (0.050, 0.020),
    "atrophy": (0.120, 0.040),
}  # centre and half-width of the law

FAT, MARROW, FLUID, GREY, DEEP_GREY, WHITE = 0.88, 0.10, 0.13, 0.47, 0.64, 0.77  # brightness, of 1
SULCUS_WIDTH = 0.013  # half-width at the surface, in units of half the picture
RIBBON = 0.056  # thickness of the cortex, in the same units
EDGE = 2.0  # pixels over which an edge is spread, as a scanner does
ZONE = 0.58  # the ventricles lie within this share of the brain's radius, the sulci outside it

Array = NDArray[np.float64]

# The right lateral ventricle as a chain of (left-right, front-back, radius), in units of the brain's
# semi-axes: frontal horn, body, atrium and occipital horn.
_CHAIN = np.array(
    [
        [0.18, 0.35, 0.020],
        [0.105, 0.23, 0.065],
        [0.085, 0.04, 0.040],
        [0.125, -0.15, 0.055],
        [0.20, -0.29, 0.025],
    ]
)


def render(seed: int, index: int, size: tuple[int, int] = (64, 64)) -> tuple[NDArray[np.uint8], int, dict[str, float]]:
    """Draw slice ``index`` of the phantom, the same for the same arguments on every machine.

    Args:
        seed: which population, >= 0.
        index: which head of it, >= 0; even heads are healthy, odd ones atrophic.
        size: height and width in pixels, both >= 32.

    Returns:
        The image (H, W) uint8, its label (0 healthy, 1 atrophy) and the truth: ``ventricle_area``, the
        ventricles' share of the brain's area, and ``brain_area`` in pixels.

    Raises:
        ValueError: for a negative seed or index or a picture under 32 pixels.
    """
    if seed < 0 or index < 0 or min(size) < 32:
        raise ValueError(f"seed and index must be >= 0 and size >= (32, 32), got {seed}, {index}, {size}")
    draw = _Draws(seed, index)
    label = index % 2
    centre, spread = VENTRICLE_SHARE[DIAGNOSES[label]]
    share = centre + spread * (draw.one(-0.5, 0.5) + draw.one(-0.5, 0.5))

    # The head: coordinates right and front of its centre, and a radius that is 1 on the skin.
    height, width = size
    unit = min(height, width) / 2  # pixels
    pixel = 1 / unit
    edge = EDGE * pixel
    rows, columns = np.mgrid[:height, :width]
    y = (height / 2 - 0.5 - rows) * pixel - draw.one(-0.03, 0.03)
    x = (columns - width / 2 + 0.5) * pixel - draw.one(-0.03, 0.03)
    tilt = np.deg2rad(draw.one(-6, 6))
    right, front = x * np.cos(tilt) + y * np.sin(tilt), y * np.cos(tilt) - x * np.sin(tilt)
    long = draw.one(0.78, 0.85)
    wide = long * draw.one(0.77, 0.84)
    egg = draw.one(0.06, 0.13)  # heads are wider behind
    u, v = right / (wide * (1 - egg * front / long)), front / long
    angle = np.arctan2(v, u)
    wave = 1 + draw.one(-0.012, 0.012) * np.cos(3 * angle + draw.one(0, 6.28)) + 0.015 * np.cos(4 * angle)
    radius = np.hypot(u, v) * wave
    slope = np.hypot(*np.gradient(radius)) * unit  # change of the radius per unit of length
    slope = np.maximum(slope, 0.5)

    skin = _cover((1 - radius) / slope, edge)
    bone = _cover((draw.one(0.925, 0.94) - radius) / slope, edge)
    inner = draw.one(0.875, 0.885)
    brain_radius = draw.one(0.83, 0.85)
    dura = _cover((inner - radius) / slope, edge)
    depth = (brain_radius - radius) / slope  # from the brain's surface inwards
    brain = _cover(depth, edge)
    brain_area = float(brain.sum())

    # Everything inside the brain is drawn on its own pixels only.
    at = brain > 0
    p, q = u[at] / brain_radius, v[at] / brain_radius
    scale = brain_radius * np.sqrt(wide * long)  # length of one unit of (p, q)
    sulci = _sulci(draw, p, q, scale, SULCUS_WIDTH * (1.5 if label else 1.0))
    fluid = _cover(-sulci, edge)
    ribbon = _cover(RIBBON - np.minimum(depth[at], sulci), edge)
    tissue = WHITE + (GREY - WHITE) * ribbon
    tissue = tissue + (DEEP_GREY - WHITE) * _nuclei(draw, p, q) * (1 - ribbon)
    tissue = tissue + (FLUID - tissue) * fluid
    ventricles = _ventricles(draw, p, q, scale, edge, share * brain_area)
    tissue = tissue + (FLUID - tissue) * ventricles

    image = FAT * skin
    image += (MARROW - image) * bone
    image += (FLUID - image) * dura
    image[at] += (tissue - image[at]) * brain[at]

    # Gain, coil shading, slow texture and fine noise: mild, so that they cost few codes.
    shade = 1 + draw.one(-0.05, 0.05) * x + draw.one(-0.05, 0.05) * y
    for _ in range(3):
        shade += 0.012 * np.cos(draw.one(-12, 12) * x + draw.one(-12, 12) * y + draw.one(0, 6.28))
    image *= shade * draw.one(0.97, 1.03)
    image += 0.012 * draw.noise(size) * skin
    stored = np.clip(np.rint(image * 255), 0, 255).astype(np.uint8)
    return stored, label, {"ventricle_area": float(ventricles.sum()) / brain_area, "brain_area": brain_area}


def _cover(distance: Array, edge: float) -> Array:
    """Coverage (0 to 1) of pixels by a shape, from the signed distance to its outline, positive inside."""
    return np.clip(0.5 + distance / edge, 0, 1)


class _Draws:
    """Uniform numbers by seed and index, from a bit stream that NumPy guarantees never to change."""

    def __init__(self, seed: int, index: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence([seed, index]))

    def one(self, low: float, high: float) -> float:
        return low + (high - low) * (int(self._bits.random_raw()) >> 11) * 2.0**-53

    def noise(self, size: tuple[int, int]) -> Array:
        """Noise (H, W), nearly Gaussian with unit variance: four 16-bit uniforms summed for each pixel."""
        raw = self._bits.random_raw(size[0] * size[1])
        parts = [(raw >> np.uint64(s) & np.uint64(0xFFFF)).astype(np.float64) for s in (0, 16, 32, 48)]
        return (np.sum(parts, axis=0) / 65535 - 2).reshape(size) * np.sqrt(3)


def _chain_distance(p: Array, q: Array, points: Array) -> Array:
    """Signed distance (N,), positive outside, to strokes through points (strokes, nodes, (p, q, radius))."""
    start, end = points[:, :-1].reshape(-1, 1, 3), points[:, 1:].reshape(-1, 1, 3)
    dp, dq, dr = np.moveaxis(end - start, -1, 0)
    along = ((p - start[..., 0]) * dp + (q - start[..., 1]) * dq) / (dp * dp + dq * dq)
    along = np.clip(along, 0, 1)
    gap_p, gap_q = p - start[..., 0] - along * dp, q - start[..., 1] - along * dq
    return (np.sqrt(gap_p * gap_p + gap_q * gap_q) - start[..., 2] - along * dr).min(0)


def _sulci(draw: _Draws, p: Array, q: Array, scale: float, width: float) -> Array:
    """Signed distance in units of length to the sulci and the midline fissure, positive outside."""
    strokes = []
    for pole in (1.0, -1.0):  # the fissure, front and back
        strokes.append(
            [
                [0.0, 1.03 * pole, 1.5 * width],
                [draw.one(-0.015, 0.015), 0.84 * pole, 0.9 * width],
                [draw.one(-0.02, 0.02), draw.one(0.67, 0.72) * pole, 0.4 * width],
            ]
        )
    for side in (1.0, -1.0):
        places = np.linspace(-62, 58, 6)  # degrees from the ear forwards
        for k, place in enumerate(places):
            angle = np.deg2rad(place + draw.one(-5, 5))
            lateral = k == 3  # the fissure of Sylvius
            bottom = draw.one(0.685, 0.70) if lateral else draw.one(0.69, 0.84)
            turns = (0.0, draw.one(-0.10, 0.10), draw.one(-0.26, 0.26) + (0.12 if lateral else 0.0))
            strokes.append(
                [
                    [
                        side * r * np.cos(angle + t),
                        r * np.sin(angle + t),
                        w * width * (1.5 if lateral else 1.0),
                    ]
                    for r, t, w in zip((1.03, (1 + bottom) / 2, bottom), turns, (1.3, 0.9, 0.3), strict=True)
                ]
            )
    points = np.array(strokes)
    points[..., 2] /= scale
    return _chain_distance(p, q, points) * scale


def _nuclei(draw: _Draws, p: Array, q: Array) -> Array:
    """How much (0 to 1) of deep grey matter a pixel holds: thalamus, caudate and putamen of both sides."""
    held = np.zeros_like(p)
    for side in (1.0, -1.0):
        for cp, cq, rp, rq, lean in (
            (0.13, -0.06, 0.10, 0.17, 0.2),
            (0.25, 0.26, 0.06, 0.13, -0.3),
            (0.38, 0.06, 0.08, 0.21, -0.25),
        ):
            dp, dq = side * p - cp - draw.one(-0.01, 0.01), q - cq - draw.one(-0.02, 0.02)
            across, along = (dp - lean * dq) / rp, (dq + lean * dp) / rq
            held = np.maximum(held, np.clip(2.2 - 2 * np.hypot(across, along), 0, 1))
    return held


def _ventricles(draw: _Draws, p: Array, q: Array, scale: float, edge: float, area: float) -> Array:
    """Coverage (N,) by the ventricles, their outline moved until the coverage sums to ``area`` pixels."""
    lean, reach = draw.one(-0.03, 0.03), draw.one(0.95, 1.05)
    chains = []
    for side in (1.0, -1.0):
        chain = _CHAIN * [1, reach, 1]
        chain[:, :2] += [[draw.one(-0.008, 0.008), draw.one(-0.015, 0.015)] for _ in chain]
        chain[:, 2] += side * lean / 5
        chain[:, 0] *= side
        chains.append(chain)
    lateral = _chain_distance(p, q, np.array(chains))
    front, back = draw.one(0.06, 0.10), draw.one(-0.20, -0.14)
    third = _chain_distance(p, q, np.array([[[0, front, 0.0], [0, back, 0.008]]]))
    septum = 0.02 - np.abs(p)

    def coverage(offset: float) -> Array:
        # The third ventricle widens at a quarter of the lateral ones' rate, which the septum keeps apart.
        outside = np.minimum(np.maximum(lateral - offset, septum), third - 0.018 - 0.25 * max(offset, 0.0))
        return _cover(-outside * scale, edge)

    low, high = -0.1, 0.4
    for _ in range(16):
        middle = (low + high) / 2
        low, high = (middle, high) if coverage(middle).sum() < area else (low, middle)
    return coverage((low + high) / 2)


def ventricle_area(images: torch.Tensor | NDArray[np.floating]) -> Array:
    """Measure the ventricles' share of the brain's area from pictures alone, drawn or generated.

    The head's outline is fitted by moments, the brain is what lies within the dark ring of the skull, and the
    ventricles are what is darker than midway between white matter and fluid in the brain's centre, counted by
    a soft threshold that is symmetric about that midpoint, so that blur softens the edges but keeps the area.

    Args:
        images: (B, 1, H, W) in [-1, 1], phantom slices or what a model makes of them.

    Returns:
        (B,) measured shares in [0, 1]; nan where no head can be found.
    """
    array = images.detach().cpu().double().numpy() if isinstance(images, torch.Tensor) else np.asarray(images)
    if array.ndim != 4 or array.shape[1] != 1:
        raise ValueError(f"images must be (B, 1, H, W), got {array.shape}")
    return np.array([_measure(np.clip((picture[0] + 1) / 2, 0, 1)) for picture in array])


def _between(mask: NDArray[np.bool_], axis: int) -> NDArray[np.bool_]:
    """The pixels (H, W) that lie between a mask's outermost ones along an axis."""
    after = np.logical_or.accumulate(mask, axis)
    return after & np.flip(np.logical_or.accumulate(np.flip(mask, axis), axis), axis)


def _measure(picture: Array) -> float:
    """The ventricles' share of the brain's area in one picture (H, W) in [0, 1]."""
    head = picture > 0.3
    head = _between(head, 0) & _between(head, 1)
    if head.sum() < 100:
        return float("nan")
    rows, columns = np.nonzero(head)
    middle = np.array([rows.mean(), columns.mean()])
    spread = (
        np.cov(np.stack([rows, columns])) * 4
    )  # a filled ellipse has a quarter of its squared semi-axes as variance
    if np.linalg.det(spread) < 100:  # a line, not a head
        return float("nan")
    away = np.moveaxis(np.indices(picture.shape), 0, -1) - middle
    radius = np.sqrt(np.einsum("...i,ij,...j", away, np.linalg.inv(spread), away))

    # The skull is the darkest ring near the rim.
    edges = np.arange(0.80, 1.0, 0.02)
    masks = [(radius >= edge) & (radius < edge + 0.04) for edge in edges]
    rings = [picture[mask].mean() if mask.any() else 1.0 for mask in masks]
    skull = edges[int(np.argmin(rings))] + 0.02
    within = np.where(radius < skull, picture, 0)
    white = float(np.quantile(within[radius < ZONE * skull], 0.8))
    if white < 0.3:
        return float("nan")
    tissue = within > 0.39 * white  # midway between grey matter and fluid
    brain = _between(tissue, 0) | _between(tissue, 1)  # either closes the mouths of sulci
    brain_area = float(brain.sum())

    fluid = FLUID / WHITE * white
    halfway, reach = (white + fluid) / 2, 0.2 * (white - fluid)
    dark = np.clip(0.5 - (picture - halfway) / (2 * reach), 0, 1)
    return float(dark[radius < ZONE * np.sqrt(brain_area / head.sum())].sum()) / max(brain_area, 1.0)
