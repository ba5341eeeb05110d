"""Whom names show: people are neither torn over splits nor put together, and what is uncertain is said."""

import numpy as np
import pytest
from case_trees import dicom_series, head, lay
from pictures import save

from vqvae2.data import DataConfig, ImageData, ImageSet, open_data
from vqvae2.data.layout import read_layout
from vqvae2.data.selection import Choice
from vqvae2.data.subjects import guess_subjects, known_subject
from vqvae2.data.tables import join, read_table
from vqvae2.errors import UserError
from vqvae2.stages.data_report import check_subjects

VISITS = {
    "year and month": ("sub{p:02}_{v}_T1", ("2019-01", "2020-02")),
    "name of a month": ("P{p:02}_{v}_T1", ("Jan2019", "Feb2020")),
    "month, then year": ("P{p:02}_{v}", ("march-2019", "2020_Sept")),
    "day in words": ("P{p:02}_{v}", ("03Dec2019", "1-jan-2020")),
    "months": ("P{p:02}_{v}_T1", ("0mo", "6mo", "12months")),
    "weeks": ("P{p:02}-{v}", ("0wk", "6wk")),
    "years": ("P{p:02}_{v}_FLAIR", ("1y", "2yr")),
    "base": ("p{p}-{v}", ("base", "fup")),
    "first and last": ("p{p}_{v}_T1", ("initial", "final")),
}


@pytest.mark.parametrize("end", [".nii.gz", "_1.png"])
@pytest.mark.parametrize("form", VISITS)
def test_visits_stay_with_their_person(form, end):
    shape, visits = VISITS[form]
    keys = {shape.format(p=p, v=v) + end: p for p in range(6) for v in visits}
    whom = guess_subjects(list(keys), volumes=end == ".nii.gz")
    assert len(set(zip(whom, keys.values(), strict=True))) == len(set(whom)) == 6


@pytest.mark.parametrize(("key", "who"), [("2001-07.png", "2001"), ("12M_slice_3.png", "12M"), ("7d_3.png", "7d")])
def test_a_person_that_begins_a_name_is_no_visit(key, who):
    assert guess_subjects([key]) == [who]


@pytest.mark.parametrize("shape", ["{p:03}_{v}_T1.nii.gz", "P{p}-{v}.nii.gz", "case{p}{v}.nii.gz"])
def test_a_letter_counts_scans_and_is_asked_about(shape):
    doubts: list[str] = []
    keys = [shape.format(p=p, v=v) for p in range(6) for v in "AB"]
    assert len(set(guess_subjects(keys, True, doubts))) == 6
    assert "--subject-pattern" in doubts[0]


@pytest.mark.parametrize("group", ["site1", "site_1", "Centre2", "scanner-3"])
@pytest.mark.parametrize("rest", ["_T1_{p:03}.nii.gz", "_T1_{p:03}.png", "_{p:03}.png", "_{p:03}_T1_slice_7.png"])
def test_a_site_is_not_one_person(group, rest):
    keys = [group + rest.format(p=p) for p in range(6)]
    assert len(set(guess_subjects(keys, volumes=rest.endswith("gz")))) == 6


@pytest.mark.parametrize("shape", ["P{p:02}_img_{k:07}.png", "patient{p}_frame_{k:07}.png", "subj_{p}_s_{k:04}.png"])
def test_counters_of_seven_digits_are_no_people(shape):
    keys = {shape.format(p=p, k=k): p for p in range(9) for k in (1, 2, 11)}
    whom = guess_subjects(list(keys))
    assert len(set(zip(whom, keys.values(), strict=True))) == len(set(whom)) == 9


def test_a_slice_s_number_does_not_make_an_adni_patient():
    assert {known_subject(f"case_003_s_{k:04}.png") for k in range(3)} == {None}
    assert len(set(guess_subjects([f"case_003_s_{k:04}.png" for k in range(3)]))) == 1


@pytest.mark.parametrize("site", ["Pitt", "UM_1", "CMU_a", "KKI", "MaxMun_b", "caltech", "Peking_1"])
def test_people_of_abide_have_the_site_before_them(site):
    assert known_subject(f"{site}_0050003_func_preproc") == "0050003"


