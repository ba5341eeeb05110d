"""Trees of public data sets as they are unpacked: processed beside raw scans, training beside held-out folders, classes
within classes, depth and label maps beside images."""

import hashlib
import shlex

import numpy as np
import pytest
from case_trees import head, lay, volume
from pictures import save, write

from vqvae2.data import DataConfig, open_data
from vqvae2.data.scans import processed
from vqvae2.data.selection import Layout
from vqvae2.errors import UserError

P = range(1, 9)


def doubts(layout: Layout) -> str:
    return "\n".join(layout.doubts + layout.subject_doubts)


def alone(layout: Layout, own: dict[str, object]) -> bool:
    """Whether the files that were kept are grouped as their people are."""
    pairs = {(own[key], who) for key, who in zip(layout.keys, layout.subjects, strict=True)}
    return len(pairs) == len({true for true, _ in pairs}) == len({who for _, who in pairs})


PROCESSED = {
    "IXI": ("{s}IXI{p:03}-Guys-08{p:02}-T1.nii", ("", "m", "c1", "c2", "c3")),
    "IXI, maps excluded": ("{s}IXI{p:03}-Guys-08{p:02}-T1.nii", ("", "m")),
    "IXI, after slice timing": ("{s}IXI{p:03}-Guys-08{p:02}-T1.nii", ("", "a")),
    "any names": ("{s}P{p:02}_T1.nii", ("", "m", "c1", "c2")),
    "realigned": ("{s}P{p:02}.nii", ("", "r")),
    "BIDS names in one folder": ("{s}sub-{p:02}_T1w.nii", ("", "m", "c1")),
    "OASIS": ("{s}OAS1_{p:04}_MR1_mpr-1_anon.nii", ("", "m", "c1", "y_")),
    "folders beside each other": ("{d}/{s}P{p:02}_T1.nii", ("raw", "spm wm")),
    "cohort's names in folders": ("{d}/{s}IXI{p:03}-Guys-08{p:02}-T1.nii", ("raw", "spm m")),
    "folders of different depth": ("{d}/{s}P{p:02}_T1.nii", ("nifti", "cat12/mri wm", "cat12/mri mwp1")),
}


@pytest.mark.parametrize("name", PROCESSED)
def test_what_spm_made_of_a_scan_is_of_the_same_person(tmp_path, name):
    form, steps = PROCESSED[name]
    parted = [step.split(" ") if "{d}" in form else ["", step] for step in steps]
    own = {form.format(d=d, s="".join(s), p=p): p for d, *s in parted for p in P}
    for layout in (lay(tmp_path, list(own), include_masks=True), lay(tmp_path, [])):
        assert alone(layout, own)
        assert len(set(layout.subjects)) == 8
    assert "steps of processing" in doubts(layout)


def test_a_letter_that_may_be_of_a_diagnosis_is_asked_about(tmp_path):
    layout = lay(tmp_path / "m", [f"{step}P{p:02}.nii" for step in ("", "m") for p in P])
    assert "mP01 and P01 are read as of one subject" in doubts(layout)
    assert "--subject-pattern" in doubts(layout)
    sure = lay(tmp_path / "c", [f"{step}P{p:02}.nii" for step in ("", "m", "c1") for p in P])
    assert "read as of one subject" not in doubts(sure)
    assert processed([(f"{form}TBI", f"{form}TBI{p:02}") for form in ("", "m") for p in P]) == {}


def brats(year: str, person: str, inner: str = "") -> dict[str, tuple[str, str]]:
    """Files of people in training folders by grade and in a validation folder, each with person and split."""
    people = [
        (f"MICCAI_BraTS_{year}_Data_{part}/{inner.format(part)}{grade}", person.format(f"A{c}{grade[:1]}"), split)
        for part, grades, split in (("Training", ("HGG/", "LGG/"), "train"), ("Validation", ("",), "val"))
        for grade in grades
        for c in "ABCD"
    ]
    return {
        f"{place}{who}/{who}_{kind}.nii.gz": (who, split) for place, who, split in people for kind in ("flair", "t1")
    }


