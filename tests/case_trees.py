"""Small folders with the names of public data sets, as people have them on their disks."""

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
from pictures import save
from PIL import Image

from vqvae2.data.layout import read_layout
from vqvae2.data.selection import Choice, Layout

Make = Callable[[Path], list[str]]
"""Fills a folder; returns the flags that go with it, beside --data."""


def lay(folder: Path, names: list[str], **choice: object) -> Layout:
    """The layout of a folder of empty files of these names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return read_layout(folder, Choice(**choice))


def slices(folder: Path, names: list[str]) -> Path:
    """Different grey 64x64 pictures of these names."""
    for seed, name in enumerate(names):
        save(folder / name, np.random.default_rng(seed).integers(0, 256, (64, 64)).astype(np.uint8))
    return folder


def head(seed: int = 0, shape: tuple[int, ...] = (24, 28, 20)) -> np.ndarray:
    """A bright ellipsoid of random values from 100 to 1000 on an empty background of zeros."""
    grid = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    inside = sum(axis**2 for axis in grid) < 0.8
    return np.where(inside, np.random.default_rng(seed).integers(100, 1000, shape), 0).astype(np.float32)


def volume(path: Path, voxels: np.ndarray, affine: np.ndarray | None = None) -> Path:
    """Write a volume of 2 mm; the format is told by the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([2.0, 2, 2, 1]) if affine is None else affine
    kind = nib.MGHImage if path.suffix in (".mgz", ".mgh") else nib.Nifti1Image
    nib.save(kind(voxels, affine), path)
    return path


def volumes(folder: Path, names: list[str]) -> Path:
    """Different heads of these names."""
    for seed, name in enumerate(names):
        volume(folder / name, head(seed))
    return folder


def hipmri(folder: Path) -> list[str]:
    names = [f"case_{p:03d}_week_{w}_slice_{k}.png" for p in range(4, 12) for w in (0, 1, 3) for k in (0, 1)]
    slices(folder, names)
    return []


def brats(folder: Path) -> list[str]:
    volumes(
        folder,
        [
            f"BraTS-GLI-{p:05d}-{v:03d}/BraTS-GLI-{p:05d}-{v:03d}-{kind}.nii.gz"
            for p in range(1, 9)
            for v in (0, 1)
            for kind in ("t1c", "t1n", "t2f", "t2w", "seg")
        ],
    )
    return ["--size", "32x32"]


def lgg(folder: Path) -> list[str]:
    people = [
        f"TCGA_{site}_{p}_1996{p % 12 + 1:02d}10"
        for site, p in zip(["CS", "DU", "HT", "FG"] * 2, range(4978, 4986), strict=True)
    ]
    stems = [f"kaggle_3m/{who}/{who}_{k}" for who in people for k in (1, 2, 3)]
    slices(folder, [f"{stem}{end}.tif" for stem in stems for end in ("", "_mask")])
    return []


def mask_folders(folder: Path) -> list[str]:
    slices(folder, [f"{kind}/p{p:02d}_{k}.png" for kind in ("images", "masks") for p in range(10) for k in (0, 1)])
    return []


def volumes_in_splits(folder: Path) -> list[str]:
    names = [f"train/pt{p:02d}_V1.nii.gz" for p in range(8)] + [f"test/pt{p:02d}_V2.nii.gz" for p in range(6, 10)]
    volumes(folder, names)
    return ["--size", "32x32", "--layout", "flat"]


def wmh(folder: Path) -> list[str]:
    sites = {"Utrecht": (0, 2, 4, 6), "Singapore": (50, 51, 52), "GE3T": (100, 101, 102)}
    people = [f"{site}/{number}" for site, numbers in sites.items() for number in numbers]
    volumes(folder, [f"{who}/{name}" for who in people for name in ("orig/FLAIR.nii.gz", "wmh.nii.gz")])
    return ["--size", "32x32"]


def short_row(folder: Path) -> list[str]:
    for p in range(1, 9):
        volume(folder / f"sub-{p:03d}/anat/sub-{p:03d}_T1w.nii.gz", head(p))
    rows = [f"sub-{p:03d}\t{'MF'[p % 2]}\t{30 + p}" for p in range(1, 9)]
    rows[1] = "sub-002  F\t31"
    (folder / "participants.tsv").write_text("\n".join(["participant_id\tsex\tage", *rows]) + "\n")
    return ["--size", "32x32", "--labels", "participants.tsv:sex"]


def z_scored(folder: Path) -> list[str]:
    for p in range(8):
        voxels = head(p)
        inside = voxels > 0
        voxels[inside] = (voxels[inside] - voxels[inside].mean()) / voxels[inside].std()
        volume(folder / f"p{p:02d}.nii.gz", voxels)
    return ["--size", "32x32"]


def complex_valued(folder: Path) -> list[str]:
    for p in range(8):
        phase = np.random.default_rng(100 + p).uniform(0, 2 * np.pi, (24, 28, 20))
        volume(folder / f"p{p:02d}.nii.gz", (head(p) * np.exp(1j * phase)).astype(np.complex64))
    return ["--size", "32x32"]


