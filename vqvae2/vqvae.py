"""The hierarchical vector-quantised autoencoder (Razavi et al. 2019, arXiv 1906.00446, section 3.1, algorithm 1).

Any number of levels, top (coarsest) first. Encoders climb from the image to the top; the top is quantised first; going
down, the decoded upper levels join each level's features before it is quantised. One ladder of decoders serves both:
the decoded upper levels that a level is conditioned on are what the decoder of the image continues from (but for
``upper_decoder`` "both", where each has a ladder of its own)::

    image -> Encoder(bottom) -+-> Encoder(top) -> quantise top -> Decoder(top) -+
                              |                                                 |
                              +---------------------------------> quantise bottom -> Decoder(bottom) -> image

The paper uses no adversarial and no perceptual loss, and nor does `VQVAE.loss`; `vqvae2.adversary` and
`vqvae2.metrics.perceptual_distance` are for sharpening the trained decoder of the image afterwards, which changes no
code.

Shapes: B images, C channels, H x W pixels, h x w cells of a level, D dimensions of a code, F hidden channels, J joint
channels (F unless the config says otherwise).
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from vqvae2 import checkpoint, distributed
from vqvae2.quantizer import VectorQuantizer
from vqvae2.stacks import Decoder, Encoder, Upsampler
from vqvae2.vqvae_config import VQVAEConfig, level_names

__all__ = ["VQVAE", "Decoder", "Encoder", "Reconstruction", "VQVAEConfig", "level_names"]


class Reconstruction(NamedTuple):
    """What one pass of training returns.

    Attributes:
        images: (B, C, H, W) reconstructions, not clamped.
        codes: by level, top first, (B, h, w) int64.
        commitment: scalar, the commitment losses of all levels, and their codebook losses where there are any.
    """

    images: Tensor
    codes: list[Tensor]
    commitment: Tensor


class VQVAE(checkpoint.Pretrained):
    """A hierarchical VQ-VAE.

    Args:
        config: its settings.

    Source: Razavi et al. 2019, section 3.1 and algorithm 1. The top's name in the paper is h_top -> e_top, the bottom's
    h_bottom = E_bottom(x, e_top) -> e_bottom, and the reconstruction D(e_top, e_bottom).

    Example:
        >>> model = VQVAE(VQVAEConfig(height=32, width=32, hidden_channels=8, residual_channels=4)).eval()
        >>> codes = model.encode(torch.zeros(2, 1, 32, 32))
        >>> [tuple(c.shape) for c in codes], tuple(model.decode(codes).shape)
        ([(2, 4, 4), (2, 8, 8)], (2, 1, 32, 32))

        A training loop; until `init_vectors` vectors have been seen (8,192 by default) nothing is quantised.

        >>> small = {"num_embeddings": (16, 16), "hidden_channels": 8, "residual_channels": 4, "init_vectors": 256}
        >>> model = VQVAE(VQVAEConfig(height=32, width=32, **small))
        >>> optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        >>> for images in torch.rand(4, 8, 1, 32, 32) * 2 - 1:
        ...     loss, terms, reconstruction = model.loss(images)
        ...     loss.backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        ...     model.update_codebooks()
        >>> model.initialized
        True
    """

    kind, config_type = "vqvae", VQVAEConfig

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        config.check_size(config.height, config.width)
        self.config = config
        dims, count = config.embedding_dim, len(config.strides)
        hidden = config.by_level("hidden_channels")
        widths = list(
            zip(hidden, config.by_level("residual_channels"), config.by_level("num_residual_layers"), strict=True)
        )
        # Channels of the decoded upper levels where they join a level: none join the top.
        joint = [0, *(config.joint_channels or hidden[i] for i in range(1, count))]
        # Index 0 is the top in every list.
        self.encoders = nn.ModuleList(
            Encoder(finer, stride, *width)
            for finer, stride, width in zip((*hidden[1:], config.channels), config.strides, widths, strict=True)
        )
        self.to_code = nn.ModuleList(nn.Conv2d(hidden[i] + joint[i], dims[i], 1) for i in range(count))
        of_level = zip(config.num_embeddings, config.embedding_dim, config.by_level("rate_weight"), strict=True)
        self.quantizers = nn.ModuleList(VectorQuantizer(k, d, config, rate) for k, d, rate in of_level)

        def stack(i: int, fine_layers: int = 0) -> Decoder:
            out = (*joint[1:], config.channels)[i]
            return Decoder(dims[i] + joint[i], out, config.strides[i], *widths[i], fine_layers=fine_layers)

        upper = range(count - 1)
        upsample = config.upper_decoder != "stack"
        self.decoders = nn.ModuleList(
            Upsampler(dims[i] + joint[i], joint[i + 1], config.strides[i]) if upsample else stack(i) for i in upper
        )
        self.decoders.append(stack(count - 1, config.num_fine_layers))
        # What the finer codes know of the upper levels, where the image's decoder is told otherwise.
        self.conditioners = nn.ModuleList(stack(i) for i in upper if config.upper_decoder == "both")
        # One layout for all who encode, the fast one: codes near the middle between two others fall by rounding.
        self.to(memory_format=torch.channels_last)

    @property
    def levels(self) -> tuple[str, ...]:
        """Names of the levels, top first."""
        return self.config.levels

    @property
    def codebooks(self) -> list[VectorQuantizer]:
        """The quantisers, top first."""
        return [cast(VectorQuantizer, quantizer) for quantizer in self.quantizers]

    @property
    def initialized(self) -> bool:
        """Whether the codebooks of all levels hold their start values."""
        return all(codebook.initialized for codebook in self.codebooks)

    def forward(self, images: Tensor) -> Reconstruction:
        """Encode, quantise and decode.

        Args:
            images: (B, C, H, W) in [-1, 1].

        Returns:
            Reconstruction, codes and commitment loss. In training mode a share ``level_dropout`` of the images is
            decoded without its lower levels, and, with gradients, the codebooks note what `update_codebooks` needs.

        Raises:
            ValueError: the images' shape is not the config's.
        """
        features = self.features(images)
        kept = self._levels_kept(len(images), images.device)
        # Two ladders: codes are conditioned on all upper levels, images are decoded from those that are kept. They part
        # below the first level that is dropped, or have decoders of their own.
        decoded: Tensor | None = None
        shown: Tensor | None = None
        last = len(features) - 1
        codes, commitment = [], torch.zeros((), dtype=self.codebooks[0].embedding.dtype, device=images.device)
        for i, feature in enumerate(features):
            quantized = self.codebooks[i](self._to_code(i, feature, decoded))
            codes.append(quantized.codes)
            commitment = commitment + quantized.loss
            vectors = left = quantized.vectors
            if kept is not None and i > 0:  # the top is always kept
                mean = self.codebooks[i].mean_embedding().to(vectors.dtype)
                left = torch.where((kept > i)[:, None, None, None], vectors, mean)
            shares = shown is decoded and left is vectors and not self.conditioners
            shown = self.decoders[i](_join(left, shown))
            decoded = shown if shares else self._condition(i, vectors, decoded) if i < last else None
        assert shown is not None
        return Reconstruction(shown, codes, commitment)

    def features(self, images: Tensor) -> list[Tensor]:
        """Encode images as far as features, which are not quantised yet and know nothing of the coarser levels' codes.

        Args:
            images: (B, C, H, W) in [-1, 1].

        Returns:
            (B, F, h, w) of each level, top first; F are its hidden channels.

        Raises:
            ValueError: the images' shape is not the config's.
        """
        config = self.config
        if tuple(images.shape[1:]) != (config.channels, config.height, config.width):
            raise ValueError(
                f"expected images (B, {config.channels}, {config.height}, {config.width}), got {tuple(images.shape)}"
            )
        features, x = [], images.contiguous(memory_format=torch.channels_last)
        for encoder in reversed(self.encoders):
            x = encoder(x)
            features.append(x)
        return features[::-1]

    def loss(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor], Reconstruction]:
        """Compute the objective: weighted reconstruction errors plus the commitment losses (algorithm 1).

        Args:
            images: (B, C, H, W) in [-1, 1].

        Returns:
            ``(loss, terms, reconstruction)``: a scalar, its unweighted terms by name (``mse`` on the [-1, 1] scale),
            and the forward pass.
        """
        out = self(images)
        loss, terms = self.config.reconstruction_loss(out.images.to(images.dtype), images)
        return loss + out.commitment, {**terms, "commitment": out.commitment}, out

    def update_codebooks(self) -> None:
        """Move the codebooks by the training passes since the last call; to be called after each optimiser step."""
        for codebook in self.codebooks:
            codebook.update()

    @torch.no_grad()
    def encode(
        self,
        images: Tensor,
        coarser: list[Tensor] | None = None,
        levels: int | None = None,
        choose: Callable[[int, Tensor], Tensor] | None = None,
    ) -> list[Tensor]:
        """Encode images to codes, in any mode: without gradients nothing is noted for the codebooks.

        Args:
            images: (B, C, H, W) in [-1, 1].
            coarser: codes as returned, by which each level's finer ones are conditioned in place of those found here.
            levels: how many of the coarsest levels are wanted; None: all.
            choose: called with the number of each level, 0 the top, and the vectors (B, h, w, D) that are compared with
                its codebook; returns their codes (B, h, w). None: the quantiser's choice.

        Returns:
            Codes by level, top first, (B, h, w) int64.
        """
        decoded, codes, wanted = None, [], levels or len(self.encoders)
        for i, feature in enumerate(self.features(images)[:wanted]):
            quantizer, x = self.codebooks[i], self._to_code(i, feature, decoded)
            if choose is None:
                vectors, found, _ = quantizer(x)
            else:
                found = choose(i, quantizer.normalized(x))
                vectors = quantizer.lookup(found)
            codes.append(found)
            if i + 1 < wanted:
                told = vectors if coarser is None else quantizer.lookup(coarser[i])
                decoded = self._condition(i, told.to(x.dtype), decoded)
        return codes

    @torch.no_grad()
    def decode(self, codes: list[Tensor]) -> Tensor:
        """Decode codes to images.

        Args:
            codes: top first, (B, h, w) integers; any leading part of the levels. A level that is absent takes its
                usage-weighted mean code everywhere, so one can look at what the upper levels carry.

        Returns:
            (B, C, H, W) in [-1, 1].

        Raises:
            ValueError: no levels, too many, or a shape that is not the config's.
        """
        return self.decoders[-1](self.decoder_input(codes)).float().clamp(-1, 1)

    @torch.no_grad()
    def decoder_input(self, codes: list[Tensor]) -> Tensor:
        """Join what the image's decoder sees: the finest level's codes and the decoded coarser ones.

        Args:
            codes: as of `decode`.

        Returns:
            (B, D + J, h, w), at the finest level's resolution; (B, D, h, w) where there is one level.

        Raises:
            ValueError: as of `decode`.
        """
        if not 1 <= len(codes) <= len(self.decoders):
            raise ValueError(f"expected codes of 1 to {len(self.decoders)} levels, got {len(codes)}")
        joined: Tensor | None = None
        for i, shape in enumerate(self.config.shapes):
            quantizer = self.codebooks[i]
            if i < len(codes):
                if tuple(codes[i].shape[1:]) != shape:
                    raise ValueError(
                        f"codes of level {self.levels[i]} must be (B, {shape[0]}, {shape[1]}), got "
                        f"{tuple(codes[i].shape)}"
                    )
                vectors = quantizer.lookup(codes[i].long())
            else:
                vectors = quantizer.mean_embedding().expand(len(codes[0]), *shape, -1)
            joined = _join(vectors, None if joined is None else self.decoders[i - 1](joined))
        assert joined is not None
        return joined

    def nearest_neighbours(self, count: int = 8) -> list[Tensor]:
        """Return the nearest other codes of each code, by level, top first: (K, count) int64, or fewer columns."""
        found = []
        for codebook in (quantizer.embedding for quantizer in self.codebooks):
            near = torch.cdist(codebook, codebook).topk(min(count + 1, len(codebook)), largest=False).indices
            found.append(near[:, 1:] if len(codebook) > 1 else near)
        return found

    @torch.no_grad()
    def near_codes(
        self, codes: list[Tensor], share: float, count: int = 8, neighbours: list[Tensor] | None = None
    ) -> list[Tensor]:
        """Replace a share of the codes, drawn at random, by one of their nearest codes in the codebook.

        Args:
            codes: by level, top first, (B, h, w) integers.
            share: of the codes that are replaced, in [0, 1].
            count: nearest codes that a replacement is drawn from.
            neighbours: what `nearest_neighbours` returned, where the codebooks do not change; None: found here.

        Returns:
            Codes like ``codes``, int64.

        Source: the perturbed codes of ImageFolder (Li et al. 2024, arXiv 2410.01756).
        """
        if not share:
            return [level.long() for level in codes]
        changed = []
        for near, level in zip(neighbours or self.nearest_neighbours(count), codes, strict=False):
            other = near[level.long(), torch.randint(near.shape[1], level.shape, device=level.device)]
            changed.append(torch.where(torch.rand(level.shape, device=level.device) < share, other, level.long()))
        return changed

    def _to_code(self, i: int, feature: Tensor, decoded: Tensor | None) -> Tensor:
        """Map the features of level i, and what is decoded so far, to the vectors (B, h, w, D) to be quantised."""
        joined = feature if decoded is None else torch.cat([feature, decoded], 1)
        vectors: Tensor = self.to_code[i](joined)
        return vectors.permute(0, 2, 3, 1)

    def _condition(self, i: int, vectors: Tensor, decoded: Tensor | None) -> Tensor:
        """Tell the next finer level of level i: of its vectors (B, h, w, D) and what is decoded so far (B, J, h, w)."""
        return (self.conditioners or self.decoders)[i](_join(vectors, decoded))

    def _levels_kept(self, batch: int, device: torch.device) -> Tensor | None:
        """Draw how many levels each image is decoded from, (B,); None: all."""
        count = len(self.decoders)
        if not (self.training and self.config.level_dropout and count > 1 and self.initialized):
            return None
        # By the number of updates alone, and for the images of all passes since and of all processes: micro-batches and
        # processes draw as one large batch would.
        codebook = self.codebooks[0]
        generator = torch.Generator().manual_seed(2**31 + codebook.num_updates)
        everyone, first = batch * distributed.world_size(), batch * distributed.rank()
        uniform = torch.rand((len(codebook.pending) + 1) * everyone, 2, generator=generator)[-everyone:][first:][:batch]
        kept = torch.where(uniform[:, 0] < self.config.level_dropout, 1 + (uniform[:, 1] * (count - 1)).long(), count)
        return kept.to(device, non_blocking=True)

    def save_pretrained(self, folder: str | Path, data: Mapping[str, Any] | None = None) -> str:  # type: ignore[override]
        """Write config.json and model.safetensors; return the SHA-256 of the weights file.

        Args:
            folder: made if absent.
            data: what later stages must know of the data (channels, size, value range, classes).
        """
        return super().save_pretrained(folder, {"data": data or {}})


def _join(vectors: Tensor, decoded: Tensor | None) -> Tensor:
    """Join the vectors (B, h, w, D) of a level with the decoded upper levels (B, J, h, w): (B, D + J, h, w)."""
    x = vectors.permute(0, 3, 1, 2)
    return x if decoded is None else torch.cat([x, decoded], 1)
