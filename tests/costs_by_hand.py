"""Multiply-adds of models in closed form, from their settings alone."""

from vqvae2 import PriorConfig, VQVAEConfig
from vqvae2.detail import DetailConfig


def vqvae_by_hand(config: VQVAEConfig) -> dict[str, int]:
    """Multiply-adds of each level: cells x kernel x channels in x channels out, strides being powers of two."""
    encoding, decoding = _vqvae_parts(config)
    return {level: encoding[level] + decoding[level] for level in encoding}


def _vqvae_parts(config: VQVAEConfig) -> tuple[dict[str, int], dict[str, int]]:
    """Multiply-adds of each level up to its codes, and of its decoder."""
    hidden, residual, blocks = (
        config.by_level(name) for name in ("hidden_channels", "residual_channels", "num_residual_layers")
    )
    last = len(config.strides) - 1
    joint = [0, *(config.joint_channels or width for width in hidden[1:])]
    encoding, decoding = {}, {}
    for i, level in enumerate(config.levels):
        f, r, cells, d = hidden[i], residual[i], config.shapes[i][0] * config.shapes[i][1], config.embedding_dim[i]
        halvings = config.strides[i].bit_length() - 1
        finer = hidden[i + 1] if i < last else config.channels
        out = joint[i + 1] if i < last else config.channels
        residual_blocks = blocks[i] * cells * (9 * f * r + r * f)
        down = [finer, *[f // 2] * (halvings - 1), f]
        up = [f, *[f // 2] * (halvings - 1), out]
        encoder = sum(cells * 4 ** (halvings - 1 - j) * 16 * down[j] * down[j + 1] for j in range(halvings))
        encoder += cells * 9 * f * f + residual_blocks
        alone = config.upper_decoder == "upsample" and i < last  # no residual stack, and all steps of one width
        up = [d + joint[i], *[out] * halvings] if alone else up
        decoder = 0 if alone else cells * 9 * (d + joint[i]) * f + residual_blocks
        decoder += sum(cells * 4**j * 16 * up[j] * up[j + 1] for j in range(halvings))
        if i == last:  # 3x3 and 1x1 before the last upsampling
            decoder += config.num_fine_layers * cells * 4 ** (halvings - 1) * 10 * up[-2] ** 2
        encoding[level] = encoder + cells * (f + joint[i]) * d + cells * config.num_embeddings[i] * d
        decoding[level] = decoder
    return encoding, decoding


def detail_by_hand(config: DetailConfig) -> dict[str, int]:
    """Multiply-adds of each level of a detail decoder: the VQ-VAE's decoders, and what paints the finer vectors."""
    ladder, drawn, blocks = config.vqvae, config.drawn_levels, config.num_layers
    hidden, found = ladder.by_level("hidden_channels"), _vqvae_parts(ladder)[1]
    joint = [0, *(ladder.joint_channels or width for width in hidden[1:])]
    widths = config.widths or (hidden[drawn - 1], *(width // 2 for width in hidden[drawn:]))
    width, given = widths[0], ladder.embedding_dim[drawn - 1] + joint[drawn - 1]
    for i, level in enumerate(ladder.levels):
        cells = ladder.shapes[i][0] * ladder.shapes[i][1]
        if i >= drawn:
            given, width = width + joint[i], widths[i - drawn + 1]
            found[level] += cells * width * ladder.embedding_dim[i]
        if i >= drawn - 1:
            found[level] += cells * 9 * (given * width + 2 * blocks * width * width)
    return found


def prior_by_hand(config: PriorConfig) -> dict[str, int]:
    """Multiply-adds of each part of a prior."""
    c, r, e = config.channels, config.residual_channels, config.embedding_dim
    group = config.patch**2 * (2 if config.mirrored else 1)  # codes of a position
    cells = config.height * config.width // group
    v, reach, layers = config.vertical_channels or r, config.kernel_size // 2, config.num_layers
    conditional = bool(config.condition_levels or config.attributes)
    found = {}
    if config.condition_levels:
        *_, (h, w) = sizes = config.condition_shapes
        s, inside = config.condition_channels or c, config.condition_channels or r
        embedded = sum(rows * columns * e * s for rows, columns in sizes)
        found["condition stack"] = embedded + config.condition_layers * h * w * 10 * s * inside + cells * s * c
    rows = (reach + 1) * (2 * reach + 1) * c * v + v * 2 * c + c * r + conditional * c * (v + r)
    columns = (reach + 1) * c * r + r * 2 * c
    attentions = layers // config.attention_every if config.attention_every else 0
    attention = cells * (3 * c * c + c * c) + 2 * cells**2 * c
    found["vertical stream"] = cells * group * e * c + layers * cells * rows
    found["horizontal stream"] = cells * group * e * c + layers * cells * columns + attentions * attention
    found["output"] = cells * config.output_layers * 2 * c * r
    if group == 1:
        found["output"] += cells * c * config.num_embeddings
    else:  # the head: unfolded, with the position's own codes, then a gated layer for each code
        m = config.patch_channels
        found["output"] += cells * group * m * (c + group * e)
        found["output"] += cells * group * (3 * m * m + m * config.num_embeddings)
    return found
