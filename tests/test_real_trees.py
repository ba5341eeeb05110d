"""Trees of public data sets that can be misread: what is certain is read so, what is not is said with a flag."""

import re

import pytest
from case_trees import lay, slices

from vqvae2.data import DataConfig, mask_rules, open_data, rules
from vqvae2.data.selection import Layout
from vqvae2.data.splits import assign, overlap
from vqvae2.data.subjects import copy_of, guess_subjects
from vqvae2.errors import UserError


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
        (2, [f"XR_{b}/patient{p:05}/study1_positive/image1.png" for b in ("ELBOW", "HAND") for p in (11184, 11890)]),
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


LISTED = {
    # name: files, of how many people, which classes, what is asked
    "Caltech-256": (
        [
            f"256/{c:03}.{n}/{c:03}_{k:04}.jpg"
            for c, n in enumerate(("ak47", "american-flag", "backpack"), 1)
            for k in P
        ],
        24,
        3,
        "--layout subjects",
    ),
    "CUB-200": (
        [
            f"images/{c:03}.{n}_Gull/{n}_Gull_{k:04}_{9 * c + k}.jpg"
            for c, n in ((59, "California"), (60, "Ivory"))
            for k in P
        ],
        16,
        2,
        "--layout subjects",
    ),
    "people in a list of classes": (
        [f"0{c}.{n}/P{c}{p}_{k}.png" for c, n in ((1, "AD"), (2, "CN")) for p in P for k in P],
        16,
        2,
        "--layout subjects",
    ),
    "people called by number and name": (
        [f"{p:03}.{n}/{k}.png" for p, n in ((17, "Smith"), (31, "Wu"), (57, "Roy")) for k in P],
        3,
        0,
        "",
    ),
    "people in a list": (
        [f"{p:02}.{n}/{k}.png" for p, n in enumerate(("Smith", "Wu", "Roy"), 1) for k in P],
        3,
        0,
        "",
    ),
    "LiTS": ([f"volume_pt{b}/volume-{10 * b + k}.nii" for b in (1, 2, 3) for k in P], 24, 0, "--layout subjects"),
    "people called pt": ([f"brain_pt{b}/volume-{k}.nii" for b in (1, 2, 3) for k in P], 3, 0, ""),
    "GlaS": ([f"{split}_{k}.bmp" for split in ("train", "testA", "testB") for k in P], 24, 0, ""),
    "people in a split's name": ([f"train_{p:03}_{k}.png" for p in P for k in P], 8, 0, ""),
    "MIAS": ([f"mdb{k:03}.pgm" for k in range(1, 13)], 6, 0, "--subject-pattern 'mdb[0-9]+'"),
    "MIAS, sides": ([f"mdb{k:03}{'lr'[k % 2]}{'sm'[k % 2]}.pgm" for k in range(1, 13)], 6, 0, "--subject-pattern"),
    "celebrities": (
        [f"{n}/{k:03}.jpg" for n in ("aaron_paul", "brad_pitt", "tom_hanks", "zac_efron", "emma_stone") for k in P],
        40,
        5,
        "--layout subjects",
    ),
    "dishes": (
        [
            f"{n}/{k:03}.jpg"
            for n in ("apple_pie", "baby_back_ribs", "pad_thai", "pulled_pork_sandwich", "tacos")
            for k in P
        ],
        40,
        5,
        "",
    ),
}


@pytest.mark.parametrize("name", LISTED)
def test_folders_and_names_of_a_list_are_classes_or_parts_and_nobody_is_torn(tmp_path, name):
    names, people, classes, asked = LISTED[name]
    layout = lay(tmp_path, names)
    assert sorted(layout.keys) == sorted(names)
    assert len(set(layout.subjects)) == people
    assert len(set(layout.attributes.get("class", ()))) == classes
    assert asked in doubts(layout) if asked else doubts(layout) == ""
    if "--layout subjects" in asked:
        folders = {name.split("/")[-2] for name in names}
        assert len(set(lay(tmp_path, [], layout="subjects").subjects)) == len(folders)


