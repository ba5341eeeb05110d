"""Imported models beside the project that they are of: equal codes but for rounding, and images equal to 1e-5.

    python benchmarks/imported.py --peer DIR --json FILE [--checkpoint vqvae_560.pt --size 256]

DIR is a checkout of rosinality/vq-vae-2-pytorch. Without a checkpoint its models are compared as they are initialised,
in three sizes, with codebooks drawn among their own encoder's outputs, so that most codes occur.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import PEER, peer_module
from torch import Tensor, nn

from vqvae2.imported import read_rosinality, vqvae_of_rosinality

SIZES: tuple[dict[str, int], ...] = (
    {},
    {"in_channel": 1, "channel": 32, "n_res_block": 1, "n_res_channel": 8, "embed_dim": 16, "n_embed": 64},
    {"channel": 64, "n_res_block": 3, "n_res_channel": 16, "embed_dim": 8, "n_embed": 300},
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, required=True, help=PEER)
    parser.add_argument("--json", type=Path, required=True, help="file for the figures")
    parser.add_argument("--checkpoint", type=Path, help="one of its own; default: models as it initialises them")
    parser.add_argument("--size", type=int, default=96, help="side of the images in pixels (default: %(default)s)")
    arguments = parser.parse_args()
    theirs = peer_module(arguments.peer, "vqvae")
    found = []
    if arguments.checkpoint is not None:
        tensors = read_rosinality(arguments.checkpoint)
        ours = vqvae_of_rosinality(tensors, arguments.size, arguments.size, arguments.checkpoint)
        config = ours.config
        peer = theirs.VQVAE(
            in_channel=config.channels,
            channel=config.hidden_channels,
            n_res_block=config.num_residual_layers,
            n_res_channel=config.residual_channels,
            embed_dim=config.embedding_dim[0],
            n_embed=config.num_embeddings[0],
        )
        peer.load_state_dict(tensors, strict=False)
        found.append(compare(peer.eval(), arguments.checkpoint, arguments.size))
    else:
        for settings in SIZES:
            torch.manual_seed(0)
            peer = theirs.VQVAE(**settings).eval()
            spread(peer, images(settings.get("in_channel", 3), arguments.size))
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "vqvae_001.pt"
                torch.save(peer.state_dict(), path)
                found.append(compare(peer, path, arguments.size))
    arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    print(f"wrote {arguments.json}")
    return int(any(one["image_difference"] > 1e-5 or one["equal_codes"] < 0.999 for one in found))


def images(channels: int, side: int, count: int = 4) -> Tensor:
    """Smooth noise in [-1, 1]."""
    noise = torch.randn(count, channels, side // 4, side // 4, generator=torch.Generator().manual_seed(1))
    return nn.functional.interpolate(noise, scale_factor=4, mode="bicubic").clamp(-1, 1)


@torch.no_grad()
def spread(peer: Any, x: Tensor) -> None:
    """Put the codebooks among the encoder's outputs."""
    below = peer.enc_b(x)
    top = peer.quantize_conv_t(peer.enc_t(below))
    for quantize, values in (
        (peer.quantize_t, top),
        (peer.quantize_b, peer.quantize_conv_b(torch.cat([peer.dec_t(top), below], 1))),
    ):
        rows = values.permute(0, 2, 3, 1).flatten(0, 2)
        chosen = torch.randperm(len(rows))[: quantize.n_embed]
        quantize.embed[:, : len(chosen)] = rows[chosen].T


@torch.no_grad()
def compare(peer: Any, path: Path, side: int) -> dict[str, Any]:
    """Encode and decode images by both."""
    ours = vqvae_of_rosinality(read_rosinality(path), side, side, path)
    x = images(ours.config.channels, side)
    *_, top, bottom = peer.encode(x)
    codes = ours.encode(x)
    pairs = ((top, codes[0]), (bottom, codes[1]))
    equal = sum(int((a == b).sum()) for a, b in pairs) / sum(a.numel() for a, _ in pairs)
    difference = float((peer.decode_code(top, bottom).clamp(-1, 1) - ours.decode([top, bottom])).abs().max())
    used = [len(level.unique()) for level in (top, bottom)]
    print(
        f"{ours.config.hidden_channels} channels, {used[0]} and {used[1]} codes in use: {equal:.2%} of the codes are "
        f"equal, images differ by {difference:.1e} at most (bar 1e-5)"
    )
    return {"hidden_channels": ours.config.hidden_channels, "equal_codes": equal, "image_difference": difference}


if __name__ == "__main__":
    raise SystemExit(main())
