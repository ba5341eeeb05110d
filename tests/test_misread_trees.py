"""Trees and tables of public data sets whose names mean two things: what is read, asked, or left as it was."""

import hashlib
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from case_trees import head, volume
from pictures import save

from vqvae2.data import DataConfig, layout, open_data
from vqvae2.data.selection import Choice, Layout
from vqvae2.data.sources import Found
from vqvae2.errors import UserError

P = range(1, 13)
WORDS = ("patient_{p:02}", "case_{p:03}", "sub_{p:03}", "P_{p:02}", "subject-{p}")
HASHES = [hashlib.sha256(str(i).encode()).hexdigest()[:16] for i in range(60)]


@pytest.fixture
def read(monkeypatch):
    """Reads the names of files that need not be there."""

    def of(keys, **choice) -> Layout:
        kind = "volumes" if next(iter(keys)).endswith((".nii", ".nii.gz", ".hdr")) else "images"
        found = Found(**{kind: sorted(Path("/d") / key for key in keys)})
        monkeypatch.setattr(layout, "find_files", lambda source, alone: (Path("/d"), found))
        return layout.read_layout(Path("/d"), Choice(**choice))

    return of


def apart(read: Layout, own: dict[str, object]) -> tuple[int, int]:
    """How many people are read as several, and how many names stand for several people."""
    told, back = defaultdict(set), defaultdict(set)
    for key, who in zip(read.keys, read.subjects, strict=True):
        told[own[key]].add(who)
        back[who].add(own[key])
    return sum(len(held) > 1 for held in told.values()), sum(len(held) > 1 for held in back.values())


def nested(groups: tuple[str, ...], anat: str = "anat/") -> dict[str, object]:
    return {f"{g}/sub-{p:02}/{anat}sub-{p:02}_T1w.nii.gz": (g, p) for g in groups for p in P}


@pytest.mark.parametrize("anat", ["anat/", ""])
def test_folders_above_bids_people_are_read_and_recurring_labels_are_asked_about(read, anat):
    classes = read(nested(("HC", "PD"), anat))
    assert set(classes.attributes["class"]) == {"HC", "PD"}
    (doubt,) = classes.subject_doubts
    assert "sub-01 are in several class folders" in doubt
    own = nested(("Berlin", "London"), anat)
    sites = read(own)
    assert set(sites.attributes["site"]) == {"Berlin", "London"}
    assert apart(sites, own) == (0, 0)
    (doubt,) = sites.subject_doubts
    pattern = re.search(r"--subject-pattern '(.+)'", doubt)[1]
    assert {re.search(pattern, key)[1] for key in sites.keys} == {f"sub-{p:02}" for p in P}


@pytest.mark.parametrize("machines", [("3T", "7T"), ("siemens", "ge")])
def test_people_who_lay_in_two_machines_are_one_and_asked_about(read, machines):
    for form in ("{g}/sub-{p:02}/anat/sub-{p:02}_T1w.nii.gz", "{g}/sub-{p:02}_9.png"):
        own = {form.format(g=g, p=p): p for g in machines for p in P}
        told = read(own)
        assert apart(told, own) == (0, 0)
        assert "each is read as one person" in told.subject_doubts[0]


def test_bids_people_of_one_place_or_of_several_data_sets_have_no_class(read):
    for own in (nested(("rawdata",)), nested(("ds000001", "ds000002"))):
        told = read(own)
        assert not told.attributes
        assert apart(told, own) == (0, 0)
    own = {f"{g}/sub-{p + o}/anat/sub-{p + o}_T1w.nii.gz": p + o for g, o in (("AD", 0), ("CN", 50)) for p in P}
    assert not read(own).subject_doubts


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize(
    ("form", "fixed"),
    [
        *(("{k}/{w}.png", kinds) for kinds in (("T1", "T2"), ("baseline", "followup"), ("left", "right"))),
        *(("{k}_{w}.png", kinds) for kinds in (("T1", "T2"), ("slice_030", "slice_031"))),
    ],
)
def test_a_number_behind_a_word_for_people_is_a_person(read, word, form, fixed):
    own = {form.format(k=k, w=word.format(p=p)): p for k in fixed for p in P}
    assert apart(read(own), own) == (0, 0)


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("form", ["{w}.png", "{w}_{s}.png", "{w}_slice_{s}.png", "T1_{w}_{s}.png"])
def test_a_slice_behind_that_number_is_still_a_slice(read, word, form):
    own = {form.format(w=word.format(p=p), s=s): p for p in P for s in (range(3) if "{s}" in form else (0,))}
    assert apart(read(own), own) == (0, 0)