BESIDE = {
    # name: images, what lies beside them
    "findings": (["P{p:02}_{k}.png"], [f"P{{p:02}}_{{k}}_{word}.png" for word in ("lesion", "tumour", "manual1")]),
    "several findings": (["P{p:02}_{k}.png"], ["P{p:02}_{k}_lesion_1.png", "P{p:02}_{k}_lesion_2.png"]),
    "two words": (["P{p:02}_{k}.png"], ["P{p:02}_{k}_whole_tumor.png", "P{p:02}_{k}_tumorCore.png"]),
    "folders": (["images/P{p:02}_{k}.png"], ["lesion/P{p:02}_{k}.png", "Tumor/P{p:02}_{k}.png"]),
    "targets": (["input/P{p:02}_{k}.png"], ["target/P{p:02}_{k}.png", "binary/P{p:02}_{k}.png"]),
    "Pascal VOC": (["JPEGImages/P{p:02}_{k}.png"], ["manual/P{p:02}_{k}.png", "maskPNG/P{p:02}_{k}.png"]),
    "folders in splits": (["train/original/P{p:02}_{k}.png"], ["train/manual1/P{p:02}_{k}.png"]),
    "a folder below": (["P{p:02}_{k}.png"], ["tumor/P{p:02}_{k}.png"]),
    "volumes of a kind": (["P{p:02}/{p}_T1.nii.gz"], ["P{p:02}/{p}_lesion.nii.gz", "P{p:02}/{p}_T1_GTV.nii.gz"]),
    "volumes": (["P{p:02}/FLAIR.nii.gz"], ["P{p:02}/lesion.nii.gz", "P{p:02}/infarct.nii.gz"]),
    "ATLAS": (
        ["Site1/{p:06}/t01/{p:06}_t1w_deface_stx.nii.gz"],
        ["Site1/{p:06}/t01/{p:06}_LesionSmooth_stx.nii.gz", "Site1/{p:06}/t01/{p:06}_LesionSmooth_1_stx.nii.gz"],
    ),
    "PH2": (["I{p:03}/I{p:03}_Dermoscopic_Image/I{p:03}.bmp"], ["I{p:03}/I{p:03}_lesion/I{p:03}_lesion.bmp"]),
    "ISIC": (["ISIC-2017_Training_Data/ISIC_{p:07}.jpg"], ["ISIC-2017_Training_Data/ISIC_{p:07}_superpixels.png"]),
    "ISLES 2015": (["{p:02}/VSD.Brain.XX.O.MR_T1.{p}.nii"], ["{p:02}/VSD.Brain.XX.O.OT.{p}.nii"]),
    "DRIVE": (["training/images/{p}_training.png"], ["training/1st_manual/{p}_manual1.png"]),
    "a letter for the folder": (["images/P{p:02}_{k}.png"], ["tumor/P{p:02}_{k}_t.png", "lesions/P{p:02}_{k}_les.png"]),
    "GlaS": (["train_{p}.bmp"], ["train_{p}_anno.bmp"]),
    "words in folders and names": (
        ["images/P{p:02}_{k}.png"], ["trimaps/P{p:02}_{k}_trimap.png", "manual/P{p:02}_{k}_manual.png"],
    ),
    "Calgary-Campinas": (
        ["Original/CC{p:04}_philips_15_5{p}_M.nii.gz"],
        ["STAPLE/CC{p:04}_philips_15_5{p}_M_staple.nii.gz", "Silver-standard/CC{p:04}_philips_15_5{p}_M_ss.nii.gz"],
    ),
    "tumour parts": (["P{p:02}/T1.nii.gz"], ["P{p:02}/WT.nii.gz", "P{p:02}/ET.nii.gz", "P{p:02}/wmparc.nii.gz"]),
    "FSL": (["P{p:02}/T1.nii.gz"], ["P{p:02}/T1_fast_bias.nii.gz", "P{p:02}/T1_fast_pve_0.nii.gz"]),
}  # fmt: skip


