"""Trees of public data sets that can be misread: what is certain is read so, what is not is said with a flag."""

import re
from pathlib import Path

import pytest
from case_trees import slices

from vqvae2.data import DataConfig, open_data, rules
from vqvae2.data.layout import read_layout
from vqvae2.data.selection import Choice, Layout
from vqvae2.data.subjects import copy_of, guess_subjects
from vqvae2.errors import UserError


def lay(folder: Path, names: list[str], **choice: object) -> Layout:
    """The layout of a folder of empty files of these names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return read_layout(folder, Choice(**choice))


def whom(layout: Layout) -> dict[str, str]:
    return dict(zip(layout.keys, layout.subjects, strict=True))


def doubts(layout: Layout) -> str:
    return "\n".join(layout.doubts + layout.subject_doubts)


P = range(1, 9)
GROUPS = {"AD": range(1, 5), "CN": range(5, 9)}


@pytest.mark.parametrize(
    "name", ["{c}/P{p:02}/{k}.png", "{c}/{p:03}/{k}.png", "{c}/P{p:02}_{k}.png", "{c}/P{p:02}.nii.gz"]
)
def test_names_that_several_classes_have_are_together_and_the_flag_that_is_named_parts_them(tmp_path, name):
    names = sorted({name.format(c=c, p=p, k=k) for c in ("AD", "CN") for p in P for k in (1, 2)})
    layout = lay(tmp_path, names)
    assert set(layout.attributes["class"]) == {"AD", "CN"}
    assert len(set(layout.subjects)) == 8
    (doubt,) = layout.subject_doubts
    assert "AD/" in doubt
    assert "CN/" in doubt
    pattern = re.search(r"--subject-pattern '(.+)'", doubt)[1]
    apart = {re.search(pattern, key)[1] for key in names}
    assert len(apart) == 16


def test_names_that_several_sites_have_are_apart_and_the_flag_that_is_named_joins_them(tmp_path):
    names = [f"Center_0{c}/Patient_0{p}/{kind}.nii.gz" for c in (1, 7) for p in range(1, 5) for kind in ("T1", "FLAIR")]
    layout = lay(tmp_path, names)
    assert len(set(layout.subjects)) == 8
    (doubt,) = layout.subject_doubts
    pattern = re.search(r"--subject-pattern '(.+)'", doubt)[1]
    assert {re.search(pattern, key)[1] for key in names} == {f"Patient_0{p}" for p in range(1, 5)}


def test_people_of_a_site_who_are_in_two_classes_are_not_torn(tmp_path):
    names = [f"site{s}/{c}/P{p:02}/{k}.png" for s in "AB" for c in ("AD", "CN") for p in P for k in (1, 2)]
    assert set(lay(tmp_path, names).subjects) == {f"site{s}/P{p:02}" for s in "AB" for p in P}


@pytest.mark.parametrize(
    ("count", "names"),
    [
        (10, [f"{'0123'[p % 2 * len(side) % 4]}/{p}_{side}.jpeg" for p in range(10, 20) for side in ("left", "right")]),
        (8, [f"{c}/P{p:02}_{v}.png" for p in P for v, c in (("bl", "CN"), ("m12", "AD" if p == 3 else "CN"))]),
        (8, [f"{v}/{c}/{p:03}/1.png" for v in ("M00", "M12") for c, r in GROUPS.items() for p in r]),
        (2, [f"XR_{b}/patient{p:05}/study1_positive/image1.png" for b in ("ELBOW", "HAND") for p in (11184, 11190)]),
        (3, [f"{c}/{p}_{k}.jpeg" for p in (388206, 388217, 388300) for k in (78, 79) for c in ("AD", "NC")]),
    ],
    ids=["eyes", "converter", "visits above", "MURA", "ADNI"],
)
def test_people_who_are_certainly_one_are_not_asked_about(tmp_path, count, names):
    layout = lay(tmp_path, names)
    assert len(set(layout.subjects)) == count
    assert "several class folders" not in doubts(layout)


def test_people_in_two_splits_are_refused_with_a_pattern_that_parts_them(tmp_path):
    names = [f"images{s}/BRATS_{p:03}_{c:04}.png" for s, r in (("Tr", P), ("Ts", (1, 2))) for p in r for c in range(4)]
    folder = slices(tmp_path / "data", names)
    with pytest.raises(UserError, match="2 subjects are in more than one split") as caught:
        open_data(DataConfig(data=str(folder)))
    pattern = re.search(r"other people of these names, --subject-pattern '(.+?)';", str(caught.value))[1]
    data = open_data(DataConfig(data=str(folder), subject_pattern=pattern))
    assert len({who for part in data.splits.values() for who in part.subjects}) == 10


VISITS = {
    "ADNI": ("{v}/{c}/{p:03}/{k}.png", ("M00", "M12")),
    "class first": ("{c}/{v}/{p:03}/{k}.png", ("M00", "M12")),
    "volumes": ("{v}/{c}/{p:03}.nii.gz", ("m00", "m06", "m12")),
    "names": ("{v}/{c}/{p:03}_{k}.png", ("V1", "V2")),
    "numbers alone": ("{v}/{c}/{p:03}.png", ("bl", "m06")),
    "months of years": ("{v}/{c}/{p:03}/{k}.png", ("2019-01", "2020-02")),
    "years": ("{v}/{c}/P{p:02}/{k}.png", ("2015", "2017")),
    "time points": ("{v}/{c}/P{p:02}_{k}.png", ("T0", "T1")),
}


@pytest.mark.parametrize("form", VISITS)
def test_folders_of_visits_hold_the_same_people(tmp_path, form):
    name, visits = VISITS[form]
    names = sorted(
        {name.format(v=v, c=c, p=p, k=k) for v in visits for c, r in GROUPS.items() for p in r for k in (1, 2)}
    )
    layout = lay(tmp_path, names)
    assert len(set(layout.subjects)) == 8
    assert set(layout.attributes["visit"]) == set(visits)
    assert set(layout.attributes["class"]) == {"AD", "CN"}
    assert not any(layout.splits)


@pytest.mark.parametrize(
    "names",
    [
        [f"V{p:02}/T1/{k:03}.png" for p in P for k in (1, 2)],  # volunteers
        [f"M{p:02}/{k:03}.png" for p in P for k in (1, 2)],  # mice
        [f"T{p}/T{p}_{k}.png" for p in P for k in (1, 2)],
        [f"W{p:02}/scan{s}/{k:03}.png" for p in P for s in (1, 2) for k in (1, 2)],
    ],
)
def test_people_who_are_called_like_visits_are_people(tmp_path, names):
    layout = lay(tmp_path, names)
    assert set(layout.subjects) == {name.split("/")[0] for name in names}


def test_both_eyes_are_of_one_person_and_the_observers_masks_are_left_out(tmp_path):
    images = [f"Image_{p:02}{side}.jpg" for p in P for side in "LR"]
    masks = [f"{name[:-4]}_{who}.png" for name in images for who in ("1stHO", "2ndHO")]
    layout = lay(tmp_path, images + masks)
    assert sorted(layout.keys) == sorted(images)
    assert set(layout.subjects) == {f"Image_{p:02}" for p in P}
    assert f"{len(masks)} masks" in dict(layout.skipped)
    assert doubts(layout) == ""


def test_letters_that_are_no_sides_are_kept():
    keys = [f"case{p}{letter}.png" for p in P for letter in "LMR"]
    assert len(set(guess_subjects(keys))) == 24
    keys = [f"case{p}L.png" for p in P]
    assert len(set(guess_subjects(keys))) == 8


@pytest.mark.parametrize("caution", rules.CAUTIONS, ids=lambda caution: caution.cohort)
def test_what_the_names_of_a_cohort_do_not_tell_is_said(tmp_path, caution):
    names = [re.sub(r"\d+", lambda found, p=p: found[0][:-1] + str(p), caution.example, count=1) for p in P]
    assert caution.cohort in doubts(lay(tmp_path, names))
    assert caution.cohort not in doubts(lay(tmp_path / "other", [f"P{p}_1.png" for p in P]))


COPIES = [
    *("Kopie von {}", "{} - Kopie", "{} - Kopie (2)", "Kopie (2) von {}", "{} Kopie 2", "Copy of {}", "Copy (2) of {}"),
    *(
        "{} - Copy",
        "{} - Copy (2)",
        "{} copy",
        "{} copy 2",
        "{}_copy",
        "{} (1)",
        "{}(1)",
        "{} (copy)",
        "{} (another copy)",
    ),
    *(
        "{} (3rd copy)",
        "{} (Kopie)",
        "Copia de {}",
        "{} - copia",
        "Copie de {}",
        "{} - Copie",
        "{} - Copy - Copy",
        "{}_old",
    ),
]


@pytest.mark.parametrize("form", COPIES)
@pytest.mark.parametrize("name", ["P01", "003", "anna", "P01_T1_3"])
def test_what_file_managers_call_a_copy_is_told_from_its_name(form, name):
    assert copy_of(form.format(name), [name]) == name


@pytest.mark.parametrize("form", COPIES)
def test_copies_of_people_are_those_people(tmp_path, form):
    folders = [
        f"{name}/{k}.png" for p in P for name in (f"P{p:02}", form.format(f"P{p:02}"))[: 1 + (p < 3)] for k in (0, 1)
    ]
    layout = lay(tmp_path / "folders", folders)
    assert set(layout.subjects) == {f"P{p:02}" for p in P}
    assert doubts(layout) == ""
    files = [f"{name}.nii.gz" for p in P for name in (f"P{p:02}", form.format(f"P{p:02}"))[: 1 + (p < 3)]]
    assert set(lay(tmp_path / "volumes", files).subjects) == {f"P{p:02}" for p in P}
    bare = [f"{name}.png" for p in P for name in (f"{p:03}", form.format(f"{p:03}"))[: 1 + (p < 3)]]
    assert len(set(lay(tmp_path / "bare", bare).subjects)) == 8
    classes = [f"{c}/P{p:02}_{k}.png" for p in P for c in ("AD", "CN", form.format("AD"))[p % 2 :: 2] for k in (0, 1)]
    layout = lay(tmp_path / "classes", classes)
    assert set(layout.attributes["class"]) == {"AD", "CN"}
    assert len(set(layout.subjects)) == 8


def test_numbers_in_brackets_count_people_where_none_is_without(tmp_path):
    assert len(set(lay(tmp_path / "a", [f"P ({p})/{k}.png" for p in P for k in (0, 1)]).subjects)) == 8
    assert len(set(lay(tmp_path / "b", [f"P ({p}).nii.gz" for p in P]).subjects)) == 8
    slices_of_two = [f"patient{p} ({k}).png" for p in (1, 2) for k in P]
    assert set(lay(tmp_path / "c", slices_of_two).subjects) == {"patient1", "patient2"}


def test_copies_are_said_with_the_flag_that_leaves_them_out(tmp_path):
    layout = lay(tmp_path, [f"{name}/{k}.png" for name in ("P01", "P02", "P02 - Kopie", "P03") for k in (0, 1)])
    note = next(note for note in layout.notes if "copies" in note)
    assert "2 images" in note
    pattern = re.search(r"--exclude '(.+)'", note)[1]
    assert {key.split("/")[0] for key in lay(tmp_path, [], exclude=(pattern,)).keys} == {"P01", "P02", "P03"}
