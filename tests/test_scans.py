"""Endings, prefixes and folders that tell a scan: one person stays one, two stay two, in trees as people have them."""

import json
from pathlib import Path

import pytest
from case_trees import lay
from PIL import Image

from vqvae2.data import DataConfig, open_data
from vqvae2.data.scans import processed, under_heads
from vqvae2.data.tables import join, read_table
from vqvae2.errors import UserError

P = range(1, 11)
JOINED = (
    "P{p:02}S{s:02}_{k:03}",
    "P{p:02}R{s}_{k}",
    "S{p:02}s{s}_{k}",
    "p{p}d{s}_{k}",
    "{p:02}v{s}_{k}",
    "sub{p:02}fu{s}_{k}",
)


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
    "conditions behind a short number": {
        f"S{p:02}_{c}_{k}.png": p for p in P for c in ("rest", "stress") for k in (1, 2)
    },
    "series behind a bare number": {f"{p}_series{s}_{k}.png": p for p in P for s in (1, 2) for k in (1, 2)},
    "cameras": {f"{1880 + 6 * p}_c{c}_f00{46000 + 7 * p + 13 * c}.jpg": p for p in P for c in (1, 2)},
    "short dates": {f"P{p:02}_20{d:02}{10 + p}_{k}.png": p for p in P for d in (1, 2) for k in (1, 2)},
    "dates without zeros": {f"P{p:02}_2020-{d}-{p}_{k}.png": p for p in P for d in (1, 2) for k in (1, 2)},
    "dates with times": {f"P{p:02}_2020010{d}1430{20 + p}_{k}.png": p for p in P for d in (1, 2) for k in (1, 2)},
    "accession numbers": {
        f"P{p:02}_{107956 + 37 * p + 1001 * d}_{k}.png": p for p in P for d in (1, 2) for k in (1, 2)
    },
    **{form: {form.format(p=p, s=s, k=k) + ".png": p for p in P for s in (1, 2) for k in (1, 2)} for form in JOINED},
    "two people of a family": {f"F{f:02}P{p:02}_{k}.png": (f, p) for f in P for p in (1, 2) for k in (1, 2)},
    "subjects under classes": {f"C{c:02}S{p:02}_{k}.png": (c, p) for c in P for p in (1, 2) for k in (1, 2)},
    "slices before people": {f"{k:03}_P{p:02}.png": p for p in P for k in range(4)},
    "slices before numbers": {f"{k:03}_{1000 + p}.png": p for p in P for k in range(4)},
    "batches of people": {f"subset{(p + k) % 4}/P{p:02}_{k}.png": p for p in P for k in range(6)},
    "discs of people": {f"dvd{p % 3}/P{p:02}_{k}.png": p for p in P for k in range(3)},
    "classes in a list": {
        f"{c}/{p}{'ABC'[p % 3]}_Prim-{p:02}_{k}.png": p for c in ("01_TUMOR", "02_STROMA") for p in P for k in (1, 2)
    },
    "one picture in two sizes": {f"data{s}x{s}/{p:05}.png": p for p in P for s in (128, 256)},
    "a picture and what was made of it": {f"img_{p}{end}.png": p for p in P for end in ("", "_gauss", "_clahe")},
    "frames and a counter": {f"frame{p:03}_{k}.png": p for p in P for k in (0, 1)},
    "people of two splits": {
        f"{split}_{p}/VSD.Brain.XX.O.MR_{kind}.{number + p}/VSD.nii": (split, p)
        for split, people in (("training", P), ("test", P[:8]))
        for p in people
        for kind, number in (("ADC", 128000), ("MTT", 129000))
    },
    "years of a cohort": {f"PPMI_{y}/{3100 + p}/T1.nii.gz": p for p in P for y in (2022, 2023)},
    "pictures of two splits": {
        f"{split}/COCO_{split}_{10 * (split == 'val2014') + p:012}.jpg": (split, p)
        for p in P
        for split in ("train2014", "val2014")
    },
    "patients and years": {f"{p:03}_{y}.png": p for p in P for y in (2018, 2019, 2020)},
    "slices, then people": {f"slice_{k:03}_{1001 + p}.png": p for p in P for k in range(4)},
    "frames, then people": {f"frame_{k}_{11 + p}.png": p for p in P for k in range(4)},
    "numbered classes of numbered people": {f"{c}/{10 * c + p}/T1.nii.gz": (c, p) for c in (0, 1) for p in range(10)},
    "pages of people": {f"patient{p:02}/p{k}.png": p for p in P for k in range(1, 25)},
    "photographs of people": {
        f"{p:02}_{n}/DSC{1100 + 40 * p + k:05}.JPG": p
        for p, n in enumerate(("Smith", "Jones", "Miller"))
        for k in range(9)
    },
    "slices of people in a list": {
        f"{p:03}_{n}/CT{k:06}.png": p for p, n in enumerate(("JD", "AB", "KL", "MN")) for k in range(1, 20)
    },
    "exams by their moment": {f"202001011430{p:02}_{k}.png": p for p in P for k in (1, 2)},
    "people with a size": {f"P{p:02}_512x512/{k:03}.png": p for p in P for k in (1, 2)},
    "sites and their subjects": {f"{s:02}S{p:02}_{k}.png": (s, p) for s in (1, 2, 3) for p in P for k in (1, 2)},
    "discs, each of a specimen": {f"disc{p:02}/{1000 + 9 * p + k}.png": p for p in P for k in range(5)},
    "people called X": {f"X{p:02}/{k}.png": p for p in P for k in range(5)},
    "camera names of people": {f"Patient_{p:02}/P{1010017 + 40 * p + k}.JPG": p for p in P for k in range(4)},
    "groups, sites and numbers": {f"AD_berlin{s}_{p:03}.nii.gz": (s, p) for s in (1, 2, 3) for p in range(1, 21)},
    "people behind a letter for a group": {f"P{g}_{p:03}.nii.gz": (g, p) for g in (1, 2, 3) for p in range(1, 21)},
    "dates of birth behind a device": {f"K{d}_{10 + p}0360.nii.gz": (d, p) for d in (1, 2, 3) for p in P},
    "people called as years": {f"patient_{2000 + p}/lesion_0{k}/1.png": p for p in P for k in (1, 2)},
    "people in a list, two numbers": {
        f"{p:02}_{n}/c{c}_p{k}_001.png": p
        for p, n in enumerate(("anna", "bert", "carl"))
        for c in (1, 2, 3)
        for k in range(5)
    },
    "frames, then people, joined": {f"frame{k:03}_{11 + p}.png": p for p in P for k in range(4)},
    "a device and a moment": {f"GE{d}_202001011430{10 + p}.nii.gz": (d, p) for d in (1, 2, 3) for p in P},
    "sites and lettered people": {f"{s:02}_A{p:02}.nii.gz": (s, p) for s in (1, 2, 3) for p in P},
    "plates and people": {f"P{g:02}S{p:02}_1.png": (g, p) for g in (1, 2, 3) for p in P},
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
    "modalities": {f"MRI-PET/{kind}/{250 + p}.png": p for p in P for kind in ("MRI", "PET")},
    "modalities in names too": {f"{kind}/{kind.lower()}_{p}.png": p for p in P for kind in ("CT", "MRI")},
    "modalities in splits": {
        f"{split}/{kind}/{p}.png": (split, p) for p in P for kind in ("SPECT", "MRI") for split in ("train", "test")
    },
    "copies by Keras": {f"yes/aug_Y{p}_0_{1000 + 37 * p + k}.png": p for p in P for k in range(3)},
    "copies by Keras and what they were made of": {
        name: p for p in P for name in (f"no/{p} no.jpg", *(f"no/aug_{p} no_0_{100 * p + k}.jpg" for k in range(3)))
    },
    "FFHQ in two sizes": {
        f"{size}/{p // 4 * 1000:05}/{p // 4 * 1000 + p:05}.png": p
        for p in P
        for size in ("thumbnails128x128", "images1024x1024")
    },
    "CelebA-HQ in two sizes": {f"celeba_hq_{size}/{p:05}.jpg": p for p in P for size in (128, 256)},
    "sizes": {f"{size}/{p:04}.png": p for p in P for size in (256, 512, 1024)},
    "fastMRI": {
        f"file_brain_AX{kind}_20{place}_6002{p:03}_{k:03}.png": p
        for place, kind in enumerate(("T2", "T1POST", "T1PRE", "FLAIR"))
        for p in range(2 * place, 2 * place + 2)
        for k in (1, 2)
    },
    "fastMRI after contrast": {f"file_brain_AXT1POST_201_6002{p:03}/{k:03}.png": p for p in P for k in (1, 2)},
    "chest X-rays of Kermany": {f"NORMAL/NORMAL2-IM-{380 + p:04}-000{k}.jpeg": p for p in P for k in (1, 2)},
    "two formats": {f"{p}.{end}": p for p in P for end in ("png", "jpg")},
    "MRBrainS13": {
        f"TrainingData/{p}/{kind}.nii": p for p in range(1, 6) for kind in ("T1", "T1_IR", "T1_1mm", "T2_FLAIR")
    },
    "MRBrainS18": {
        f"training/{p}/{folder}/{kind}.nii.gz": p
        for p in (1, 4, 5, 7, 14, 70, 148)
        for folder in ("orig", "pre")
        for kind in ("T1", "FLAIR", "IR", "reg_IR", "reg_T1")
    },
    "CAT12": {f"{made}IXI{p:03}-Guys-07{p:02}-T1.nii": p for p in P for made in ("", "mri/wm", "mri/mi")},
    "letters of scans": {f"S{p:02}{scan}_{k}.png": p for p in P for scan in "AB" for k in (3, 4)},
    "an archive in an archive": {
        f"{above}{c}/{c[0]}{p}.jpg": (c, p) for p in P for c in ("yes", "no") for above in ("", "brain_tumor_dataset/")
    },
    "discs of OASIS-1": {
        f"disc{1 + p // 5}/OAS1_{p:04}_MR1/T88_111/OAS1_{p:04}_MR1_mpr_n4_anon_111_t88_gfc.nii": p for p in P
    },
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


