"""Data as people have them: public data sets by their own names, each read as its cohort means it."""

import csv
import os
import shutil
from collections import Counter
from pathlib import Path

import case_trees
import nibabel as nib
import numpy as np
import pytest
from case_trees import head, lay, slices, volume, volumes
from pictures import every, labels_of, save

from vqvae2.data import DataConfig, ImageData, open_data, rules
from vqvae2.data.layout import read_layout
from vqvae2.data.selection import Choice
from vqvae2.data.splits import overlap
from vqvae2.data.subjects import guess_subjects, is_mask, known_subject, words_of
from vqvae2.data.tables import join
from vqvae2.data.volume_files import read_canonical
from vqvae2.data.volumes import SliceConfig, cut
from vqvae2.errors import UserError
from vqvae2.stages.data_report import check_subjects, write_data_report


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VQVAE2_CACHE", str(tmp_path / "cache"))


def opened(make: case_trees.Make, tmp_path: Path, **more: object) -> ImageData:
    """The data of a tree, read with the flags that go with it."""
    flags = make(tmp_path / "data")
    config = {"data": str(tmp_path / "data")}
    config |= {name[2:]: value for name, value in zip(flags[::2], flags[1::2], strict=True)}
    return open_data(DataConfig(**{**config, **more}))


def people(data: ImageData) -> set[str]:
    """Whom data show; nobody may be in two splits."""
    held = [(who, split) for split, part in data.splits.items() for who in part.subjects]
    assert overlap(*zip(*held, strict=True)) == {}
    return {who for who, _ in held}


def classes(data: ImageData) -> dict[str, set[str]]:
    return {name: set(values) for name, values in data.attributes.items()}


@pytest.mark.parametrize("cohort", rules.COHORTS, ids=lambda cohort: cohort.example)
def test_the_example_of_every_cohort_s_rule_names_its_person(cohort):
    assert known_subject(cohort.example) == cohort.person
    assert guess_subjects([cohort.example], volumes=True) == [cohort.person]


@pytest.mark.parametrize("word", rules.WORDS, ids=lambda word: word.role)
def test_the_example_of_every_word_s_rule_has_that_role(word):
    assert word.role in {token.role for token in words_of(word.example.split(".")[0])}