@pytest.mark.parametrize("name", BESIDE)
def test_what_lies_beside_an_image_by_a_word_is_left_out_and_said(tmp_path, name):
    names = ({text.format(p=p, k=k) for text in texts for p in P for k in (0, 1)} for texts in BESIDE[name])
    images, masks = map(sorted, names)
    layout = lay(tmp_path, images + masks)
    assert sorted(layout.keys) == images
    ((what, reason),) = [entry for entry in layout.skipped if "masks" in entry[0]]
    assert what == f"{len(masks)} masks"
    assert "--include-masks takes them" in reason
    assert len(set(layout.subjects)) == 8
    assert len(lay(tmp_path, [], include_masks=True).keys) == len(images + masks)


@pytest.mark.parametrize("rule", mask_rules.BESIDE, ids=lambda rule: rule.example[1])
def test_the_example_of_every_rule_of_what_lies_beside_an_image_is_left_out(tmp_path, rule):
    layout = lay(tmp_path, [*rule.example, "P02_3.png"])
    assert sorted(layout.keys) == sorted([rule.example[0], "P02_3.png"])
    assert any(what == f"1 {rule.what}" for what, _ in layout.skipped)
    assert ("--include-masks" in doubts(layout)) == (not rule.sure)


@pytest.mark.parametrize(
    "names",
    [
        [f"{c}/{p:03}.png" for c in ("tumor", "normal") for p in P],
        [f"{c}/P{p:02}_{k}.png" for p in P for c in ("tumor", "no_tumor")[p % 2 :][:1] for k in (0, 1)],
        [f"P{p:02}_{c}_{k}.png" for c in ("tumor", "normal") for p in P for k in (0, 1)],
        [f"{c}/patch_{p:03}_x{k}_y9.png" for c in ("lesion", "background") for p in P for k in (0, 7)],
        [f"{c}-nodule/N{p:03}.png" for c in ("with", "non") for p in P],
        [f"P{p:02}_{kind}_{k}.png" for kind in ("brain", "T1") for p in P for k in (0, 1)],
        [f"{'lung', 'colon'[p % 2]}/{p:03}.png" for p in P],
        [f"{s}/{c}_tumor/image ({k}).jpg" for s in ("Training", "Testing") for c in ("glioma", "no") for k in P],
    ],
)
def test_classes_that_speak_of_findings_are_images(tmp_path, names):
    layout = lay(tmp_path, names)
    assert sorted(layout.keys) == sorted(names)
    assert layout.skipped == []


def test_a_data_set_whose_own_name_speaks_of_masks_is_not_asked_about(tmp_path):
    names = [f"MoNuSeg/Tissue Images/TCGA-18-{p:04}-01Z-00-DX1.tif" for p in P]
    layout = lay(tmp_path, names)
    assert sorted(layout.keys) == names
    assert doubts(layout) == ""


@pytest.mark.parametrize("name", ["T1_brain_mixeltype", "CorticalThickness", "LogJacobian", "T1w_InverseWarped"])
def test_maps_that_were_made_of_volumes_are_left_out_and_said(tmp_path, name):
    layout = lay(tmp_path, [f"P{p:02}/{own}.nii.gz" for p in P for own in ("T1", name)])
    assert layout.keys == [f"P{p:02}/T1.nii.gz" for p in P]
    assert "8 maps made of others" in dict(layout.skipped)


def test_steps_of_processing_beside_what_they_were_made_of_are_asked_about(tmp_path):
    layout = lay(tmp_path, [f"P{p:02}/{step}anat.nii" for p in P for step in ("", "m", "wm")])
    assert len(set(layout.subjects)) == 8
    assert "--exclude 'm*' 'wm*' takes the latter alone" in doubts(layout)
    assert lay(tmp_path, [], exclude=("m*", "wm*")).keys == [f"P{p:02}/anat.nii" for p in P]