@pytest.mark.parametrize("group", ["site{g}", "site_{g}", "Centre{g}", "scanner-{g}"])
def test_numbers_behind_a_group_are_people(read, group):
    own = {f"{group.format(g=g)}_patient_{p:02}.png": (g, p) for g in (1, 2) for p in P}
    assert apart(read(own), own) == (0, 0)


def test_volumes_that_are_counted_as_slices_are_not_those_of_their_split_or_class(read):
    parts = (("imagesTr", "imagesTs"), ("Training/img", "Testing/img"))
    for train, test in parts:
        own = {f"{train if p < 9 else test}/img{p:04}.nii.gz": p for p in P}
        assert apart(read(own), own) == (0, 0)
    own = {f"{g}/image_{p:03}.nii.gz": (g, p) for g in ("AD", "CN") for p in P}
    told = read(own)
    assert set(told.attributes["class"]) == {"AD", "CN"}
    assert apart(told, own) == (0, 0)
    assert "--layout subjects" in told.subject_doubts[0]
    for word in ("visit", "scan", "tp"):
        own = {f"{who}/{word}{k}.nii.gz": who for who in ("anna", "ben", "carl") for k in range(1, 6)}
        assert apart(read(own), own) == (0, 0)
    own = {f"P{p:02}/img001.nii.gz": p for p in P}
    assert set(read(own).subjects) == {f"P{p:02}" for p in P}


def test_numbers_of_held_out_classes_are_classes_and_of_held_out_people_people(read):
    signs = {f"Train/{c}/{c:05}_{t:05}.png" for c in range(43) for t in range(3)} | {
        f"Test/{i:05}.png" for i in range(9)
    }
    flowers = {
        f"{s}/{c}/image_{3 * c + k:05}.jpg" for c in range(1, 31) for k, s in enumerate(("train", "train", "valid"))
    }
    for keys in (signs, flowers):
        told = read(keys)
        assert len(set(told.attributes["class"]) - {""}) in (43, 30)
        assert any("give --layout subjects" in one for one in told.subject_doubts)
    people = read({f"{s}/{p}/{k}.png" for s in ("train", "val") for p in range(1, 31) for k in range(4)})
    assert "class" not in people.attributes
    many = read({f"{c}/{k}.png" for c in range(60) for k in range(4)})
    assert any("give --layout classes" in one for one in many.subject_doubts)


def test_folders_within_those_of_people_are_told(read):
    patches = {f"{p}/{c}/{p}_idx5_x{x}_y1_class{c}.png" for p in range(10253, 10265) for c in (0, 1) for x in (1, 51)}
    assert any("folders such as 0 and 1 within those of people are not read" in note for note in read(patches).notes)
    scans = {f"P{p:02}/{k}/{s}.png" for p in P for k in ("T1", "T2") for s in range(3)}
    assert not any("within those of people" in note for note in read(scans).notes)