def lzw_tiffs(folder: Path) -> list[str]:
    for p in range(12):
        for k in range(2):
            pixels = np.random.default_rng(2 * p + k).integers(0, 256, (64, 64, 3)).astype(np.uint8)
            save(folder / f"p{p:02d}_{k}.tif", pixels, compression="tiff_lzw")
    return []


def tiny_imagenet(folder: Path) -> list[str]:
    kinds = ("n01443537", "n01629819", "n02124075")
    names = [f"train/{kind}/images/{kind}_{k}.JPEG" for kind in kinds for k in range(8)]
    slices(folder, names + [f"val/images/val_{k}.JPEG" for k in range(6)])
    return []


def alzheimer(folder: Path) -> list[str]:
    kinds = ("MildDemented", "ModerateDemented", "NonDemented", "VeryMildDemented")
    names = [f"OriginalDataset/{kind}/{kind[:-5].lower()}{k}.jpg" for kind in kinds for k in range(6)]
    names += [
        f"AugmentedAlzheimerDataset/{kind}/{17 * k + i:08x}-53a1.jpg" for i, kind in enumerate(kinds) for k in range(6)
    ]
    slices(folder, names)
    return []


def hcp(folder: Path) -> list[str]:
    people = (100206, 100307, 100408, 100610, 101006, 101107, 101309, 101410)
    volumes(folder, [f"{who}/T1w/T1w_acpc_dc_restore_brain.nii.gz" for who in people])
    return ["--size", "32x32"]


def derivatives(folder: Path) -> list[str]:
    for p in range(8):
        for space in ("", "_space-MNI152NLin2009cAsym"):
            volume(folder / f"sub-{p:02d}/anat/sub-{p:02d}{space}_desc-preproc_T1w.nii.gz", head(p + 50 * bool(space)))
    return ["--size", "32x32"]


def flat_niftis(folder: Path) -> list[str]:
    for place, kind in (("keras_slices_train", "case"), ("keras_slices_seg_train", "seg")):
        for p in range(4, 12):
            for w in (0, 1):
                voxels = np.random.default_rng(10 * p + w).integers(1, 999, (64, 32)).astype(np.float32)
                volume(folder / place / f"{kind}_{p:03d}_week_{w}_slice_0.nii.gz", voxels)
    return []


def nan_background(folder: Path) -> list[str]:
    for p in range(8):
        voxels = head(p)
        voxels[voxels == 0] = np.nan
        volume(folder / f"p{p:02d}.nii.gz", voxels)
    return ["--size", "32x32"]


def sessions(folder: Path) -> list[str]:
    """Everybody is MCI at the first visit; the even ones are AD at the second."""
    for p in range(8):
        who = f"sub-{p:02d}"
        for visit in ("01", "02"):
            volume(folder / who / f"ses-{visit}/anat/{who}_ses-{visit}_T1w.nii.gz", head(2 * p + int(visit)))
        second = "MCI" if p % 2 else "AD"
        (folder / who / f"{who}_sessions.tsv").write_text(f"session_id\tdiagnosis\nses-01\tMCI\nses-02\t{second}\n")
    rows = "".join(f"sub-{p:02d}\t{'MF'[p % 2]}\n" for p in range(8))
    (folder / "participants.tsv").write_text("participant_id\tsex\n" + rows)
    return ["--size", "32x32", "--labels", "participants.tsv:sex,diagnosis"]


def ixi(folder: Path) -> list[str]:
    numbers = (2, 12, 13, 14, 15, 16, 17, 19)
    names = [f"IXI{n:03d}-{site}-{1210 + n}-T1.nii.gz" for n, site in zip(numbers, ["Guys", "HH"] * 4, strict=True)]
    volumes(folder, names)
    rows = "".join(f"{n},{n % 2 + 1},{30.5 + n}\n" for n in (1, *numbers))
    (folder / "IXI.csv").write_text('IXI_ID,"SEX_ID (1=m, 2=f)",AGE\n' + rows)
    return ["--size", "32x32", "--labels", "IXI.csv:SEX_ID (1=m, 2=f)"]


def partly_matching(folder: Path) -> list[str]:
    volumes(folder, [f"sub-{p:03d}_T1w.nii.gz" for p in range(1, 9)])
    rows = "".join(f"{p if p % 2 else f'{p:03d}'},{'MF'[p // 4 % 2]}\n" for p in range(1, 9))
    (folder / "people.csv").write_text("participant_id,sex\n" + rows)
    return ["--size", "32x32", "--labels", "people.csv:sex"]


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "4d7a2146" * 8 + "\nsize 12345\n"


def pointers(folder: Path) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    for p in range(8):
        (folder / f"p{p:02d}_0.png").write_text(POINTER)
    return []


def meaningless(folder: Path) -> list[str]:
    words = ["AD", "NC", "unknown", "None", ".", "-9", "#N/A", "?", "AD", "NC"]
    slices(folder, [f"p{p:02d}_{k}.png" for p in range(10) for k in (0, 1)])
    rows = "".join(f"p{p:02d},{word}\n" for p, word in enumerate(words))
    (folder / "people.csv").write_text("subject,group\n" + rows)
    return ["--labels", "people.csv:group"]