EIGHT = range(1, 9)
NAMES: dict[str, tuple[list[str], int, dict[str, set[str]]]] = {
    # name: files, of how many people, attributes of the folders
    "HipMRI": ([f"Case_{p:03}_Week{w}_LFOV.nii.gz" for p in EIGHT for w in (0, 1, 3)], 8, {}),
    "weeks": ([f"case_{p:03}_wk{w}_slice{k}.png" for p in EIGHT for w in (0, 6) for k in (0, 1)], 8, {}),
    "months": ([f"case{p}_month_{m}_{k}.png" for p in EIGHT for m in (0, 6, 12) for k in (0, 1)], 8, {}),
    "time points": ([f"subj{p:03}_tp{t}_slice_{k}.png" for p in EIGHT for t in (1, 2) for k in (3, 4)], 8, {}),
    "visits": ([f"Patient_{p:02}_V{v}.nii.gz" for p in EIGHT for v in (1, 2)], 8, {}),
    "visits in one word": ([f"Subject{p:03}Visit{v}.nii.gz" for p in EIGHT for v in (1, 2)], 8, {}),
    "years in one word": ([f"S{p:03}Y{v}.nii.gz" for p in EIGHT for v in (1, 2)], 8, {}),
    "visits by letters": ([f"S{p:02}{v}.nii.gz" for p in EIGHT for v in "ab"], 8, {}),
    "dates": (
        [f"P{p:02}_{day}_z{k}.png" for p in EIGHT for day in ("2019-01-31", "20201201") for k in (0, 1)],
        8,
        {},
    ),
    "before and after": ([f"sub{p}_{t}_op_{k}.png" for p in EIGHT for t in ("pre", "post") for k in (0, 1)], 8, {}),
    "baseline": ([f"P{p:03}_{v}_FLAIR.nii.gz" for p in EIGHT for v in ("BL", "FU1", "FU2")], 8, {}),
    "ADNI by visit": ([f"{p:03}_S_0295_{v}_{k}.png" for p in EIGHT for v in ("bl", "m12") for k in (3, 4)], 8, {}),
    "ADNI by class": (
        [
            f"{group}/ADNI_{p:03}_S_0295_MR_MPR__GradWarp_Br_2007031911362{v}975_S11867{v}_I118673_{k}.png"
            for p in EIGHT
            for group in ("AD", "CN")[p % 2 :][:1]
            for v in (1, 2)
            for k in (3, 4)
        ],
        8,
        {"class": {"AD", "CN"}},
    ),
    "ADNI by folders": (
        [f"{p:03}_S_0295/MPR__GradWarp/2006-0{v}-18_08_20_30.0/S1{v}/x.nii" for p in EIGHT for v in (4, 9)],
        8,
        {},
    ),
    "OASIS-1": (
        [
            f"Data/{c}/OAS1_{p:04}_MR{v}_mpr-1_{k}.jpg"
            for p in EIGHT
            for c in ("Mild Dementia", "Non Demented")[p % 2 :][:1]
            for v in (1, 2)
            for k in (100, 101)
        ],
        8,
        {"class": {"Mild Dementia", "Non Demented"}},
    ),
    "OASIS-3": ([f"OAS3{p:04}_MR_d{d:04}/anat2/T1w.nii.gz" for p in EIGHT for d in (129, 757)], 8, {}),
    "UK Biobank": ([f"{1000011 + p}_20252_{v}_0/T1/T1_brain.nii.gz" for p in EIGHT for v in (2, 3)], 8, {}),
    "ABIDE": (
        [
            f"{s}/{s}_{51450 + p:07}/session_{v}/anat_1/mprage.nii.gz"
            for p in EIGHT
            for s in ("NYU", "Caltech")[p % 2 :][:1]
            for v in (1, 2)
        ],
        8,
        {"site": {"NYU", "Caltech"}},
    ),
    "HCP": (
        [f"{100205 + p}/MNINonLinear/{kind}.nii.gz" for p in EIGHT for kind in ("T1w_restore", "T2w_restore_brain")],
        8,
        {},
    ),
    "HCP, raw": ([f"{100205 + p}/unprocessed/3T/T1w_MPR1/{100205 + p}_3T_T1w_MPR1.nii.gz" for p in EIGHT], 8, {}),
    "IXI by kind": (
        [f"IXI-{k}/IXI{p:03}-Guys-{800 + p:04}-{k}.nii.gz" for p in EIGHT for k in ("T1", "T2")],
        8,
        {"kind": {"IXI-T1", "IXI-T2"}},
    ),
    "MIRIAD": ([f"miriad_{p + 187}_AD_M_{v:02}_MR_{r}.nii" for p in EIGHT for v in (1, 2) for r in (1, 2)], 8, {}),
    "LUMIERE": (
        [
            f"Patient-{p:03}/week-{w:03}-{v}/{k}.nii.gz"
            for p in EIGHT
            for w, v in ((0, 1), (0, 2))
            for k in ("T1", "FLAIR")
        ],
        8,
        {},
    ),
    "ISBI 2015": ([f"training{p:02}_{t:02}_flair_pp.nii" for p in range(1, 6) for t in range(1, 5)], 5, {}),
    "MSSEG-2": ([f"{p:03}/flair_time{t:02}_on_middle_space.nii.gz" for p in EIGHT for t in (1, 2)], 8, {}),
    "UPENN-GBM": ([f"UPENN-GBM-{p:05}_{v}_T1.nii.gz" for p in EIGHT for v in ((11, 21) if p < 4 else (11,))], 8, {}),
    "BraTS 2018": (
        [
            f"{g}/Brats18_{w}_1/Brats18_{w}_1_{k}.nii.gz"
            for g, ws in (("HGG", ("TCIA01_231", "2013_10", "2013_11")), ("LGG", ("CBICA_AAB", "2013_0")))
            for w in ws
            for k in ("t1", "t1ce")
        ],
        5,
        {"class": {"HGG", "LGG"}},
    ),
    "BraTS 2020": ([f"BraTS20_Training_{p:03}/BraTS20_Training_{p:03}_t1ce.nii" for p in EIGHT], 8, {}),
    "BraTS 2021": ([f"BraTS2021_{p:05}/BraTS2021_{p:05}_{k}.nii.gz" for p in EIGHT for k in ("t1", "t2")], 8, {}),
    "BraTS of Kaggle": (
        [
            f"{s}/{p:05}/{k}/Image-{i}.png"
            for s, ps in (("train", range(6)), ("test", range(6, 8)))
            for p in ps
            for k in ("FLAIR", "T1w")
            for i in (1, 2)
        ],
        8,
        {},
    ),
    "nnU-Net": ([f"imagesTr/BRATS_{p:03}_{c:04}.nii.gz" for p in EIGHT for c in range(4)], 8, {}),
    "counters": ([f"P{p:02}-{v}_{k}.png" for p in EIGHT for v in (1, 2, 3) for k in range(4)], 8, {}),
    "counters after words": ([f"{who}_{v}.nii" for who in ("ann", "ben", "cleo", "dora", "ed") for v in (1, 2)], 5, {}),
    "folders of visits": ([f"P{p:02}_V{v}/{k:03}.png" for p in EIGHT for v in (1, 2) for k in range(3)], 8, {}),
    "visits above people": (
        [f"week{w}/{p:03}/{k:03}.png" for p in EIGHT for w in (0, 1) for k in range(3)],
        8,
        {"visit": {"week0", "week1"}},
    ),
    "numbers like years": ([f"{2010 + p}/{k}.png" for p in EIGHT for k in (0, 1)], 8, {}),
    "splits with years": (
        [f"{s}2017/P{p:02}_3.png" for s, ps in (("train", range(6)), ("val", (6, 7))) for p in ps],
        8,
        {},
    ),
    "sides": ([f"P{p:02}_{side}_{k}.png" for p in EIGHT for side in "LR" for k in range(3)], 8, {}),
    "changed copies": (
        [
            f"{a}P{p:02}_{k}{e}.png"
            for p in EIGHT
            for k in (0, 1)
            for a, e in (
                ("", ""),
                ("aug_", ""),
                ("", "_flip"),
                ("", "_rot90"),
                ("", "_aug_2"),
                ("", " (1)"),
                ("", " copy"),
            )
        ],
        8,
        {},
    ),
    "capitals": ([f"{'Pp'[k]}{p:02}_{k}.png" for p in EIGHT for k in (0, 1)], 8, {}),
    "kinds first": ([f"{kind}_{p:03}.nii.gz" for p in EIGHT for kind in ("T1", "FLAIR")], 8, {}),
    "kinds between": ([f"HC_{kind}_P{p:02}_{k}.png" for p in EIGHT for kind in ("T1", "T2") for k in (3, 4)], 8, {}),
    "numbers after groups": ([f"{group}_{p:02}.nii.gz" for p in EIGHT for group in ("AD", "NC")], 16, {}),
    "numbers after sites": ([f"site{s}_{p:03}_T1.nii.gz" for p in EIGHT for s in (1, 2, 3)], 24, {}),
    "scans are people": (
        [f"{c}/scan_{p:03}.nii.gz" for p in EIGHT for c in ("AD", "NC")[p % 2 :][:1]],
        8,
        {"class": {"AD", "NC"}},
    ),
    "sites": (
        [f"{s}/{p:03}/anat/T1.nii.gz" for s in ("siteA", "siteB") for p in range(4)],
        8,
        {"site": {"siteA", "siteB"}},
    ),
    "scanners below sites": (
        [f"Amsterdam/GE3T/{p}/orig/FLAIR.nii.gz" for p in (100, 101, 102)]
        + [
            f"Utrecht/{p}/{k}.nii.gz" for p in (0, 2, 11) for k in ("orig/FLAIR", "orig/3DT1", "orig/reg_3DT1_to_FLAIR")
        ],
        6,
        {"site": {"Amsterdam", "Utrecht"}},
    ),
    "FFHQ": ([f"images1024x1024/{b:05}/{b + k:05}.png" for b in (0, 1000, 69000) for k in range(4)], 12, {}),
    "CelebA": ([f"img_align_celeba/{k:06}.jpg" for k in range(1, 20)], 19, {}),
    "CelebA-HQ": (
        [
            f"{s}/{g}/{b + o + k:06}.jpg"
            for s, b in (("train", 0), ("val", 100))
            for g, o in (("female", 0), ("male", 50))
            for k in range(5)
        ],
        20,
        {"class": {"female", "male"}},
    ),
    "ImageNet": (
        [f"ILSVRC/Data/CLS-LOC/train/{n}/{n}_{k}.JPEG" for n in ("n01440764", "n01443537") for k in range(5)]
        + [f"ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_{k:08}.JPEG" for k in range(5)],
        15,
        {"class": {"n01440764", "n01443537", ""}},
    ),
    "several sources": (
        [f"{s}/{c}/{c}_{k}.jpg" for s in ("Figshare", "SARTAJ") for c in ("glioma", "notumor") for k in range(5)],
        20,
        {"source": {"Figshare", "SARTAJ"}, "class": {"glioma", "notumor"}},
    ),
    "planes": (
        [f"{s}/{c}/P{p:02}_3.jpg" for s in ("axial", "coronal") for p in EIGHT for c in ("AD", "NC")[p % 2 :][:1]],
        8,
        {"plane": {"axial", "coronal"}, "class": {"AD", "NC"}},
    ),
    "Alzheimer's of Kaggle": (
        [
            f"{s}/{c}/{k} ({j}).jpg"
            for s in ("train", "test")
            for c in ("MildDemented", "NonDemented")
            for k in (26, 27)
            for j in range(3)
        ],
        24,
        {"class": {"MildDemented", "NonDemented"}},
    ),
}


@pytest.mark.parametrize("name", NAMES)
def test_people_and_attributes_are_read_from_the_names_that_a_cohort_has(tmp_path, name):
    names, count, attributes = NAMES[name]
    layout = lay(tmp_path, names)
    assert sorted(layout.keys) == sorted(names)
    assert len(set(layout.subjects)) == count
    assert {name: set(values) for name, values in layout.attributes.items()} == attributes


