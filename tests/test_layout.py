"""What folders, names and tables say: layouts, subjects, splits and labels."""

import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures import ADNI, every, labels_of, picture, save, ten, write

from vqvae2.data import DataConfig, open_data
from vqvae2.data.layout import guess_subjects, read_layout
from vqvae2.data.splits import assign, overlap, unit_hash
from vqvae2.errors import UserError

OASIS = [
    f"keras_png_slices_{split}/case_{case}_slice_{k}.nii.png"
    for split, case in (("train", "001"), ("train", "002"), ("validate", "003"), ("test", "004"))
    for k in (0, 1)
]
MASKS = [
    "keras_png_slices_seg_test/seg_004_slice_0.nii.png",
    "keras_png_slices_seg_train/seg_001_slice_0.nii.png",
]
NUMBERS = {f"{k:03d}" for k in range(30)}


def test_oasis_is_recognised_and_its_masks_are_left_out(tmp_path):
    data = open_data(DataConfig(data=str(write(tmp_path, OASIS + MASKS))))
    assert data.layout == "train/val/test folders"
    assert set(data.splits["val"].subjects) == {"case_003"}
    assert set(data.splits["test"].subjects) == {"case_004"}
    assert [key for key, _ in data.skipped] == MASKS
    assert data.attributes == {}


def test_adni_is_recognised_with_patients_diagnoses_and_a_val_of_its_own(tmp_path):
    data = open_data(DataConfig(data=str(write(tmp_path, ADNI))))
    assert data.layout == "train/test folders with class folders"
    assert data.attributes == {"class": ("AD", "NC")}
    assert set(data.splits["test"].subjects) == {"2001", "2002"}
    assert len(data.splits["val"]) == len(data.splits["selection"]) == 2
    for key, (name,) in labels_of(data).items():
        assert name == key.split("/")[2]
    assert any("no val folder" in note for note in data.notes)


@pytest.mark.parametrize(
    ("names", "words", "classes", "subjects"),
    [
        (["a_1.png", "a_2.png", "b_1.png"], "flat folder", None, {"a", "b"}),
        (["ad/x1_1.png", "nc/x2_1.png"], "class folders", {"ad", "nc"}, {"x1", "x2"}),
        ([f"{k}/{i}.png" for k in range(10) for i in range(2)], "class folders", set("0123456789"), None),
        ([f"{k}/{i}.png" for k in NUMBERS for i in (1, 2)], "a folder for each subject", None, NUMBERS),
        (["sub-01/s1.png", "sub-02/s1.png"], "a folder for each subject", None, {"sub-01", "sub-02"}),
        (["ad/p1/1.png", "ad/p2/1.png", "nc/p3/1.png"], "class folders", {"ad", "nc"}, {"p1", "p2", "p3"}),
        (
            ["train/anna/1.png", "train/ben/1.png", "val/carl/1.png"],
            "train/val folders with a folder for each subject",
            None,
            {"anna", "ben", "carl"},
        ),
        (["images/a_1.png", "images/b_1.png"], "flat folder", None, {"a", "b"}),
        (["test/a_1.png", "other/b_1.png"], "class folders", {"test", "other"}, {"a", "b"}),
        (["Training/a_1.png", "Validation/b_1.png"], "train/val folders", None, {"a", "b"}),
    ],
)
def test_layouts_are_understood(tmp_path, names, words, classes, subjects):
    layout = read_layout(write(tmp_path, names))
    assert layout.words == words
    assert (set(layout.classes) if layout.classes else None) == classes
    if subjects is not None:
        assert set(layout.subjects) == subjects