def transparent(folder: Path) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    for p in range(8):
        pixels = np.full((64, 64, 4), 255, np.uint8)  # white, and hidden at the border
        pixels[..., 3] = 0
        pixels[16:48, 16:48] = [50 + p, 50 + p, 50 + p, 255]
        Image.fromarray(pixels).save(folder / f"p{p:02d}_0.png")
    return []


def listed(folder: Path) -> list[str]:
    slices(folder / "here", [f"p{p:02d}_{k}.png" for p in range(8) for k in (0, 1)])
    lines = [f"here/p{p:02d}_{k}.png" for p in range(8) for k in (0, 1)]
    (folder / "list.txt").write_text("\n".join(lines) + "\n")
    return ["--data", str(folder / "list.txt")]


def zipped(folder: Path) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "slices.zip").write_bytes(b"PK\x03\x04")
    return ["--data", str(folder / "slices.zip")]


def ffhq(folder: Path) -> list[str]:
    slices(folder, [f"{block:05d}/{block + k:05d}.png" for block in (0, 1000, 2000) for k in range(8)])
    return []


def dicom(folder: Path) -> list[str]:
    """Eight people's series, one of them without suffixes."""
    for p in range(8):
        dicom_series(folder / f"scan{p}", f"HOSP^{p:04d}", head(p).astype(np.int16), "" if p == 3 else ".dcm")
    return ["--size", "32x32"]


def dicom_series(
    folder: Path, patient: str, voxels: np.ndarray, suffix: str = ".dcm", slope: float = 1, intercept: float = 0
) -> None:
    """Write a volume (X, Y, Z) that runs to the left, the back and upwards, as a series of axial slices of 2 mm."""
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

    folder.mkdir(parents=True, exist_ok=True)
    series, study = generate_uid(), generate_uid()
    for k in range(voxels.shape[2]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MRImageStorage, generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        image.SOPClassUID, image.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        image.PatientID, image.PatientName, image.Modality = patient, patient + "^NAME", "MR"
        image.StudyInstanceUID, image.SeriesInstanceUID, image.SeriesNumber = study, series, 4
        image.StudyDate, image.InstanceNumber, image.FrameOfReferenceUID = "20190131", k + 1, study
        image.ImagePositionPatient, image.ImageOrientationPatient = [0, 0, 2.0 * k], [1, 0, 0, 0, 1, 0]
        image.PixelSpacing, image.SliceThickness, image.SpacingBetweenSlices = [2, 2], 2, 2
        image.Rows, image.Columns = voxels.shape[1], voxels.shape[0]
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 1
        image.RescaleSlope, image.RescaleIntercept = slope, intercept
        image.PixelData = np.ascontiguousarray(voxels[:, :, k].T.astype("<i2")).tobytes()
        name = f"IM{(7 * k) % voxels.shape[2]:04d}{suffix}"  # the names do not give the order
        pydicom.dcmwrite(folder / name, image, enforce_file_format=True)


def hospital_volumes(folder: Path) -> list[str]:
    import SimpleITK

    for p in range(8):
        image = SimpleITK.GetImageFromArray(head(p).T.copy())
        image.SetSpacing((2, 2, 2))
        folder.mkdir(parents=True, exist_ok=True)
        SimpleITK.WriteImage(image, str(folder / f"p{p:02d}.{('mha', 'nrrd')[p % 2]}"))
    return ["--size", "32x32"]


def freesurfer(folder: Path) -> list[str]:
    for p in range(8):
        volume(folder / f"bert{p:02d}/mri/T1.mgz", head(p))
        volume(folder / f"bert{p:02d}/mri/aseg.mgz", (head(p) > 0).astype(np.float32))
    return ["--size", "32x32"]


def new_pictures(folder: Path) -> list[str]:
    slices(folder, [f"p{p:02d}_{k}.{('jfif', 'avif')[k]}" for p in range(8) for k in (0, 1)])
    return []


ROWS: dict[str, Make] = {
    "one person, several names (weeks)": hipmri,
    "one person, several names (BraTS)": brats,
    "masks beside images": lgg,
    "folders of masks": mask_folders,
    "--layout on volumes": volumes_in_splits,
    "sites above people": wmh,
    "rows of a wrong length": short_row,
    "z-scored volumes": z_scored,
    "complex volumes": complex_valued,
    "false remark": lzw_tiffs,
    "Tiny-ImageNet": tiny_imagenet,
    "several sources of one class": alzheimer,
    "HCP": hcp,
    "derivatives": derivatives,
    "2-D NIfTI": flat_niftis,
    "NaN as background": nan_background,
    "labels by visit": sessions,
    "IXI's table": ixi,
    "partly matching ids": partly_matching,
    "Git-LFS pointers": pointers,
    "DICOM": dicom,
    "MHA and NRRD": hospital_volumes,
    ".mgz": freesurfer,
    ".avif, .jfif": new_pictures,
    "values that mean nothing": meaningless,
    "transparent PNG": transparent,
    "lists": listed,
    "archives": zipped,
    "FFHQ": ffhq,
}