MASKS = {
    # name: images, masks beside them
    "LGG": (["TCGA_CS_{:04}/TCGA_CS_{:04}_1.tif"], ["TCGA_CS_{:04}/TCGA_CS_{:04}_1_mask.tif"]),
    "BraTS": (["b/BraTS-GLI-{:05}-000-t1c.nii.gz"], ["b/BraTS-GLI-{:05}-000-seg.nii.gz"]),
    "folders": (["images/p{:02}_0.png"], ["masks/p{:02}_0.png"]),
    "ground truth": (["Images/p{:02}_0.png"], ["GT/p{:02}_0.png", "Manual Masks/p{:02}_0.png"]),
    "annotations": (["train/images/p{:02}_0.png"], ["train/annotations/p{:02}_0.png"]),
    "decathlon": (["imagesTr/BRATS_{:03}.nii.gz"], ["labelsTr/BRATS_{:03}.nii.gz"]),
    "OASIS slices": (
        ["keras_png_slices_train/case_{:03}_slice_0.nii.png"],
        ["keras_png_slices_seg_train/seg_{:03}_slice_0.nii.png"],
    ),
    "ISIC": (
        ["ISIC2018_Task1_Training_Input/ISIC_{:07}.jpg"],
        ["ISIC2018_Task1_Training_GroundTruth/ISIC_{:07}_segmentation.png"],
    ),
    "BUSI": (["benign/benign ({}).png"], ["benign/benign ({})_mask.png", "benign/benign ({})_mask_1.png"]),
    "WMH": (["{:03}/orig/FLAIR.nii.gz"], ["{:03}/wmh.nii.gz"]),
    "ends": (["P{:02}_image.nii.gz"], ["P{:02}_label.nii.gz", "P{:02}_brainmask.nii.gz", "P{:02}_T1-roi.nii.gz"]),
    "FreeSurfer": (["b{:02}/mri/T1.mgz"], ["b{:02}/mri/aseg.mgz", "b{:02}/mri/aparc+aseg.mgz"]),
    "fMRIPrep": (
        ["sub-{:02}/anat/sub-{:02}_desc-preproc_T1w.nii.gz"],
        ["sub-{:02}/anat/sub-{:02}_desc-brain_mask.nii.gz", "sub-{:02}/anat/sub-{:02}_label-GM_probseg.nii.gz"],
    ),
    "ISLES": (["sub-{:02}/dwi/sub-{:02}_dwi.nii.gz"], ["derivatives/sub-{:02}/sub-{:02}_msk.nii.gz"]),
    "LiTS": (["volume-{}.nii"], ["segmentation-{}.nii"]),
    "a folder's name for both": (
        ["lgg-mri-segmentation/TCGA_CS_{:04}_1.tif"],
        ["lgg-mri-segmentation/TCGA_CS_{:04}_1_mask.tif"],
    ),
    "a folder's name for both kinds of folders": (
        ["seg_data/train/images/p{:02}_0.png"],
        ["seg_data/train/labels/p{:02}_0.png"],
    ),
    "CelebAMask": (["CelebA-HQ-img/{}.jpg"], ["CelebAMask-HQ-mask-anno/0/{:05}_hair.png"]),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_are_left_out_and_said_unless_they_are_asked_for(tmp_path, name):
    images, masks = ([text.format(p, p) for text in texts for p in range(8)] for texts in MASKS[name])
    layout = lay(tmp_path, images + masks)
    assert sorted(layout.keys) == sorted(images)
    ((what, reason),) = [entry for entry in layout.skipped if "masks" in entry[0]]
    assert what == f"{len(masks)} masks"
    assert "--include-masks" in reason
    assert "masks" not in str(lay(tmp_path, [], include_masks=True, layout="auto").skipped)


@pytest.mark.parametrize(
    "folders", [("with_mask", "without_mask"), ("label_0", "label_1"), ("Unmasked", "masked faces")]
)
def test_classes_that_speak_of_masks_are_classes(tmp_path, folders):
    layout = lay(tmp_path, [f"{folder}/{k:03}.png" for folder in folders for k in range(5)])
    assert set(layout.attributes["class"]) == set(folders)


def test_a_folder_of_nothing_but_masks_is_taken_and_the_report_asks(tmp_path):
    layout = lay(tmp_path, [f"masks/p{p}_0.png" for p in range(4)])
    assert len(layout.keys) == 4
    assert "masks" in layout.doubts[0]


def test_what_is_excluded_is_left_out_by_path_name_or_folder(tmp_path):
    names = [f"{folder}/p{p}_{k}.png" for folder in ("raw", "aug/deep") for p in range(3) for k in (0, 1)]
    for pattern, kept in (("aug", 6), ("aug/*", 6), ("*_1.png", 6), ("raw/p0_*", 10), ("deep", 6), ("nothing", 12)):
        layout = lay(tmp_path, names, exclude=(pattern,))
        assert len(layout.keys) == kept, pattern
        assert any(f"--exclude {pattern}" in reason for _, reason in layout.skipped) == (kept < 12)


def test_weeks_of_a_course_s_data_stay_with_their_person(tmp_path):
    data = opened(case_trees.hipmri, tmp_path)
    assert people(data) == {f"case_{p:03d}" for p in range(4, 12)}
    assert sum(len(part) for part in data.splits.values()) == 48


def test_scans_of_a_tumour_data_set_stay_with_their_person_and_one_kind_can_be_taken(tmp_path):
    data = opened(case_trees.brats, tmp_path, bids_suffix="t1c")
    assert people(data) == {f"BraTS-GLI-{p:05d}" for p in range(1, 9)}
    assert {key.rpartition("-")[2].split("_")[0] for key in every(data)} == {"t1c"}
    (doubt,) = (doubt for doubt in read_layout(tmp_path / "data").doubts if "several kinds" in doubt)
    for kind in ("t1c", "t1n", "t2f", "t2w"):
        assert f"{kind} (16)" in doubt


def test_a_counter_that_can_be_read_in_two_ways_is_asked_about_first(tmp_path):
    names = [f"P{p:02}_{v}_{k}.png" for p in range(8) for v in (1, 2) for k in (0, 1)]
    data = open_data(DataConfig(data=str(slices(tmp_path / "data", names))))
    assert people(data) == {f"P{p:02}" for p in range(8)}
    line = data.report().splitlines()[1]
    assert line.startswith("uncertain  ")
    assert line.count(".png as P0") == 3
    assert "--subject-pattern" in line
    settled = open_data(DataConfig(data=str(tmp_path / "data"), subject_pattern=r"P\d+_\d"))
    assert len(people(settled)) == 16
    assert settled.doubts == []


def test_a_few_words_in_the_place_of_people_are_asked_about(tmp_path):
    layout = lay(tmp_path, [f"{kind}.{k}.jpg" for kind in ("cat", "dog") for k in range(10)])
    assert "cat (10 images), dog (10 images)" in layout.subject_doubts[0]
    assert "--subject-pattern" in layout.subject_doubts[0]


def test_a_pattern_of_subjects_settles_whom_images_show_and_no_other_doubt(tmp_path):
    spaces = [f"P{p}_S{p}/sub-{p}_space-{s}_T1w.nii.gz" for p in range(1, 9) for s in ("MNI", "orig")]
    folder = volumes(tmp_path / "data", spaces)
    data = open_data(DataConfig(data=str(folder), subject_pattern=r"sub-\d"))
    (doubt,) = data.doubts
    assert "--bids-entity space=NAME" in doubt


def test_a_pattern_of_exclude_that_matches_nothing_is_told(tmp_path):
    folder = slices(tmp_path / "data", [f"P{p:02}_{k}.png" for p in range(12) for k in range(2)])
    data = open_data(DataConfig(data=str(folder), exclude=("*_0.png", "*.jpg")))
    assert len(every(data)) == 12
    assert [doubt.split(";")[0] for doubt in data.doubts] == ["--exclude *.jpg matches no file"]


def test_a_kind_that_no_volume_is_called_by_is_refused_with_those_that_occur(tmp_path):
    folder = volumes(tmp_path / "data", [f"P{p:02}_{kind}.nii.gz" for p in range(8) for kind in ("t1c", "t2w")])
    with pytest.raises(UserError, match=r"no volume is called \.\.\.flair: .*t1c \(8\), t2w \(8\)"):
        open_data(DataConfig(data=str(folder), bids_suffix="flair"))


@pytest.mark.parametrize("names", [["KL0", "KL1", "KL2", "KL3", "KL4"], ["BI-RADS 1", "BI-RADS 2"], ["DR0", "DR1"]])
def test_grades_of_a_disease_are_classes_and_not_people(tmp_path, names):
    folder = slices(tmp_path / "data", [f"{name}/img{k:03}.png" for name in names for k in range(12)])
    data = open_data(DataConfig(data=str(folder)))
    assert classes(data) == {"class": set(names)}
    assert len(people(data)) == 12 * len(names)


def test_a_folder_that_may_be_of_masks_is_left_out_only_beside_images_of_the_same_names(tmp_path):
    of_a_class = slices(tmp_path / "classes", [f"{c}/{c}{k:03}.png" for c in ("WMH", "healthy") for k in range(12)])
    data = open_data(DataConfig(data=str(of_a_class)))
    assert classes(data) == {"class": {"WMH", "healthy"}}
    assert any("--exclude WMH" in doubt for doubt in data.doubts)
    of_masks = slices(tmp_path / "masks", [f"{c}/P{k:03}.png" for c in ("gt", "images") for k in range(12)])
    data = open_data(DataConfig(data=str(of_masks)))
    assert {key.split("/")[0] for key in every(data)} == {"images"}
    assert data.doubts == []


@pytest.mark.parametrize("layout", ["flat", "classes", "subjects", "splits", "volumes", "auto"])
def test_every_layout_works_on_volumes(tmp_path, layout):
    volumes(tmp_path / "data", [f"train/{c}/pt{p:02}.nii.gz" for p in range(8) for c in ("AD", "NC")[p % 2 :][:1]])
    volumes(tmp_path / "data", [f"test/{c}/pt{p:02}.nii.gz" for p in (8, 9) for c in ("AD", "NC")[p % 2 :][:1]])
    if layout == "subjects":
        with pytest.raises(UserError, match="2 subjects are in more than one split"):
            open_data(DataConfig(data=str(tmp_path / "data"), layout=layout))
        return
    data = open_data(DataConfig(data=str(tmp_path / "data"), layout=layout))
    assert people(data) == {f"pt{p:02}" for p in range(10)}
    assert classes(data) == ({} if layout == "flat" else {"class": {"AD", "NC"}})


def test_visits_in_two_splits_are_split_anew_as_the_error_advises(tmp_path):
    with pytest.raises(UserError, match="--layout flat"):
        opened(case_trees.volumes_in_splits, tmp_path, layout="auto")
    assert len(people(opened(case_trees.volumes_in_splits, tmp_path))) == 10


def test_sites_above_people_are_an_attribute(tmp_path):
    data = opened(case_trees.wmh, tmp_path)
    assert people(data) == {"0", "2", "4", "6", "50", "51", "52", "100", "101", "102"}
    assert classes(data) == {"site": {"Utrecht", "Singapore", "GE3T"}}
    assert all(label == [key.split("/")[0]] for key, label in labels_of(data).items())


def test_numbers_that_several_sites_have_are_different_people(tmp_path):
    layout = lay(tmp_path, [f"{s}/{p:03}/{k}.png" for s in ("siteA", "siteB") for p in range(3) for k in (0, 1)])
    assert set(layout.subjects) == {f"{s}/{p:03}" for s in ("siteA", "siteB") for p in range(3)}


@pytest.mark.parametrize("row", ["sub-002  F\t31", "sub-002\tF\t31\t7", "sub-002"])
def test_a_row_of_a_wrong_length_is_named_and_its_labels_are_missing(tmp_path, row):
    case_trees.short_row(tmp_path)
    table = tmp_path / "participants.tsv"
    table.write_text(table.read_text().replace("sub-002  F\t31", row))
    data = open_data(DataConfig(data=str(tmp_path), size="32x32", labels="participants.tsv:sex"))
    assert data.attributes == {"sex": ("F", "M")}
    told = {key.split("/")[0]: label for key, (label,) in labels_of(data).items()}
    assert {who for who, label in told.items() if label is None} == {"sub-002"}
    assert any("line 3 ('sub-002" in note for note in data.notes)


def test_empty_cells_at_a_row_s_end_do_not_make_it_wrong(tmp_path):
    folder = slices(tmp_path, [f"p{p}_0.png" for p in range(8)])
    (folder / "t.csv").write_text("subject,sex,\n" + "".join(f"p{p},{'MF'[p % 2]},,\n" for p in range(8)))
    data = open_data(DataConfig(data=str(folder), labels="t.csv:sex"))
    assert None not in {label for (label,) in labels_of(data).values()}
    assert not any("cells" in note for note in data.notes)


@pytest.mark.parametrize("shift", [0.0, 0.35])
def test_the_background_of_a_z_scored_volume_is_black_in_every_person(tmp_path, shift):
    raw = head(3)
    inside = raw > 0
    scored = np.full_like(raw, shift)  # some write another value than 0 around the head
    scored[inside] = (raw[inside] - raw[inside].mean()) / raw[inside].std()
    found = cut(volume(tmp_path / "z.nii.gz", scored), SliceConfig(clip_high=100))
    plain = cut(volume(tmp_path / "p.nii.gz", np.where(inside, raw - raw[inside].min(), 0)), SliceConfig(clip_high=100))
    assert found.remarks == ("background",)
    assert plain.remarks == ()
    assert found.places == plain.places, "empty slices are left out of both"
    np.testing.assert_allclose(found.pixels, plain.pixels, atol=1)
    notes = opened(case_trees.z_scored, tmp_path).notes
    assert any(note.startswith("8 volumes have values below that of their background") for note in notes)


def test_volumes_whose_background_is_their_least_value_are_cut_as_ever(tmp_path):
    noise = np.random.default_rng(0).integers(0, 1000, (24, 28, 20)).astype(np.float32)
    for voxels in (head(), head() - 1, noise, noise - 500):
        found = cut(volume(tmp_path / "a.nii.gz", voxels), SliceConfig(clip_high=100, min_foreground=0))
        scaled = np.rint((voxels - voxels.min()) / np.ptp(voxels) * 255)
        np.testing.assert_allclose(found.pixels, scaled.transpose(2, 1, 0)[:, ::-1], atol=1)
        assert found.remarks == ()


def test_complex_volumes_are_read_by_their_magnitude(tmp_path):
    data = opened(case_trees.complex_valued, tmp_path)
    assert any("complex" in note and "magnitude" in note for note in data.notes)
    expected = cut(volume(tmp_path / "a.nii.gz", head(3)), SliceConfig())
    found = cut(tmp_path / "data/p03.nii.gz", SliceConfig())
    np.testing.assert_allclose(found.pixels, expected.pixels, atol=1)


def test_what_is_not_a_number_is_background(tmp_path):
    data = opened(case_trees.nan_background, tmp_path)
    share = np.mean([(head(p) == 0).mean() for p in range(8)])
    assert any(f"not finite, such as p00.nii.gz, {share:.0%} of their voxels" in note for note in data.notes)
    found = cut(tmp_path / "data/p03.nii.gz", SliceConfig())
    np.testing.assert_array_equal(found.pixels, cut(volume(tmp_path / "a.nii.gz", head(3)), SliceConfig()).pixels)
    scored = head(3)
    scored[scored > 0] -= 500
    scored[head(3) == 0] = np.inf
    assert cut(volume(tmp_path / "b.nii.gz", scored), SliceConfig()).pixels[:, 0].max() == 0


def test_compressed_colours_of_eight_bits_are_not_called_sixteen(tmp_path):
    data = opened(case_trees.lzw_tiffs, tmp_path)
    assert data.channels == 3
    assert not any("16 bits" in note for note in data.notes)


def test_tiny_imagenet_has_the_classes_of_its_folders_and_none_in_val(tmp_path):
    data = opened(case_trees.tiny_imagenet, tmp_path)
    assert data.attributes == {"class": ("n01443537", "n01629819", "n02124075")}
    told = labels_of(data)
    assert all(label == [key.split("/")[1] if key.startswith("train") else None] for key, label in told.items())
    assert len(people(data)) == 30
    assert any("6 of val" in note and "missing" in note for note in data.notes)


def test_a_diagnosis_below_several_sources_is_the_class_and_copies_are_warned_of(tmp_path):
    data = opened(case_trees.alzheimer, tmp_path)
    assert list(data.attributes) == ["source", "class"]
    assert len(data.attributes["class"]) == 4
    assert all(label == key.split("/")[:2] for key, label in labels_of(data).items())
    assert "24 images look like augmented copies" in data.report().splitlines()[1]
    assert "--exclude 'AugmentedAlzheimerDataset'" in data.doubts[0]
    originals = open_data(DataConfig(data=data.name, exclude=("AugmentedAlzheimerDataset",)))
    assert sum(len(part) for part in originals.splits.values()) == 24
    assert originals.doubts == []


def test_folders_of_long_numbers_are_people(tmp_path):
    data = opened(case_trees.hcp, tmp_path)
    assert people(data) == {"100206", "100307", "100408", "100610", "101006", "101107", "101309", "101410"}
    assert data.attributes == {}


def test_one_space_is_taken_of_derivatives_and_another_by_its_name(tmp_path):
    data = opened(case_trees.derivatives, tmp_path)
    assert not any("space-" in key for key in every(data))
    assert "--bids-entity space=" in data.report().splitlines()[1]
    chosen = opened(case_trees.derivatives, tmp_path, bids_entity=("space=MNI152NLin2009cAsym",))
    assert all("space-MNI" in key for key in every(chosen))
    assert chosen.doubts == []
    assert len(people(chosen)) == 8
    with pytest.raises(UserError, match=r"no volume has space-T1.*MNI152NLin2009cAsym"):
        opened(case_trees.derivatives, tmp_path, bids_entity=("space=T1",))
    with pytest.raises(UserError, match="is not an entity"):
        DataConfig(bids_entity=("MNI",))


def test_single_slices_as_nifti_are_images(tmp_path):
    data = opened(case_trees.flat_niftis, tmp_path)
    assert people(data) == {f"case_{p:03d}" for p in range(4, 12)}
    pixels = every(data)
    assert len(pixels) == 16
    raw = np.asarray(nib.load(tmp_path / "data/keras_slices_train/case_005_week_1_slice_0.nii.gz").dataobj)
    expected = np.clip((raw - raw.min()) / (np.percentile(raw, 99.5) - raw.min()), 0, 1)[:, ::-1].T
    np.testing.assert_allclose(pixels["keras_slices_train/case_005_week_1_slice_0"][0], np.rint(expected * 255), atol=1)
    sagittal = nib.Nifti1Image(raw[..., None], np.array([[0, 0, 2, 0], [2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 1.0]]))
    nib.save(sagittal, tmp_path / "s.nii")
    assert cut(tmp_path / "s.nii", SliceConfig(slice_range="90%:100%")).pixels.shape == (1, 32, 64)


def test_labels_of_visits_are_joined_by_person_and_visit(tmp_path):
    told = labels_of(opened(case_trees.sessions, tmp_path))
    for key, (sex, diagnosis) in told.items():
        person = int(key[4:6])
        assert sex == "MF"[person % 2]
        assert diagnosis == ("AD" if person % 2 == 0 and "ses-02" in key else "MCI")
    for labels in ("sub-*/sub-*_sessions.tsv:diagnosis", "sessions.tsv:diagnosis"):
        other = labels_of(open_data(DataConfig(data=str(tmp_path / "data"), size="32x32", labels=labels)))
        assert {key: [label] for key, (_, label) in told.items()} == other


@pytest.mark.parametrize(
    ("name", "head_row", "rows"),
    [
        ("sub-{0:02}_ses-{1:02}_T1w.nii.gz", "participant_id,session_id,diagnosis", "sub-{0:02},ses-{1:02},{2}"),
        ("{0:03}_S_0295_m{1:02}.nii.gz", "PTID,VISCODE,DX", "{0:03}_S_0295,m{1:02},{2}"),
        ("OAS2_{0:04}_MR{1}.nii.gz", "Subject ID,MRI ID,Visit,Group", "OAS2_{0:04},OAS2_{0:04}_MR{1},{1},{2}"),
        ("OAS2_{0:04}_MR{1}.nii.gz", "MRI ID,Group", "OAS2_{0:04}_MR{1},{2}"),
        ("P{0:02}_V{1}.nii.gz", "patient;visit;group", "P{0:02};{1};{2}"),
        ("P{0:02}_week_{1}.nii.gz", "patient\tWeek\tgroup", "P{0:02}\t{1}\t{2}"),
    ],
)
def test_tables_of_visits_are_joined_as_cohorts_write_them(tmp_path, name, head_row, rows):
    visits = [(p, v, "AD" if v == 2 and p % 2 else "NC") for p in range(1, 9) for v in (1, 2)]
    volumes(tmp_path / "data", [name.format(*visit) for visit in visits])
    (tmp_path / "data/t.csv").write_text("\n".join([head_row, *(rows.format(*visit) for visit in visits)]) + "\n")
    column = head_row.replace(";", ",").replace("\t", ",").split(",")[-1]
    data = open_data(DataConfig(data=str(tmp_path / "data"), size="32x32", labels=f"t.csv:{column}"))
    expected = {name.format(*visit).removesuffix(".nii.gz"): visit[2] for visit in visits}
    assert {key.rpartition("_k")[0]: label for key, (label,) in labels_of(data).items()} == expected
    assert len(people(data)) == 8
    assert any("labels of their visit" in note for note in data.notes)


@pytest.mark.parametrize("column", ["SEX_ID (1=m, 2=f)", '"SEX_ID (1=m, 2=f)"', "2", "AGE,SEX_ID (1=m, 2=f)"])
def test_ixi_s_table_is_joined_by_number_and_its_columns_may_hold_commas(tmp_path, column):
    data = opened(case_trees.ixi, tmp_path, labels=f"IXI.csv:{column}")
    told = {int(key[3:6]): labels[-1] for key, labels in labels_of(data).items()}
    assert told == {n: str(n % 2 + 1) for n in (2, 12, 13, 14, 15, 16, 17, 19)}
    assert any("such as 2 for IXI002" in note for note in data.notes)


@pytest.mark.parametrize(
    ("ids", "subjects", "found"),
    [
        (["1", "002", "3"], ["sub-001", "sub-002", "sub-003"], ["sub-001", "sub-002", "sub-003"]),
        (["P01", "P2"], ["p01", "p02"], ["p01", "p02"]),
        (["p_01", "HC 2"], ["P1", "hc02"], ["P1", "hc02"]),
        (["12", "1002"], ["IXI012-HH-1211", "IXI1002-HH-1213"], ["IXI012-HH-1211", "IXI1002-HH-1213"]),
        (["295", "413"], ["002_S_0295", "002_S_0413"], ["002_S_0295", "002_S_0413"]),
        (["51456", "50952"], ["0051456", "0050952"], ["0051456", "0050952"]),
        (["OAS1_0001_MR1"], ["OAS1_0001"], ["OAS1_0001"]),
        (["1", "2"], ["P1_2", "P2_1"], [None, None]),  # 1 may be the first or the second number
        (["1", "01"], ["sub-001", "sub-002"], [None, None]),  # two rows for one person
        (["a1"], ["A1", "A01"], [None]),
        (["1.0", "12.0"], ["sub-001", "IXI012-HH-1211"], ["sub-001", "IXI012-HH-1211"]),
        (["anna"], ["ben"], [None]),
    ],
)
def test_ids_are_joined_as_numbers_and_without_case_where_that_is_unambiguous(ids, subjects, found):
    assert [join(ids, subjects)[0].get(name) for name in ids] == found


def test_partly_matching_ids_are_all_found_and_it_is_said(tmp_path):
    data = opened(case_trees.partly_matching, tmp_path)
    assert {key[4:7]: label for key, (label,) in labels_of(data).items()} == {
        f"{p:03d}": "MF"[p // 4 % 2] for p in range(1, 9)
    }
    assert any("4 matched by number or ignoring case, such as 1 for sub-001" in note for note in data.notes)


@pytest.mark.parametrize("suffix", [".png", ".nii.gz", ".dcm"])
def test_pointers_of_git_lfs_say_what_to_run(tmp_path, suffix):
    for p in range(3):
        (tmp_path / f"p{p}_0{suffix}").write_text(case_trees.POINTER)
    with pytest.raises(UserError, match="git lfs pull"):
        open_data(DataConfig(data=str(tmp_path)))


def test_links_of_git_annex_and_tables_that_are_pointers_say_what_to_run(tmp_path):
    for p in range(3):
        (tmp_path / f"sub-{p}_T1w.nii.gz").symlink_to(f".git/annex/objects/x/MD5E-{p}.nii.gz")
    with pytest.raises(UserError, match="datalad get"):
        open_data(DataConfig(data=str(tmp_path)))
    folder = slices(tmp_path / "p", [f"p{p}_0.png" for p in range(4)])
    (folder / "t.csv").write_text(case_trees.POINTER)
    with pytest.raises(UserError, match="git lfs pull"):
        open_data(DataConfig(data=str(folder), labels="t.csv:sex"))


def test_a_table_of_files_finds_the_slices_of_each_volume(tmp_path):
    volumes(tmp_path / "data", [f"{'ab'[p % 2]}/p{p}.nii.gz" for p in range(8)])
    rows = "".join(f"/home/me/{'ab'[p % 2]}/p{p}.nii.gz,{'MF'[p // 2 % 2]}\n" for p in range(8))
    (tmp_path / "data/t.csv").write_text(f"filename,sex\n{rows}")
    data = open_data(DataConfig(data=str(tmp_path / "data"), size="32x32", labels="t.csv:sex"))
    assert all(labels[-1] == "MF"[int(key[3]) // 2 % 2] for key, labels in labels_of(data).items())


def test_of_several_makings_of_a_volume_one_is_taken_and_said(tmp_path):
    ends = ["T1w", "desc-preproc_T1w", "rec-norm_T1w", "part-phase_T1w", "space-MNI_res-1_T1w", "space-MNI_res-2_T1w"]
    layout = lay(tmp_path, [f"sub-{p:02}/anat/sub-{p:02}_{end}.nii.gz" for p in range(4) for end in ends])
    assert {key.split("/")[-1][7:] for key in layout.keys} == {"T1w.nii.gz"}
    assert [doubt.split(":")[0] for doubt in layout.doubts] == [
        f"volumes differ in {name}" for name in ("space", "desc", "rec", "part")
    ]
    one = read_layout(tmp_path, Choice(entities=(("space", "MNI"), ("res", "2"))))
    assert {key.split("/")[-1][7:] for key in one.keys} == {"space-MNI_res-2_T1w.nii.gz"}


def test_a_run_refuses_data_whose_people_are_called_otherwise_now(tmp_path):
    data = opened(case_trees.mask_folders, tmp_path)
    write_data_report(data, tmp_path / "report")
    check_subjects(data, tmp_path / "report")
    (tmp_path / "report/subjects.csv").write_text(
        "subject,split,images\n" + "".join(f"p{p:02}_week_0,train,2\n" for p in range(10))
    )
    with pytest.raises(UserError, match="cannot be told"):
        check_subjects(data, tmp_path / "report")


def test_the_report_lists_every_image_with_its_split_person_labels_and_copies(tmp_path):
    folder = slices(tmp_path / "d", [f"p{p}_{i}.png" for p in range(9) for i in range(2)])
    save(folder / "p0_2.png", np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8))  # p0_0.png again
    save(folder / "p1_2.png", np.zeros((80, 64), np.uint8))
    (folder / "p2_2.png").write_bytes(b"no picture")
    (folder / "t.csv").write_text("subject,sex,note\n" + "".join(f"p{p},{'MF'[p % 2]},\n" for p in range(8)))
    data = open_data(DataConfig(data=str(folder), size="64x64", labels="t.csv:sex"))
    write_data_report(data, tmp_path / "report")
    with open(tmp_path / "report/images.csv", newline="") as file:
        rows = {row["image"]: row for row in csv.DictReader(file)}
    splits = {key: name for name, images in data.splits.items() for key in images.keys}
    assert {key: row["split"] for key, row in rows.items()} == {**splits, "p2_2.png": ""}
    assert {(key[1], row["sex"]) for key, row in rows.items() if row["split"]} == {
        (str(p), "" if p == 8 else "MF"[p % 2]) for p in range(9)
    }
    assert all(row["subject"] == key[:2] for key, row in rows.items() if row["split"])
    assert rows["p0_0.png"]["digest"] == rows["p0_2.png"]["digest"] != rows["p0_1.png"]["digest"]
    assert [rows["p1_2.png"][name] for name in ("height", "width", "digest")] == ["80", "64", ""]  # of one value
    assert rows["p2_2.png"]["skipped"]
    assert not any(row["skipped"] for row in rows.values() if row["split"])


def test_words_that_say_nothing_are_missing_labels(tmp_path):
    data = opened(case_trees.meaningless, tmp_path)
    assert data.attributes == {"group": ("AD", "NC")}
    told = {int(key[1:3]): label for key, (label,) in labels_of(data).items()}
    assert [told[p] for p in range(10)] == ["AD", "NC", *[None] * 6, "AD", "NC"]
    assert any("group: treated as missing" in note and "-9 (1)" in note for note in data.notes)


@pytest.mark.parametrize(
    ("cells", "missing"),
    [
        (["-9", "3", "5", "999"], {"-9"}),
        (["-9", "-8", "5", "6"], set()),  # a scale that goes below zero
        (["N.A.", "unk", "UNKNOWN", "--", "#REF!", "<NA>", "M"], {"N.A.", "unk", "UNKNOWN", "--", "#REF!", "<NA>"}),
        (["no", "normal", "0", "negative"], set()),
    ],
)
def test_only_what_says_nothing_is_missing(tmp_path, cells, missing):
    folder = slices(tmp_path, [f"p{p}_0.png" for p in range(len(cells))])
    (folder / "t.csv").write_text("subject,x\n" + "".join(f"p{p},{cell}\n" for p, cell in enumerate(cells)))
    told = labels_of(open_data(DataConfig(data=str(folder), labels="t.csv:x")))
    assert {cells[int(key[1])] for key, (label,) in told.items() if label is None} == missing


@pytest.mark.parametrize(
    ("cells", "asked"),
    [
        (["0", "1", "1", "-4"], "-4"),  # ADNI
        (["CN", "AD", "MCI", "-4"], "-4"),
        (["-4", "-1", "20", "30"], "-4 (1 images), -1 (1 images)"),
        (["1", "2", "9", "2"], "9"),  # NACC: unknown
        (["0", "1", "88", "99"], "88 (1 images), 99 (1 images)"),
        (["0", "30", "29", "999.0"], "999.0"),
        (["F", "M", "9", "M"], "9"),
        (["-1", "0", "1", "0"], ""),  # worse, the same, better
        (["-1", "1", "-1", "1"], ""),  # CelebA's attributes
        (["-2", "-1", "-0.5", "0.3", "-0.1", "2.5"], ""),
        (["-0.3", "0.5", "1.5", "2.5"], ""),
        (["8", "9", "7", "6"], ""),
        (["78", "99", "63", "80"], ""),  # ages
        (["F", "M", "3", "9"], ""),
    ],
)
def test_what_may_stand_for_missing_is_asked(tmp_path, cells, asked):
    folder = slices(tmp_path, [f"p{p}_0.png" for p in range(len(cells))])
    (folder / "t.csv").write_text("subject,x\n" + "".join(f"p{p},{cell}\n" for p, cell in enumerate(cells)))
    doubts = open_data(DataConfig(data=str(folder), labels="t.csv:x")).doubts
    if not asked:
        assert not any("missing" in doubt for doubt in doubts)
        return
    (doubt,) = [doubt for doubt in doubts if "missing" in doubt]
    assert doubt.startswith(f"x: {asked if ' ' in asked else f'{asked} (1 images)'} may stand for a missing value")
    flags = tuple(doubt.rpartition("--missing ")[2].removesuffix(" reads it so").split())
    settled = open_data(DataConfig(data=str(folder), labels="t.csv:x", missing=flags))
    told = {key: label for key, (label,) in labels_of(settled).items()}
    assert [cells[p] for p in range(len(cells)) if told[f"p{p}_0.png"] is None] == [c for c in cells if c in flags]
    assert not any("missing value" in doubt for doubt in settled.doubts)


def test_numbers_are_missing_however_they_are_written(tmp_path):
    folder = slices(tmp_path, [f"p{p}_0.png" for p in range(6)])
    (folder / "t.csv").write_text("subject,age\np0,999.0\np1,999\np2,X\np3,51\np4,60\np5,x\n")
    data = open_data(DataConfig(data=str(folder), labels="t.csv:age", missing=("999", "X")))
    assert [label for _, (label,) in sorted(labels_of(data).items())] == [None, None, None, "51", "60", "x"]


def test_people_may_be_called_as_what_stands_for_missing(tmp_path):
    folder = slices(tmp_path, [f"{p}_{k}.png" for p in range(1, 10) for k in range(2)])
    rows = "".join(f"{p},{(1, 2, 9)[p % 3]}\n" for p in range(1, 10))
    (folder / "t.csv").write_text(f"subject,sex\n{rows}")
    data = open_data(DataConfig(data=str(folder), labels="t.csv:sex", missing=("9",)))
    told = {key.split("_")[0]: label for key, (label,) in labels_of(data).items()}
    assert told == {str(p): (None if p % 3 == 2 else str(p % 3 + 1)) for p in range(1, 10)}


def test_a_class_that_no_training_image_has_is_told(tmp_path):
    names = [f"{part}/{kind}/{kind}{part[0]}{p}_0.png" for part in ("train", "val") for kind in "ab" for p in range(3)]
    folder = slices(tmp_path, [*names, "val/c/c9_0.png"])
    notes = open_data(DataConfig(data=str(folder))).notes
    assert "class: no training image is of class c; models learn nothing of it" in notes
    (folder / "val/c/c9_0.png").unlink()
    assert not any("no training image" in note for note in open_data(DataConfig(data=str(folder))).notes)


def test_a_class_folder_called_unknown_is_a_class(tmp_path):
    names = [f"{group}/p{p}_{k}.png" for p in range(8) for group in ("None", "unknown")[p % 2 :][:1] for k in (0, 1)]
    data = open_data(DataConfig(data=str(slices(tmp_path, names))))
    assert data.attributes == {"class": ("None", "unknown")}


def test_what_is_transparent_is_black(tmp_path):
    for key, image in every(opened(case_trees.transparent, tmp_path)).items():
        expected = np.zeros((64, 64))
        expected[16:48, 16:48] = 50 + int(key[1:3])
        np.testing.assert_array_equal(image[0], expected)


def test_a_text_file_of_paths_is_read(tmp_path):
    data = opened(case_trees.listed, tmp_path)
    assert people(data) == {f"p{p:02d}" for p in range(8)}
    slices(tmp_path / "far", ["q1_0.png", "q1_1.png"])
    lines = ["# of two places", str(tmp_path / "far"), "here/p03_0.png", "gone.png", ""]
    (tmp_path / "data/list.txt").write_text("\r\n".join(lines))
    data = open_data(DataConfig(data=str(tmp_path / "data/list.txt")))
    assert set(every(data)) == {"far/q1_0.png", "far/q1_1.png", "data/here/p03_0.png"}
    assert ("gone.png", "named in the list, but not there") in data.skipped
    (tmp_path / "data/list.txt").write_text("gone.png\n")
    with pytest.raises(UserError, match=r"no file in the list exists, such as gone\.png"):
        open_data(DataConfig(data=str(tmp_path / "data/list.txt")))


@pytest.mark.parametrize("name", ["slices.zip", "OASIS.tar.gz", "a.7z", "b.tgz"])
def test_archives_are_to_be_unpacked(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK")
    for data in (tmp_path / name, tmp_path):
        with pytest.raises(UserError, match=r"[Uu]npack"):
            open_data(DataConfig(data=str(data)))


def test_blocks_of_one_numbering_are_no_people(tmp_path):
    data = opened(case_trees.ffhq, tmp_path)
    assert len(people(data)) == 24


def test_dicom_series_are_volumes_whose_patients_are_not_written_out(tmp_path):
    pytest.importorskip("SimpleITK")
    folder = tmp_path / "data"
    voxels = {p: head(p).astype(np.int16) for p in range(6)}
    for p, values in voxels.items():
        case_trees.dicom_series(folder / f"scan{p}", f"H{p // 2}", values, "" if p % 2 else ".dcm", 2, -1000)
    data = open_data(DataConfig(data=str(folder), clip_high=100))
    assert len(people(data)) == 3, "two scans of each of three patients"
    text = data.report() + str([part.subjects for part in data.splits.values()]) + str(list(every(data)))
    assert not any(f"H{p}" in text for p in range(3))
    assert "NAME" not in text
    for p, values in voxels.items():
        path = volume(tmp_path / f"{p}.nii.gz", values * 2.0 - 1000, np.diag([-2.0, -2, 2, 1]))  # LPS as RAS
        expected = cut(path, SliceConfig(clip_high=100))
        for place, pixels in zip(expected.places, expected.pixels, strict=True):
            np.testing.assert_array_equal(every(data)[f"scan{p}/S004_k{place:03d}"][0], pixels)


def test_dicom_series_in_a_folder_whose_name_is_no_utf_8_are_told_in_a_line(tmp_path):
    pytest.importorskip("SimpleITK")
    for p in range(8):
        name = b"/M\xfcller%d" if p < 2 else b"/P%d"
        folder = Path(os.fsdecode(os.fsencode(tmp_path) + name % p))
        case_trees.dicom_series(folder, f"H{p}", head(p).astype(np.int16))
    data = open_data(DataConfig(data=str(tmp_path), size="32x32"))
    "".join(every(data)).encode()
    data.report().encode()
    told = [reason for key, reason in data.skipped if key.startswith("M\\udcfcller")]
    assert told == ["SimpleITK reads no path that is not UTF-8; rename the folder or the file"] * 2


def test_labels_of_dicom_patients_are_found_by_the_number_in_the_header(tmp_path):
    pytest.importorskip("SimpleITK")
    for p in range(4):
        case_trees.dicom_series(tmp_path / f"scan{p}", f"H{p}", head(p).astype(np.int16))
    (tmp_path / "t.csv").write_text("PatientID,sex\n" + "".join(f"H{p},{'MF'[p % 2]}\n" for p in range(4)))
    data = open_data(DataConfig(data=str(tmp_path), size="32x32", labels="t.csv:sex"))
    assert {key[4]: label for key, (label,) in labels_of(data).items()} == {"0": "M", "1": "F", "2": "M", "3": "F"}


def test_dicom_files_that_are_no_volume_are_told(tmp_path):
    pytest.importorskip("SimpleITK")
    pydicom = pytest.importorskip("pydicom")
    for p in range(4):
        case_trees.dicom_series(tmp_path / f"scan{p}", f"H{p}", head(p).astype(np.int16))
    for place in sorted((tmp_path / "scan0").iterdir())[:3]:  # a slice twice
        image = pydicom.dcmread(place)
        image.ImagePositionPatient = [0, 0, 0]
        image.save_as(place)
    scout = sorted((tmp_path / "scan1").iterdir())[0]
    image = pydicom.dcmread(scout)
    image.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
    image.save_as(scout)
    (tmp_path / "broken.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"x")
    told = dict(open_data(DataConfig(data=str(tmp_path), size="32x32")).skipped)
    assert "one place" in told["scan0/S004"]
    assert "differ in direction" in told["scan1/S004"]
    assert "broken.dcm" in told


def test_copies_and_bad_values_of_dicom_files_change_nothing_and_missing_slices_are_told(tmp_path):
    pytest.importorskip("SimpleITK")
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataelem import RawDataElement

    for p in range(5):
        case_trees.dicom_series(tmp_path / f"scan{p}", f"H{p}", head(p).astype(np.int16))
    first = sorted((tmp_path / "scan0").iterdir())[0]
    shutil.copy(first, first.with_name("copy of one.dcm"))
    heights = {float(pydicom.dcmread(path).ImagePositionPatient[2]): path for path in (tmp_path / "scan1").iterdir()}
    heights[4.0].unlink()
    bad = (
        (2, "SeriesNumber", "IS", b"abc "),
        (3, "ImagePositionPatient", "DS", b"1,5\\0\\2 "),
        (4, "ImagePositionPatient", "DS", b"1\\2 "),
    )
    for p, name, kind, value in bad:
        for path in (tmp_path / f"scan{p}").iterdir():
            image = pydicom.dcmread(path)
            image[name] = RawDataElement(image[name].tag, kind, len(value), value, 0, False, True)
            image.save_as(path)
    data = open_data(DataConfig(data=str(tmp_path), size="32x32"))
    assert data.skipped == []
    assert any("1 DICOM series are missing or unevenly spaced, such as scan1" in doubt for doubt in data.doubts)
    slices_of = Counter(key.split("/")[0] for images in data.splits.values() for key in images.keys)
    assert set(slices_of) == {f"scan{p}" for p in range(5)}
    assert slices_of["scan0"] == slices_of["scan2"] == slices_of["scan3"]


def test_each_file_of_a_dicom_series_has_a_slope_of_its_own(tmp_path):
    pytest.importorskip("SimpleITK")
    pydicom = pytest.importorskip("pydicom")
    case_trees.dicom_series(tmp_path / "scan", "H", np.full((8, 8, 3), 1000, np.int16))
    files = sorted((tmp_path / "scan").iterdir(), key=lambda path: int(pydicom.dcmread(path).InstanceNumber))
    for path, slope in zip(files, ("1", "0.5", "0.0005"), strict=True):
        image = pydicom.dcmread(path)
        image.RescaleSlope = slope
        image.save_as(path)
    voxels = read_canonical(tuple(files)).voxels
    assert sorted(voxels.mean((0, 1)).tolist()) == pytest.approx([0.5, 500, 1000])


@pytest.mark.parametrize("suffix", ["mha", "mhd", "nrrd", "mgz", "img", "nii"])
def test_formats_of_volumes_hold_the_same_slices(tmp_path, suffix):
    voxels, affine = head(5), np.diag([-2.0, -2, 2, 1])
    folder = tmp_path / "data"
    folder.mkdir()
    if suffix in ("mha", "mhd", "nrrd"):
        itk = pytest.importorskip("SimpleITK")
        image = itk.GetImageFromArray(voxels.T.copy())
        image.SetSpacing((2, 2, 2))
        itk.WriteImage(image, str(folder / f"a.{suffix}"))
    elif suffix == "img":
        nib.save(nib.Spm99AnalyzeImage(voxels, affine), folder / "a.img")
    else:
        volume(folder / f"a.{suffix}", voxels, affine)
    found = cut(folder / f"a.{suffix}", SliceConfig())
    expected = cut(volume(tmp_path / "b.nii.gz", voxels, affine), SliceConfig())
    np.testing.assert_array_equal(found.pixels, expected.pixels)
    assert found.spacing == expected.spacing == (2, 2)
    assert ("unoriented" in found.remarks) == (suffix == "img")
    assert len(read_layout(folder).keys) == 1


@pytest.mark.parametrize("suffix", ["jfif", "jpe", "avif", "jp2", "pgm"])
def test_newer_formats_of_pictures_are_read(tmp_path, suffix):
    smooth = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)
    kind = {"jfif": "JPEG", "jpe": "JPEG", "avif": "AVIF", "jp2": "JPEG2000", "pgm": "PPM"}[suffix]
    for p in range(8):
        save(tmp_path / f"p{p}_0.{suffix}", smooth + np.uint8(p), format=kind)
    images = every(open_data(DataConfig(data=str(tmp_path))))
    assert len(images) == 8
    for key, image in images.items():
        assert np.abs(image[0].astype(int) - smooth - int(key[1])).max() <= 8


@pytest.mark.parametrize("name", ["unmasked", "p1_T1_masked_gfc", "T1w", "image_3", "segovia_1"])
def test_names_that_only_resemble_those_of_masks_are_images(name):
    assert not is_mask(name)


def table_of(folder: Path, head: str, row: str) -> None:
    """Sixteen images and a table with a row for each person."""
    rng = np.random.default_rng(0)
    for p in range(16):
        save(folder / f"P{p:02}.png", rng.integers(0, 255, (16, 16), dtype=np.uint8))
    rows = [row.format(p=p, sex=("M", "F", "m", "f")[p % 4]) for p in range(16)]
    (folder / "t.csv").write_text("\n".join([head, *rows]) + "\n")


def test_a_column_that_a_table_has_twice_is_refused(tmp_path):
    table_of(tmp_path, "ID,sex,age,sex", "P{p:02},{sex},{p},x")
    with pytest.raises(UserError, match="two columns are called sex"):
        open_data(DataConfig(data=str(tmp_path), labels="t.csv:sex"))
    assert len(open_data(DataConfig(data=str(tmp_path), labels="t.csv:age")).attributes["age"]) == 16


@pytest.mark.parametrize(("row", "told"), [("{sex}", "sex: F, f are"), ("{sex}ale", "sex: Fale, fale are")])
def test_classes_that_differ_by_capital_letters_alone_are_asked_about(tmp_path, row, told):
    table_of(tmp_path, "ID,sex", "P{p:02}," + row)
    (doubt,) = open_data(DataConfig(data=str(tmp_path), labels="t.csv:sex")).doubts
    assert told in doubt


def test_abbreviations_beside_their_words_are_asked_about(tmp_path):
    table_of(tmp_path, "ID,sex", "P{p:02},{sex}")
    text = (tmp_path / "t.csv").read_text().replace(",m", ",Male").replace(",f", ",F")
    (tmp_path / "t.csv").write_text(text)
    (doubt,) = open_data(DataConfig(data=str(tmp_path), labels="t.csv:sex")).doubts
    assert "sex: M, Male are read as different classes" in doubt


@pytest.mark.parametrize("numbers", ["age", ("age",)])
def test_ages_of_dicom_are_years(tmp_path, numbers):
    table_of(tmp_path, "ID,age", "P{p:02},0{p:02}Y")
    classes = open_data(DataConfig(data=str(tmp_path), labels="t.csv:age", numbers=numbers)).attributes["age"]
    assert float(classes[0]) >= 0
    assert float(classes[-1]) <= 15
    assert len(classes) > 16


def test_rows_of_adni_s_search_are_found_by_the_image_s_identifier(tmp_path):
    rows = ["Image Data ID,Subject,Group,Visit,Age"]
    for p in range(8):
        for visit, group in enumerate(("MCI", "MCI" if p % 2 else "AD")):
            image = f"I{1000 + 10 * p + visit}"
            name = f"ADNI_{p:03}_S_{1000 + p}_MR_MPRAGE_br_raw_2007_S{p}_{image}.nii"
            volume(
                tmp_path / "data" / f"{p:03}_S_{1000 + p}" / "MPRAGE" / image / name, head(p), np.diag([8.0, 8, 8, 1])
            )
            rows.append(f"{image},{p:03}_S_{1000 + p},{group},{('sc', 'm12')[visit]},{70 + visit}")
    (tmp_path / "search.csv").write_text("\n".join(rows) + "\n")
    data = open_data(
        DataConfig(data=str(tmp_path / "data"), size="16x16", labels=f"{tmp_path}/search.csv:Group,Age", bins="Age=71")
    )
    assert len(people(data)) == 8
    told = {
        key.split("_k")[0].rsplit("_", 1)[-1]: labels
        for part in data.splits.values()
        for key, labels in zip(part.keys, part.labels.tolist(), strict=True)
    }
    assert told == {
        f"I{1000 + 10 * p + visit}": [int(p % 2 == 1 or visit == 0), visit] for p in range(8) for visit in (0, 1)
    }


def test_a_table_of_image_ids_that_no_file_has_is_told_so(tmp_path):
    table_of(tmp_path, "image_id,sex", "I{p}000,{sex}")
    with pytest.raises(UserError, match="no row of the table names an image"):
        open_data(DataConfig(data=str(tmp_path), labels="t.csv:sex"))


def test_images_of_few_low_values_are_asked_about(tmp_path):
    rng = np.random.default_rng(0)
    for p in range(8):
        save(tmp_path / f"P{p:02}.png", rng.integers(0, 4, (16, 16), dtype=np.uint8))
    assert any("may be label maps, such as P0" in doubt for doubt in open_data(DataConfig(data=str(tmp_path))).doubts)


def test_sixteen_bits_that_hold_eight_use_the_whole_range(tmp_path):
    rng = np.random.default_rng(0)
    for p in range(8):
        save(tmp_path / f"P{p:02}.png", rng.integers(0, 256, (16, 16), dtype=np.uint16))
    assert open_data(DataConfig(data=str(tmp_path))).value_range == (0, 255)