@pytest.mark.parametrize(
    ("key", "subject"),
    [
        ("train/IXI012-HH-1211_k098.png", "IXI012-HH-1211"),
        ("case_001_slice_0.nii.png", "case_001"),
        ("AD/388206_78.jpeg", "388206"),
        ("OAS1_0028_MR1_mpr-1_100.jpg", "OAS1_0028"),
        ("sub-07/anat/sub-07_T1w_z12.png", "sub-07"),
        ("ADNI_002_S_0295_MR_slice_3.png", "002_S_0295"),
        ("anna slice 7.png", "anna"),
        ("anna.png", "anna"),
        ("a/17.png", "a/17.png"),
    ],
)
def test_subjects_are_guessed_from_names(key, subject):
    assert guess_subjects([key]) == [subject]


def test_names_that_tell_no_subject_make_each_image_its_own(tmp_path):
    data = open_data(DataConfig(data=str(write(tmp_path, [f"img_{i}.png" for i in range(12)]))))
    assert sum(len(set(part.subjects)) for part in data.splits.values()) == 12
    assert any("--subject-pattern" in note for note in data.notes)


def test_a_pattern_tells_the_subject_by_its_group_or_its_whole_match(tmp_path):
    write(tmp_path, [f"{p}-scan{k}.png" for p in ("an", "bo", "cy", "di") for k in range(2)])
    for pattern in (r"^(\w+)-", r"^[a-z]+(?=-)"):
        data = open_data(DataConfig(data=str(tmp_path), subject_pattern=pattern))
        assert {s for part in data.splits.values() for s in part.subjects} == {"an", "bo", "cy", "di"}
    with pytest.raises(UserError, match=r"does not match 6 of 8 files"):
        open_data(DataConfig(data=str(tmp_path), subject_pattern="^an"))
    with pytest.raises(UserError, match="no regular expression"):
        open_data(DataConfig(data=str(tmp_path), subject_pattern="("))


def test_run_folders_hidden_files_and_link_loops_inside_the_data_are_passed_by(tmp_path):
    ten(tmp_path)
    write(tmp_path, ["runs/brain/samples/0.png", ".hidden/1.png", "._p1_0.png", "deep/p77_0.png"])
    (tmp_path / "runs/brain/run.json").write_text("{}")
    (tmp_path / "deep/loop").symlink_to(tmp_path)
    data = open_data(DataConfig(data=str(tmp_path)))
    assert set(every(data)) == {*(f"p{i}_0.png" for i in range(10)), "deep/p77_0.png"}
    assert ("a run folder, not data") in dict(data.skipped).values()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "nowhere", "no such folder"),
        (lambda folder: save(folder / "a.png", picture()), "not a folder"),
        (lambda folder: folder, "no images found, but nothing"),
        (
            lambda folder: (folder / "scan.nii").write_text("none") and folder,
            r"none of 1 volumes can be read, such as scan\.nii",
        ),
        (lambda folder: (folder / "scan.mgz").write_text("none") and folder, r"no images found, but 1 \.mgz"),
        (lambda folder: (folder / "run.json").write_text("{}") and folder, "run folder"),
        (lambda folder: write(folder, ["p_1.png"]), "one subject"),
    ],
)
def test_folders_without_usable_images_are_refused_in_one_line(tmp_path, make, message):
    with pytest.raises(UserError, match=message) as caught:
        open_data(DataConfig(data=str(make(tmp_path))))
    assert "\n" not in str(caught.value)


@given(st.lists(st.integers(0, 40), min_size=2, max_size=60), st.integers(0, 5))
def test_no_subject_is_ever_in_two_splits(who, seed):
    subjects = [f"s{k}" for k in who]
    splits = assign(subjects, [None] * len(subjects), seed)
    assert overlap(subjects, splits) == {}
    people = len(set(subjects))
    assert ("train" in splits) == (people >= 1)
    assert ("val" in splits) == (people >= 2)


