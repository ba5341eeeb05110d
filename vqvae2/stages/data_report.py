"""The data report as files: text, JSON, a contact sheet of each split, lists of subjects and images."""

import csv
import io
from collections import Counter
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from vqvae2 import files
from vqvae2.data import ImageData
from vqvae2.data.sources import DATA_REPORT
from vqvae2.errors import UserError
from vqvae2.version import __version__

__all__ = ["check_subjects", "write_data_report"]
_SUBJECTS = "subjects.csv"
_IMAGES = "images.csv"


def write_data_report(data: ImageData, folder: Path) -> None:
    """Write ``report.txt``, ``data-report.json``, ``subjects.csv``, ``images.csv`` and ``contact-sheet.png``.

    Args:
        data: all splits.
        folder: where they go; it is made if need be.

    Raises:
        UserError: the folder cannot be written.
    """
    from vqvae2.report.album import contact_sheet  # imported here: matplotlib takes a second
    from vqvae2.report.figures import save

    files.make_folder(folder)
    record = {
        "version": __version__,
        **data.to_config(),
        "files": [{"height": h, "width": w, "count": count} for (h, w), count in sorted(data.sizes.items())],
        "splits": {
            name: {
                "images": len(images),
                "subjects": len(set(images.subjects)),
                "labels": {
                    attribute: {
                        label: count
                        for label, count in zip(classes, _counts(images.labels[:, i], len(classes)), strict=True)
                        if count or attribute not in data.numbers
                    }
                    for i, (attribute, classes) in enumerate(data.attributes.items())
                },
                "labels_missing": {
                    attribute: int((images.labels[:, i] < 0).sum()) for i, attribute in enumerate(data.attributes)
                },
            }
            for name, images in data.splits.items()
        },
        "uncertain": data.doubts,
        "notes": data.notes,
        "skipped": [{"path": path, "reason": reason} for path, reason in data.skipped],
    }
    files.write_json(
        folder / DATA_REPORT, record
    )  # first: it marks the folder, so that the sheet is never read as data
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(["subject", "split", "images"])
    for split, images in data.splits.items():
        writer.writerows([subject, split, count] for subject, count in sorted(Counter(images.subjects).items()))
    files.write_atomic(folder / _SUBJECTS, table.getvalue().encode("utf-8", "surrogatepass"))
    files.write_atomic(folder / _IMAGES, lambda file: _write_images(data, file))
    save(contact_sheet(data.splits), folder / "contact-sheet.png")
    files.write_atomic(folder / "report.txt", (data.report() + "\n").encode("utf-8", "surrogatepass"))
    print(f"wrote {folder}/contact-sheet.png, report.txt, {_SUBJECTS}, {_IMAGES} and {DATA_REPORT}")


def _write_images(data: ImageData, file: BinaryIO) -> None:
    """Write a row for each image, then one for each file that was left out, as CSV.

    Labels are the names of the classes, empty where missing; ``height`` and ``width`` are those of the file in pixels;
    images with the same ``digest`` have the same pixels at that size, and those of one value have none.
    """
    text = io.TextIOWrapper(file, "utf-8", "surrogatepass", newline="")
    writer = csv.writer(text)
    writer.writerow(["image", "split", "subject", *data.attributes, "height", "width", "digest", "skipped"])
    for split, images in data.splits.items():
        sizes = images.file.index["size"] if images.file else [(data.height, data.width)] * len(images)
        for key, subject, labels, (height, width), digest in zip(
            images.keys, images.subjects, images.labels, sizes, images.digests, strict=True
        ):
            names = [classes[k] if k >= 0 else "" for k, classes in zip(labels, data.attributes.values(), strict=True)]
            writer.writerow([key, split, subject, *names, height, width, digest.hex(), ""])
    empty = [""] * (len(data.attributes) + 5)
    writer.writerows([path, *empty, reason] for path, reason in data.skipped)
    text.detach()  # flushes; the file stays open for its owner


def _counts(labels: NDArray[np.int64], classes: int) -> list[int]:
    """Images of each class."""
    return [int(count) for count in np.bincount(labels[labels >= 0], minlength=classes)]


def check_subjects(data: ImageData, folder: Path) -> None:
    """Check that every subject is still in the split in which it was when the VQ-VAE was trained; new ones may come.

    Args:
        data: the run's data, read again.
        folder: of the run's data report.

    Raises:
        UserError: a subject is in another split now, or most subjects have other names.
    """
    path = folder / _SUBJECTS
    if not path.is_file():  # of a run of an earlier version
        return
    with files.told_as("cannot read the subjects of the training", path):
        text = path.read_bytes().decode("utf-8", "surrogatepass")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    before = {row["subject"]: row["split"] for row in rows}
    now = {subject: split for split, images in data.splits.items() for subject in images.subjects}
    gone, new = before.keys() - now.keys(), now.keys() - before.keys()
    read = {split for split in before.values() if split in data.splits}
    gone = {subject for subject in gone if before[subject] in read}  # of the others nothing was read
    if gone and new:
        one, other = min(gone), min(new)
        raise UserError(
            f"{len(gone):,} of {len(before):,} people of the VQ-VAE's training are not there, such as {one}, and "
            f"{len(new):,} are new, such as {other}; whether the new ones are training subjects under other names "
            "cannot be told",
            data.name,
            "Keep the training files in place (adding files is fine) and the same --subject-pattern, give --layout if "
            "this version reads the names otherwise, or train it again",
        )
    for split, images in data.splits.items():
        then = sum(int(row.get("images") or 0) for row in rows if row["split"] == split)
        if len(images) < then:
            print(
                f"note       {split} has {len(images):,} images, {then:,} when the VQ-VAE was trained: files are gone, "
                "or are now taken for masks (--include-masks)"
            )
    moved = sorted(subject for subject, split in now.items() if before.get(subject, split) != split)
    if moved:
        one = moved[0]
        raise UserError(
            f"{len(moved):,} subjects are in another split than when the VQ-VAE was trained, such as {one}: "
            f"{before[one]} then, {now[one]} now",
            data.name,
            "Restore the data that it was trained on, or train it again",
        )
