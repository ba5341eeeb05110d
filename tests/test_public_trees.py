"""Trees of public data sets as they are unpacked: processed beside raw scans, training beside held-out folders, classes
within classes, depth and label maps beside images."""

from pathlib import Path

import pytest

from vqvae2.data.layout import read_layout
from vqvae2.data.scans import processed
from vqvae2.data.selection import Choice, Layout

P = range(1, 9)


def lay(folder: Path, names: list[str], **choice: object) -> Layout:
    """The layout of a folder of empty files of these names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return read_layout(folder, Choice(**choice))


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