@pytest.mark.parametrize(
    ("names", "doubt"),
    [
        ([f"{c}_P{p:02}_{k}.png" for p in P for c in ("rest", "stress") for k in (1, 2)], "if they show one, give"),
        ([f"study1_series{s}_{p}.png" for s in P for p in P] + ["study2_series1_1.png"], ""),
        ([f"{c}/{k:05}.png" for c in ("00_Mild", "01_Severe") for k in range(20)], "give --layout classes"),
        ([f"G{c}/{k}.png" for c in (1, 2, 3) for k in range(20)], "give --layout classes"),
        ([f"{p}/{k}.png" for p in P for k in range(3)], "give --layout subjects"),
        ([f"{c}_{k}.png" for c in range(10) for k in range(20)], "if these are classes"),
        ([f"{y}_{k:06}.jpg" for y in range(2007, 2013) for k in range(20)], "if these are classes"),
        ([f"{c}_{k}.png" for c in "abcdefghijkl" for k in range(20)], "if these are classes"),
        ([f"patient{p}/{k}.png" for p in P for k in range(3)], ""),
        ([f"P{p:02}_{k:03}.png" for p in P for k in range(9)], ""),
        ([f"s{p}/{k}.pgm" for p in range(1, 41) for k in range(1, 4)], ""),
        ([f"{c}/{a}_{p:02}_01.jpg" for c, a in (("Measles", "MSL"), ("Cowpox", "CWP")) for p in P], ""),
    ],
)
def test_what_may_be_a_class_or_a_condition_is_asked(tmp_path, names, doubt):
    doubts = lay(tmp_path, names).subject_doubts
    assert any(doubt in one for one in doubts) if doubt else not doubts