def test_volumes_beside_their_dicom_series_are_taken_and_it_is_said(tmp_path):
    pytest.importorskip("SimpleITK")
    for p in range(3):
        dicom_series(tmp_path / f"P{p:02}/dicom", f"H{p}", head(p, (4, 5, 3)).astype(np.int16))
    names = [f"P{p:02}/T1{end}" for p, end in enumerate((".nii.gz", ".nii.gz", ".nrrd"))]
    layout = lay(tmp_path, names)
    assert layout.keys == names
    assert set(layout.subjects) == {"P00", "P01", "P02"}
    assert "3 DICOM series" in layout.doubts[0]
    assert "--exclude '*.nii.gz' '*.nrrd'" in layout.doubts[0]
    series = read_layout(tmp_path, Choice(exclude=("*.nii.gz", "*.nrrd")))
    assert len(series.keys) == len(set(series.subjects)) == 3
    assert series.doubts == []


def test_a_series_without_a_patient_is_that_of_the_folder_s_other_series(tmp_path):
    pytest.importorskip("SimpleITK")
    for p in range(3):
        for v, patient in enumerate((f"H{p}", "")):
            dicom_series(tmp_path / f"P{p:02}/scan{v}", patient, head(p, (4, 5, 3)).astype(np.int16))
    layout = read_layout(tmp_path)
    whom = set(zip((key.split("/")[0] for key in layout.keys), layout.subjects, strict=True))
    assert len(layout.keys) == 6
    assert len(whom) == len({who for _, who in whom}) == 3


@pytest.mark.parametrize(
    ("headers", "people", "asked"),
    [  # by folder and scan; how many people; a word of the doubt
        ([["P01 V1", "P01 V2"], ["P02 V1", "P02 V2"], ["P03 V1", "P03 V2"]], 3, "end in a visit"),
        ([["P01_bl", "P01_m12"], ["P02_bl", "P02_m12"], ["P03_bl", "P03_m12"]], 3, "end in a visit"),
        ([["ANONYMOUS"], ["ANONYMOUS"], ["ANONYMOUS"]], 3, ""),
        ([["0000"], ["0000"], ["0000"]], 3, ""),
        ([["A", "B"], ["C", "C"], ["D", "D"]], 4, "hold several patients"),
        ([["SITE1"], ["SITE1"], ["SITE1"], ["SITE2"], ["SITE2"], ["SITE2"]], 2, "name 2 patients in 6 folders"),
        ([["A", "A"], ["B", "B"], ["C", "C"]], 3, ""),
        ([["A"], ["A"], ["B"], ["B"], ["C"], ["C"]], 3, ""),  # a folder for each study
    ],
)
def test_patients_of_headers(tmp_path, headers, people, asked):
    pytest.importorskip("SimpleITK")
    for p, scans in enumerate(headers):
        for v, patient in enumerate(scans):
            dicom_series(tmp_path / f"sub{p:02}/scan{v}", patient, head(p, (4, 5, 3)).astype(np.int16))
    layout = read_layout(tmp_path)
    assert len(set(layout.subjects)) == people
    told = [doubt for doubt in layout.doubts + layout.subject_doubts if "DICOM" in doubt]
    assert [asked in doubt for doubt in told] == [True] * bool(asked), told
    assert not any(patient in doubt for doubt in told for scans in headers for patient in scans if len(patient) > 1)


def test_a_table_of_folders_names_the_flag_that_reads_them_as_people(tmp_path):
    people = ("anna", "ben", "carl", "dora")
    for who in people:
        for k in range(3):
            save(tmp_path / f"{who}/{k}.png", np.full((8, 8), 30 * k, np.uint8))
    (tmp_path / "t.csv").write_text("subject,sex\n" + "".join(f"{who},F\n" for who in people))
    with pytest.raises(UserError, match="the table's anna: give --layout subjects"):
        open_data(DataConfig(data=str(tmp_path), labels="t.csv:sex"))
    data = open_data(DataConfig(data=str(tmp_path), labels="t.csv:sex", layout="subjects"))
    assert data.attributes == {"sex": ("F",)}


@pytest.mark.parametrize("form", ["SUB-{}", "sub_{}", "sub{}", "{}"])
def test_people_of_bids_are_found_however_a_table_writes_them(form):
    names = [form.format(f"{p:02}") for p in range(1, 9)]
    assert join(names, [f"sub-{p:02}" for p in range(1, 9)])[0] == {
        form.format(f"{p:02}"): f"sub-{p:02}" for p in range(1, 9)
    }


