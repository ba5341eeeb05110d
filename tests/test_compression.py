"""Codes come back from a file as they were, in as many bytes as the priors promise, or not at all."""

import json
import math
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_priors import randomise, tiny_inputs, tiny_prior

from vqvae2 import compression
from vqvae2.compression import Header, decode_codes, encode_codes, pack, unpack
from vqvae2.data import DataConfig, from_unit, open_data
from vqvae2.errors import UserError
from vqvae2.prior import Prior
from vqvae2.report import score_codes
from vqvae2.stages import compress, decompress
from vqvae2.vqvae import VQVAE

pytest_plugins = ["tiny_run_fixtures"]


def two_levels(batch: int):
    """Priors of two levels, and random codes and labels for them."""
    top = tiny_prior((3, 4), labelled=True).float()
    bottom = tiny_prior((6, 8), ((3, 4),), labelled=True, num_layers=3)
    bottom = randomise(Prior(replace(bottom.config, condition_num_embeddings=(7,)))).float()
    codes, (coarse,), label = tiny_inputs(bottom.config, batch)
    return [top, bottom], [coarse, codes], label


def header_of(codes, label, size, streams, checksums) -> Header:
    return Header(
        hashes={},
        shapes=[list(level.shape[1:]) for level in codes],
        keys=[str(i) for i in range(len(label))],
        labels=label.tolist(),
        chunk_size=size,
        chunks=[[len(s), c] for s, c in zip(streams, checksums, strict=True)],
        threads=torch.get_num_threads(),
        made_by=compression.made_by(),
    )


@pytest.mark.parametrize(("batch", "size"), [(1, 1), (1, 4), (5, 2), (6, 3), (7, 16)])
def test_codes_come_back(batch, size):
    priors, codes, label = two_levels(batch)
    streams, checksums = encode_codes(priors, codes, label, size)
    header, found = unpack(pack(header_of(codes, label, size, streams, checksums), streams), "file")
    assert found == streams
    parts = list(decode_codes(priors, header, found))
    assert [len(part[0]) for part in parts] == [min(size, batch - i) for i in range(0, batch, size)]
    for level, back in zip(codes, zip(*parts, strict=True), strict=True):
        assert torch.equal(torch.cat(back), level)


def test_a_file_is_as_long_as_the_priors_promise():
    priors, codes, label = two_levels(64)
    streams, _ = encode_codes(priors, codes, label, 64)
    nats = sum(
        float(score_codes(prior, codes[: i + 1], label).nll.sum()) * codes[i][0].numel()
        for i, prior in enumerate(priors)
    )
    promised = nats / math.log(2) / 8
    assert promised <= len(streams[0]) + 4 <= 1.005 * promised + 16  # the coder's last words
    uniform = sum(level.numel() for level in codes) * math.log2(7) / 8
    assert promised > uniform, "random codes cost more than uniform ones: the test would show nothing else"


def test_other_probabilities_are_refused_before_anything_is_returned():
    priors, codes, label = two_levels(4)
    streams, checksums = encode_codes(priors, codes, label, 4)
    header = header_of(codes, label, 4, streams, checksums)
    other = tiny_prior((3, 4), labelled=True, seed=1).float()
    with pytest.raises(UserError, match="does not reproduce the probabilities"):
        next(decode_codes([other, priors[1]], header, streams))


