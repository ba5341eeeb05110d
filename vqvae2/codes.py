"""The code store: integer code maps with their keys, subjects, splits and labels in one LMDB environment.

It knows integers and shapes and no model. Nothing in it is pickled. Many images share one LMDB value, because
LMDB spends whole pages on a value. Layout, all keys ASCII:

- ``codes/00000007``: the rows of chunk 7. A row is one image: its levels one after the other, top first, each
  (h, w) in raster order, in the smallest little-endian unsigned integer that holds K.
- ``columns/00000007``: their keys, subjects, splits, labels and CRC-32, zlib-compressed JSON.
- ``plan``: what is going to be written, JSON, the first value; by it an interrupted writer is gone on with.
- ``metadata``: JSON, written last. A store without it is unfinished.
"""

import hashlib
import json
import os
import shutil
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import lmdb
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import Dataset

from vqvae2.checkpoint import check_format
from vqvae2.errors import UserError
from vqvae2.files import make_folder, sync_folder, told_as
from vqvae2.version import __version__

FORMAT = 1
Codes = Sequence[Tensor | NDArray[Any]]  # one (B, h, w) integer map by level, top first
_METADATA, _PLAN = b"metadata", b"plan"
_VALUE_BYTES = 128 * 1024  # at least, so that the page a value leaves half empty is a small share of it
_BATCH_BYTES = 16 * 1024 * 1024  # in one transaction
_BATCH_SECONDS = 5.0  # at most that much work is lost
_AGAIN = "Extract the codes again"
_ROOM = "Free the disk or choose another folder"
_ERRORS = (lmdb.Error, OSError)
_readers: "WeakValueDictionary[str, _Reader]" = WeakValueDictionary()  # by real path
_DAMAGE = (LookupError, ArithmeticError, AttributeError, TypeError, ValueError, zlib.error)


