"""What a training writes down: stats.jsonl, TensorBoard events and pictures, all under the same names."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from vqvae2 import files
from vqvae2.errors import UserError
from vqvae2.pictures import Picture, png_bytes

__all__ = ["Logbook"]


class Logbook:
    """The record of one training.

    Args:
        folder: receives stats.jsonl, events.out.tfevents.* and figures/.
        step: what was written after this step, by a run that is being gone on with, is cut off.

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
        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def figures(self, step: int, seconds: float, figures: Mapping[str, float]) -> None:
        """Write figures by name, at a step and after some seconds of training."""
        record: dict[str, float | None] = {"step": step, "seconds": round(seconds, 3)}
        record |= {name: float(f"{value:.6g}") if math.isfinite(value) else None for name, value in figures.items()}
        try:
            with open(self.path, "a") as file:
                file.write(json.dumps(record) + "\n")
            for name, value in figures.items():
                self._writer.add_scalar(name, value, step)
        except OSError as error:
            raise UserError(f"cannot write ({error.strerror})", self.folder, "Free the disk, then --resume") from error

    def picture(self, step: int, name: str, picture: Picture) -> None:
        """Write a picture (H, W) or (H, W, 3): to TensorBoard, and over the last one of its name in figures/."""
        self._writer.add_image(name, picture, step, dataformats="HWC" if picture.ndim == 3 else "HW")
        files.write_atomic(self.folder / "figures" / f"{name.replace('/', '-')}.png", png_bytes(picture))

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()
