"""Codes as a file: each code is written by a range coder with the probability that its prior gives it.

The priors are run as in sampling, in chunks of one size, so that whoever reads finds the same probabilities, bit for
bit: on a CPU, in float32, with as many threads. What cannot be read so is refused, by checksums, before there is an
image.

    8 bytes        name and version of the format
    4 bytes        length of the header
    header         JSON, compressed: hashes of the models, sizes, names, labels, and each chunk's bytes and checksum
    chunks         32 bit words of the range coder, little-endian, one chunk after the other
    losses         likewise, of a lossless file
    4 bytes        CRC-32 of all that stands before

Shapes: N images, S of a chunk, K codes.
"""

import json
import platform
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqvae2.coder import law, range_coder
from vqvae2.errors import UserError
from vqvae2.prior import Prior
from vqvae2.sampling import chunk_rows

__all__ = ["Header", "decode_codes", "encode_codes", "other_machine", "pack", "unpack"]

_MAGIC = b"VQVAE2C"
_CODES, _LOSSLESS = 1, 2  # formats
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Header:
    """What a file says of itself.

    Attributes:
        hashes: SHA-256 of the models, as `sample.py` writes them.
        shapes: (h, w) of each level's codes, top first.
        keys: N names.
        labels: N rows of the labels with which the priors were asked, -1 missing.
        chunk_size: S.
        chunks: of each chunk its bytes and the CRC-32 of its codes.
        threads: of the processor that wrote it.
        made_by: version of PyTorch, and kind of processor.
        losses: of a lossless file: ``model``, the settings of its `ResidualModel`, and ``chunks``, as of the codes, but
            with the CRC-32 of their images. None: images come back as reconstructions.
    """

    hashes: dict[str, Any]
    shapes: list[list[int]]
    keys: list[str]
    labels: list[list[int]]
    chunk_size: int
    chunks: list[list[int]]
    threads: int
    made_by: str
    losses: dict[str, Any] | None = None