@pytest.mark.parametrize(
    "word", ["synthseg", "brainseg", "parc", "lbl", "staple", "pred", "Maske", "mascara", "labelled"]
)
def test_words_of_masks_leave_the_images(tmp_path, word):
    layout = lay(tmp_path, [f"P{p:02}_3{end}.png" for p in P for end in ("", f"_{word}")])
    assert layout.keys == [f"P{p:02}_3.png" for p in P]


@pytest.mark.parametrize(
    ("classes", "names"),
    [
        (("ground_track_field", "airport"), "{c}_{k:03}"),
        (("lipstick", "mascara"), "{k:03}"),
        (("labeled-images", "unlabeled-images"), "{c[0]}{k:05}"),
        (tuple("ABCWXYZ"), "{c}{k}"),
        (("bare_ground", "staple_food"), "{k:03}"),
    ],
)
def test_words_of_masks_and_single_letters_are_classes_where_no_image_lies_beside(tmp_path, classes, names):
    layout = lay(tmp_path, [f"{c}/{names.format(c=c, k=len(c) * 100 + k)}.jpg" for c in classes for k in P])
    assert len(layout.keys) == len(classes) * len(P)
    assert set(layout.attributes["class"]) == set(classes)


def test_letters_behind_the_word_of_a_split_are_domains(tmp_path):
    layout = lay(tmp_path, [f"{s}{d}/{s}{d}{k:03}.png" for s in ("train", "test") for d in "XY" for k in P])
    assert set(layout.attributes["class"]) == {"X", "Y"}


def test_a_picture_of_a_site_is_not_the_people_beside_it(tmp_path):
    layout = lay(tmp_path, ["site1.png", "site2.png", *(f"site{s}_{p:03}.png" for s in (1, 2) for p in P)])
    assert len(set(layout.subjects)) >= 20


def test_numbered_classes_of_two_splits_are_classes_and_tumours_of_planning_are_masks(tmp_path):
    layout = lay(tmp_path / "a", [f"{s}_{c}/{s}{c}{k:03}.png" for s in ("train", "val") for c in (0, 1) for k in P])
    assert set(layout.splits) == {"train", "val"}
    assert set(layout.attributes["class"]) == {"0", "1"}
    names = [f"CHGJ{p:03}_{kind}.nii.gz" for p in P for kind in ("ct", "gtvt", "GTVnd")]
    assert all(key.endswith("_ct.nii.gz") for key in lay(tmp_path / "b", names).keys)