@pytest.mark.parametrize(
    ("names", "asked"),
    [
        ([f"{kind}/{250 + p}.png" for kind in ("CT", "MR") for p in P], "numbers are in several kind folders (CT/251"),
        ([f"{kind}/{p:03}/{k}.png" for kind in ("CT", "MR") for p in P for k in (1, 2)], "'([^/]+/[^/]+)/[^/]+$'"),
        ([f"{kind}/P{p:02}.png" for kind in ("CT", "PET") for p in P], ""),
        ([f"aug_{p}_{1000 + 37 * p + k}.png" for p in P for k in range(3)], "copies that Keras made"),
        ([f"W{w}_{p:04}_{k}.png" for p in P for w in (1, 2) for k in range(3)], "a visit and a subject"),
    ],
)
def test_names_of_two_readings_are_asked_about(tmp_path, names, asked):
    layout = lay(tmp_path, names)
    assert len(set(layout.subjects)) == 8
    assert asked in doubts(layout) if asked else doubts(layout) == ""


PICTURES = {
    # name: volumes, pictures beside them, whether the report asks
    "by a word": (["P{p:02}_T1.nii.gz"], ["P{p:02}_T1_qc.png"], False),
    "in a folder": (["P{p:02}_T1.nii.gz"], ["QC/P{p:02}.png", "QC/P{p:02}_b.png", "QC/P{p:02}_c.png"], False),
    "of a report": (["P{p:02}.nii.gz"], ["html/figures/{p}.png", "docs/logo.png"], False),
    "masks": (["{p}/DICOM/im.nii.gz"], ["{p}/Ground/IMG-{k}.png"], False),  # CHAOS
    "masks by a folder": (["P{p:02}/T1.nii.gz"], ["P{p:02}/seg/0.png", "P{p:02}/seg/1.png"], False),
    "of each person": (["P{p:02}/T1.nii.gz"], ["P{p:02}/T1.png"], True),
    "one": (["P{p:02}/T1.nii.gz"], ["scanner.jpg"], True),
    "BIDS": (["sub-{p:02}/anat/sub-{p:02}_T1w.nii.gz"], ["sub-{p:02}/x/{k}.png" for k in range(3)], False),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_beside_volumes_are_left_out_and_said(tmp_path, name):
    volumes, pictures, asked = PICTURES[name]
    volumes, pictures = (sorted({text.format(p=p, k=0) for text in texts for p in P}) for texts in (volumes, pictures))
    layout = lay(tmp_path, volumes + pictures)
    assert sorted(layout.keys) == volumes
    assert f"{len(pictures)} images" in dict(layout.skipped)
    assert ("--exclude '*.nii.gz' takes the images" in doubts(layout)) == asked
    assert sorted(lay(tmp_path, [], exclude=("*.nii.gz",)).keys) == pictures


TOLD_BY_FOLDERS = {  # volumes whose own names are of nobody, and whether the report asks
    "numbers": (["{p}/scan1/im.nii", "{p}/scan2/im.nii"], True),
    "numbers, one name for all": (["{p}/scan1/S004.nii", "{p}/scan2/S004.nii"], True),
    "words": (["{a}/scan1/im.nii", "{a}/scan2/im.nii"], True),
    "conditions": (["{a}/rest/x.nii", "{a}/task/x.nii"], True),
    "names of conditions": (["{a}/rest.nii", "{a}/task.nii"], True),
    "kinds": (["{p}/T1DUAL/In.nii", "{p}/T1DUAL/Out.nii", "{p}/T2SPIR/Im.nii"], True),
    "phases": (["MR/{p}/T1DUAL/InPhase/x.nii", "MR/{p}/T1DUAL/OutPhase/x.nii", "MR/{p}/T2SPIR/x.nii"], True),
    "kinds that are known": (["{p}/T1/scan.nii", "{p}/T2/scan.nii"], False),
}


@pytest.mark.parametrize("name", TOLD_BY_FOLDERS)
def test_volumes_of_no_name_are_those_of_their_folder_s_person(tmp_path, name):
    texts, asked = TOLD_BY_FOLDERS[name]
    people = zip((1, 2, 5, 8), ("anna", "ben", "carl", "dora"), strict=True)
    layout = lay(tmp_path, [text.format(p=p, a=a) for p, a in people for text in texts])
    assert len(set(layout.subjects)) == 4
    assert all(who in key.split("/") for key, who in whom(layout).items())
    assert ("give --layout classes" in doubts(layout)) == asked


@pytest.mark.parametrize(
    ("name", "people"),
    [("{c}/{p}/scan.nii", 12), ("{c}/{p}/T1/scan.nii", 12), ("{c}/vol{p}.nii", 12), ("{c}/P{p:02}.nii", 12)],
)
def test_classes_above_numbers_are_classes(tmp_path, name, people):
    layout = lay(tmp_path, [name.format(c=c, p=p) for c in ("AD", "CN") for p in range(12)])
    assert set(layout.attributes["class"]) == {"AD", "CN"}
    assert len(set(layout.subjects)) == people


@pytest.mark.parametrize(
    ("name", "asked"),
    [("{a}/T1/{k}.png", True), ("{a}/scan{k}/{k}.png", True), ("{a}/{k}.png", False), ("{a}/images/{k}.png", False)],
)
def test_words_above_scans_of_nobody_are_asked_about(tmp_path, name, asked):
    layout = lay(tmp_path, [name.format(a=a, k=k) for a in ("anna", "ben", "carl") for k in (1, 2, 3)])
    assert ("give --layout subjects" in doubts(layout)) == asked


@pytest.mark.parametrize("beside", ["template.nii.gz", "P01_seg.nii.gz", "atlas/MNI152_T1_1mm.nii.gz"])
def test_a_volume_beside_many_images_is_left_out_and_said(tmp_path, beside):
    names = [f"P{p:02}_{k}.png" for p in P for k in range(4)]
    layout = lay(tmp_path, [*names, beside])
    assert sorted(layout.keys) == names
    assert "1 volumes" in dict(layout.skipped)


def test_images_are_taken_where_no_dicom_file_beside_them_can_be_read(tmp_path):
    names = [f"P{p:02}_0.png" for p in P]
    for k in range(20):
        (tmp_path / f"s{k}").mkdir()
        (tmp_path / f"s{k}" / "0.dcm").touch()
    layout = lay(tmp_path, names)
    assert sorted(layout.keys) == names
    assert "DICOM" in doubts(layout)


def test_images_are_taken_where_they_are_more_than_the_series_beside_them(tmp_path):
    for k in range(20):
        (tmp_path / f"{k}.dcm").touch()
    assert len(lay(tmp_path, [f"P{p:02}_0.png" for p in P]).keys) == 8


@pytest.mark.parametrize(
    "names",
    [
        [f"{c}_{p:03}.nii.gz" for c in ("stroke", "control") for p in P],
        [f"site1_{c}_{p:03}.nii.gz" for c in ("stroke", "control") for p in P],
        [f"{c}_{p:03}_T1.nii.gz" for c in ("tumor", "healthy") for p in P],
    ],
)
def test_volumes_that_begin_with_a_finding_are_people(tmp_path, names):
    layout = lay(tmp_path, names)
    assert sorted(layout.keys) == sorted(names)


@pytest.mark.parametrize("folders", [("tumor", "MRI"), ("plots", "photos"), ("lesion", "original_scans")])
def test_folders_of_the_same_names_are_asked_about_unless_one_is_of_images(tmp_path, folders):
    layout = lay(tmp_path, [f"{c}/P{p:02}_{k}.png" for c in folders for p in P for k in (0, 1)])
    assert len(layout.keys) == 32 or "--include-masks" in doubts(layout)


@pytest.mark.parametrize(
    "name",
    [
        "P01/slice_{k:03}.png",
        "P01/{k:03}.png",
        "a/patient3_{k:03}.png",
        "subject_2/x/{k}.png",
        "IXI012-HH-1211_k{k:03}.png",
    ],
)
def test_one_person_is_not_torn(tmp_path, name):
    slices(tmp_path, [name.format(k=k) for k in range(12)])
    with pytest.raises(UserError, match="show one subject"):
        open_data(DataConfig(data=str(tmp_path)))


def test_one_person_s_volumes_are_together(tmp_path):
    assert set(lay(tmp_path, [f"P01/scan{k}.nii.gz" for k in range(12)]).subjects) == {"P01"}


def test_one_person_s_eyes_are_together_where_few_have_both(tmp_path):
    names = [f"{p:03}{side}.png" for p in range(1, 31) for side in ("LR" if p < 13 else "L")]
    assert len(set(lay(tmp_path, names).subjects)) == 30


def test_kinds_of_ixi_are_no_visits(tmp_path):
    names = [f"{c}/IXI{p:03}-Guys-0{p:03}-{c}.nii.gz" for c in ("T1", "T2") for p in P]
    layout = lay(tmp_path, names)
    assert "visit" not in layout.attributes


@pytest.mark.parametrize("splits", [("",), ("train/", "valid/", "test/")])
def test_kinds_of_birds_and_leaves_are_classes_or_asked_about(tmp_path, splits):
    kinds = [
        f"{first} {second}" for first in ("AMERICAN", "Tomato Early", "Red") for second in ("AVOCET", "Blight", "Oak")
    ]
    kinds += [f"Kind Of{chr(97 + k)}" for k in range(15)]
    layout = lay(tmp_path, [f"{split}{kind}/{k:03}.jpg" for split in splits for kind in kinds for k in range(3)])
    assert "class" in layout.attributes or "--layout classes" in doubts(layout)
    assert len(splits) == 1 or "class" in layout.attributes


def test_numbers_that_begin_anew_in_each_class_are_not_taken_for_oct2017(tmp_path):
    layout = lay(tmp_path, [f"{c}/{c}-{p:03}-1.jpeg" for c in ("NORMAL", "DME") for p in P])
    assert len(set(layout.subjects)) == 16 or doubts(layout)


FACES = {
    "Aaron_Eckhart": 1,
    "George_W_Bush": 12,
    "Colin_Powell": 7,
    "Abdullah": 4,
    "Zhang_Ziyi": 3,
    "Yao_Ming": 1,
    "AJ_Cook": 1,
}
NAMED = {
    # name: folders and how many images each has, whether they are people
    "LFW": (FACES, True),
    "many": ({f"{a}_{b}": 9 for a in ("Al", "Bo", "Cy", "Di", "Ed") for b in ("Abel", "Bo", "Cox", "Dee", "Ek")}, True),
    "codes": (dict.fromkeys(["A0S9V9", "A1D0Q7", "A1D9Z7", "A1E9Q1"], 1), True),
    "stages": (dict.fromkeys(["Mild_Demented", "Very_Mild_Demented", "Non_Demented"], 9), False),
    "land": ({"AnnualCrop": 9, "Forest": 8, "HerbaceousVegetation": 9, "SeaLake": 9}, False),
    "findings": ({"COVID": 9, "Lung_Opacity": 9, "Normal": 9, "Viral Pneumonia": 9}, False),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMED)
def test_folders_that_are_called_as_people_are_people_and_no_classes(tmp_path, name):
    counts, people = NAMED[name]
    layout = lay(tmp_path, [f"{who}/{who}_{k:04}.jpg" for who, count in counts.items() for k in range(count)])
    assert (set(layout.subjects) == set(counts)) == people
    assert ("class" in layout.attributes) == (not people)
    assert doubts(layout) == ""


def test_a_few_folders_that_may_be_called_as_people_are_asked_about(tmp_path):
    names = [f"{who}/{who}_{k:04}.jpg" for who in ("Aaron_Eckhart", "George_W_Bush", "Colin_Powell") for k in range(9)]
    layout = lay(tmp_path, names)
    assert set(layout.attributes) == {"class"}
    assert "--layout subjects" in doubts(layout)
    assert len(set(lay(tmp_path, [], layout="subjects").subjects)) == 3


UNPAIRED = {
    "counted": "img_{k:05}.jpg",
    "horse2zebra": "n0238{d}460_{k}.jpg",
    "people": "P{k:02}_0.png",
    "times": "20{k:02}-11-08 10_00_{k:02}.jpg",
}


@pytest.mark.parametrize("form", ["{s}{d}/{name}", "{s}_{d}/{name}", "x/{d}/{s}/{name}"])
@pytest.mark.parametrize("name", UNPAIRED)
def test_domains_of_unpaired_images_are_classes_in_splits(tmp_path, name, form):
    parts = {"train": range(10, 18), "test": range(20, 23)}
    images = [(s, "AB"[d], k, UNPAIRED[name].format(d=d, k=k)) for s, r in parts.items() for d in (0, 1) for k in r]
    layout = lay(tmp_path, [form.format(s=s, d=d, name=own) for s, d, _, own in images])
    assert set(layout.splits) == {"train", "test"}
    assert set(layout.attributes["class"]) == {"A", "B"}
    assert overlap(layout.subjects, assign(layout.subjects, layout.splits, 0)) == {}
    assert len(set(layout.subjects)) == (22 if name in ("counted", "horse2zebra") else 11)


BREAKHIS = [
    (f"{kind}/SOB/{what}", f"SOB_{kind[0].upper()}_{short}", person, power, k)
    for kind, what, short, people in (
        ("benign", "adenosis", "A", ("14-22549AB", "14-22549CD", "14-29960CD")),
        ("malignant", "ductal_carcinoma", "DC", ("14-2523", "14-2773")),
        ("malignant", "papillary_carcinoma", "PC", ("14-9146", "15-190EF")),
    )
    for person in people
    for power in (40, 400)
    for k in (1, 2)
]


@pytest.mark.parametrize(
    ("form", "attributes"),
    [
        (
            "BreaKHis_v1/breast/{place}/{sort}_{person}/{power}X/{sort}-{person}-{power}-{k:03}.png",
            {"class", "subclass"},
        ),
        ("{sort}-{person}-{power}-{k:03}.png", set()),
        ("{power}X/{kind}/{sort}-{person}-{power}-{k:03}.png", {"magnification", "class"}),
    ],
)
def test_slides_of_breakhis_are_people_at_any_magnification(tmp_path, form, attributes):
    names = [
        form.format(place=place, sort=sort, person=person, power=power, k=k, kind=place.split("/")[0])
        for place, sort, person, power, k in BREAKHIS
    ]
    layout = lay(tmp_path, names)
    assert set(layout.subjects) == {person for _, _, person, _, _ in BREAKHIS}
    assert set(layout.attributes) == attributes
    for key, who in whom(layout).items():
        assert who in key
    if "class" in attributes:
        assert set(layout.attributes["class"]) == {"benign", "malignant"}


@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("suffix", [".nii.gz", ".png"])
def test_channels_of_nnu_net_are_of_one_case(tmp_path, suffix, channels):
    cases = {"Tr": P, "Ts": range(9, 12)}
    names = [f"images{s}/la_{p:03}_{c:04}{suffix}" for s, r in cases.items() for p in r for c in range(channels)]
    layout = lay(tmp_path, names + [f"labelsTr/la_{p:03}{suffix}" for p in P])
    assert sorted(layout.keys) == sorted(names)
    assert set(layout.subjects) == {f"la_{p:03}" for p in range(1, 12)}
    asked = suffix != ".png" and channels > 1
    assert doubts(layout).startswith("volumes of several kinds are read together: ") == asked
    assert ("0001 (11)" in doubts(layout)) == asked


ISLES = [f"VSD.Brain.XX.O.MR_{kind}" for kind in ("T1", "Flair", "DWI")]
OCT = [f"OCT2017/{s}/{{c}}/{{c}}-{p}-{{k}}.jpeg" for s, p in (("train", 1016042), ("test", 1016099))]
MURA = [f"{s}/{{b}}/patient{p:05}/study1_positive/image{{k}}.png" for s, p in (("train", 1), ("valid", 11185))]
WORLD = {
    # name: files, how many people, attributes, splits
    "HAM10000": ([f"HAM10000_images_part_{1 + p // 5}/ISIC_{24305 + p:07}.jpg" for p in P], 8, {}, {None}),
    "Messidor": ([f"Base{b}/20051020_{90 * b + k}_0100_PP.tif" for b in (11, 12, 21) for k in (1, 2)], 6, {}, {None}),
    "IDRiD": (
        [f"1. Original Images/a. Training Set/IDRiD_{p:02}.jpg" for p in P]
        + [f"1. Original Images/b. Testing Set/IDRiD_{p:02}.jpg" for p in (9, 10)],
        10,
        {},
        {"train", "test"},
    ),
    "OCTDL": (
        [f"AMD/amd_{p}_{k}.jpg" for p in range(1, 5) for k in (1, 2)]
        + [f"NO/no_{p}_{k}.jpg" for p in range(91, 95) for k in (1, 2)],
        8,
        {"class": {"AMD", "NO"}},
        {None},
    ),
    "ISLES 2015": ([f"Training/{p}/{one}.{9 * p + len(one)}.nii" for p in P for one in ISLES], 8, {}, {"train"}),
    "APTOS": ([f"train_images/{p:09}{c}1{c}.png" for p in (1, 2, 3) for c in "abc"], 9, {}, {"train"}),
    "Kermany": (
        [name.format(c=c, k=k) for name in OCT for c in ("CNV", "DRUSEN") for k in (1, 2)],
        2,
        {"class": {"CNV", "DRUSEN"}},
        {"train", "test"},
    ),
    "ChestX-ray14": ([f"images_{1 + p // 5:03}/images/{p:08}_{k:03}.png" for p in P for k in (0, 1)], 8, {}, {None}),
    "AMOS": (
        [f"images{s}/amos_{p:04}.nii.gz" for s, r in (("Tr", P), ("Va", (9,)), ("Ts", (10,))) for p in r],
        10,
        {},
        {"train", "val", "test"},
    ),
    "Stanford dogs": (
        [f"n0208562{i}-{name}/n0208562{i}_{k}.jpg" for i, name in enumerate(("Chihuahua", "Maltese_dog")) for k in P],
        16,
        {"class": {"n02085620-Chihuahua", "n02085621-Maltese_dog"}},
        {None},
    ),
    "eyes": ([f"{side}/{p:03}.jpg" for side in ("left", "right") for p in P], 8, {"side": {"left", "right"}}, {None}),
    "one volume each": (
        [f"{c}/{p}/T1.nii.gz" for c, r in GROUPS.items() for p in r],
        8,
        {"class": {"AD", "CN"}},
        {None},
    ),
    "MURA": (
        [name.format(b=b, k=k) for name in MURA for b in ("XR_HAND", "XR_HUMERUS") for k in (1, 2)],
        2,
        {"class": {"XR_HAND", "XR_HUMERUS"}},
        {"train", "val"},
    ),
}


@pytest.mark.parametrize("name", WORLD)
def test_public_trees_are_read_as_their_makers_mean_them(tmp_path, name):
    names, people, attributes, splits = WORLD[name]
    layout = lay(tmp_path, names)
    assert len(layout.keys) == len(set(names))
    assert len(set(layout.subjects)) == people
    assert {name: set(values) for name, values in layout.attributes.items()} == attributes
    assert set(layout.splits) == splits
