"""NIfTI volumes and BIDS trees: orientation, scaling, cutting, labels, and what cannot be read."""

import gzip
import json
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from vqvae2.data import DataConfig, load_images, open_data
from vqvae2.data.decoding import UnreadableError
from vqvae2.data.volume_files import read_canonical
from vqvae2.data.volumes import SliceConfig, cut, cut_all
from vqvae2.errors import UserError

SHAPE = (8, 10, 12)  # X, Y, Z
SIZES = (2.0, 1.5, 3.0)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("VQVAE2_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def head(seed: int = 0) -> np.ndarray:
    """A volume without any symmetry, in RAS+: values 0 to about 1000."""
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*(np.linspace(0, 1, n) for n in SHAPE), indexing="ij")
    return np.rint(300 * x + 500 * y**2 + 150 * z**3 + 40 * rng.random(SHAPE)).astype(np.float32)


def store(path: Path, voxels: np.ndarray, codes: str = "RAS", sizes: tuple[float, ...] = SIZES) -> Path:
    """Write a RAS+ volume as if it had been stored along other axes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(voxels, np.diag([*sizes, 1]))
    there = nib.orientations.axcodes2ornt(tuple(codes))
    turned = image.as_reoriented(nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), there))
    assert nib.aff2axcodes(turned.affine) == tuple(codes)
    nib.save(turned, path)
    return path


ORIENTATIONS = ["".join(codes) for pairs in product("RL", "AP", "SI") for codes in permutations(pairs)]


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_every_orientation_is_read_as_ras(tmp_path, codes):
    voxels, sizes, _ = read_canonical(store(tmp_path / "a.nii", head(), codes))
    np.testing.assert_array_equal(voxels, head())
    assert sizes == pytest.approx(SIZES)


def test_a_header_that_does_not_say_how_the_volume_lies_is_told(tmp_path):
    for i in range(6):
        path = store(tmp_path / "data" / f"p{i}.nii.gz", head(i))
        if i < 2:
            image = nib.load(path)
            image.header["sform_code"] = image.header["qform_code"] = 0
            plain = nib.Nifti1Image(np.asarray(image.dataobj), None, image.header)
            nib.save(plain, path)
    notes = open_data(DataConfig(data=str(tmp_path / "data"))).notes
    assert any(note.startswith("2 volumes do not say how they lie, such as p0.nii.gz") for note in notes)


def test_slope_and_intercept_are_applied(tmp_path):
    image = nib.Nifti1Image(np.arange(960, dtype=np.int16).reshape(SHAPE), np.eye(4))
    image.header.set_slope_inter(2.5, -100)
    path = tmp_path / "a.nii.gz"
    nib.save(image, path)
    raw = nib.load(path)
    assert float(raw.dataobj.slope) == 2.5, "the file holds a slope, or this test shows nothing"
    stored = np.asarray(raw.dataobj.get_unscaled())
    voxels, _, _ = read_canonical(path)
    np.testing.assert_allclose(voxels, stored * 2.5 - 100, rtol=1e-6)


@pytest.mark.parametrize(
    ("axis", "view"),
    [
        ("axial", lambda v, i: v[:, ::-1, i].T),  # front at the top, right at the right
        ("coronal", lambda v, i: v[:, i, ::-1].T),  # crown at the top, right at the right
        ("sagittal", lambda v, i: v[i, :, ::-1].T),  # crown at the top, face at the right
    ],
)
def test_slices_lie_as_documented(tmp_path, axis, view):
    config = SliceConfig(slice_axis=axis, clip_high=100, min_foreground=0)
    found = cut(store(tmp_path / "a.nii", head(), "PSR"), config)
    low, high = head().min(), head().max()
    for place, pixels in zip(found.places, found.pixels, strict=True):
        expected = np.rint((view(head(), place) - low) / (high - low) * 255)
        np.testing.assert_allclose(pixels, expected, atol=1)
    assert found.places == list(range(SHAPE[{"sagittal": 0, "coronal": 1, "axial": 2}[axis]]))


@pytest.mark.parametrize(
    ("given", "places"),
    [
        (None, list(range(12))),
        ("25%:75%", [3, 4, 5, 6, 7, 8]),
        ("9mm:18mm", [3, 4, 5]),
        ("9mm:-9mm", [3, 4, 5, 6, 7, 8]),
        ("-9mm:100%", [9, 10, 11]),
    ],
)
def test_a_range_is_in_mm_or_percent_from_either_end(tmp_path, given, places):
    config = SliceConfig(slice_range=given, min_foreground=0)
    assert cut(store(tmp_path / "a.nii", head()), config).places == places


def test_slices_are_taken_every_so_many_mm(tmp_path):
    assert cut(store(tmp_path / "a.nii", head()), SliceConfig(slice_every=6, min_foreground=0)).places == [
        0,
        2,
        4,
        6,
        8,
        10,
    ]


def test_empty_slices_are_left_out_and_counted(tmp_path):
    voxels = head() + 200
    voxels[:, :, :5] = 0
    found = cut(store(tmp_path / "a.nii", voxels), SliceConfig(min_foreground=0.3))
    assert (found.places, found.empty) == (list(range(5, 12)), 5)


def test_clipping_is_by_percentiles_of_the_volume(tmp_path):
    voxels = head()
    voxels[0, 0, 0] = 1e6  # a hot spot must not make everything else black
    found = cut(store(tmp_path / "a.nii", voxels), SliceConfig(clip_low=1, clip_high=99, min_foreground=0))
    low, high = np.percentile(voxels, (1, 99))
    assert found.range == pytest.approx((low, high))
    assert (found.pixels == 255).sum() >= 9


@pytest.mark.parametrize("fill", [-2000, -3024, -1025])
def test_what_a_ct_scanner_does_not_see_is_air(tmp_path, fill):
    """The corners outside of a round field of view hold a value far below air, which is near -1000."""
    y, x = np.meshgrid(np.linspace(-1, 1, 24), np.linspace(-1, 1, 24))
    inside = np.where(x**2 + y**2 < 0.3, 40.0, -1000.0)
    inside[11:13, 4:8] = 1200.0
    plane = np.where(x**2 + y**2 < 1, inside, fill)
    found = cut(store(tmp_path / "ct.nii", np.repeat(plane[..., None], 12, 2).astype(np.float32)), SliceConfig())
    assert found.remarks == ("padding",)
    assert found.range[0] == -1024
    pixels = found.pixels[0]
    assert pixels[0, 0] == 0
    assert pixels[12, 1] <= 4  # air
    assert 100 < pixels[12, 12] < 130  # tissue, near half of the range
    without = np.repeat(np.where(x**2 + y**2 < 1, inside, -1000.0)[..., None], 12, 2).astype(np.float32)
    assert cut(store(tmp_path / "b.nii", without), SliceConfig()).remarks == ()
    # Values below -1024 without air: no CT.
    voxels = 100 * head() - 50000
    assert cut(store(tmp_path / "c.nii", voxels), SliceConfig()).range[0] == voxels.min()


def test_pixels_are_made_square_on_request(tmp_path):
    stored = cut(store(tmp_path / "a.nii", head()), SliceConfig(slice_axis="coronal", min_foreground=0))
    assert (stored.pixels.shape[1:], stored.spacing) == ((12, 8), (3.0, 2.0))
    square = cut(tmp_path / "a.nii", SliceConfig(slice_axis="coronal", spacing=1, min_foreground=0))
    assert (square.pixels.shape[1:], square.spacing) == ((36, 16), (1, 1))
    assert square.pixels[3].mean() == pytest.approx(stored.pixels[3].mean(), abs=2)


def test_what_was_cut_is_found_again_by_content(tmp_path, cache, monkeypatch):
    path = store(tmp_path / "a.nii", head())
    ((_, first),) = cut_all([(path,)], SliceConfig())
    (kept,) = (cache / "slices").iterdir()
    monkeypatch.setattr("vqvae2.data.volumes.cut", lambda *_: pytest.fail("cut again"))
    ((_, again),) = cut_all([(path.rename(tmp_path / "b.nii"),)], SliceConfig())
    np.testing.assert_array_equal(first.pixels, again.pixels)
    assert (first.places, first.spacing, first.empty, first.range) == (
        again.places,
        again.spacing,
        again.empty,
        again.range,
    )
    monkeypatch.undo()
    monkeypatch.setenv("VQVAE2_CACHE", str(cache))
    kept.write_bytes(kept.read_bytes()[:50])  # cut short: made again
    ((_, third),) = cut_all([(tmp_path / "b.nii",)], SliceConfig())
    np.testing.assert_array_equal(first.pixels, third.pixels)
    list(cut_all([(tmp_path / "b.nii",)], SliceConfig(clip_high=98)))
    assert len(list((cache / "slices").iterdir())) == 2


def test_a_volume_that_cannot_be_read_now_is_an_error_and_not_left_out(tmp_path, monkeypatch):
    for i in range(4):
        store(tmp_path / "data" / f"s{i}.nii.gz", head(i))
    load, config = nib.load, DataConfig(data=str(tmp_path / "data"), size="16x16")

    def short(path):
        if Path(path).name == "s2.nii.gz":
            raise MemoryError("Unable to allocate")
        return load(path)

    with monkeypatch.context() as patch:
        patch.setattr(nib, "load", short)
        with pytest.raises(UserError, match=r"cannot be read now .*--exclude s2.nii.gz"):
            open_data(config)
    assert open_data(config).skipped == []


def test_sizes_are_in_millimetres_whatever_the_header_counts_in(tmp_path):
    for unit, factor in (("mm", 1), ("meter", 1e-3), ("micron", 1e3), (7, 1)):  # 7 is none
        image = nib.Nifti1Image(head(), np.diag([*(size * factor for size in SIZES), 1]))
        image.header["xyzt_units"] = {"mm": 2, "meter": 1, "micron": 3}.get(unit, unit)
        nib.save(image, tmp_path / f"{unit}.nii")
        assert read_canonical(tmp_path / f"{unit}.nii").sizes == pytest.approx(SIZES)


def test_a_fourth_axis_of_one_is_left_out_of_every_format(tmp_path):
    simpleitk = pytest.importorskip("SimpleITK")
    simpleitk.WriteImage(simpleitk.GetImageFromArray(head().T[None].copy(), isVector=False), str(tmp_path / "a.mha"))
    assert read_canonical(tmp_path / "a.mha").voxels.shape == SHAPE


def test_the_reason_of_a_damaged_volume_is_told_without_places_in_a_library(tmp_path):
    pytest.importorskip("SimpleITK")
    (tmp_path / "a.mha").write_bytes(
        b"ObjectType = Image\nNDims = 3\nDimSize = 4 4 4\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    )
    with pytest.raises(UnreadableError) as told:
        read_canonical(tmp_path / "a.mha")
    assert "0x" not in str(told.value)
    assert ".cxx" not in str(told.value)


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("VQVAE2_CACHE", str(tmp_path / "file"))
    ((_, found),) = cut_all([(store(tmp_path / "a.nii", head()),)], SliceConfig())
    assert len(found.pixels)


def constant(path: Path) -> None:
    store(path, np.full(SHAPE, 7, np.float32))


def not_finite(path: Path) -> None:
    store(path, np.full(SHAPE, np.nan, np.float32))


def four_dimensional(path: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4, 3), np.float32), np.eye(4)), path)


def wrong_magic(path: Path) -> None:
    store(path, head())
    data = bytearray(path.read_bytes())
    data[344:348] = b"nope"
    data[0:4] = b"\0\0\0\0"
    path.write_bytes(bytes(data))


def cut_short(path: Path) -> None:
    store(path, head())
    path.write_bytes(path.read_bytes()[:1000])


def text(path: Path) -> None:
    path.write_text("no volume at all")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def enormous(path: Path) -> None:
    store(path, head())
    data = bytearray(path.read_bytes())
    data[40:56] = np.array([3, 30000, 30000, 30000, 1, 1, 1, 1], "<i2").tobytes()
    path.write_bytes(bytes(data))


def colours(path: Path) -> None:
    pixels = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(pixels, np.eye(4)), path)


def flat_affine(path: Path) -> None:
    store(path, head())
    data = bytearray(path.read_bytes())
    data[312:328] = bytes(16)  # srow_z
    path.write_bytes(bytes(data))


def test_a_nifti_that_is_called_compressed_and_is_not_is_read(tmp_path):
    store(tmp_path / "a.nii", head())
    (tmp_path / "b.nii.gz").write_bytes((tmp_path / "a.nii").read_bytes())
    np.testing.assert_array_equal(*(read_canonical(tmp_path / name).voxels for name in ("a.nii", "b.nii.gz")))


def test_voxels_without_their_header_are_said_to_lack_it(tmp_path):
    (tmp_path / "a.img").write_bytes(bytes(1000))
    with pytest.raises(UserError, match=r"1 \.img.*is read with the \.hdr of its name"):
        open_data(DataConfig(data=str(tmp_path)))


HOSTILE = {
    constant: "constant",
    not_finite: "finite",
    four_dimensional: "4-dimensional",
    wrong_magic: "no readable NIfTI",
    cut_short: "no readable NIfTI",
    text: "no readable NIfTI",
    empty: "no readable NIfTI",
    enormous: "the header is damaged, or the volume too large",
    colours: "3 values a voxel",
    flat_affine: "orientation",
}


@pytest.mark.parametrize("make", HOSTILE, ids=lambda make: make.__name__)
def test_an_unusable_volume_is_reported_and_passed_over(tmp_path, make):
    data = tmp_path / "data"
    for i in range(4):
        store(data / f"s{i}.nii.gz", head(i))
    make(data / "bad.nii")
    with pytest.raises(UnreadableError, match=HOSTILE[make]):
        cut(data / "bad.nii", SliceConfig())
    found = open_data(DataConfig(data=str(data), size="16x16"))
    ((path, reason),) = found.skipped
    assert path == "bad.nii"
    assert HOSTILE[make] in reason
    assert HOSTILE[make] in found.report()
    assert sum(len(images) for images in found.splits.values()) == 4 * 12


def test_a_gzip_cut_short_is_reported(tmp_path):
    path = store(tmp_path / "a.nii", head())
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(path.read_bytes())[:-400])
    with pytest.raises(UnreadableError):
        cut(tmp_path / "b.nii.gz", SliceConfig())


def test_nothing_but_unusable_volumes_is_one_error(tmp_path):
    constant(tmp_path / "data" / "a.nii")
    with pytest.raises(UserError, match=r"none of 1 volumes can be read, such as a\.nii"):
        open_data(DataConfig(data=str(tmp_path / "data")))


def bids(folder: Path, count: int = 8) -> Path:
    """A BIDS tree with two kinds of images, sessions, a derivative, and a table with a missing value."""
    lines = ["participant_id\tage\tsex"]
    for i in range(count):
        who = f"sub-{i:02d}"
        anat = folder / who / ("ses-1/anat" if i % 2 else "anat")
        store(anat / f"{who}_T1w.nii.gz", head(i), "PSR" if i % 2 else "LAS")
        store(anat / f"{who}_T2w.nii.gz", head(100 + i))
        store(folder / "derivatives" / who / "anat" / f"{who}_T1w.nii.gz", head(200 + i))
        lines.append(f"{who}\t{20 + 10 * i if i else 'n/a'}\t{'FM'[i % 2]}")
    (folder / "dataset_description.json").write_text(json.dumps({"Name": "heads", "BIDSVersion": "1.8.0"}))
    (folder / "participants.tsv").write_text("\n".join(lines) + "\n")
    return folder


def test_a_bids_tree_is_recognised_and_labelled(tmp_path):
    tree = bids(tmp_path / "tree")
    config = DataConfig(
        data=str(tree), size="16x16", labels="participants.tsv:sex,age", bins=("age=40,60",), slice_range="25%:75%"
    )
    found = open_data(config)
    assert "BIDS tree, T1w" in found.layout
    assert found.attributes == {"sex": ("F", "M"), "age": ("<40", "40-60", ">=60")}
    assert found.bins == {"age": [40.0, 60.0]}
    seen = {}
    for images in found.splits.values():
        for key, subject, label in zip(images.keys, images.subjects, images.labels.tolist(), strict=True):
            assert key.startswith(subject)
            assert "_T1w_k" in key
            seen[subject] = label
    # 40 falls into the bin that begins there; the first person's age is not known.
    assert seen == {
        f"sub-{i:02d}": [i % 2, -1 if not i else 0 if 20 + 10 * i < 40 else 1 if 20 + 10 * i < 60 else 2]
        for i in range(8)
    }
    by_subject = [set(images.subjects) for images in found.splits.values()]
    assert sum(map(len, by_subject)) == len(set.union(*by_subject)) == 8
    assert "24 volumes" not in found.report()
    assert "8 volumes, axial slices 25%:75%" in found.report()


def test_another_kind_of_a_bids_tree_is_taken_by_its_suffix(tmp_path):
    tree = bids(tmp_path / "tree", 4)
    found = open_data(DataConfig(data=str(tree), size="16x16", bids_suffix="T2w"))
    assert all("_T2w_k" in key for images in found.splits.values() for key in images.keys)
    with pytest.raises(UserError, match=r"FLAIR.*T1w \(8\), T2w \(4\)"):
        open_data(DataConfig(data=str(tree), bids_suffix="FLAIR"))


def test_how_volumes_were_cut_is_kept_and_used_again(tmp_path):
    tree = bids(tmp_path / "tree", 4)
    config = DataConfig(data=str(tree), size="16x16", slice_axis="coronal", slice_range="2mm:10mm", clip_high=97)
    like = json.loads(json.dumps(open_data(config).to_config()))
    other = tmp_path / "other"
    store(other / "new.nii.gz", head(50), "SAL")
    images = load_images(other, like)
    expected = cut(other / "new.nii.gz", SliceConfig(slice_axis="coronal", slice_range="2mm:10mm", clip_high=97))
    assert images.keys == [f"new_k{place:03d}" for place in expected.places]
    np.testing.assert_array_equal(images.images[:, 0, 2:14, 4:12], expected.pixels)


def test_volumes_of_one_person_stay_together(tmp_path):
    for name in ("anna_T1", "anna_T2", "bert_T1w", "case_001", "case_002", "OAS1_0001_MR1"):
        store(tmp_path / "data" / f"{name}.nii", head())
    found = open_data(DataConfig(data=str(tmp_path / "data"), size="16x16"))
    subjects = {subject for images in found.splits.values() for subject in images.subjects}
    assert subjects == {"anna", "bert", "case_001", "case_002", "OAS1_0001"}


def test_a_folder_for_each_person_tells_the_person(tmp_path):
    for who in ("anna", "bert", "cleo", "dora"):
        for kind in ("T1", "FLAIR"):
            store(tmp_path / "heads" / who / f"{kind}.nii", head())
    found = open_data(DataConfig(data=str(tmp_path / "heads"), size="16x16"))
    assert found.attributes == {}
    assert {s for images in found.splits.values() for s in images.subjects} == {"anna", "bert", "cleo", "dora"}


def test_volumes_in_class_and_split_folders(tmp_path):
    for part, names in {"train": "abcdefgh", "test": "xy"}.items():
        for i, name in enumerate(names):
            store(tmp_path / "data" / part / ("AD", "NC")[i % 2] / f"{name}.nii.gz", head(ord(name)))
    store(tmp_path / "data" / "masks" / "m.nii", head())
    found = open_data(DataConfig(data=str(tmp_path / "data"), size="16x16"))
    assert found.attributes == {"class": ("AD", "NC")}
    assert set(found.splits["test"].subjects) == {"x", "y"}
    assert [what for what, reason in found.skipped if "masks/m.nii" in reason] == ["1 masks"]


def test_pictures_in_a_bids_tree_are_not_the_data(tmp_path):
    tree = bids(tmp_path / "tree", 4)
    (tree / "derivatives" / "qc.png").write_bytes(b"")
    (tree / "derivatives" / "template.nii.gz").write_bytes((tree / "sub-00/anat/sub-00_T1w.nii.gz").read_bytes())
    found = open_data(DataConfig(data=str(tree), size="16x16"))
    assert "BIDS tree" in found.layout
    assert sum(len(images) for images in found.splits.values()) == 4 * 12


def test_a_volume_stored_twice_keeps_two_names(tmp_path):
    for name in ("a.nii", "a.nii.gz", "b.nii", "c.nii"):
        store(tmp_path / "data" / name, head())
    found = open_data(DataConfig(data=str(tmp_path / "data"), size="16x16"))
    keys = [key for images in found.splits.values() for key in images.keys]
    assert len(keys) == len(set(keys)) == 4 * 12


@pytest.mark.parametrize(
    "wrong",
    [
        {"slice_axis": "oblique"},
        {"slice_range": "20:80"},
        {"slice_range": "80%:20%"},
        {"slice_range": "a%:b%"},
        {"clip_low": 50, "clip_high": 40},
        {"min_foreground": 2},
        {"slice_every": -1},
        {"bins": ("age",)},
        {"bins": ("age=60,40",)},
        {"bins": ("age=old",)},
    ],
)
def test_settings_that_cannot_be_meant_are_refused(wrong):
    with pytest.raises(UserError):
        DataConfig(**wrong)


def test_edges_without_their_labels_are_refused(tmp_path):
    with pytest.raises(UserError, match="no labels age"):
        open_data(DataConfig(data=str(bids(tmp_path / "tree", 4)), size="16x16", bins=("age=40",)))


def test_slices_are_the_same_without_a_cache(tmp_path, monkeypatch):
    config = DataConfig(data=str(bids(tmp_path / "tree", 4)), size="16x16")
    usual = open_data(config)
    (tmp_path / "file").touch()
    monkeypatch.setenv("VQVAE2_CACHE", str(tmp_path / "file"))
    found = open_data(config)
    assert found.report() == usual.report()
    for split, images in usual.splits.items():
        np.testing.assert_array_equal(found.splits[split].images, images.images)
        assert found.splits[split].keys == images.keys
