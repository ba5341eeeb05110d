"""The log of a training: stats.jsonl, TensorBoard events and pictures, all under the same names."""

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

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

    def settings(self, settings: Mapping[str, object], scores: Sequence[str] = ()) -> None:
        """Write settings to TensorBoard: as a table of text, and as hparams, by which runs are compared.

        Args:
            settings: by name.
            scores: names of the figures that stand beside them.
        """
        rows = "".join(f"| {name} | {value} |\n" for name, value in settings.items())
        plain = {name: v if isinstance(v, bool | int | float | str) else str(v) for name, v in settings.items()}
        events = self._writer.file_writer
        assert events is not None
        with self._told():
            self._writer.add_text("settings", f"| setting | value |\n|---|---|\n{rows}", 0)
            for part in hparams(plain, dict.fromkeys(scores, 0.0))[:2]:  # the third would say that the training ended
                events.add_summary(part)

    def figures(self, step: int, seconds: float, figures: Mapping[str, float]) -> None:
        """Write figures by name, at a step and a time in seconds of training."""
        record: dict[str, float | None] = {"step": step, "seconds": round(seconds, 3)}
        record |= {name: float(f"{value:.6g}") if math.isfinite(value) else None for name, value in figures.items()}
        with self._told():
            with open(self.path, "a") as file:
                file.write(json.dumps(record) + "\n")
            for name, value in figures.items():
                self._writer.add_scalar(name, value, step)

    def histogram(self, step: int, name: str, counts: Sequence[int]) -> None:
        """Write how often each of K things occurred, the most common first, as a histogram over ranks 1 to K."""
        ranked = sorted(counts, reverse=True)
        edges = [rank + 0.5 for rank in range(1, len(ranked) + 1)]
        ranks = range(1, len(ranked) + 1)
        count, total, squares = (sum(k**p * n for k, n in zip(ranks, ranked, strict=True)) for p in (0, 1, 2))
        with self._told():
            self._writer.add_histogram_raw(name, 1, len(ranked), count, total, squares, edges, ranked, step)

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