@pytest.mark.parametrize(
    "own",
    [
        brats("2018", "Brats18_CBICA_{}_1"),
        brats("2019", "BraTS19_CBICA_{}_1"),
        brats("2019", "BraTS19_CBICA_{}_1", "MICCAI_BraTS_2019_Data_{}/"),
    ],
    ids=["2018", "2019", "unpacked twice"],
)
def test_grades_above_training_people_alone_leave_held_out_people_people(tmp_path, own):
    layout = lay(tmp_path, list(own))
    assert alone(layout, {key: who for key, (who, _) in own.items()})
    assert set(layout.attributes) == {"class"}
    assert set(layout.attributes["class"]) == {"HGG", "LGG", ""}
    assert all(own[key][1] == split for key, split in zip(layout.keys, layout.splits, strict=True))


def test_levels_that_held_out_folders_lack_are_left_empty(tmp_path):
    codes = [f"{a}{p}{b}{p}{a}{p}" for p in P for a, b in ("AB", "KL", "QR", "XY")]
    homes = ("Training/Labeled", "Training/Unlabeled", "Validation", "Testing")
    mms = {f"OpenDataset/{homes[i % 4]}/{c}/{c}_sa.nii.gz": c for i, c in enumerate(codes)}
    layout = lay(tmp_path / "mms", list(mms))
    assert alone(layout, mms)
    assert set(layout.attributes["class"]) == {"Labeled", "Unlabeled", ""}
    homes = {"train/HC": range(8), "train/PD": range(10, 18), "test": range(20, 28)}
    own = {f"{home}/P{p:02}/{k}.png": p for home, held in homes.items() for p in held for k in P}
    layout = lay(tmp_path / "people", list(own))
    assert alone(layout, own)
    assert set(layout.attributes["class"]) == {"HC", "PD", ""}


def test_a_cohort_s_own_name_is_never_a_label(tmp_path):
    homes = {"HGG/": "A", "LGG/": "B", "": "C"}
    people = {f"{home}BraTS19_CBICA_{c}{n}_1": c + n for home, c in homes.items() for n in "KLM"}
    own = {f"{who}/{who.rpartition('/')[2]}_{kind}.nii": c for who, c in people.items() for kind in ("t1", "t2")}
    layout = lay(tmp_path / "grades", list(own))
    assert alone(layout, own)
    assert not layout.attributes
    names = [f"{c}/{k}.png" for c in ("acute", "sub-acute", "chronic") for k in P]  # no label of BIDS
    assert set(lay(tmp_path / "stages", names).attributes["class"]) == {"acute", "sub-acute", "chronic"}


@pytest.mark.parametrize("inner", ["", "MICCAI_BraTS2020_{}Data/"])
def test_people_who_are_called_by_a_split_are_no_classes(tmp_path, inner):
    own = {
        f"BraTS2020_{w}Data/{inner.format(w)}BraTS20_{w}_{p:03}/BraTS20_{w}_{p:03}_{k}.nii": (w, p)
        for w, last in (("Training", 10), ("Validation", 5))
        for p in range(1, last)
        for k in ("flair", "t1")
    }
    layout = lay(tmp_path, list(own))
    assert alone(layout, own)
    assert not layout.attributes
    assert {w for (w, _), split in zip(map(own.get, layout.keys), layout.splits, strict=True) if split == "train"} == {
        "Training"
    }


def test_the_same_numbers_below_folders_of_splits_are_other_people(tmp_path):
    parts = {"Training": "training", "Testing": "test"}
    own = {f"{a}/{b}_{p}/{kind}.nii": (a, p) for a, b in parts.items() for p in P for kind in ("T1", "FLAIR")}
    layout = lay(tmp_path, list(own))
    assert alone(layout, own)
    assert set(layout.splits) == {"train", "test"}


