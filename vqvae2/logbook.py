"""The log of a training: stats.jsonl, TensorBoard events and pictures, all under the same names."""

import contextlib
import json
import math
from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from vqvae2 import files
from vqvae2.pictures import Picture, png_bytes

__all__ = ["Logbook"]


class Logbook:
    """The log of one training.

    Args:
        folder: where stats.jsonl, events.out.tfevents.* and figures/ are written.
        step: a resumed training starts after this step; later entries are deleted.

    Raises:
        UserError: the folder cannot be written.
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        self.folder, self.path = folder, folder / "stats.jsonl"
        files.make_folder(folder / "figures")
        if self.path.exists():
            lines = self.path.read_text().splitlines()
            kept = [line for line in lines if step and line.endswith("}") and json.loads(line)["step"] <= step]
            files.write_atomic(self.path, "".join(line + "\n" for line in kept).encode())
        with self._told():
            self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def settings(self, settings: Mapping[str, object]) -> None:
        """Write settings as a table to TensorBoard, where a run is looked up by them."""
        rows = "".join(f"| {name} | {value} |\n" for name, value in settings.items())
        with self._told():
            self._writer.add_text("settings", f"| setting | value |\n|---|---|\n{rows}", 0)

    def figures(self, step: int, seconds: float, figures: Mapping[str, float]) -> None:
        """Write figures by name, at a step and a time in seconds of training."""
        record: dict[str, float | None] = {"step": step, "seconds": round(seconds, 3)}
        record |= {name: float(f"{value:.6g}") if math.isfinite(value) else None for name, value in figures.items()}
        with self._told():
            with open(self.path, "a") as file:
                file.write(json.dumps(record) + "\n")
            for name, value in figures.items():
                self._writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, picture: Picture) -> None:
        """Write a picture (H, W) or (H, W, 3) to TensorBoard and figures/, where it replaces the last of its name."""
        with self._told():
            self._writer.add_image(name, picture, step, dataformats="HWC" if picture.ndim == 3 else "HW")
        files.write_atomic(self.folder / "figures" / f"{name.replace('/', '-')}.png", png_bytes(picture))

    def close(self) -> None:
        """Flush and close. Write errors are ignored here: they must not hide the error that ended the training."""
        with contextlib.suppress(OSError):
            self._writer.close()

    def _told(self) -> contextlib.AbstractContextManager[None]:
        return files.told_as("cannot write", self.folder, "Free the disk, then --resume")