@st.composite
def trees(draw: st.DrawFn) -> dict[str, tuple[str, str, str]]:
    """Draw a tree of images of several people: its file names, each with split, class and subject ("" for none)."""
    by_split, by_class = draw(st.booleans()), draw(st.booleans())
    above = draw(st.sampled_from(["", "images", "étude 1/axial"]))
    name = draw(st.sampled_from(["{}_{}.png", "{} slice {}.JPEG", "{}_z{}.tif", "{}-img-{}.webp"]))
    people = draw(st.lists(st.integers(0, 9999), min_size=2, max_size=12, unique=True))
    tree = {}
    for place, person in enumerate(people):
        subject = f"p{person:04d}"
        # The first two show all classes in one split: else their folders could as well be those of two people.
        split = (draw(st.sampled_from(["train", "val", "test"])) if place > 1 else "train") if by_split else ""
        group = (draw(st.sampled_from(["ad", "nc"])) if place > 1 else ["ad", "nc"][place]) if by_class else ""
        for k in draw(st.sets(st.integers(0, 300), min_size=1, max_size=3)):
            parts = [part for part in (above, split, group, name.format(subject, k)) if part]
            tree["/".join(parts)] = (split, group, subject)
    return tree


@given(trees(), st.integers(0, 3))
def test_any_tree_is_understood_as_it_was_made(tree, seed):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for key in tree:
            (folder / key).parent.mkdir(parents=True, exist_ok=True)
            (folder / key).touch()
        layout = read_layout(folder)
    assert sorted(layout.keys) == sorted(tree)
    groups = layout.classes or [""] * len(layout.keys)
    columns = zip(layout.splits, groups, layout.subjects, strict=True)
    told = [(split or "", group, who) for split, group, who in columns]
    assert dict(zip(layout.keys, told, strict=True)) == tree
    splits = assign(layout.subjects, layout.splits, seed)
    assert overlap(layout.subjects, splits) == {}
    ready = {split for split, _, _ in tree.values()}
    for (split, _, _), given_split in zip(told, splits, strict=True):
        if split in ("val", "test"):
            assert given_split == split
        elif split:  # some of them choose the checkpoint, and are val where there is none
            assert given_split in ("train", "selection", *(() if "val" in ready else ("val",)))


def test_adding_subjects_moves_nobody():
    few, many = [f"s{k}" for k in range(200)], [f"s{k}" for k in range(400)]
    before = assign(few, [None] * 200, 0)
    assert assign(many, [None] * 400, 0)[:200] == before
    assert assign(few, [None] * 200, 1) != before


def test_subjects_fall_80_10_10_with_a_tenth_of_the_training_for_selection():
    counts = Counter(assign([f"s{k}" for k in range(20_000)], [None] * 20_000, 0))
    shares = {split: count / 20_000 for split, count in counts.items()}
    # Four standard errors of a share of 20,000 are at most 0.012.
    assert shares == pytest.approx({"train": 0.72, "selection": 0.08, "val": 0.1, "test": 0.1}, abs=0.012)


def test_the_hash_is_sha256_and_so_the_same_everywhere():
    # printf 0:IXI012-HH-1211 | sha256sum
    assert unit_hash("0:IXI012-HH-1211") == 0x1936DE6275D0416C / 2**64


def test_ready_splits_stand_and_a_shared_subject_is_told(tmp_path):
    names = ["train/a_1.png", "train/b_1.png", "train/c_1.png", "val/a_2.png", "val/d_1.png"]
    data = open_data(DataConfig(data=str(write(tmp_path, names))))
    assert sorted(data.splits["val"].keys) == ["val/a_2.png", "val/d_1.png"]
    assert any("1 subjects are in more than one split, such as a" in note for note in data.notes)
    assert "such as a" in data.report()


def test_exact_copies_across_splits_are_told(tmp_path):
    write(tmp_path, ["train/a_1.png", "train/b_1.png", "train/c_1.png", "val/d_1.png"])
    save(tmp_path / "val/e_1.png", picture(1))
    save(tmp_path / "train/black_1.png", np.zeros((8, 8), np.uint8))
    save(tmp_path / "val/black2_1.png", np.zeros((8, 8), np.uint8))
    notes = open_data(DataConfig(data=str(tmp_path))).notes
    assert any("1 held-out images are exact copies of training images, such as val/e_1.png" in note for note in notes)