CASES = [f"{hospital}_{{}}_Case{p:02}" for hospital in ("CHB", "UNC") for p in P]
SPLITS: dict[str, dict[str, str | list[str]]] = {  # a file, and folders by split
    "BraTS 2021": {
        "file": "BraTS2021_{:05}/{}_t1.nii.gz",
        "train": ["RSNA_ASNR_MICCAI_BraTS2021_TrainingData_16July2021"],
        "val": ["RSNA_ASNR_MICCAI_BraTS2021_ValidationData"],
    },
    "BraTS 2021 of two hosts": {
        "file": "BraTS2021_{:05}/{}_t1.nii.gz",
        "train": ["BraTS2021_Training_Data"],
        "val": ["RSNA_ASNR_MICCAI_BraTS2021_ValidationData"],
    },
    "LiTS": {
        "file": "volume-{}.nii",
        "train": ["Training Batch 1", "Training Batch 2"],
        "test": ["LITS-Challenge-Test-Data"],
    },
    "VerSe": {
        "file": "rawdata/sub-verse{:03}/sub-verse{:03}_ct.nii.gz",
        "train": ["dataset-01training"],
        "val": ["dataset-02validation"],
        "test": ["dataset-03test"],
    },
    "REFUGE": {
        "file": "V{:04}.jpg",
        "train": ["REFUGE-Training400"],
        "val": ["REFUGE-Validation400"],
        "test": ["REFUGE-Test400"],
    },
    "PALM": {
        "file": "V{:04}.jpg",
        "train": ["PALM-Training400/PALM-Training400"],
        "val": ["PALM-Validation400"],
        "test": ["PALM-Testing400-Images"],
    },
    "PROMISE12": {
        "file": "Case{:02}.mhd",
        "train": [f"TrainingData_Part{n}" for n in (1, 2, 3)],
        "test": ["TestData"],
    },
    "MoNuSeg": {
        "file": "TCGA-18-{:04}-01Z-00-DX1.tif",
        "train": ["MoNuSeg 2018 Training Data/Tissue Images"],
        "test": ["MoNuSegTestData"],
    },
    "LIVECell": {
        "file": "A172_Phase_{:05}.tif",
        "train": ["images/livecell_train_val_images"],
        "test": ["images/livecell_test_images"],
    },
    "CheXpert": {
        "file": "patient{:05}/study1/view1_frontal.jpg",
        "train": ["CheXpert-v1.0 batch 2 (train 1)", "CheXpert-v1.0 batch 3 (train 2)"],
        "val": ["CheXpert-v1.0 batch 1 (validate & csv)"],
    },
    "MNIST": {"file": "img_{}.jpg", "train": ["trainingSample"], "test": ["testSet"]},
    "VOC": {"file": "{:06}.jpg", "train": ["VOCtrainval_06-Nov-2007"], "test": ["VOCtest_06-Nov-2007"]},
    "ISIC 2017": {
        "file": "ISIC_{:07}.jpg",
        "train": ["ISIC-2017_Training_Data"],
        "val": ["ISIC-2017_Validation_Data"],
        "test": ["ISIC-2017_Test_v2_Data"],
    },
    "MSSEG 2008": {
        "file": "{}_FLAIR.nrrd",
        "train": [case.format("train") for case in CASES],
        "test": [case.format("test1") for case in CASES],
    },
}


@pytest.mark.parametrize("name", SPLITS)
def test_folders_that_all_hold_the_word_of_a_split_are_splits(tmp_path, name):
    file, *parts = SPLITS[name].values()
    homes = [(home, split) for split, held in zip(list(SPLITS[name])[1:], parts, strict=True) for home in held]
    own = {
        f"{home}/{file.format(i + 10 * place, i + 10 * place)}": split
        for place, (home, split) in enumerate(homes)
        for i in P
    }
    layout = lay(tmp_path, list(own))
    assert dict(zip(layout.keys, layout.splits, strict=True)) == own
    assert not layout.attributes


def test_what_else_such_folders_tell_is_kept(tmp_path):
    homes = ("ADNI_train_AD", "ADNI_train_CN", "ADNI_testset")
    own = {f"{home}/x{i + 10 * k}_0.png": home for k, home in enumerate(homes) for i in P}
    layout = lay(tmp_path / "classes", list(own))
    labels = dict(zip(homes, ("AD", "CN", ""), strict=True))
    assert layout.attributes["class"] == [labels[own[key]] for key in layout.keys]
    own = {
        f"x_{s}_{kind}/P{p:02}_1.png": p
        for s, o in (("training_data", 0), ("val_v2", 9))
        for kind in ("T1", "T2")
        for p in range(o, o + 8)
    }
    layout = lay(tmp_path / "kinds", list(own))
    assert alone(layout, own)
    assert set(layout.attributes["kind"]) == {"T1", "T2"}
    refuge = [f"REFUGE-Training400/Training400/{c}/{c[0]}{i:04}.jpg" for c in ("Glaucoma", "Non-Glaucoma") for i in P]
    layout = lay(tmp_path / "refuge", refuge + [f"REFUGE-Test400/T{i:04}.jpg" for i in P])
    assert set(layout.attributes["class"]) == {"Glaucoma", "Non-Glaucoma", ""}
    own = {f"Training Batch {p % 2}/img{p:03}.nii": p for p in P} | {"Challenge Test Data/img009.nii": 9}
    assert alone(lay(tmp_path / "nobody", list(own)), own)
    own = {f"P{p:02}/P{p:02}_{s}{k}/1.png": p for p in P for k, s in enumerate(("training", "test"))}
    assert set(lay(tmp_path / "people", list(own)).splits) == {None}