def test_test_images_beside_training_images_with_masks_are_images(read):
    trees = (
        ("iSeg-2017-Training/subject-{p}-{k}.hdr", "iSeg-2017-Testing/subject-{p}-{k}.hdr", ("T1", "T2"), "label"),
        ("WMH_training/{p:03}_{k}.nii.gz", "WMH_test/{p:03}_{k}.nii.gz", ("T1", "FLAIR"), "mask"),
    )
    for train, test, kinds, mask in trees:
        images = {(train if p < 9 else test).format(p=p, k=k) for p in P for k in kinds}
        told = read(images | {train.format(p=p, k=mask) for p in range(1, 9)})
        assert set(told.keys) == images
    told = read({f"ADNI_WMH/P{p:02}_T1.nii.gz" for p in P} | {f"controls/P{p + 20:02}_T1.nii.gz" for p in P})
    assert len(told.keys) == 24
    assert any("ADNI_WMH may hold masks" in doubt for doubt in told.doubts)
    masks = {f"{folder}/P{p:02}_T1.nii.gz" for folder in ("wmh_masks", "images") for p in P}
    assert len(read(masks).keys) == 12
    for folder in ("Ground Truth", "ground_truth", "GT_train", "train_gt"):
        assert len(read({f"{folder}/p{p}.png" for p in P} | {f"images/{p}.png" for p in P}).keys) == 12


@pytest.mark.parametrize("form", ["site1_{c}_{p}", "pair{p:02}_{c}_T1", "2023_{c}_{p}"])
@pytest.mark.parametrize("pair", [("stroke", "healthy"), ("tumor", "control")])
def test_patients_are_no_masks_of_controls(read, form, pair):
    own = {form.format(c=c, p=p) + ".nii.gz" for c in pair for p in P}
    assert set(read(own).keys) == own


def test_lesions_beside_their_own_volume_are_masks(read):
    images = {f"{p:06}_t1w_stx.nii.gz" for p in range(30001, 30013)}
    masks = {f"{p:06}_LesionSmooth_1_stx.nii.gz" for p in range(30001, 30013)}
    assert set(read(images | masks).keys) == images
    images, masks = {f"P{p:02}_flair_pp.nii.gz" for p in P}, {f"P{p:02}_lesions.nii.gz" for p in P}
    assert set(read(images | masks).keys) == images


@pytest.mark.parametrize(
    "form", ["{h[0]}/{h[1]}/{h[2]}/{h}.jpg", "{h[0]}{h[1]}/{h[2]}{h[3]}/{h}.png", "train/{h[0]}/{h}.png"]
)
def test_folders_of_the_first_characters_of_hashes_tell_nothing(read, form):
    told = read({form.format(h=h) for h in HASHES})
    assert not told.attributes
    assert len(set(told.subjects)) == len(HASHES)


def test_classes_of_files_that_are_called_by_hashes_are_classes(read):
    told = read({f"{('cat', 'dog')[i % 2]}/{h}.png" for i, h in enumerate(HASHES)})
    assert set(told.attributes["class"]) == {"cat", "dog"}
    times = {f"{c}/{20210131123456 + 60 * (20 * c + k)}.jpg" for c in range(3) for k in range(20)}
    assert set(read(times).attributes["class"]) == {"0", "1", "2"}
    own = {f"{100206 + 37 * p}/{100206 + 37 * p}{s:03}.png": p for p in range(30) for s in range(3)}
    assert apart(read(own), own) == (0, 0)


@pytest.mark.parametrize(
    ("image", "others"),
    [
        ("P{p:02}.nii", ["BiasField_P{p:02}.nii"]),
        ("P{p:02}.anat/T1.nii.gz", ["P{p:02}.anat/lesionmaskinv.nii.gz"]),
        ("P{p:02}/T1.nii.gz", ["P{p:02}/T1_jac.nii.gz", "P{p:02}/BiasField.nii.gz"]),
        ("BiasField_corrected_P{p:02}.nii", ["BiasField_P{p:02}.nii"]),
        ("im{p:04}.ppm", ["im{p:04}.ah.ppm", "im{p:04}.vk.ppm"]),
    ],
)
def test_maps_and_manual_segmentations_are_left_out(read, image, others):
    images = {image.format(p=p) for p in P}
    assert set(read(images | {other.format(p=p) for other in others for p in P}).keys) == images