def made_by() -> str:
    """Say on what the probabilities were computed."""
    return f"PyTorch {torch.__version__}, {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def encode_codes(
    priors: Sequence[Prior],
    codes: Sequence[Tensor],
    label: Tensor,
    chunk_size: int = 16,
    progress: Callable[[int], object] | None = None,
) -> tuple[list[bytes], list[int]]:
    """Write codes as range-coded streams.

    Args:
        priors: of all levels, top first, on the CPU, in float32 and evaluation mode.
        codes: (N, h, w) int64 by level.
        label: (N, A) int64, -1 missing.
        chunk_size: S, images written together; the last chunk is filled up with its last image, which costs nothing.
        progress: called with the number of codes written, after each row.

    Returns:
        For each chunk its bytes, and the CRC-32 of its codes.

    Raises:
        UserError: the package constriction is not installed.
    """
    _check(priors)
    streams, checksums = [], []
    for first in range(0, len(label), chunk_size):
        count = min(chunk_size, len(label) - first)
        rows = chunk_rows(first, chunk_size, len(label))
        encoder, family = range_coder().RangeEncoder(), _family()

        def draw(logits: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
            code = known.long()
            encoder.encode(code[:count].to(torch.int32).numpy(), family, _probabilities(logits[:count]))  # noqa: B023
            return code, torch.zeros(len(code), dtype=torch.float64)

        for i, prior in enumerate(priors):
            condition = [level[rows] for level in codes[:i]]
            prior.generate(draw, codes[i][rows].double(), condition, label[rows], progress)
        streams.append(encoder.get_compressed().astype("<u4").tobytes())
        checksums.append(_checksum([level[first : first + count] for level in codes]))
    return streams, checksums


def decode_codes(
    priors: Sequence[Prior],
    header: Header,
    streams: Sequence[bytes],
    progress: Callable[[int], object] | None = None,
) -> Iterator[list[Tensor]]:
    """Read what `encode_codes` has written, chunk by chunk.

    Args:
        priors: the same, on the CPU, in float32 and evaluation mode.
        header: of the file.
        streams: the bytes of each chunk; those beyond are not read.
        progress: called with the number of codes read, after each row.

    Yields:
        Codes by level, (n, h, w) int64, of the images of a chunk.

    Raises:
        UserError: this machine finds other probabilities than the one that wrote the file, or constriction is not
            installed.
    """
    _check(priors)
    label, size = torch.tensor(header.labels, dtype=torch.int64).view(len(header.keys), -1), header.chunk_size
    with _threads(header.threads):
        for number, (stream, (_, checksum)) in enumerate(zip(streams, header.chunks, strict=False)):
            first = number * size
            count = min(size, len(label) - first)
            rows = chunk_rows(first, size, len(label))
            decoder, family = range_coder().RangeDecoder(np.frombuffer(stream, "<u4").astype(np.uint32)), _family()

            def draw(logits: Tensor, _noise: Tensor) -> tuple[Tensor, Tensor]:
                found = decoder.decode(family, _probabilities(logits[:count]))  # noqa: B023 - called at once
                code = torch.from_numpy(found.astype(np.int64))
                code = torch.cat([code, code[-1:].expand(size - len(code))])
                return code, torch.zeros(size, dtype=torch.float64)

            codes: list[Tensor] = []
            try:
                for prior in priors:
                    empty = torch.zeros(size, *prior.config.shape, dtype=torch.float64)
                    codes.append(prior.generate(draw, empty, list(codes), label[rows], progress)[0])
            except (ValueError, AssertionError) as error:  # the coder, of a stream that cannot be
                raise other_machine(header) from error
            found = [level[:count] for level in codes]
            if _checksum(found) != checksum:
                raise other_machine(header)
            yield found


def pack(header: Header, streams: Sequence[bytes]) -> bytes:
    """Join header and chunks to the content of a file."""
    settings = {name: value for name, value in asdict(header).items() if value is not None}
    told = zlib.compress(json.dumps(settings, separators=(",", ":")).encode(), 9)
    form = bytes([_CODES if header.losses is None else _LOSSLESS])
    content = _MAGIC + form + struct.pack("<I", len(told)) + told + b"".join(streams)
    return content + struct.pack("<I", zlib.crc32(content))


def unpack(content: bytes, where: object) -> tuple[Header, list[bytes]]:
    """Split the content of a file.

    Raises:
        UserError: it is no such file, of a newer version, cut short, or damaged.
    """
    if content[:7] != _MAGIC or len(content) < 8:
        raise UserError("this is not a compressed file of vqvae2", where, "Give one that vqvae2 compress wrote")
    if content[7] not in (_CODES, _LOSSLESS):
        raise UserError(f"the file has format {content[7]}, this version reads {_LOSSLESS}", where, "Update vqvae2")
    if len(content) < 16 or struct.unpack("<I", content[-4:])[0] != zlib.crc32(content[:-4]):
        raise UserError("the file is damaged or cut short", where, "Copy it again")
    length = struct.unpack("<I", content[8:12])[0]
    header = Header(**json.loads(zlib.decompress(content[12 : 12 + length])))
    streams, place = [], 12 + length
    for size, _ in header.chunks + (header.losses["chunks"] if header.losses else []):
        streams.append(content[place : place + size])
        place += size
    return header, streams


def _family() -> Any:
    return law("Categorical", perfect=False)


def _probabilities(logits: Tensor) -> NDArray[np.float64]:
    """(B, K) logits as probabilities, the same for the same bits."""
    found: NDArray[np.float64] = logits.double().softmax(-1).numpy()
    return found


def _checksum(codes: Sequence[Tensor]) -> int:
    found = 0
    for level in codes:
        found = zlib.crc32(level.to(torch.int32).contiguous().numpy().astype("<i4").tobytes(), found)
    return found


def _check(priors: Sequence[Prior]) -> None:
    for prior in priors:
        weight = next(prior.parameters())
        if weight.device != _CPU or weight.dtype != torch.float32:
            raise ValueError(f"compression runs on the CPU in float32, not on {weight.device} in {weight.dtype}")


def other_machine(header: Header) -> UserError:
    """Say that this machine finds other probabilities than the one that wrote a file."""
    return UserError(
        f"this machine does not reproduce the probabilities the file was written with, though it computes with "
        f"{header.threads} threads as there",
        f"written with {header.made_by}; here {made_by()}",
        "Decompress it on a machine of that kind, with that version",
    )


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Compute with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