HELD_OUT = {
    "--exclude test_256 val_256": ("data_256/a/abbey", "val_256", "test_256"),
    "--exclude CRC-VAL-HE-7K": ("NCT-CRC-HE-100K/ADI", "NCT-CRC-HE-100K/TUM", "CRC-VAL-HE-7K/ADI"),
    "--exclude BACH_TestDataset": ("BACH_Challenge/Photos/Benign", "BACH_TestDataset/Photos"),
    "--exclude 'Test cases'": ("cancer/Benign cases", "cancer/Normal cases", "cancer/Test cases"),
}


def test_held_out_folders_without_training_folders_are_asked_about(tmp_path):
    for i, (flag, folders) in enumerate(HELD_OUT.items()):
        names = [f"{folder}/{place}{k:08}.jpg" for place, folder in enumerate(folders) for k in P]
        (doubt,) = [doubt for doubt in lay(tmp_path / str(i), names).doubts if "split anew" in doubt]
        assert flag in doubt
        assert doubt.count(".jpg") == 3
        assert "split anew" not in doubts(lay(tmp_path / str(i), [], exclude=tuple(shlex.split(flag)[1:])))
    for i, names in enumerate(
        (
            [f"P{p:02}/{s}/{k}.png" for p in P for s in ("test", "rest") for k in P],
            [f"P{p:02}_{s}/{k}.nii" for p in P for s in ("test", "rest") for k in ("T1", "T2")],
            [f"{s}/P{p:02}.nii" for s in ("test", "retest") for p in P],
            [f"val/{c}/{k}.png" for c in "ab" for k in P],
            [f"{s}/{k}.png" for s in ("train", "test") for k in P],
        )
    ):
        assert "split anew" not in doubts(lay(tmp_path / f"none{i}", names))


@pytest.mark.parametrize(
    ("form", "odd"),
    [
        ("ISIC_2019_Training_Input/ISIC_{:07}.jpg", "ISIC_2019_Training_Input/ISIC_{:07}_downsampled.jpg"),
        ("Chest_{:04}.png", "Chest_{:04}_lateral.png"),
        ("{c}/ISIC_{:07}.jpg", "{c}/ISIC_{:07}_downsampled.jpg"),
        ("COVID_{:03}.png", "cover.png"),
    ],
)
def test_a_word_that_most_names_begin_with_is_no_person(tmp_path, form, odd):
    own = {(odd if i % 12 == 3 else form).format(i, c=("nevus", "melanoma")[i % 2]): i for i in range(60)}
    layout = lay(tmp_path, list(own))
    assert len(set(layout.subjects)) == len(own)


def test_files_of_one_number_in_such_a_series_stay_together(tmp_path):
    own = {f"Chest_{i:04}{end}.png": i for i in range(30) for end in ("", "_rescan_b")[: 1 + (i % 9 == 0)]}
    assert alone(lay(tmp_path / "series", list(own)), own)
    people = {f"{who}_{k}.png": who for who, last in (("anna", 30), ("P02", 9)) for k in range(last)}
    assert alone(lay(tmp_path / "people", list(people)), people)


DEPTHS = {
    "nyu2_test/{:05}_colors.png": "nyu2_test/{:05}_depth.png",
    "{:05}_rgb.png": "{:05}_disparity.png",
    "chess/frame-{:06}.color.png": "chess/frame-{:06}.depth.png",
    "rgb/{:05}.png": "depth/{:05}.png",
    "color/{}.jpg": "depth/{}.png",
    "training/image_2/{:06}_10.png": "training/disp_noc_0/{:06}_10.png",
}