def test_people_of_another_reconstruction_are_kept(read):
    own = {f"sub-{p:02}/anat/sub-{p:02}_rec-{'mial' if p < 7 else 'irtk'}_T2w.nii.gz": p for p in P}
    told = read(own, suffix="T2w")
    assert len(told.keys) == 12
    assert "of 6 people who have no such volume" in told.doubts[0]
    both = {f"sub-{p:02}/anat/sub-{p:02}_{rec}T1w.nii.gz" for p in P for rec in ("", "rec-norm_") if rec or p < 7}
    told = read(both)
    assert len(told.keys) == 12
    assert sum("rec-norm" in key for key in told.keys) == 6
    spaces = {f"sub-{p:02}/anat/sub-{p:02}_space-{'A' if p < 7 else 'B'}_T1w.nii.gz" for p in P}
    told = read(spaces)
    assert len(told.keys) == 6
    assert "6 people who have no such volume, such as sub-07, are left out" in told.doubts[0]


def test_examinations_of_people_by_name_are_asked_about(read):
    names = ("Mueller", "Schmidt", "Weber", "Fischer", "Huber", "Maier")
    exams = {f"{n}_{10234 + 97 * i + 31 * e}_{s}.png" for i, n in enumerate(names) for e in (0, 1) for s in range(3)}
    assert any("an examination's" in one for one in read(exams).subject_doubts)
    kinds = {f"{n}_{10234 + 97 * i}_{s}.png" for i, n in enumerate(names) for s in range(3)}
    assert not any("an examination's" in one for one in read(kinds).subject_doubts)


def test_sources_that_recur_in_all_classes_are_no_people(read):
    photos = {
        f"{s}/{c}/{f}_{c}_{i + o:06}.jpg"
        for s, o in (("train", 0), ("val", 9))
        for c in ("cat", "dog")
        for f in ("flickr", "pixabay")
        for i in range(9)
    }
    assert len(set(read(photos).subjects)) == len(photos)
    people = {
        f"{c}/{n}_{c}_{i}.png"
        for c, names in (("ad", ("anna", "ben")), ("cn", ("carl", "dora")))
        for n in names
        for i in range(9)
    }
    assert len(set(read(people).subjects)) == 4
    faces = {f"{c}/{n}_{c}_{i}.png" for c in ("happy", "sad") for n in ("anna", "ben") for i in range(9)}
    assert len(set(read(faces).subjects)) == 4


def test_one_name_for_half_of_the_images_is_asked_about(read):
    assert any(
        "AD (12 images)" in one for one in read({f"{c}_{p:03}.png" for c in ("AD", "CT") for p in P}).subject_doubts
    )


def slices(folder: Path, names: list[str]) -> None:
    for index, name in enumerate(names):
        save(folder / name, np.random.default_rng(index).integers(0, 255, (16, 16), np.uint8))


def test_a_table_of_image_ids_tells_the_people(tmp_path):
    ids = [(p, f"I{1000 + 10 * p + k}") for p in range(20) for k in range(2)]
    rows = [f"{i},002_S_{p:04},{'AD' if p % 2 else 'CN'}" for p, i in ids]
    (tmp_path / "search.csv").write_text("\n".join(["Image Data ID,Subject,Group", *rows]) + "\n")
    flags = {"labels": str(tmp_path / "search.csv") + ":Group"}
    slices(tmp_path / "images", [f"{i}_{s}.png" for _, i in ids for s in (11, 12)])
    for _, i in ids:
        volume(tmp_path / "volumes" / f"{i}.nii.gz", head(int(i[1:])), np.diag([8.0, 8, 8, 1]))
    for folder in ("images", "volumes"):
        data = open_data(DataConfig(data=str(tmp_path / folder), **flags))
        people = {who for split in data.splits.values() for who in split.subjects}
        assert people == {f"002_S_{p:04}" for p in range(20)}
        assert set(data.attributes["Group"]) == {"AD", "CN"}


def test_a_table_of_volumes_tells_the_people_and_labels_by_file(tmp_path):
    for p in range(20):
        for k in range(2):
            volume(tmp_path / f"scan_{2 * p + k:04}.nii.gz", head(p), np.diag([8.0, 8, 8, 1]))
    rows = [f"scan_{2 * p + k:04}.nii.gz,P{p:02},{'FM'[p % 2]}" for p in range(20) for k in range(2)]
    (tmp_path / "table.csv").write_text("\n".join(["file,subject,sex", *rows]) + "\n")
    data = open_data(DataConfig(data=str(tmp_path), labels="table.csv:sex"))
    assert {who for split in data.splits.values() for who in split.subjects} == {f"P{p:02}" for p in range(20)}
    assert set(data.attributes["sex"]) == {"F", "M"}


