"""Tensors and codes as pictures: grids of images, maps of codes."""

import colorsys
import io
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

__all__ = ["channels_last", "code_map", "grid", "png_bytes", "to_picture"]

Picture = NDArray[np.uint8]


def to_picture(image: Tensor) -> Picture:
    """Turn an image (C, H, W) in [-1, 1] into (H, W) grey or (H, W, 3); of other channel counts the first is shown."""
    pixels = ((image.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy()
    return channels_last(pixels)


def channels_last(pixels: NDArray[Any]) -> NDArray[Any]:
    """Turn stored values (C, H, W) into (H, W, 3), or (H, W) of the first channel where there are not three."""
    return pixels.transpose(1, 2, 0) if len(pixels) == 3 else pixels[0]


_TITLE = 14  # pixels of height


def grid(
    pictures: list[Picture], columns: int | None = None, gap: int = 2, titles: Sequence[str] | None = None
) -> Picture:
    """Lay out pictures of equal size in rows.

    Args:
        pictures: (H, W) or (H, W, 3) uint8 each, at least one.
        columns: by default as square as possible.
        gap: dark pixels between two pictures.
        titles: of the rows, each written above its row, which takes 14 pixels.

    Returns:
        (rows * (H + gap) + gap, columns * (W + gap) + gap), with 3 channels if any picture has them.
    """
    colour = any(picture.ndim == 3 for picture in pictures)
    columns = columns or math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    height, width = pictures[0].shape[:2]
    tall, wide, head = height + gap, width + gap, 0 if titles is None else _TITLE
    sheet = np.full((rows * (tall + head) + gap, columns * wide + gap, 3), 32, np.uint8)
    for row, title in enumerate(titles or ()):
        strip = Image.new("RGB", (sheet.shape[1] - 2 * gap, head), (32, 32, 32))
        ImageDraw.Draw(strip).text((1, 1), title, (230, 230, 230))
        top = row * (tall + head) + gap
        sheet[top : top + head, gap : sheet.shape[1] - gap] = np.asarray(strip)
    for i, picture in enumerate(pictures):
        row, column = divmod(i, columns)
        top, left = row * (tall + head) + head + gap, column * wide + gap
        sheet[top : top + height, left : left + width] = picture if picture.ndim == 3 else picture[..., None]
    return sheet if colour else sheet[..., 0]


def png_bytes(picture: NDArray[np.uint8] | NDArray[np.uint16]) -> bytes:
    """Encode a picture (H, W) of uint8 or uint16, or (H, W, 3) of uint8, as PNG; ValueError for any other."""
    if picture.dtype == np.uint16 and picture.ndim == 3:
        raise ValueError("PNG is written with 16 bits in grey alone")
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(buffer, format="PNG")
    return buffer.getvalue()


def code_map(codes: Tensor, num_embeddings: int, size: tuple[int, int]) -> Picture:
    """Colour a map of codes (h, w), each code by a colour of its own, enlarged to ``size``: (H, W, 3)."""
    colours = _palette(num_embeddings)[codes.cpu().numpy()]
    enlarged = colours.repeat(max(1, size[0] // codes.shape[0]), 0).repeat(max(1, size[1] // codes.shape[1]), 1)
    return np.ascontiguousarray(enlarged)


@lru_cache
def _palette(count: int) -> Picture:
    golden = (math.sqrt(5) - 1) / 2
    colours = [
        colorsys.hsv_to_rgb((i * golden) % 1, 0.45 + 0.4 * (i % 3) / 2, 0.6 + 0.4 * (i % 5) / 4) for i in range(count)
    ]
    return (np.array(colours) * 255).round().astype(np.uint8)
