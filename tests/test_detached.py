"""Volumes whose header and voxels lie in several files: what was cut is kept by all of them."""

from pathlib import Path

import numpy as np
import pytest

from vqvae2.data.volumes import Cut, SliceConfig, cut, cut_all

sitk = pytest.importorskip("SimpleITK", reason="writes the formats with detached headers")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("VQVAE2_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "slices"


def voxels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(100, 900, (4, 6, 5)).astype(np.int16)


def pair(header: Path, seed: int) -> Path:
    """Write a header beside its voxels, compressed but for ``.mhd``, whose header has the compressed size."""
    header.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(voxels(seed)), str(header), header.suffix != ".mhd")
    return header


def renamed(header: Path, seed: int) -> Path:
    """Write a header that names voxels of another stem than its own, in a folder below."""
    pair(header, seed)
    (data,) = set(header.parent.iterdir()) - {header}
    (header.parent / "voxels").mkdir()
    moved = data.rename(header.parent / "voxels" / f"of-all{data.suffix}")
    header.write_bytes(header.read_bytes().replace(data.name.encode(), f"voxels/{moved.name}".encode()))
    return header


def listed(header: Path, seed: int) -> Path:
    """Write a header that lists a file of voxels for each slice."""
    header.parent.mkdir(parents=True)
    slices = voxels(seed)
    for k, pixels in enumerate(slices):
        (header.parent / f"{k}.raw").write_bytes(pixels.astype("<i2").tobytes())
    size = " ".join(map(str, slices.shape[::-1]))
    if header.suffix == ".mhd":
        names = "\n".join(f"{k}.raw" for k in range(len(slices)))
        header.write_text(f"NDims = 3\nDimSize = {size}\nElementType = MET_SHORT\nElementDataFile = LIST\n{names}\n")
    else:
        header.write_text(
            f"NRRD0004\ntype: short\ndimension: 3\nsizes: {size}\nendian: little\nencoding: raw\n"
            f"data file: %d.raw 0 {len(slices) - 1} 1 2\n"
        )
    return header


def kept(header: Path) -> Cut:
    ((_, found),) = cut_all([(header,)], SliceConfig(min_foreground=0))
    assert isinstance(found, Cut), found
    return found


@pytest.mark.parametrize("write", [pair, renamed, listed], ids=lambda write: write.__name__)
@pytest.mark.parametrize("name", ["T1.nhdr", "T1.mhd"])
def test_people_with_equal_headers_get_their_own_voxels(tmp_path, write, name):
    first, second = (write(tmp_path / who / name, seed) for seed, who in enumerate(("P01", "P02")))
    assert first.read_bytes() == second.read_bytes(), "the headers differ, and this test shows nothing"
    for header in (first, second):
        np.testing.assert_array_equal(kept(header).pixels, cut(header, SliceConfig(min_foreground=0)).pixels)
    assert not np.array_equal(kept(first).pixels, kept(second).pixels)


@pytest.mark.parametrize("name", ["T1.nhdr", "T1.mhd", "T1.img"])
def test_voxels_made_anew_under_the_same_header_are_cut_anew(tmp_path, name):
    before = kept(pair(tmp_path / name, 0)).pixels
    after = kept(pair(tmp_path / name, 1)).pixels
    assert not np.array_equal(before, after)


@pytest.mark.parametrize("name", ["T1.nhdr", "T1.mhd", "T1.nrrd", "T1.mha", "T1.img"])
def test_what_was_cut_of_a_pair_or_of_one_file_is_found_again(tmp_path, cache, monkeypatch, name):
    first = kept(pair(tmp_path / name, 0)).pixels
    monkeypatch.setattr("vqvae2.data.volumes.cut", lambda *_: pytest.fail("cut again"))
    np.testing.assert_array_equal(kept(tmp_path / name).pixels, first)
    assert len(list(cache.iterdir())) == 1