def test_a_table_of_image_ids_and_sites_tells_no_people(tmp_path):
    rows = [f"I{1000 + p},{'AB'[p % 2]},{'AD' if p % 2 else 'CN'}" for p in range(20)]
    (tmp_path / "search.csv").write_text("\n".join(["Image Data ID,Site ID,Group", *rows]) + "\n")
    slices(tmp_path / "images", [f"I{1000 + p}_{s}.png" for p in range(20) for s in (11, 12)])
    data = open_data(DataConfig(data=str(tmp_path / "images"), labels=str(tmp_path / "search.csv") + ":Group"))
    assert len({who for split in data.splits.values() for who in split.subjects}) == 20
    assert set(data.attributes["Group"]) == {"AD", "CN"}


def labels_of(folder: Path, names: list[str], table: str, column: str) -> dict[str, str]:
    slices(folder, names)
    (folder / "table.csv").write_text(table)
    data = open_data(DataConfig(data=str(folder), labels=f"table.csv:{column}"))
    classes = [*data.attributes[column], ""]
    return {
        key: classes[row[0]]
        for split in data.splits.values()
        for key, row in zip(split.keys, split.labels.tolist(), strict=True)
    }


def test_a_socioeconomic_status_is_no_visit(tmp_path):
    names = [f"OAS1_{p:04}_MR{v}_{s}.png" for p in P for v in (1, 2) for s in range(2)]
    rows = [f"OAS1_{p:04}_MR{v},{2 if v == 1 else 1},{'young' if v == 1 else 'old'}" for p in P for v in (1, 2)]
    told = labels_of(tmp_path, names, "\n".join(["ID,SES,Group", *rows]) + "\n", "Group")
    assert all(label == ("young" if "_MR1_" in key else "old") for key, label in told.items())


def test_the_end_of_a_survival_is_no_visit(tmp_path):
    names = [f"P{p:02}_V{v}_{s}.png" for p in P for v in (1, 2) for s in range(2)]
    rows = [f"P{p:02},{p % 2},V{v},{'young' if v == 1 else 'old'}" for p in P for v in (1, 2)]
    told = labels_of(tmp_path, names, "\n".join(["subject,event,visit,Group", *rows]) + "\n", "Group")
    assert all(label == ("young" if "_V1_" in key else "old") for key, label in told.items())


@pytest.mark.parametrize(
    ("column", "cells"),
    [
        ("eventname", ("baseline_year_1_arm_1", "2_year_follow_up_y_arm_1")),
        ("redcap_event_name", ("baseline_year_1_arm_1", "2_year_follow_up_y_arm_1")),
        ("ses", ("ses-baselineYear1Arm1", "ses-2YearFollowUpYArm1")),
    ],
)
def test_events_are_visits(tmp_path, column, cells):
    visits = ("ses-baselineYear1Arm1", "ses-2YearFollowUpYArm1")
    names = [f"sub-{p:02}_{visit}_{s}.png" for p in P for visit in visits for s in range(2)]
    rows = [f"sub-{p:02},{cell},{'small' if k == 0 else 'large'}" for p in P for k, cell in enumerate(cells)]
    rows += [f"sub-{p:02},1_year_follow_up_y_arm_1,medium" for p in P]  # of which there are no images
    told = labels_of(tmp_path, names, "\n".join([f"subject,{column},size", *rows]) + "\n", "size")
    assert all(label == ("small" if "baseline" in key else "large") for key, label in told.items())


def test_a_list_with_lines_that_are_no_paths_ends_in_one_line(tmp_path):
    file = tmp_path / "attributes.txt"
    file.write_text("202599\n" + " ".join(f"Attribute_{i}" for i in range(40)) + "\n~nobody-here/a.png\n")
    with pytest.raises(UserError, match="no file in the list exists"):
        open_data(DataConfig(data=str(file)))