def table(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_labels_come_from_a_table_by_path_or_name_with_missing_cells(tmp_path):
    folder = ten(tmp_path / "data", 5)
    write(folder, ["deep/p9_0.png"])
    file = table(
        tmp_path / "t.csv",
        "\ufefffile,sex,grade\np0_0.png,F,10\n./p1_0.png,M,9\np2_0.png,,9\np3_0.png,n/a,10\np9_0.png,M,9\ngone.png,X,8\n",
    )
    data = open_data(DataConfig(data=str(folder), labels=f"{file}:sex,grade"))
    assert data.attributes == {"sex": ("F", "M"), "grade": ("9", "10")}
    assert labels_of(data) == {
        "p0_0.png": ["F", "10"],
        "p1_0.png": ["M", "9"],
        "p2_0.png": [None, "9"],
        "p3_0.png": [None, "10"],
        "p4_0.png": [None, None],
        "deep/p9_0.png": ["M", "9"],
    }
    assert any("1 images have no row" in note for note in data.notes)
    assert any("1 rows of t.csv name files that are not there" in note for note in data.notes)
    assert "missing" in data.report()


def test_many_numbers_are_binned_at_the_quartiles_of_the_training_images(tmp_path):
    ages = {f"p{i}_0.png": 20 + 0.5 * i for i in range(60)}
    folder = ten(tmp_path, 60)
    file = table(tmp_path / "t.tsv", "file\tage\n" + "".join(f"{name}\t{age}\n" for name, age in ages.items()))
    data = open_data(DataConfig(data=str(folder), labels=f"{file}:age"))
    training = [ages[key] for split in ("train", "selection") for key in data.splits[split].keys]
    edges = data.bins["age"]
    assert edges == pytest.approx(np.quantile(training, [0.25, 0.5, 0.75]), rel=1e-3)
    for part in data.splits.values():
        expected = np.digitize([ages[key] for key in part.keys], edges)
        np.testing.assert_array_equal(part.labels[:, 0], expected)
    assert data.attributes["age"][1] == f"{edges[0]:.4g}-{edges[1]:.4g}"


def test_the_subject_column_of_a_table_is_believed(tmp_path):
    names = [f"{i}.png" for i in range(12)]
    write(tmp_path, names)
    table(
        tmp_path / "slices.csv",
        "file,subject\n" + "".join(f"{name},person{i // 3}\n" for i, name in enumerate(names)),
    )
    data = open_data(DataConfig(data=str(tmp_path)))
    for part in data.splits.values():
        assert part.subjects == [f"person{int(key[:-4]) // 3}" for key in part.keys]


@pytest.mark.parametrize(
    ("text", "argument", "message"),
    [
        ("file,sex\np0_0.png,F\n", "t.csv", "names no columns"),
        ("file,sex\np0_0.png,F\n", "none.csv:sex", "no such table"),
        ("file,sex\np0_0.png,F\n", "t.csv:age", r"no column age.*It has: file, sex"),
        ("who,sex\np0_0.png,F\n", "t.csv:sex", "no column names the images"),
        ("file,sex\nx.png,F\n", "t.csv:sex", "no row of the table names an image"),
        ("file,sex\np0_0.png,\n", "t.csv:sex", "no image has a label"),
        ("", "t.csv:sex", "no column"),
    ],
)
def test_tables_that_cannot_be_used_are_refused_in_one_line(tmp_path, text, argument, message):
    table(ten(tmp_path) / "t.csv", text)
    with pytest.raises(UserError, match=message) as caught:
        open_data(DataConfig(data=str(tmp_path), labels=argument))
    assert "\n" not in str(caught.value)
