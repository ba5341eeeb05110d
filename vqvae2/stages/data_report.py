"""The data report as files: what a training was given, in words, in JSON and as a sheet of images."""

from pathlib import Path

from vqvae2 import files
from vqvae2.data import ImageData
from vqvae2.data.layout import DATA_REPORT
from vqvae2.version import __version__

__all__ = ["write_data_report"]


def write_data_report(data: ImageData, folder: Path) -> None:
    """Write ``report.txt``, ``data-report.json`` and ``contact-sheet.png`` into a folder, made if absent.

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
                    attribute: {label: int((images.labels[:, i] == k).sum()) for k, label in enumerate(classes)}
                    for i, (attribute, classes) in enumerate(data.attributes.items())
                },
                "labels_missing": {
                    attribute: int((images.labels[:, i] < 0).sum()) for i, attribute in enumerate(data.attributes)
                },
            }
            for name, images in data.splits.items()
        },
        "notes": data.notes,
        "skipped": [{"path": path, "reason": reason} for path, reason in data.skipped],
    }
    files.write_json(folder / DATA_REPORT, record)  # first: it keeps the sheet from being taken for data
    save(contact_sheet(data.splits), folder / "contact-sheet.png")
    files.write_atomic(folder / "report.txt", (data.report() + "\n").encode())
    print(f"wrote {folder}/contact-sheet.png, report.txt and {DATA_REPORT}")