def test_a_damaged_file_is_told():
    priors, codes, label = two_levels(3)
    streams, checksums = encode_codes(priors, codes, label, 2)
    content = pack(header_of(codes, label, 2, streams, checksums), streams)
    for place in (9, 40, len(content) // 2, len(content) - 2):
        flipped = bytearray(content)
        flipped[place] ^= 4
        with pytest.raises(UserError, match="damaged"):
            unpack(bytes(flipped), "file")
    for length in (0, 5, 20, len(content) - 1):
        with pytest.raises(UserError, match=r"damaged|not a compressed file"):
            unpack(content[:length], "file")
    newer = bytearray(content)
    newer[7] = 9
    with pytest.raises(UserError, match="format 9"):
        unpack(bytes(newer), "file")


def test_only_float32_on_the_cpu_is_written():
    priors, codes, label = two_levels(2)
    with pytest.raises(ValueError, match="float32"):
        encode_codes([priors[0].double(), priors[1]], codes, label)


def test_images_of_a_run_are_written_and_come_back_as_reconstructions(run, tmp_path, call, refused, monkeypatch):
    (tmp_path / "work").mkdir()
    run, file, out = run.resolve(), tmp_path / "brains.vq", tmp_path / "images"
    told = call(compress.main, "--run", run, "--out", file, "--split", "val", "--chunk-size", 4)
    assert told.code == 0, told.err
    assert "times that" in told.out
    assert "already" in refused(compress.main, "--run", run, "--out", file)
    monkeypatch.chdir(tmp_path / "work")
    assert call(decompress.main, "--run", run, "--file", file, "--out", "../images").code == 0
    val = open_data(DataConfig(data="phantom", phantom_images=60, size="32x32"), ["val"]).splits["val"]
    model = VQVAE.from_pretrained(run / "vqvae")
    with torch.no_grad():
        made = from_unit(model.decode(model.encode(val.at(range(len(val))))), val.value_range)
    for key, image in zip(val.keys, made, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(out / f"{key}.png")), image[0])
    assert "other files" in refused(decompress.main, "--run", run, "--file", file, "--out", out)
    assert "not a compressed file" in refused(
        decompress.main, "--run", run, "--file", run / "run.json", "--out", tmp_path / "none"
    )
    header, streams = unpack(file.read_bytes(), file)
    file.write_bytes(pack(replace(header, hashes={}), streams))
    assert "not written with the models" in refused(
        decompress.main, "--run", run, "--file", file, "--out", tmp_path / "none"
    )
    dotted = [f"MR_T1.54512_k{i:03}" for i in range(len(header.keys))]  # slices of a volume: none is lost
    file.write_bytes(pack(replace(header, keys=dotted), streams))
    assert call(decompress.main, "--run", run, "--file", file, "--out", tmp_path / "dotted").code == 0
    assert sorted(path.name for path in (tmp_path / "dotted").iterdir()) == [f"{key}.png" for key in dotted]
    escaping = ["../out", *header.keys[1:]]
    file.write_bytes(pack(replace(header, keys=escaping), streams))
    assert "leads out" in refused(decompress.main, "--run", run, "--file", file, "--out", tmp_path / "none")
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("pixels", [1, 2**23])  # the law is learned from one chunk, and from all
def test_images_of_a_run_come_back_as_they_were(run, tmp_path, call, refused, monkeypatch, pixels):
    monkeypatch.setattr(compress, "_LEARNED_PIXELS", pixels)
    file, out = tmp_path / "brains.vq", tmp_path / "images"
    told = call(compress.main, "--run", run, "--out", file, "--split", "val", "--chunk-size", 4, "--lossless")
    assert told.code == 0, told.err
    assert "lossless: what the reconstructions lose takes" in told.out
    told = call(decompress.main, "--run", run, "--file", file, "--out", out)
    assert "as they were" in told.out
    val = open_data(DataConfig(data="phantom", phantom_images=60, size="32x32"), ["val"]).splits["val"]
    for key, image in zip(val.keys, val.images, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(out / f"{key}.png")), image[0])
    # Where a reconstruction is not the same, nothing is written.
    decode = VQVAE.decode
    monkeypatch.setattr(VQVAE, "decode", lambda model, codes: decode(model, codes).add(0.05))
    assert "does not reproduce" in refused(decompress.main, "--run", run, "--file", file, "--out", tmp_path / "none")
    assert not list(tmp_path.glob("none/*"))


def test_nothing_is_written_of_a_file_whose_last_chunk_is_bad(run, tmp_path, call, refused):
    file, out = tmp_path / "brains.vq", tmp_path / "images"
    assert call(compress.main, "--run", run, "--out", file, "--split", "val", "--chunk-size", 2).code == 0
    header, streams = unpack(file.read_bytes(), file)
    good = file.read_bytes()
    chunks = [*header.chunks[:-1], [header.chunks[-1][0], header.chunks[-1][1] ^ 1]]
    file.write_bytes(pack(replace(header, chunks=chunks), streams))
    assert "does not reproduce" in refused(decompress.main, "--run", run, "--file", file, "--out", out)
    assert not out.exists() or not list(out.iterdir())
    (out / ".unfinished").mkdir(parents=True)  # of a call that was killed
    file.write_bytes(good)
    assert call(decompress.main, "--run", run, "--file", file, "--out", out).code == 0
    assert len(list(out.iterdir())) == len(header.keys)
    assert "this is a folder" in refused(compress.main, "--run", run, "--out", out, "--overwrite")


def test_the_header_says_who_is_in_it():
    priors, codes, label = two_levels(2)
    streams, checksums = encode_codes(priors, codes, label, 2)
    content = pack(header_of(codes, label, 2, streams, checksums), streams)
    length = int.from_bytes(content[8:12], "little")
    told = json.loads(zlib.decompress(content[12 : 12 + length]))
    assert told["keys"] == ["0", "1"]
    assert told["threads"] == torch.get_num_threads()


@pytest.mark.parametrize(("wrote", "reads"), [(2, 1), (1, 2)])
def test_it_is_read_with_as_many_threads_as_it_was_written_with(wrote, reads):
    priors, codes, label = two_levels(3)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(wrote)
        streams, checksums = encode_codes(priors, codes, label, 2)
        header = header_of(codes, label, 2, streams, checksums)
        torch.set_num_threads(reads)
        parts = []
        for part in decode_codes(priors, header, streams):
            assert torch.get_num_threads() == wrote
            parts.append(part)
        assert torch.get_num_threads() == reads
    finally:
        torch.set_num_threads(before)
    for level, back in zip(codes, zip(*parts, strict=True), strict=True):
        assert torch.equal(torch.cat(back), level)