def test_depth_maps_beside_images_are_left_out_and_said(tmp_path):
    for i, (image, depth) in enumerate(DEPTHS.items()):
        images = {image.format(p) for p in P}
        layout = lay(tmp_path / str(i), [*images, *(depth.format(p) for p in P)])
        assert set(layout.keys) == images
        assert "8 depth maps" in dict(layout.skipped)
    names = [f"{c}/{p}.png" for c in ("depth", "shallow") for p in P]
    names += [f"P{p:02}_depth_{k}.png" for p in P for k in P]
    assert len(lay(tmp_path / "none", names).keys) == len(names)


def test_images_in_two_formats_are_asked_about(tmp_path):
    both = [f"basement_{s:04}a_out/{p}.{end}" for s in (1, 2) for p in P for end in ("jpg", "png")]
    layout = lay(tmp_path / "both", both)
    assert len(layout.keys) == len(both)
    assert "16 images are there in two formats, such as basement_0001a_out/1.jpg and" in doubts(layout)
    assert "--exclude '*.png'" in doubts(layout)
    few = [f"{p}.jpg" for p in range(90)] + ["1.png", "2.png", "3.png"]
    assert "two formats" not in doubts(lay(tmp_path / "few", few))


def test_label_maps_that_no_name_tells_are_asked_about_by_their_values(tmp_path):
    people = [f"{'Training' if p < 7 else 'Testing'} Set/{p * 7919:07}ABC" for p in P]
    grid = np.meshgrid(*(np.linspace(-1, 1, n) for n in head().shape), indexing="ij")
    for seed, who in enumerate(people):
        volume(tmp_path / "atria" / who / "lgemri.nii.gz", head(seed))
        atrium = sum(axis**2 for axis in grid) < 0.3 + seed / 100
        volume(tmp_path / "atria" / who / "laendo.nii.gz", atrium.astype(np.float32))
    data = open_data(DataConfig(data=str(tmp_path / "atria"), size="16x16"))
    (doubt,) = [doubt for doubt in data.doubts if "few values" in doubt]
    assert doubt.startswith("8 volumes such as Testing Set/")
    assert "--exclude '*laendo*'" in doubt
    left = open_data(DataConfig(data=str(tmp_path / "atria"), size="16x16", exclude=("*laendo*",)))
    assert not left.doubts
    for p in P:
        pixels = np.random.default_rng(p).integers(0, 256, (32, 32)).astype(np.uint8)
        for k in range(3):
            save(tmp_path / "bw" / f"P{p:02}_{k}.png", np.roll(pixels, k))
            save(tmp_path / "bw" / f"P{p:02}_{k}_bw.png", np.where(np.roll(pixels, k) > 99, 255, 0).astype(np.uint8))
    data = open_data(DataConfig(data=str(tmp_path / "bw")))
    assert any("24 images such as P01_0_bw.png have few values" in doubt for doubt in data.doubts)
    for p in P:
        for kind in ("T1", "FLAIR"):
            volume(tmp_path / "kinds" / f"P{p:02}_{kind}.nii.gz", head(p + 10 * (kind == "T1")))
    (doubt,) = open_data(DataConfig(data=str(tmp_path / "kinds"), size="16x16")).doubts
    assert doubt.startswith("volumes of several kinds are read together: flair (8), t1 (8), such as P01_FLAIR.nii.gz, ")
    assert not open_data(DataConfig(data=str(tmp_path / "kinds"), size="16x16", bids_suffix="T1")).doubts


@pytest.mark.parametrize(
    "tasks", [("Task02_Heart", "Task04_Hippocampus", "Task09_Spleen"), ("Dataset002_Aorta", "Dataset027_Brain")]
)
def test_data_sets_in_a_folder_are_classes(tmp_path, tasks):
    own = {
        f"{task}/images{part}/{task.partition('_')[2]}_{i:03}.nii.gz": (task, i)
        for task in tasks
        for part, held in (("Tr", range(6)), ("Ts", range(9, 15)))
        for i in held
    }
    layout = lay(tmp_path, list(own))
    assert alone(layout, own)
    assert set(layout.attributes["class"]) == set(tasks)


