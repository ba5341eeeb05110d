"""Endings, prefixes and folders that tell a scan: one person stays one, two stay two, in trees as people have them."""

import json
from pathlib import Path

import pytest
from PIL import Image

from vqvae2.data import DataConfig, open_data
from vqvae2.data.layout import read_layout
from vqvae2.data.scans import processed, under_heads
from vqvae2.data.selection import Choice, Layout
from vqvae2.data.tables import join, read_table
from vqvae2.errors import UserError

P = range(1, 11)


def lay(folder: Path, names: list[str], **choice: object) -> Layout:
    """The layout of a folder of empty files of these names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return read_layout(folder, Choice(**choice))


TREES: dict[str, dict[str, object]] = {  # files -> whom they show
    "UK Biobank instances": {f"{1000012 + 11 * p}_{v}_0.nii.gz": p for p in P for v in (2, 3)},
    "NACC scans": {f"NACC{100 + p:06}_mri{1000 + 7 * p + v}.nii.gz": p for p in P for v in (0, 1)},
    "video groups": {f"v_Archery_g{p:02}_c{c:02}_f{f:04}.jpg": p for p in P for c in (1, 2) for f in (1, 2)},
    "views and phases": {f"patient{p:04}_{v}_{e}.nii.gz": p for p in P for v in ("2CH", "4CH") for e in ("ED", "ES")},
    "study behind a person": {f"{10000 + 7 * p}_{1000000 + 13 * p + s}_t2w.mha": p for p in P for s in (0, 1)},
    "left and right knee": {f"{9003000 + 17 * p}{s}.png": p for p in P for s in "LR"},
    "eyes": {f"P{p:03}_{e}_{k}.png": p for p in P for e in ("OD", "OS") for k in (1, 2)},
    "words of another language": {
        f"Patient{p}_Verlauf{v}_Schicht{k:02}.png": p for p in P for v in (1, 2) for k in (3, 4)
    },
    "composed and decomposed umlauts": {
        name: p for p in P for name in (f"M\u00fcller{p:02}_1.png", f"Mu\u0308ller{p:02}_2.png")
    },
    "copies of an export": {f"mild-{p}_jpg.rf.{p:016x}{c:016x}.jpg": p for p in P for c in (1, 2)},
    "retest": {f"{f}/{103000 + 918 * p}/T1w.nii.gz": p for p in P for f in ("HCP_1200", "HCP_Retest")},
    "planes": {f"{plane}/{p:04}/{k}.png": p for p in P for plane in ("axial", "coronal") for k in (1, 2)},
    "numbers under visits": {f"{v}/{p:03}.png": p for p in P for v in ("baseline", "followup")},
    "months as folders": {f"{v}/{p:03}/{k}.png": p for p in P for v in ("0 months", "12 months") for k in (1, 2)},
    "zeros of one folder alone": {name: p for p in P for name in (f"T1/sub{p}/a.nii.gz", f"FLAIR/sub{p:02}/a.nii.gz")},
    "parts of an archive": {f"images_{p % 3 + 1:03}/images/{p:08}_{k:03}.png": p for p in P for k in (0, 1)},
    "shards": {f"p1{p % 2}/p1{p % 2}{p:06}/s{5000 + s}.png": p for p in P for s in (1, 2)},
    "folds": {f"fold_{p % 2}/AD/P{p:02}_{k}.png": p for p in P for k in (1, 2)},
    "words above people": {
        f"{'benign' if p % 2 else 'malignant'}/{'adenosis' if p % 2 else 'ductal'}/14-{22540 + p}AB/{k}.png": p
        for p in P
        for k in (1, 2)
    },
    "series and slice": {f"NORMAL/IM-{p:04}-{k:04}.jpeg": p for p in P for k in (1, 2)}
    | {f"PNEUMONIA/person{p}_bacteria_{k}.jpeg": -p for p in P for k in (1, 2)},
    "SPM": {f"{step}P{p:03}_T1.nii": p for p in P for step in ("", "m", "w", "wm", "r")},
    "FreeSurfer over time": {
        f"{name}/mri/T1.mgz": p for p in P for name in (f"P{p:03}_bl", f"P{p:03}_bl.long.P{p:03}_base", f"P{p:03}_base")
    },
    "two BIDS data sets": {f"ds00000{d}/sub-{p:02}/anat/sub-{p:02}_T1w.nii.gz": (d, p) for d in (1, 2) for p in P},
    "site, patient and slice": {
        f"{site:02}_{115882 + 7 * p}_{k}.png": (site, p) for site in range(1, 8) for p in range(4) for k in (0, 1)
    },
    "names that are digests": {f"{p:032x}_{k}.png": p for p in P for k in (0, 1)},
    "digests of volumes": {f"{p:032x}_{kind}.nii.gz": p for p in P for kind in ("T1", "FLAIR")},
    "digests under sites": {f"site{p % 2}/{p:032x}.nii.gz": p for p in P},
    "a slice before a person": {f"slice_{k:03}_{1234567 + p}.png": p for p in P for k in (40, 41)},
    "a person before months": {f"{p:03}_months_{m:02}.nii.gz": p for p in P for m in (0, 6)},
    "participants called parts": {f"part{p:02}/slice_{k}.png": p for p in P for k in (1, 2)},
    "images as folders": {f"Image_{p:02}/{k}.png": p for p in P for k in (1, 2)},
    "people above studies": {
        f"site{s}/{who}/study{k}/1.png": who
        for s, who in ((1, "anna"), (1, "bert"), (2, "dora"), (2, "emil"))
        for k in (100, 101)
    },
    "what was made of one data set": {
        f"ds000001{end}/sub-{p:02}/anat/sub-{p:02}_T1w.nii.gz": p for p in P for end in ("", "-fmriprep")
    },
    "a group of two letters": {f"OS_{p:03}_T1.nii.gz": ("OS", p) for p in P}
    | {f"KU_{p:03}_T1.nii.gz": ("KU", p) for p in P},
    "numbers of two sites": {
        f"{site}/{p:0{n}}/1.png": (site, p) for p in P for site, n in (("siteA", 3), ("siteB", 1))
    },
    "ranges of two sites": {
        f"{site}/{base + p}/1.png": (site, base + p)
        for p in P
        for site in ("Berlin", "London")
        for base in (10000, 20000)
    },
    "a form of a diagnosis": {f"{kind}MCI{p:02}.nii": (kind, p) for p in P for kind in ("", "a")},
    "twins": {f"family{f:02}_twin{t}.png": (f, t) for f in P for t in (1, 2)},
    "derivatives of one data set": {
        name.format(p=p): p
        for p in P
        for name in (
            "sub-{p:02}/anat/sub-{p:02}_T1w.nii.gz",
            "derivatives/fmriprep/sub-{p:02}/anat/sub-{p:02}_desc-preproc_T1w.nii.gz",
        )
    },
}


@pytest.mark.parametrize("name", TREES)
def test_people_are_neither_torn_nor_put_together(tmp_path, name):
    layout = lay(tmp_path, list(TREES[name]), include_masks=True)
    assert layout.keys
    pairs = {(TREES[name][key], who) for key, who in zip(layout.keys, layout.subjects, strict=True)}
    assert len(pairs) == len({who for _, who in pairs}) == len({true for true, _ in pairs}), sorted(map(str, pairs))


@pytest.mark.parametrize(
    ("files", "splits", "attributes"),
    [
        ([f"multicoil_{s}/f{p}_{k}.png" for s in ("train", "val") for p in P for k in (1, 2)], {"train", "val"}, {}),
        (
            [f"{s}_{c}/P{p}{s}{c}_1.png" for s in ("train", "test") for c in ("AD", "CN") for p in P],
            {"train", "test"},
            {"class": {"AD", "CN"}},
        ),
        (
            [f"{f}/P{f}{p}_1.png" for f in ("train_AD", "test_AD", "train_CN") for p in P],
            {"train", "test"},
            {"class": {"AD", "CN"}},
        ),
        (
            [f"train/{plane}/{p}.png" for plane in ("axial", "coronal") for p in P]
            + [f"test/axial/{p}.png" for p in P],
            {"train", "test"},
            {"plane": {"axial", "coronal"}},
        ),
        ([f"P{p:02}/motor_{s}/1.png" for p in P for s in ("training", "test")], {None}, {}),
    ],
)
def test_folders_that_differ_by_the_word_of_a_split_are_splits(tmp_path, files, splits, attributes):
    layout = lay(tmp_path, files)
    assert set(layout.splits) == splits
    assert {name: set(held) for name, held in layout.attributes.items()} == attributes


def test_a_reading_that_another_could_replace_is_told_with_its_flag(tmp_path):
    layout = lay(tmp_path, list(TREES["views and phases"]))
    (doubt,) = layout.subject_doubts
    assert "patient0001_2CH_ED.nii.gz as patient0001" in doubt
    assert "--subject-pattern" in doubt


def test_endings_that_are_people_or_hardly_recur_are_left():
    for names in (
        [f"site{s}_{p:03}" for s in (1, 2, 3) for p in P],
        [f"family{f}_child{c}" for f in P for c in (1, 2)],
        [f"scan1_{word}" for word in ("anna", "bert", "carl", "dora")],
        [f"{year}_{name}" for year in (2019, 2020, 2021) for name in ("anna", "bert", "carl")],
        [f"study{s}_MCI{p:02}" for s in range(1, 7) for p in range(6)],
        [f"cage{c:02}_mouse{m}" for c in P for m in (1, 2, 3)],
        [f"F{f:02}_{who}" for f in P for who in ("brother", "sister")],
    ):
        assert under_heads(names, names) == names


def test_maps_and_steps_of_processing_are_told_from_names_that_look_alike():
    places = [("a/mri" if step else "a", f"{step}P{p:02}") for step in ("", "wm", "c1", "y_") for p in (1, 2, 3)]
    found = processed(places)
    assert found["a/mri", "wmP01"] == ("P01", False)
    assert found["a/mri", "c1P02"] == ("P02", True)
    assert found["a/mri", "y_P03"] == ("P03", True)
    assert ("a", "P01") not in found
    assert processed([("", f"{step}MCI{p:02}") for step in ("", "a") for p in P]) == {}
    assert processed([("b" if step else "c", f"{step}P{p:02}") for step in ("", "wm") for p in P]) == {}


def test_maps_and_other_volumes_of_freesurfer_are_left_out_and_said(tmp_path):
    names = [f"{step}P{p:03}.nii" for p in P for step in ("", "c1", "mwp1", "y_")]
    layout = lay(tmp_path / "spm", names)
    assert sorted(layout.keys) == sorted(f"P{p:03}.nii" for p in P)
    assert [what for what, _ in layout.skipped] == ["30 maps of tissue or deformation"]
    volumes = ("T1.mgz", "brain.mgz", "orig/001.mgz", "wm.mgz")
    names = [f"{who}/mri/{name}" for who in (*(f"b{p:02}" for p in P), "fsaverage") for name in volumes]
    layout = lay(tmp_path / "fs", names)
    assert sorted(layout.keys) == sorted(f"b{p:02}/mri/T1.mgz" for p in P)
    assert lay(tmp_path / "fs", [], exclude=("T1.mgz",)).keys[0] == "b01/mri/brain.mgz"
    names = [f"b{p:02}/mri/{'T1' if p == 1 else 'brain'}.mgz" for p in P]  # not all have the same
    assert sorted(lay(tmp_path / "mixed", names).keys) == sorted(names)
    with pytest.raises(UserError, match="only masks, maps and averages are here"):
        lay(tmp_path / "averages", ["fsaverage/mri/T1.mgz", "fsaverage/mri/brain.mgz"])


def test_a_layout_that_is_asked_for_takes_folders_that_count_parts(tmp_path):
    names = [f"batch_{b}/{k}.png" for b in (1, 2) for k in P]
    assert set(lay(tmp_path, names, layout="subjects").subjects) == {"batch_1", "batch_2"}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for p in P:
        Image.new("L", (16, 16), 20 * p).save(tmp_path / f"ISIC_{p:07}.png")
    return tmp_path


@pytest.mark.parametrize("head", ["image_id", "image_name", "id_code", "Image Index", "file path", "img", "filepath"])
@pytest.mark.parametrize("end", ["", ".png", ".dcm"])
def test_columns_that_name_images_with_or_without_their_suffix(pictures, head, end):
    rows = "".join(f"ISIC_{p:07}{end},{'ab'[p % 2]}\n" for p in P)
    (pictures / "t.csv").write_text(f"# exported\n{head},dx\n{rows}")
    data = open_data(DataConfig(data=str(pictures), labels=f"{pictures / 't.csv'}:dx"))
    for images in data.splits.values():
        for key, label in zip(images.keys, images.labels[:, 0], strict=True):
            assert data.attributes["dx"][label] == "ab"[int(key[5:12]) % 2]


def test_a_lesion_is_a_person_and_a_workbook_is_none(pictures):
    (pictures / "t.csv").write_text("sep=,\nlesion_id,image_id\n" + "".join(f"HAM_{p // 2},ISIC_{p:07}\n" for p in P))
    data = open_data(DataConfig(data=str(pictures), labels=f"{pictures / 't.csv'}:lesion_id"))
    assert len({who for images in data.splits.values() for who in images.subjects}) == 6
    (pictures / "t.xlsx").write_bytes(b"PK\x03\x04")
    with pytest.raises(UserError, match=r"workbook.*Save its sheet as CSV"):
        read_table(pictures / "t.xlsx")


@pytest.mark.parametrize("head", ["patient_id,image_id,sex", "Subject ID,Sex,Image ID"])
def test_people_go_before_columns_that_might_name_images(tmp_path, head):
    for p in P:
        Image.new("L", (16, 16), 20 * p).save(tmp_path / f"P{p:02}_1.png")
    cells = {"patient": "P{p:02}", "subject": "P{p:02}", "image": "I{p:05}", "sex": "F"}
    columns = [cells[name.lower().replace("_", " ").split()[0]] for name in head.split(",")]
    rows = "".join(",".join(columns).format(p=p) + "\n" for p in P)
    (tmp_path / "t.csv").write_text(f"{head}\n{rows}")
    sex = next(name for name in head.split(",") if name.lower() == "sex")
    data = open_data(DataConfig(data=str(tmp_path), labels=f"{tmp_path / 't.csv'}:{sex}"))
    assert all((images.labels == 0).all() for images in data.splits.values())


def test_letters_join_over_gaps():
    assert join(["NDAR_INV007"], ["NDARINV007", "NDARINV008"])[0] == {"NDAR_INV007": "NDARINV007"}


def test_raw_data_sets_that_a_tool_converted_are_sets_of_their_own(tmp_path):
    made = {"DatasetType": "raw", "GeneratedBy": [{"Name": "dcm2bids"}]}
    for site in ("siteA", "siteB"):
        (tmp_path / site).mkdir()
        (tmp_path / site / "dataset_description.json").write_text(json.dumps({"Name": site, **made}))
    layout = lay(tmp_path, [f"{site}/sub-{p:02}/anat/sub-{p:02}_T1w.nii.gz" for site in ("siteA", "siteB") for p in P])
    assert len(set(layout.subjects)) == 2 * len(P)
    assert any("several BIDS data sets" in doubt for doubt in layout.subject_doubts)