def test_masks_beside_dicom_series_are_left_out(tmp_path):
    """CHAOS: folders of a number, series of several phases, masks as PNG in ``Ground``."""
    pytest.importorskip("SimpleITK")
    for p in (1, 2, 5):
        scan = tmp_path / f"Train_Sets/MR/{p}"
        for place in ("T1DUAL/DICOM_anon/InPhase", "T1DUAL/DICOM_anon/OutPhase", "T2SPIR/DICOM_anon"):
            dicom_series(scan / place, "", head(p, (4, 5, 3)).astype(np.int16))
        for k in range(9):
            save(scan / f"T2SPIR/Ground/IMG-{k}.png", np.zeros((4, 5), np.uint8))
    layout = read_layout(tmp_path)
    assert layout.volumes
    assert len(layout.keys) == 9
    assert {(key.split("/")[2], who) for key, who in zip(layout.keys, layout.subjects, strict=True)} == {
        ("1", "1"),
        ("2", "2"),
        ("5", "5"),
    }
    assert "27 images" in dict(layout.skipped)


def test_rows_of_visits_find_the_patient_of_the_headers(tmp_path):
    pytest.importorskip("SimpleITK")
    for p in range(4):
        for v in range(2):
            dicom_series(tmp_path / f"scan{p}{v}", f"H{p} V{v}", head(p, (8, 9, 3)).astype(np.int16))
    rows = "".join(f"H{p} V{v},{'MF'[p % 2]}\n" for p in range(4) for v in range(2))
    (tmp_path / "t.csv").write_text(f"PatientID,sex\n{rows}")
    data = open_data(DataConfig(data=str(tmp_path), size="32x32", labels="t.csv:sex", min_foreground=0))
    told = {
        (image, label)
        for split in data.splits.values()
        for image, (label,) in zip((key[4] for key in split.keys), split.labels.tolist(), strict=True)
    }
    assert data.attributes == {"sex": ("F", "M")}
    assert told == {("0", 1), ("1", 0), ("2", 1), ("3", 0)}


def ready(names: dict[str, str]) -> ImageData:
    """Data of an image each of people in their splits."""
    splits = {
        split: ImageSet(
            np.zeros((len(people), 1, 4, 4), np.uint8), people, people, np.empty((len(people), 0), np.int64), (0, 255)
        )
        for split in ("train", "val")
        if (people := [who for who, place in names.items() if place == split])
    }
    return ImageData("data", "flat folder", 1, 4, 4, (0, 255), {}, splits)


@pytest.mark.parametrize("renamed", [1, 4, 10])
def test_people_who_have_other_names_now_are_refused_however_few(tmp_path, renamed):
    before = {f"P{p:02}": "val" if p == 9 else "train" for p in range(10)}
    (tmp_path / "subjects.csv").write_text(
        "subject,split,images\n" + "".join(f"{who},{split},1\n" for who, split in before.items())
    )
    people = list(before.items())
    check_subjects(ready(before), tmp_path)
    check_subjects(ready(dict(people[renamed:])), tmp_path)  # some left out
    check_subjects(ready(before | {"P10": "val"}), tmp_path)  # more beside them
    check_subjects(ready({"P09": "val", "P10": "val"}), tmp_path)  # the training images are not read
    now = dict(people[renamed:]) | {f"{who}-b": "train" if k else "val" for k, (who, _) in enumerate(people[:renamed])}
    with pytest.raises(UserError, match=rf"{renamed} of 10 people .* cannot be told"):
        check_subjects(ready(now), tmp_path)


def test_images_that_are_gone_since_the_training_are_told(tmp_path, capsys):
    people = {f"P{p:02}": "train" for p in range(9)} | {"P09": "val"}
    (tmp_path / "subjects.csv").write_text(
        "subject,split,images\n" + "".join(f"{who},{split},1\n" for who, split in people.items())
    )
    check_subjects(ready(people), tmp_path)
    assert capsys.readouterr().out == ""
    check_subjects(ready(dict(list(people.items())[2:])), tmp_path)
    told = capsys.readouterr().out
    assert "train has 7 images, 9 when the VQ-VAE was trained" in told
    assert "val" not in told.split("VQ-VAE")[0]


def test_a_missing_label_of_a_visit_is_not_that_of_another_visit(tmp_path):
    (tmp_path / "t.csv").write_text(
        "subject,visit,sex,diagnosis\nP1,,F,\nP1,V1,,NC\nP1,V2,,n/a\nP2,,M,\nP2,V1,,NC\nP2,V2,,AD\n"
    )
    keys = [f"P{p}_V{v}.nii" for p in (1, 2) for v in (1, 2, 3)]
    rows = read_table(tmp_path / "t.csv").match(keys, [key[:2] for key in keys]).rows
    told = [(row["sex"], row["diagnosis"]) for row in rows if row]
    assert told == [("F", "NC"), ("F", ""), ("F", "NC"), ("M", "NC"), ("M", "AD"), ("M", "")]