ANEW = {
    "{s}/P{p:02}/{k}.png": " --subject-pattern '([^/]+)/[^/]+$'",
    "{s}/P{p:02}/T1/{k}.png": " --subject-pattern '([^/]+)/[^/]+/[^/]+$'",
    "{s}/P{p:02}_{k}.png": "",
}


def test_people_in_two_splits_are_split_anew_as_they_were_read(tmp_path):
    for i, (form, pattern) in enumerate(ANEW.items()):
        folder = write(tmp_path / str(i), [form.format(s=s, p=p, k=k) for s in ("train", "test") for p in P for k in P])
        with pytest.raises(UserError, match="in more than one split") as caught:
            open_data(DataConfig(data=str(folder)))
        assert f"Give --layout flat{pattern}, which" in str(caught.value)
        told = shlex.split(pattern)[1] if pattern else None
        anew = open_data(DataConfig(data=str(folder), layout="flat", subject_pattern=told))
        assert len({who for part in anew.splits.values() for who in part.subjects}) == 8


WITHIN = {
    "LC25000": "{g}_image_sets/{g}_{c}/{g}{c}{i}.jpeg",
    "hashes": "{g}-gi-tract/{c}/{h}.jpg",
    "identifiers": "{g}-gi-tract/{c}/{h}-4a00-8120-4ff9-d96dc4270000.jpg",
    "CIFAR-100": "{s}/{g}/{c}/{i:04}.png",
    "plants": "{s}/{g}/{c}/{i}.jpg",
}


@pytest.mark.parametrize("name", WITHIN)
def test_folders_of_classes_within_classes_are_no_people(tmp_path, name):
    groups = {"colon": ("aca", "normal"), "lung": ("benign", "scc")}
    names = {
        WITHIN[name].format(g=g, c=c, i=i, s=s, h=hashlib.md5(f"{g}{c}{i}{s}".encode()).hexdigest()[:12])
        for s in ("train", "test")
        for g, held in groups.items()
        for c in held
        for i in range(12)
    }
    layout = lay(tmp_path, list(names))
    assert len(set(layout.attributes["subclass"])) == 4
    assert len(set(layout.attributes["class"])) == 2
    assert len(set(layout.subjects)) == len(names)
    asked = "read as classes within classes; if they are people, give --subject-pattern '([^/]+)/[^/]+$'"
    assert asked in doubts(layout)


@pytest.mark.parametrize("file", ["{k}.png", "slice_{k}.png", "{a}_{k}.png"])
def test_words_within_classes_that_may_be_people_are_people_and_asked_about(tmp_path, file):
    people = {"AD": "anna bert carl dora", "CN": "gina hugo ida jan kim lea"}
    own = {f"{c}/{a}/{file.format(a=a, k=k)}": a for c, held in people.items() for a in held.split() for k in range(5)}
    layout = lay(tmp_path, list(own))
    assert alone(layout, own)
    assert "folders like anna are read as people; if they are classes, give --layout classes" in doubts(layout)
    told = lay(tmp_path, [], layout="classes")
    assert len(set(told.attributes["subclass"])) == 10
    assert "--layout classes" not in doubts(told)


def test_people_of_two_splits_within_classes_are_asked_about(tmp_path):
    people = {"AD": ("anna", "bert", "carl"), "CN": ("dora", "emil")}
    names = [f"{s}/{c}/{a}/{k}.png" for s in ("train", "test") for c, own in people.items() for a in own for k in P]
    assert "read as classes within classes; if they are people, give --subject-pattern" in doubts(lay(tmp_path, names))
    folder = write(tmp_path / "data", names)
    with pytest.raises(UserError, match="in more than one split"):
        open_data(DataConfig(data=str(folder), subject_pattern="([^/]+)/[^/]+$"))


def test_an_image_above_the_class_folders_is_no_reason_to_stop(tmp_path):
    names = [f"{g}_sets/{g}_{c}/{g}{c}{i}.jpeg" for g in ("colon", "lung") for c in ("aca", "scc") for i in P]
    layout = lay(tmp_path, [f"{s}/{name}" for s in ("train", "test") for name in names] + ["test/preview.png"])
    assert set(layout.attributes["class"]) == {"", "colon_sets", "lung_sets"}
