"""Volumes of several contrasts or devices are asked about, and values that run the other way are turned."""

import re

import case_trees
import numpy as np
import pytest
from case_trees import lay

from vqvae2.data import rules
from vqvae2.data.layout import read_layout
from vqvae2.data.selection import Choice
from vqvae2.data.volume_files import read_canonical

P = range(1, 9)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("ce", ("", "_ce-gadolinium")),
        ("echo", ("_echo-1", "_echo-2")),
        ("inv", ("_inv-1", "_inv-2")),
        ("mt", ("_mt-off", "_mt-on")),
        ("acq", ("", "_acq-lowres")),
    ],
)
def test_contrasts_of_bids_are_asked_about_and_the_flags_that_are_named_part_them(tmp_path, name, values):
    files = [f"sub-{p:02}/anat/sub-{p:02}{value}_T1w.nii.gz" for p in P for value in values]
    layout = lay(tmp_path, files)
    assert len(layout.keys) == 16
    (doubt,) = layout.doubts
    assert f"volumes that differ in {name} are read together" in doubt
    value = values[1].rpartition("-")[2]
    one = read_layout(tmp_path, Choice(entities=((name, value),)))
    assert one.keys == [file for file in files if values[1] in file]
    assert one.doubts == []
    flag = re.search(r"--exclude '([^']+)'", doubt)
    assert (flag is None) == ("" not in values)
    if flag:
        rest = read_layout(tmp_path, Choice(exclude=(flag[1],)))
        assert rest.keys == [file for file in files if values[1] not in file]
        assert rest.doubts == []


@pytest.mark.parametrize(
    "forms",
    [
        ("P{p:02}_CT.nii.gz", "P{p:02}_PET.nii.gz"),
        ("P{p:02}/CT.nii.gz", "P{p:02}/PET.nii.gz"),
        ("P{p:02}/pet.nii.gz", "P{p:02}/mri.nii.gz"),
        ("ct_train_{p:04}_image.nii.gz", "mr_train_{p:04}_image.nii.gz"),
    ],
)
def test_devices_are_asked_about_and_the_flag_that_is_named_leaves_one(tmp_path, forms):
    layout = lay(tmp_path, [form.format(p=p) for p in P for form in forms])
    told = [doubt for doubt in layout.doubts if "several kinds are read together" in doubt]
    assert len(told) == 1
    flag = re.search(r"--exclude '([^']+)'", told[0])[1]
    assert len(read_layout(tmp_path, Choice(exclude=(flag,))).keys) == 8


@pytest.mark.parametrize(
    "form", ["P{p:02}_CT.nii.gz", "P{p:02}/mri.nii.gz", "sub-{p:02}/anat/sub-{p:02}_acq-mprage_T1w.nii.gz"]
)
def test_one_device_or_contrast_is_not_asked_about(tmp_path, form):
    assert lay(tmp_path, [form.format(p=p) for p in P]).doubts == []


def test_lowest_is_white_where_a_header_says_so(tmp_path):
    pytest.importorskip("SimpleITK")
    pydicom = pytest.importorskip("pydicom")
    voxels = np.arange(8 * 8 * 3, dtype=np.int16).reshape(8, 8, 3)
    case_trees.dicom_series(tmp_path / "scan", "H", voxels)
    files = tuple(sorted((tmp_path / "scan").iterdir(), key=lambda path: int(pydicom.dcmread(path).InstanceNumber)))
    usual = {length: read_canonical(files[:length]).voxels for length in (1, 3)}
    for path in files:
        image = pydicom.dcmread(path)
        image.PhotometricInterpretation = "MONOCHROME1"
        image.save_as(path)
    for length, before in usual.items():
        turned = read_canonical(files[:length]).voxels
        np.testing.assert_array_equal(turned - turned.min(), before.max() - before)


@pytest.mark.parametrize("cell", ["n.d.", "(blank)", "—", "not stated", "Unknown or Not Reported", "withheld"])
def test_further_words_for_nothing(cell):
    assert cell.lower() in rules.MISSING