@pytest.mark.parametrize("folder", ["groundtruths", "ground_truths", "Ground", "lbl", "predictions"])
def test_folders_of_masks_leave_the_images(tmp_path, folder):
    layout = lay(tmp_path, [f"{where}/P{p:02}_3.png" for p in P for where in ("images", folder)])
    assert layout.keys == [f"images/P{p:02}_3.png" for p in P]


def test_folders_are_no_masks_by_their_first_letters_and_splits_by_their_parts(tmp_path):
    games = lay(tmp_path / "a", [f"{where}/{k:05}.png" for where in ("gta", "cityscapes") for k in P])
    assert len(games.keys) == 20 and set(games.attributes["class"]) == {"gta", "cityscapes"}  # noqa: PT018
    parts = [
        f"{s}/n0144076{c}/n0144076{c}_{k}.JPEG" for s in ("train.X1", "train.X2", "val.X") for c in P for k in (1, 2)
    ]
    assert set(lay(tmp_path / "b", parts).splits) == {"train", "val"}
    nested = [f"seg_{s}/seg_{s}/{c}/{k}.jpg" for s in ("train", "test") for c in ("glacier", "sea") for k in P]
    layout = lay(tmp_path / "c", nested)
    assert set(layout.splits) == {"train", "test"}
    assert set(layout.attributes["class"]) == {"glacier", "sea"}


def test_the_column_that_names_people_to_the_letter_is_taken(tmp_path):
    names = [f"P{p:02}_{k}.png" for p in P for k in (0, 1)]
    layout = lay(tmp_path / "data", names)
    table = tmp_path / "people.csv"
    table.write_text("record_id,code,sex\n" + "".join(f"{p},P{11 - p:02},{'FM'[p % 2]}\n" for p in P))
    matches = read_table(table).match(layout.keys, layout.subjects)
    assert [row["sex"] for row in matches.rows[:4]] == ["F", "F", "M", "M"]


@pytest.mark.parametrize(
    ("head", "file"),
    [
        ("Image Index,Patient ID", "{p:08}_{k:03}.png"),
        ("image_name,patient_id", "ISIC_{n:07}"),
        ("img_id,patient_id", "{n}"),
    ],
)
def test_a_table_of_images_tells_whom_each_shows(tmp_path, head, file):
    rows = [(p, k, file.format(p=p, k=k, n=100 + 3 * p + k)) for p in P for k in (0, 1)]
    for _, _, name in rows:
        path = tmp_path / "data" / (name if name.endswith(".png") else f"{name}.png")
        path.parent.mkdir(exist_ok=True)
        Image.new("L", (16, 16), 9).save(path)
    table = tmp_path / "data" / "table.csv"
    table.write_text(f"{head},sex\n" + "".join(f"{name},{p},{'FM'[p % 2]}\n" for p, _, name in rows))
    data = open_data(DataConfig(data=str(tmp_path / "data"), labels="table.csv:sex"))
    told = {
        (key, who) for images in data.splits.values() for key, who in zip(images.keys, images.subjects, strict=True)
    }
    assert {who for _, who in told} == {str(p) for p in P}


def test_a_table_whose_numbers_of_images_name_no_file_is_of_people(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text(
        "Image ID,Subject,sex\n" + "".join(f"I{10 * p + k},P{p:02},{'FM'[p % 2]}\n" for p in P for k in (0, 1))
    )
    names = [f"P{p:02}_{k}.png" for p in P for k in (0, 1)]
    layout = lay(tmp_path / "data", names)
    matches = read_table(table).match(layout.keys, layout.subjects)
    assert [row["sex"] for row in matches.rows[:4]] == ["M", "M", "F", "F"]


def test_maps_and_steps_of_processing_are_told_from_names_that_look_alike():
    places = [("a/mri" if step else "a", f"{step}P{p:02}") for step in ("", "wm", "c1", "y_") for p in (1, 2, 3)]
    found = processed(places)
    assert found["a/mri", "wmP01"] == ("P01", False)
    assert found["a/mri", "c1P02"] == ("P02", True)
    assert found["a/mri", "y_P03"] == ("P03", True)
    assert ("a", "P01") not in found
    assert processed([("", f"{step}MCI{p:02}") for step in ("", "a") for p in P]) == {}
    assert processed([(f"{step}TBI", f"{step}TBI{p:02}") for step in ("", "m") for p in P]) == {}
    assert (
        processed([("b" if step else "c", f"{step}P{p:02}") for step in ("", "wm") for p in P])["b", "wmP02"][0]
        == "P02"
    )


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
