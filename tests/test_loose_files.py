"""A few files that lie beside the folders of all others: an overview, a template, a logo."""

import shlex

import pytest
from case_trees import lay

from vqvae2.data.selection import Layout

PEOPLE = ("P{:02}", "sub-{:02}", "{:04}", "patient{}", "Smith{}", "OAS1_{:04}_MR1")
TREES = {
    "people": [f"{{p}}/{k}.png" for k in range(4)],
    "people's visits": [f"{{p}}/M{visit:02}/{k}.png" for visit in (0, 12) for k in range(2)],
    "classes above people": [f"{{c}}/{{p}}/{k}.png" for k in range(4)],
    "kinds above people": [f"{kind}/{{p}}/{k}.png" for kind in ("T1", "T2") for k in range(2)],
    "classes": [f"{{c}}/{{p}}_s{k}.png" for k in range(4)],
    "splits": [f"{{t}}/{{p}}/{k}.png" for k in range(4)],
    "splits, classes": [f"{{t}}/{{c}}/{{p}}_s{k}.png" for k in range(4)],
    "volumes": ["{p}/T1.nii.gz", "{p}/FLAIR.nii.gz"],
    "BIDS": ["{p}/anat/{p}_T1w.nii.gz", "{p}/anat/{p}_T2w.nii.gz"],
    "BIDS, classes above": ["{c}/{p}/anat/{p}_T1w.nii.gz", "{c}/{p}/anat/{p}_T2w.nii.gz"],
}


def tree(forms: list[str], person: str, first: int = 0) -> list[str]:
    """The files of 24 people in two classes and two splits."""
    return [
        form.format(p=person.format(n), c="AD" if n % 2 else "CN", t="train" if n < 18 else "test")
        for n in range(first, first + 24)
        for form in forms
    ]


def told(layout: Layout, names: list[str]) -> list[tuple[object, ...]]:
    """Of each of these files the first one of the same person, its split and its labels."""
    rows = {key: i for i, key in enumerate(layout.keys)}
    firsts: dict[str, str] = {}
    labels = [values for _, values in sorted(layout.attributes.items())]
    return [
        (
            name,
            firsts.setdefault(layout.subjects[rows[name]], name),
            layout.splits[rows[name]],
            *(values[rows[name]] for values in labels),
        )
        for name in names
        if name in rows
    ]


def asked(layout: Layout) -> str:
    return "\n".join(layout.doubts + layout.subject_doubts)


@pytest.mark.parametrize("person", PEOPLE)
@pytest.mark.parametrize("name", TREES)
def test_a_loose_file_changes_nothing_for_the_others(tmp_path, name, person):
    names = tree(TREES[name], person)
    end = ".nii.gz" if names[0].endswith(".nii.gz") else ".png"
    before = told(lay(tmp_path, names), names)
    assert len({first for _, first, *_ in before}) == 24
    below = ["train/"] if name.startswith("splits") else ["CN/"] if name == "classes above people" else []
    for loose in (f"{place}{word}{end}" for place in ("", *below) for word in ("preview[1]", "0", "template_T1w")):
        layout = lay(tmp_path, [loose])
        assert told(layout, names) == before, loose
        if loose in layout.keys:
            assert layout.subjects.count(layout.subjects[layout.keys.index(loose)]) == 1
            words = asked(layout).split("--exclude ", 1)[1].split(" leaves")[0]
            alone = lay(tmp_path, [], exclude=tuple(shlex.split(words)))
            assert loose not in alone.keys
            assert told(alone, names) == before
        else:  # not in a folder of a split, of a subject
            assert layout.skipped
        (tmp_path / loose).unlink()


@pytest.mark.parametrize("person", PEOPLE)
@pytest.mark.parametrize("loose", ["overview/1.png", "qc/P01.png", "extra/a/b.png"])
def test_a_folder_of_another_kind_beside_those_of_people(tmp_path, person, loose):
    names = tree(TREES["people"], person)
    before = told(lay(tmp_path, names), names)
    layout = lay(tmp_path, [loose])
    assert told(layout, names) == before
    assert not layout.attributes
    assert f"--exclude {loose.split('/')[0]}" in asked(layout)


def test_what_is_loose_counts_without_a_label(tmp_path):
    layout = lay(tmp_path, [*tree(TREES["classes"], "P{:02}"), "overview.png"])
    assert set(layout.attributes["class"]) == {"AD", "CN", ""}
    assert dict(zip(layout.keys, layout.attributes["class"], strict=True))["overview.png"] == ""
    assert "1 of 97 images (overview.png) lie outside folders such as AD" in asked(layout)


def test_many_files_beside_folders_are_not_loose(tmp_path):
    names = [f"img_{n:03}.png" for n in range(12)] + [f"{c}/img_{n:03}.png" for c in ("a", "b") for n in range(20, 40)]
    layout = lay(tmp_path, names)
    assert not layout.attributes
    assert len(set(layout.subjects)) == len(names)


def test_numbered_classes_beside_a_word_stay_classes(tmp_path):
    layout = lay(tmp_path, [f"{c}/{n:03}.png" for c in ("G1", "G2", "G3", "G4", "control") for n in range(30)])
    assert set(layout.attributes) == {"class"}


def test_hashes_and_blocks_of_numbers_beside_a_loose_file_tell_nobody(tmp_path):
    hashes = [f"{n * 2654435761 % 2**32:08x}" for n in range(1, 81)]
    assert not lay(tmp_path / "a", [f"{h[0]}/{h[1]}/{h}.jpg" for h in hashes] + ["sample.jpg"]).attributes
    blocks = [f"{n * 1000:05}/{n * 1000 + k:05}.png" for n in range(7) for k in range(9)]
    layout = lay(tmp_path / "b", [*blocks, "teaser.png"])
    assert not layout.attributes
    assert len(set(layout.subjects)) == 64
