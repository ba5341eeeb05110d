"""Image files to arrays of stored integers of one size, with the reason where that cannot be."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from vqvae2.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".bmp", ".webp", ".avif", ".jp2", ".pgm", ".ppm")
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "AVIF", "JPEG2000", "PPM")
MOST_PIXELS = 64_000_000  # a slice has far fewer; a small file that claims more is there to fill the memory

Pixels = NDArray[Any]
_POINTERS = {
    b"version https://git-lfs": "a Git LFS pointer, not the file itself; run `git lfs pull` in its repository",
    b"/annex/objects/": "a git-annex pointer, not the file itself; run `datalad get` or `git annex get`",
    b"<!doctype html": "a web page, not the file itself; download it anew",
    b"<html": "a web page, not the file itself; download it anew",
}


class UnreadableError(Exception):
    """A file cannot be used; the text is the reason."""


@dataclass
class Picture:
    """A decoded file: pixels (H, W) if it is grey in any guise, else (H, W, 3); uint8 or uint16."""

    pixels: Pixels
    size: tuple[int, int]  # height and width in the file
    digest: bytes  # of the pixels in the file; empty if they are all equal
    halved: bool  # 16 bits a colour, of which the upper 8 were read


def decode(path: Path) -> Picture:
    """Read one image file upright, on black where it is transparent; raises UnreadableError with the reason."""
    if reason := no_content(path):
        raise UnreadableError(reason)
    try:
        # Not by its path: Pillow would map a TIFF that is turned with its sides exchanged.
        with open(path, "rb") as content, Image.open(content, formats=FORMATS) as file:
            pixels, halved = _pixels(file)
    except UnreadableError:
        raise
    except UnidentifiedImageError:
        empty = os.path.getsize(path) == 0
        raise UnreadableError("the file is empty" if empty else "not an image in a format that is read") from None
    except OSError as error:
        raise UnreadableError(error.strerror or str(error)) from None
    except Exception as error:  # Pillow lets parsers' own errors through (SyntaxError, struct.error, ...)
        raise UnreadableError(f"{type(error).__name__}: {error}") from None
    if pixels.ndim == 3 and _is_grey(pixels):
        pixels = pixels[..., 0]
    pixels = np.ascontiguousarray(pixels)
    return Picture(pixels, pixels.shape[:2], digest_of(pixels), halved)


def _is_grey(pixels: Pixels) -> bool:
    """Whether the three colours of (H, W, 3) are equal everywhere; a few rows tell of most images that they are not."""
    return all(np.array_equal(some[..., 0], some[..., k]) for some in (pixels[::16], pixels) for k in (1, 2))


def no_content(path: Path) -> str:
    """Say why a file cannot hold what its name says: it is none, or stands for one that is elsewhere; "" if it may."""
    if not path.is_file():  # a pipe would be waited for, a link may lead nowhere
        annexed = path.is_symlink() and ".git/annex" in os.readlink(path)
        return _POINTERS[b"/annex/objects/"].replace("pointer", "link") if annexed else "not a regular file"
    try:
        if os.path.getsize(path) > 100_000:
            return ""
        with open(path, "rb") as file:
            begin = file.read(64).lower()
    except OSError as error:
        return error.strerror or str(error)
    return next((reason for mark, reason in _POINTERS.items() if begin.startswith(mark)), "")


def digest_of(pixels: Pixels) -> bytes:
    """Fingerprint pixels, by which copies are found; empty if they are all equal."""
    constant = pixels.max() == pixels.min()
    return b"" if constant else hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).digest()


def _pixels(file: Image.Image) -> tuple[Pixels, bool]:
    """The upright pixels of an opened file, and whether colours lost their lower 8 bits."""
    if file.width * file.height > MOST_PIXELS:
        raise UnreadableError(f"{file.height} x {file.width} pixels are more than {MOST_PIXELS:,}")
    if file.format != "MPO" and getattr(file, "n_frames", 1) > 1:
        raise UnreadableError(f"holds {getattr(file, 'n_frames', 0)} pictures; store each in a file of its own")
    stored = [tile[3] if isinstance(tile[3], tuple) else (tile[3],) for tile in getattr(file, "tile", ()) if tile[3]]
    sixteen = any(";16" in str(mode) or more == [65535] for mode, *more in stored)  # PPM gives its highest value
    halved = sixteen and file.mode in ("RGB", "RGBA", "LA")
    white_is_zero = file.format == "TIFF" and getattr(file, "tag_v2", {}).get(262) == 0  # Pillow turns 8 bits itself
    ImageOps.exif_transpose(file, in_place=True)  # which makes no copy where nothing is to be turned
    upright = file
    if upright.mode == "I" or upright.mode.startswith("I;16"):
        wide = np.asarray(upright)
        if wide.min() < 0 or wide.max() > 65535:
            raise UnreadableError(f"values {wide.min()} to {wide.max()} do not fit 16 bits")
        wide = wide.astype(np.uint16)
        return 65535 - wide if white_is_zero else wide, False
    if upright.mode == "F":
        raise UnreadableError("floating-point pixels; store 8 or 16 bit integers")
    if upright.has_transparency_data:
        colours = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", colours.size, (0, 0, 0, 255)), colours)
    if upright.mode not in ("L", "RGB"):
        upright = upright.convert("L" if upright.mode == "1" else "RGB")
    return np.asarray(upright), halved


def fit(pixels: Pixels, size: tuple[int, int], how: str) -> Pixels:
    """Bring pixels (H, W) or (H, W, 3) to a size (height, width).

    Args:
        pixels: uint8 or uint16.
        size: wanted height and width.
        how: "shrink" (zeros around; what is larger is scaled down, with the shape kept, until it fits in), "resize"
            (the same, and what is smaller is scaled up), "cover" (scaled until it covers the size, the middle of that),
            "crop" (the middle, zeros where short) or "pad" (zeros around).

    Raises:
        UserError: for "pad" and an image that is larger than the size.
    """
    if pixels.shape[:2] == size:
        return pixels
    height, width = pixels.shape[:2]
    if (ratio := _ratio((height, width), size, how)) != 1:
        pixels = _scaled(pixels, ratio)
        height, width = pixels.shape[:2]
    if how == "pad" and (height > size[0] or width > size[1]):
        raise UserError(
            "an image is larger than --size and cannot be padded to it",
            f"{height}x{width} against {size[0]}x{size[1]}",
            "Give another --fit, or a larger --size",
        )
    top, left = max(height - size[0], 0) // 2, max(width - size[1], 0) // 2
    middle = pixels[top : top + size[0], left : left + size[1]]
    fitted = np.zeros((*size, *pixels.shape[2:]), pixels.dtype)
    down, across = (size[0] - middle.shape[0]) // 2, (size[1] - middle.shape[1]) // 2
    fitted[down : down + middle.shape[0], across : across + middle.shape[1]] = middle
    return fitted


def _ratio(own: tuple[int, int], size: tuple[int, int], how: str) -> float:
    """By how much an image of its own size is scaled."""
    ratios = (size[0] / own[0], size[1] / own[1])
    if how == "cover":
        return max(ratios)
    return {"shrink": min(*ratios, 1.0), "resize": min(ratios)}.get(how, 1.0)


def _scaled(pixels: Pixels, ratio: float) -> Pixels:
    """Resample with the shape kept; without ringing downwards: black stays black."""
    height, width = pixels.shape[:2]
    target = (max(1, round(width * ratio)), max(1, round(height * ratio)))
    kernel = Image.Resampling.HAMMING if ratio < 1 else Image.Resampling.BICUBIC
    if pixels.dtype == np.uint8:
        return np.asarray(Image.fromarray(pixels).resize(target, kernel))
    scaled = np.asarray(Image.fromarray(pixels.astype(np.float32)).resize(target, kernel))
    return np.clip(np.rint(scaled), pixels.min(), pixels.max()).astype(np.uint16)  # without the kernel's overshoot


def recolour(pixels: Pixels, channels: int) -> Pixels:
    """Pixels (H, W) or (H, W, 3) as (C, H, W); colour becomes grey by ITU-R 601 luminance, rounded."""
    if pixels.ndim == 2:
        return np.broadcast_to(pixels, (channels, *pixels.shape))
    if channels == 3:
        return pixels.transpose(2, 0, 1)
    return np.asarray(Image.fromarray(pixels).convert("L"))[None]
