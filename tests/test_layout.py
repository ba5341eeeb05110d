"""What folders, names and tables say: layouts, subjects, splits and labels."""

import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pictures import ADNI, every, labels_of, picture, save, ten, write

from vqvae2.data import DataConfig, ImageData, open_data
from vqvae2.data.layout import read_layout
from vqvae2.data.selection import Choice
from vqvae2.data.splits import assign, overlap, unit_hash
from vqvae2.data.subjects import guess_subjects
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
    ((what, reason),) = data.skipped
    assert what == "2 masks"
    assert MASKS[0] in reason
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
        (
            ["CDR0/a1_1.png", "CDR05/b1_1.png", "CDR1/c1_1.png"],
            "class folders",
            {"CDR0", "CDR05", "CDR1"},
            {"a1", "b1", "c1"},
        ),
        (["grade1/a1_1.png", "grade2/b1_1.png"], "class folders", {"grade1", "grade2"}, {"a1", "b1"}),
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
    assert {name: set(values) for name, values in layout.attributes.items()} == ({"class": classes} if classes else {})
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
    with pytest.raises(UserError, match="is not a valid regular expression"):
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
        (lambda folder: (folder / "scan.mgh.bin").write_text("none") and folder, r"no images found, but 1 \.bin"),
        (lambda folder: (folder / "run.json").write_text("{}") and folder, "run folder"),
        (lambda folder: write(folder, ["p_1.png"]), "one subject"),
    ],
)
def test_folders_without_usable_images_are_refused_in_one_line(tmp_path, make, message):
    with pytest.raises(UserError, match=message) as caught:
        open_data(DataConfig(data=str(make(tmp_path))))
    assert "\n" not in str(caught.value)


@settings(deadline=None)  # the machine may be busy
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
    names = ["{}_{}.png", "{} slice {}.JPEG", "{}_z{}.tif", "{}-img-{}.webp", "{}_T1_{}.png", "{}_ses-2_z{}.png"]
    name = draw(st.sampled_from([*names, "{}_V2_FLAIR_slice_{}.png", "{}/{}.png", "{}/scan 1/slice_{:03d}.png"]))
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


@settings(deadline=None)  # the machine may be busy
@given(trees(), st.integers(0, 3))
@example({f"p{person}/0.png": ("", "", f"p{person}") for person in ("0016", "0032")}, 0)  # no sizes in pixels
def test_any_tree_is_understood_as_it_was_made(tree, seed):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for key in tree:
            (folder / key).parent.mkdir(parents=True, exist_ok=True)
            (folder / key).touch()
        layout = read_layout(folder)
    assert sorted(layout.keys) == sorted(tree)
    groups = layout.attributes.get("class") or [""] * len(layout.keys)
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


def shared_subjects(data: ImageData) -> dict[str, set[str]]:
    """The subjects of opened data that are in more than one split."""
    held = [(who, split) for split, part in data.splits.items() for who in part.subjects]
    return overlap(*zip(*held, strict=True))


def test_ready_splits_stand_but_never_with_a_subject_in_two(tmp_path):
    names = ["train/a_1.png", "train/b_1.png", "train/c_1.png", "val/a_2.png", "val/d_1.png"]
    folder = str(write(tmp_path, names))
    with pytest.raises(UserError, match=r"1 subjects are in more than one split, such as a .*--layout flat") as caught:
        open_data(DataConfig(data=folder))
    assert "\n" not in str(caught.value)
    anew = open_data(DataConfig(data=folder, layout="flat"))
    assert shared_subjects(anew) == {}
    by_image = open_data(DataConfig(data=folder, subject_pattern=".+"))
    assert sorted(by_image.splits["val"].keys) == ["val/a_2.png", "val/d_1.png"]


def test_exact_copies_across_splits_are_told(tmp_path):
    write(tmp_path, ["train/a_1.png", "train/b_1.png", "train/c_1.png", "val/d_1.png"])
    save(tmp_path / "val/e_1.png", picture(1))
    save(tmp_path / "test/f_1.png", picture(3))
    save(tmp_path / "train/black_1.png", np.zeros((8, 8), np.uint8))
    save(tmp_path / "val/black2_1.png", np.zeros((8, 8), np.uint8))
    notes = open_data(DataConfig(data=str(tmp_path))).notes
    told = next(note for note in notes if "exact copies" in note)
    assert told.startswith("2 images are exact copies of images of another split")
    assert "1 of test in val" in told
    assert "such as val/e_1.png of train/b_1.png" in told