class CodeWriter:
    """Writes a code store, which appears under its name when it is complete and not before.

    In ``with CodeWriter(...) as writer:`` the end completes the store, an exception leaves it unfinished.

    Args:
        path: folder of the store; written as ``path + ".partial"`` until it is complete.
        levels, shapes, num_embeddings: name, (h, w) and K of each level, top first.
        vqvae_sha256: SHA-256 of the weights that made the codes, hex.
        attributes: attribute name -> class names in label order.
        data: what later stages must know of the data, JSON values.
        overwrite: replace a store that is there already.
        plan: names what is going to be written; an unfinished store of an equal plan, levels, weights and data is
            gone on with, and :meth:`__contains__` tells what it holds. None: begin anew.
        rows_per_value: images in one LMDB value; None takes 64, or more where that many are small.

    Raises:
        UserError: a store is there already, or the folder cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        levels: Sequence[str],
        shapes: Sequence[tuple[int, int]],
        num_embeddings: Sequence[int],
        vqvae_sha256: str,
        attributes: dict[str, tuple[str, ...]],
        data: dict[str, Any],
        overwrite: bool = False,
        plan: str | None = None,
        rows_per_value: int | None = None,
    ) -> None:
        self.path = Path(path)
        if (self.path / "data.mdb").exists() and not overwrite:
            raise UserError("there are codes already", path, "Add --overwrite to replace them")
        self._row, self._num_embeddings = _row_dtype(levels, shapes, num_embeddings), tuple(num_embeddings)
        self._classes = [len(names) for names in attributes.values()]
        self._per_value = n = rows_per_value or max(64, -(-_VALUE_BYTES // self._row.itemsize))
        self._metadata: dict[str, Any] = {"format": FORMAT, "kind": "codes", "version": __version__}
        self._metadata |= {"levels": levels, "shapes": shapes, "num_embeddings": num_embeddings, "data": data}
        self._metadata |= {"vqvae_sha256": vqvae_sha256, "attributes": attributes, "rows_per_value": n}
        self._digests: dict[tuple[str, str], bytes] = {}
        self._waiting = np.zeros(0, self._row)
        self._columns: list[tuple[str, str, str, list[int]]] = []
        self._chunks, self._complete = 0, False
        self._batch: list[tuple[bytes, bytes]] = []
        self._partial = Path(f"{self.path}.partial")
        header = json.dumps([plan, self._metadata]).encode()
        env = self._open_unfinished(header) if plan is not None else None
        if env is None:
            shutil.rmtree(self._partial, ignore_errors=True)
            make_folder(self._partial)
            size = 4 * self._per_value * self._row.itemsize + (1 << 20)
            with told_as("cannot write the codes", self._partial, _ROOM, _ERRORS):
                env = lmdb.open(str(self._partial), map_size=size, lock=False)
            self._batch.append((_PLAN, header))
        self._env, self._committed = env, time.monotonic()

    def __len__(self) -> int:
        return len(self._digests)

    def __contains__(self, split_and_key: object) -> bool:
        return split_and_key in self._digests

    def _open_unfinished(self, header: bytes) -> lmdb.Environment | None:
        """Open what an interrupted writer of the same plan has left, and learn what it holds."""
        file = self._partial / "data.mdb"
        if not file.is_file():
            return None
        env = None
        try:
            env = lmdb.open(str(self._partial), map_size=2 * file.stat().st_size + (1 << 20), lock=False)
            with env.begin(buffers=True) as transaction:
                if bytes(transaction.get(_PLAN) or b"") != header:
                    raise ValueError("another plan")
                while (value := transaction.get(_chunk_key("codes", self._chunks))) is not None:
                    if not self._recall(value, transaction.get(_chunk_key("columns", self._chunks))):
                        break  # it is written again, and what follows
                    self._chunks += 1
        except (*_DAMAGE, *_ERRORS):  # not ours, or not whole: begin anew
            if env is not None:
                env.close()
            self._digests, self._chunks = {}, 0
            return None
        return env

    def _recall(self, value: memoryview, about: memoryview | None) -> bool:
        """Learn what a value holds; False for a damaged one, or the last, which may be smaller."""
        try:
            columns = json.loads(zlib.decompress(about or b""))
            names = list(zip(columns["splits"], columns["keys"], strict=True))
            if zlib.crc32(value) != columns["crc32"] or len(names) != self._per_value:
                return False
            rows = np.frombuffer(value, self._row)
        except _DAMAGE:
            return False
        for row, name in zip(rows, names, strict=True):
            self._digests[name] = hashlib.sha256(row.tobytes()).digest()
        return True

    def append(self, codes: Codes, keys: Sequence[str], subjects: Sequence[str], split: str, labels: ArrayLike) -> None:
        """Add a batch of images.

        Args:
            codes: (B, h, w) integers in [0, K) by level, top first.
            keys, subjects: B names each; a key is unique within its split.
            split: of the whole batch.
            labels: (B, A) integers, -1 missing.

        Raises:
            ValueError: shapes, codes or labels out of range, or a key that the split has already.
            UserError: the disk is full or refuses.
        """
        rows = self._rows_of(codes)
        table, n = np.asarray(labels, dtype=np.int64), len(rows)
        if not len(keys) == len(subjects) == n or table.shape != (n, len(self._classes)):
            raise ValueError(f"{n} images, {len(keys)} keys, {len(subjects)} subjects, labels {table.shape}")
        if ((table < -1) | (table >= self._classes)).any():
            raise ValueError(f"labels lie in {table.min(0)} to {table.max(0)}, classes are {self._classes}")
        for row, key, subject, label in zip(rows, keys, subjects, table.tolist(), strict=True):
            if (split, key) in self._digests:
                raise ValueError(f"split {split!r} has an image {key!r} already")
            self._digests[split, key] = hashlib.sha256(row.tobytes()).digest()
            self._columns.append((key, subject, split, label))
        self._waiting = np.concatenate([self._waiting, rows])
        while len(self._waiting) >= self._per_value:
            self._take_chunk()

    def close(self) -> None:
        """Complete the store: the last rows, the metadata, then the name.

        Raises:
            UserError: the disk is full or refuses.
        """
        if self._complete:
            return
        if len(self._waiting):
            self._take_chunk()
        self._metadata |= {"count": len(self._digests), "fingerprint": _fingerprint(self._digests)}
        self._metadata |= {"splits": Counter(split for split, _ in self._digests)}
        self._commit()  # before the metadata, which says that it is complete
        self._batch = [(_METADATA, json.dumps(self._metadata).encode())]
        self._commit()
        self._env.close()
        make_folder(self.path)
        with told_as("cannot write the codes", self.path, _ROOM):
            # A file is replaced in one step; a folder that is not empty could not be.
            os.replace(self._partial / "data.mdb", self.path / "data.mdb")
            sync_folder(self.path)
        shutil.rmtree(self._partial, ignore_errors=True)
        self._complete = True

    def __enter__(self) -> "CodeWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self.close()
        self._env.close()

    def _rows_of(self, codes: Codes) -> NDArray[np.void]:
        names = self._row.names or ()
        arrays = [c.detach().cpu().numpy() if isinstance(c, Tensor) else np.asarray(c) for c in codes]
        shapes = [array.shape[1:] for array in arrays]
        if shapes != [self._row[name].shape for name in names] or len({len(array) for array in arrays}) != 1:
            raise ValueError(f"codes are {[array.shape for array in arrays]}, the store holds {self._row}")
        rows = np.empty(len(arrays[0]), self._row)
        for name, array, k in zip(names, arrays, self._num_embeddings, strict=True):
            if array.size and not 0 <= int(array.min()) <= int(array.max()) < k:
                raise ValueError(f"{name} codes must lie in [0, {k}), got {array.min()} to {array.max()}")
            rows[name] = array
        return rows

    def _take_chunk(self) -> None:
        n = self._per_value
        value = self._waiting[:n].tobytes()
        keys, subjects, splits, labels = zip(*self._columns[:n], strict=True)
        columns: dict[str, Any] = {"keys": keys, "subjects": subjects, "splits": splits, "labels": labels}
        columns["crc32"] = zlib.crc32(value)
        self._batch.append((_chunk_key("codes", self._chunks), value))
        self._batch.append((_chunk_key("columns", self._chunks), zlib.compress(json.dumps(columns).encode())))
        self._waiting, self._columns = self._waiting[n:], self._columns[n:]
        self._chunks += 1
        size = sum(len(value) for _, value in self._batch)
        if size >= _BATCH_BYTES or time.monotonic() - self._committed >= _BATCH_SECONDS:
            self._commit()
            self._committed = time.monotonic()

    def _commit(self) -> None:
        with told_as("cannot write the codes", self._partial, _ROOM, _ERRORS):
            while self._batch:
                try:
                    with self._env.begin(write=True) as transaction:
                        for key, value in self._batch:
                            transaction.put(key, value)
                    self._batch = []
                except lmdb.MapFullError:
                    self._env.set_mapsize(2 * self._env.info()["map_size"])


class CodeStore(Dataset[dict[str, Any]]):
    """Reads a complete code store; a dataset of ``{"codes", "label", "index"}``.

    Opening checks the format, the length of the file, the number of images and the size of every value;
    :meth:`verify` checks their content. Each process opens LMDB for itself, and stores can be pickled.

    Args:
        path: folder of the store.

    Attributes:
        levels, shapes, num_embeddings, vqvae_sha256, attributes, data: as the writer was told.
        keys, subjects, splits: N names each.
        labels: (N, A) int64, -1 missing.
        fingerprint: SHA-256 over the SHA-256 of each image's codes, sorted by split and key, hex; the order
            in which they were written does not change it.

    Raises:
        UserError: no store, unfinished, truncated, damaged, of another program, or of a newer version.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._reader: _Reader | None = None
        self._file: tuple[int, ...] | None = None
        with self._transaction() as transaction:
            record = _read_metadata(transaction, self.path)
            with told_as("the codes are damaged", self.path, _AGAIN, _DAMAGE):
                self._load(record, transaction)

    def _load(self, record: dict[str, Any], transaction: lmdb.Transaction) -> None:
        self.levels: tuple[str, ...] = tuple(record["levels"])
        self.shapes: tuple[tuple[int, int], ...] = tuple((h, w) for h, w in record["shapes"])
        self.num_embeddings: tuple[int, ...] = tuple(record["num_embeddings"])
        self.vqvae_sha256: str = record["vqvae_sha256"]
        self.attributes = {name: tuple(names) for name, names in record["attributes"].items()}
        self.data: dict[str, Any] = record["data"]
        self.fingerprint: str = record["fingerprint"]
        self._per_value: int = record["rows_per_value"]
        self._row = _row_dtype(self.levels, self.shapes, self.num_embeddings)
        count = record["count"]
        chunks = range(-(-count // self._per_value))
        for chunk in chunks:
            rows = min(self._per_value, count - chunk * self._per_value)
            if (size := len(_value(transaction, "codes", chunk))) != rows * self._row.itemsize:
                raise ValueError(f"value {chunk} has {size} bytes instead of {rows * self._row.itemsize}")
        tables = [json.loads(zlib.decompress(_value(transaction, "columns", chunk))) for chunk in chunks]
        self.keys, self.subjects, self.splits, labels = (
            [item for table in tables for item in table[name]] for name in ("keys", "subjects", "splits", "labels")
        )
        if not len(self.keys) == len(self.subjects) == len(self.splits) == len(labels) == count:
            raise ValueError(f"the columns hold {len(self.keys)} images instead of {count}")
        self.labels = np.array(labels, dtype=np.int64).reshape(count, len(self.attributes))
        self._checksums: list[int] = [table["crc32"] for table in tables]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One image: ``codes`` [(h, w) int64 by level], ``label`` (A,) int64, ``index``."""
        batch = self.__getitems__([index])
        return {"codes": [level[0] for level in batch["codes"]], "label": batch["label"][0], "index": index}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        """One batch: ``codes`` [(B, h, w) int64 by level], ``label`` (B, A) int64, ``index`` (B,) int64."""
        chosen = np.asarray(indices, dtype=np.int64)
        codes = [torch.from_numpy(level.astype(np.int64)) for level in self.read(chosen)]
        labels = torch.from_numpy(self.labels[chosen])
        return {"codes": codes, "label": labels, "index": torch.from_numpy(chosen)}

    def indices(self, split: str) -> list[int]:
        """Return the positions of a split's images, in order; none for a split that is not there."""
        return [i for i, name in enumerate(self.splits) if name == split]

    def read(
        self, indices: Sequence[int] | NDArray[np.int64] | None = None, levels: Sequence[str] | None = None
    ) -> list[NDArray[Any]]:
        """Read many images' codes.

        Args:
            indices: N positions in [0, len), in any order; None reads all.
            levels: which; None: all, top first.

        Returns:
            (N, h, w) arrays by level, in the stored unsigned type.

        Raises:
            IndexError: a position out of range.
            UserError: the store was replaced or removed since it was opened.
        """
        chosen = np.arange(len(self)) if indices is None else np.asarray(indices, dtype=np.int64)
        if chosen.size and not 0 <= chosen.min() <= chosen.max() < len(self):
            raise IndexError(f"positions {chosen.min()} to {chosen.max()} of {len(self)}")
        kinds = {name: self._row[name] for name in levels or self.levels}
        out = {name: np.empty((len(chosen), *kind.shape), kind.base) for name, kind in kinds.items()}
        chunks, offsets = np.divmod(chosen, self._per_value)
        order = np.argsort(chunks, kind="stable")
        present, starts = np.unique(chunks[order], return_index=True)
        with self._transaction() as transaction:
            for chunk, where in zip(present.tolist(), np.split(order, starts[1:]), strict=False):
                rows = np.frombuffer(_value(transaction, "codes", chunk), self._row)
                for name, array in out.items():
                    array[where] = rows[name][offsets[where]]
        return list(out.values())

    def level(self, name: str, indices: Sequence[int]) -> "LevelCodes":
        """Return the codes of one level of some images, of which only what is asked for is read."""
        return LevelCodes(self, name, np.asarray(indices, dtype=np.int64))

    @property
    def bytes_per_image(self) -> int:
        """Bytes of an image's codes, all levels together."""
        return self._row.itemsize

    def verify(self) -> None:
        """Read everything and compare with the checksums and the fingerprint.

        Raises:
            UserError: anything is not what was written, with the first images concerned.
        """
        digests: dict[tuple[str, str], bytes] = {}
        with self._transaction() as transaction:
            for chunk, checksum in enumerate(self._checksums):
                value = _value(transaction, "codes", chunk)
                first = chunk * self._per_value
                if zlib.crc32(value) != checksum:
                    raise UserError(f"the codes are damaged at image {first} or soon after", self.path, _AGAIN)
                for i, row in enumerate(np.frombuffer(value, self._row), start=first):
                    digests[self.splits[i], self.keys[i]] = hashlib.sha256(row.tobytes()).digest()
        if _fingerprint(digests) != self.fingerprint:
            raise UserError("the codes do not have the fingerprint they were written with", self.path, _AGAIN)

    @contextmanager
    def _transaction(self) -> Iterator[lmdb.Transaction]:
        with told_as("cannot read the codes", self.path, _AGAIN, _ERRORS):
            if self._reader is None or self._reader.pid != os.getpid():
                self._reader = _reader(self.path)
                if self._file not in (None, self._reader.file):
                    raise UserError("the codes were replaced meanwhile", self.path, "Start again")
                self._file = self._reader.file
            # Values are views of the mapped file, so that one row costs the reading of one row.
            with self._reader.env.begin(buffers=True) as transaction:
                yield transaction

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None}


class LevelCodes:
    """Codes (N, h, w) of one level, read from a store when some of them are asked for."""

    def __init__(self, store: CodeStore, name: str, indices: NDArray[np.int64]) -> None:
        self._store, self._name, self._indices = store, name, indices
        self.shape = (len(indices), *store.shapes[store.levels.index(name)])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> NDArray[Any]:
        return self._store.read(self._indices[rows], [self._name])[0]


@dataclass(eq=False)
class _Reader:
    """One open environment, shared by a process's stores on one file: LMDB must not open a file twice."""

    env: lmdb.Environment
    file: tuple[int, ...]
    pid: int


def _reader(path: Path) -> _Reader:
    if not (path / "data.mdb").is_file():
        if (unfinished := Path(f"{path}.partial")).exists():
            raise UserError("the codes are unfinished: their extraction was interrupted", unfinished, _AGAIN)
        raise UserError("there are no codes", path, "Extract the codes first")
    name = os.path.realpath(path)
    stat = (path / "data.mdb").stat()
    file = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
    if known := _readers.get(name):
        if (known.pid, known.file) == (os.getpid(), file):
            return known
        # Inherited through a fork, or of a store that was replaced. Closing touches this process alone.
        known.env.close()
    env = lmdb.open(name, readonly=True, lock=False, create=False)
    # Beyond the end of a file cut short the mapping would end the process with a signal, not an error.
    expected = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
    if stat.st_size < expected:
        env.close()
        raise UserError(f"the codes are cut short: {stat.st_size} of {expected} bytes", path, _AGAIN)
    reader = _readers[name] = _Reader(env, file, os.getpid())
    return reader


def _read_metadata(transaction: lmdb.Transaction, path: Path) -> dict[str, Any]:
    stored = transaction.get(_METADATA)
    if stored is None and transaction.get(_chunk_key("codes", 0)) is not None:
        raise UserError("the codes are unfinished: their extraction was interrupted", path, _AGAIN)
    try:
        record = json.loads(bytes(stored or b""))
        found = record["format"] if record["kind"] == "codes" else None
    except (ValueError, TypeError, KeyError):
        found = None
    if not isinstance(found, int):
        raise UserError("this LMDB is not a code store", path, "Name another folder")
    check_format(found, path, record.get("version"), FORMAT)
    return record


def _row_dtype(levels: Sequence[str], shapes: Any, num_embeddings: Sequence[int]) -> np.dtype[np.void]:
    kinds = ["<u1" if k <= 1 << 8 else "<u2" if k <= 1 << 16 else "<u4" for k in num_embeddings]
    return np.dtype([(name, kind, tuple(hw)) for name, kind, hw in zip(levels, kinds, shapes, strict=True)])


def _chunk_key(column: str, chunk: int) -> bytes:
    return f"{column}/{chunk:08d}".encode()


def _value(transaction: lmdb.Transaction, column: str, chunk: int) -> memoryview:
    value = transaction.get(_chunk_key(column, chunk))
    if value is None:
        raise ValueError(f"value {chunk} of the {column} is missing")
    return memoryview(value)


def _fingerprint(digests: dict[tuple[str, str], bytes]) -> str:
    return hashlib.sha256(b"".join(digests[name] for name in sorted(digests))).hexdigest()