PEOPLE_FOLDERS = {
    "bare numbers with zeros before them": [f"{p:03d}/{k}.png" for p in range(1, 13) for k in range(3)],
    "groups of numbered people": [
        f"{group}{p:02d}/{k}.png" for group in ("HC", "PD") for p in range(1, 7) for k in range(3)
    ],
    "people in class folders": [
        f"{group}/p{p}/{k}.png" for p in range(12) for group in ("HC", "PD")[p % 2 :][:1] for k in range(3)
    ],
    "several kinds of image": [
        f"patient{p:02d}_{kind}_slice_{k}.png" for p in range(12) for kind in ("T1", "FLAIR") for k in range(3)
    ],
    "several visits": [f"P{p:03d}_V{v}_z{k}.png" for p in range(12) for v in (1, 2) for k in range(3)],
    "several sessions": [f"sub{p:02d}_ses{v}_T1_{k}.png" for p in range(12) for v in (1, 2) for k in range(3)],
    "a cohort's names in class folders": [f"CDR{p % 3}/OAS1_{p:04d}_MR1_{k}.png" for p in range(12) for k in range(3)],
}


@pytest.mark.parametrize("names", PEOPLE_FOLDERS.values(), ids=PEOPLE_FOLDERS)
def test_slices_of_a_person_stay_together_however_the_tree_is_named(tmp_path, names):
    data = open_data(DataConfig(data=str(write(tmp_path, names))))
    people = {subject for part in data.splits.values() for subject in part.subjects}
    assert len(people) == 12
    assert shared_subjects(data) == {}
    if "/p" in names[0]:
        assert len(set(read_layout(tmp_path, Choice("classes")).subjects)) == 12


def brain_tumours(count: int, second_form: int) -> list[str]:
    """Names as of a set whose files repeat part and class, the first few of a class in another form."""
    return [
        f"{part}/{kind}/{part[:2]}-{kind[:2]}{part[:2] * (k < second_form)}_{k:04d}.jpg"
        for part in ("Training", "Testing")
        for kind in ("glioma", "notumor")
        for k in range(count)
    ]


def test_names_that_repeat_their_class_tell_no_person(tmp_path):
    repeated = [f"{kind}/{kind}_{k:03d}.png" for kind in ("AD", "NC") for k in range(20)]
    for names in (repeated, brain_tumours(8, second_form=0)):
        folder = write(tmp_path / names[0][:2], names)
        data = open_data(DataConfig(data=str(folder)))
        assert set(data.splits["train"].labels[:, 0]) == {0, 1}, "a whole class has left the training"
        assert any(
            f"{len(names)} of {len(names)} images each count as a separate subject" in note for note in data.notes
        )


def test_two_forms_of_a_class_s_name_tell_no_person_either(tmp_path):
    names = brain_tumours(30, second_form=10)
    layout = read_layout(write(tmp_path, names))
    assert set(layout.attributes["class"]) == {"glioma", "notumor"}
    assert len(set(layout.subjects)) == len(names)


def test_imagenet_folders_are_classes_of_independent_images(tmp_path):
    names = [f"train/n{k:08d}/n{k:08d}_{i}.JPEG" for k in range(25) for i in range(4)]
    layout = read_layout(write(tmp_path, names))
    assert len(set(layout.attributes["class"])) == 25
    assert len(set(layout.subjects)) == 100


def test_a_class_more_in_a_held_out_folder_leaves_classes_classes(tmp_path):
    names = [
        f"{part}/{kind}/p{k}{part}{kind}_0.png"
        for part, kinds in (("train_images", ("AD", "NC")), ("test_set", ("AD", "MCI", "NC")))
        for kind in kinds
        for k in range(3)
    ]
    layout = read_layout(write(tmp_path, names))
    assert set(layout.attributes["class"]) == {"AD", "MCI", "NC"}
    assert layout.words == "train/test folders with class folders"


def test_bare_numbers_are_told_to_count_as_people(tmp_path):
    data = open_data(DataConfig(data=str(write(tmp_path, [f"{k}.png" for k in range(30)]))))
    assert any(
        "30 of 30 images each count as a separate subject" in note and "--subject-pattern" in note
        for note in data.notes
    )
    data = open_data(DataConfig(data=str(write(tmp_path / "named", [f"p{k}_0.png" for k in range(10)]))))
    assert any("by the names of the files" in note for note in data.notes)


def test_a_name_with_a_line_s_end_keeps_the_report_s_lines(tmp_path):
    names = [f"p{p}\nx_{k}.png" for p in range(6) for k in range(2)]
    report = open_data(DataConfig(data=str(write(tmp_path, names)))).report()
    assert all(
        line.split()[0] in ("data", "images", "split", "train", "selection", "val", "test", "note")
        for line in report.splitlines()
    )


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


@pytest.mark.parametrize("column", ["participant_id", "Subject", "patient"])
def test_any_subject_column_beside_the_files_is_believed_but_for_missing_cells(tmp_path, column):
    names = [f"{i}.png" for i in range(12)]
    rows = "".join(f"{name},{'n/a' if i == 5 else f'q{i // 3}'},F\n" for i, name in enumerate(names))
    file = table(write(tmp_path, names) / "t.csv", f"file,{column},sex\n{rows}")
    data = open_data(DataConfig(data=str(tmp_path), labels=f"{file}:sex"))
    told = {key: who for part in data.splits.values() for key, who in zip(part.keys, part.subjects, strict=True)}
    assert told == {name: "5.png" if i == 5 else f"q{i // 3}" for i, name in enumerate(names)}


def test_a_row_is_given_by_name_alone_only_where_nothing_else_has_that_name(tmp_path):
    names = [f"p{i}/{k:03d}x.png" for i in range(1, 6) for k in (1, 2)]
    text = "file,sex\np1/001x.png,F\n/home/me/data/p2/002x.png,M\n002x.png,X\n"
    file = table(write(tmp_path, names) / "t.csv", text)
    data = open_data(DataConfig(data=str(tmp_path), labels=f"{file}:sex"))
    found = {key: value for key, (value,) in labels_of(data).items() if value is not None}
    assert found == {"p1/001x.png": "F"}
    file = table(tmp_path / "t.csv", text.replace("002x.png,X\n", ""))
    data = open_data(DataConfig(data=str(tmp_path), labels=f"{file}:sex"))
    assert {key: value for key, (value,) in labels_of(data).items() if value} == {
        "p1/001x.png": "F",
        "p2/002x.png": "M",
    }


def test_a_table_made_elsewhere_joins_by_names_that_only_one_image_has(tmp_path):
    names = [f"slices/scan{i:03d}.png" for i in range(12)]
    rows = "".join(f"/home/x/orig/{name[7:]},q{i // 3}\n" for i, name in enumerate(names))
    table(write(tmp_path, names) / "slices.csv", f"file,subject\n{rows}")
    data = open_data(DataConfig(data=str(tmp_path)))
    assert {who for part in data.splits.values() for who in part.subjects} == {"q0", "q1", "q2", "q3"}
    table(tmp_path / "slices.csv", "file,subject\nscan000.png,q0\nscan001.png,q0\n")
    notes = open_data(DataConfig(data=str(tmp_path))).notes
    assert any("10 of 12 images have no subject in slices.csv" in note for note in notes)


def test_rows_that_contradict_each_other_count_as_missing(tmp_path):
    names = [f"p{i}_0.png" for i in range(8)]
    rows = "".join(f"p{i},{kind},M\n" for i in range(8) for kind in (("MCI", "AD") if i == 3 else ("AD", "AD")))
    file = table(write(tmp_path, names) / "t.csv", f"subject,group,sex\n{rows}")
    data = open_data(DataConfig(data=str(tmp_path), labels=f"{file}:group,sex"))
    assert {key for key, (group, _) in labels_of(data).items() if group is None} == {"p3_0.png"}
    assert {sex for _, sex in labels_of(data).values()} == {"M"}
    assert any("group: the rows of 1 subjects contradict each other, such as p3" in note for note in data.notes)
    assert not any("not there" in note for note in data.notes)


def test_numbers_are_read_as_tables_write_them(tmp_path):
    ages = ["63,5", "89+", "-4", "70", "n/a", "80.5"]
    names = [f"p{i}_0.png" for i in range(len(ages))]
    rows = "".join(f"{name};{age}\n" for name, age in zip(names, ages, strict=True))
    file = table(write(tmp_path, names) / "t.csv", f"file;age\n{rows}")
    data = open_data(DataConfig(data=str(tmp_path), labels=f"{file}:age", bins=("age=70,80",)))
    told = labels_of(data)
    assert [told[name][0] for name in names] == ["<70", ">=80", "<70", "70-80", None, ">=80"]
    assert "age: -4 (1 images) may stand for a missing value; --missing -4 reads it so" in data.doubts
    table(tmp_path / "t.csv", f"file;age\n{rows.replace('70', 'old')}")
    with pytest.raises(UserError, match=r"only numbers can be binned.*such as old"):
        open_data(DataConfig(data=str(tmp_path), labels=f"{file}:age", bins=("age=70,80",)))


@pytest.mark.parametrize(
    ("key", "head", "cell"),
    [("OAS1_{:04d}_MR1_3.png", "ID,M/F", "OAS1_{:04d}_MR1"), ("sub-{:02d}_z3.png", "participant_id,M/F", "{:02d}")],
)
def test_tables_of_cohorts_join_by_the_subject(tmp_path, key, head, cell):
    names = [key.format(i) for i in range(8)]
    rows = "".join(f"{cell.format(i)},{'MF'[i % 2]}\n" for i in range(8))
    file = table(write(tmp_path, names) / "t.csv", f"{head}\n{rows}")
    data = open_data(DataConfig(data=str(tmp_path), labels=f"{file}:M/F"))
    assert labels_of(data) == {name: ["MF"[i % 2]] for i, name in enumerate(names)}


def test_a_table_of_the_user_s_that_is_called_slices_csv_is_told_and_left(tmp_path):
    table(ten(tmp_path) / "slices.csv", "number,note\n1,good\n")
    notes = open_data(DataConfig(data=str(tmp_path))).notes
    assert any(note.startswith("slices.csv is not used: no column names the images") for note in notes)


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
