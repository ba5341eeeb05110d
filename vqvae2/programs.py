"""A VQ-VAE as programs that run without this package: an encoder and a decoder, in ONNX or of `torch.export`.

    encoder   image -> codes_top, ..., codes_bottom
    decoder   codes_top, ..., codes_bottom -> image

``image`` is (B, C, H, W) float32 in [-1, 1] and ``codes_LEVEL`` (B, h, w) int64, for any B; weights are float32. The
programs of `torch.export` are called as `VQVAE.encode` and `VQVAE.decode` are: ``encoder(image)`` returns the list of
codes that ``decoder(codes)`` takes.

Other kernels round otherwise, and where a vector is almost equally close to two codes, rounding decides. So what a
program finds is checked level by level, each given the program's own codes of the coarser levels.
"""

import copy
import hashlib
import importlib
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae2.errors import UserError
from vqvae2.vqvae import VQVAE, VQVAEConfig

Kind = Literal["onnx", "torch"]
"""Of a program: ONNX, or `torch.export`."""
SUFFIXES: dict[Kind, str] = {"onnx": ".onnx", "torch": ".pt2"}
"""What the name of a program's file ends with."""
CODES_SHARE = 5e-3
"""Share of codes in which a program may differ, by rounding between two that are almost equally close."""
IMAGE_DIFFERENCE = 1e-4
"""Largest difference of its images on the [-1, 1] scale: an 80th of a step of 8 bits."""

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_OPSET = 20
_TRACED = 2  # images
_CHECKED = 4096  # codes at least, so that a few that fall otherwise by rounding are not many

__all__ = [
    "CODES_SHARE",
    "IMAGE_DIFFERENCE",
    "SUFFIXES",
    "Check",
    "Kind",
    "check_programs",
    "require",
    "write_programs",
]


@dataclass(frozen=True)
class Check:
    """How programs compare with the model that they were made of.

    Attributes:
        images: in the batch that was encoded; twice as many were decoded.
        codes: of all levels.
        codes_that_differ: from the model's, given the same coarser codes.
        largest_difference: of images decoded from the same codes, on the [-1, 1] scale.
    """

    images: int
    codes: int
    codes_that_differ: int
    largest_difference: float

    @property
    def passed(self) -> bool:
        """Whether both are within their bounds."""
        few = self.codes_that_differ <= CODES_SHARE * self.codes
        return few and self.largest_difference <= IMAGE_DIFFERENCE  # not so if it is NaN

    def __str__(self) -> str:
        return (
            f"{self.codes_that_differ:,} of {self.codes:,} codes differ from the model's, images by at most "
            f"{self.largest_difference:.2g}"
        )


def require(kinds: Sequence[Kind]) -> None:
    """Raise UserError where a package is missing that programs of these kinds are made or checked with."""
    if "onnx" in kinds:
        for name in _PACKAGES:
            try:
                importlib.import_module(name)
            except ImportError:
                raise UserError(
                    f"ONNX programs need the package {name}", how=f"Run pip install {' '.join(_PACKAGES)}"
                ) from None


def write_programs(model: VQVAE, folder: Path, kinds: Sequence[Kind]) -> dict[str, dict[str, Any]]:
    """Write a model's encoder and decoder as programs, and check each kind as `check_programs` does.

    Args:
        model: in evaluation mode, float32, on the CPU.
        folder: is there; ``encoder`` and ``decoder`` with each kind's suffix are written into it.
        kinds: ``onnx``, and ``torch`` for `torch.export`.

    Returns:
        By kind, for a record: ``sha256`` of each file, ``inputs`` and ``outputs`` of each program by name, ``versions``
        of the packages, and the fields of `Check`.

    Raises:
        UserError: a package is missing, or programs do not pass their check: then those are not left.
    """
    require(kinds)
    parts = _parts(model) if kinds else {}
    found: dict[str, dict[str, Any]] = {}
    for kind in kinds:
        paths = {name: folder / (name + SUFFIXES[kind]) for name in parts}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what PyTorch is to change
                for name, part in parts.items():
                    part.write(paths[name], kind)
                check = check_programs(model, *(_runner(path, kind) for path in paths.values()))
            if not check.passed:
                raise UserError(
                    f"the {kind} programs do not compute what the model does ({check}; by rounding at most "
                    f"{CODES_SHARE:.1%} and {IMAGE_DIFFERENCE:g})",
                    ", ".join(path.name for path in paths.values()),
                    "Codes of a collapsed codebook may be too much alike. Else try the versions in constraints.txt",
                )
        except BaseException:
            for path in paths.values():
                path.unlink(missing_ok=True)
            raise
        packages = [torch, *(importlib.import_module(name) for name in _PACKAGES if kind == "onnx")]
        found[kind] = {
            "sha256": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths.values()},
            "inputs": {name: part.takes for name, part in parts.items()},
            "outputs": {name: part.gives for name, part in parts.items()},
            "versions": {package.__name__: str(package.__version__) for package in packages},
            **asdict(check),
        }
    return found


def check_programs(
    model: VQVAE, encode: Callable[[Tensor], list[Tensor]], decode: Callable[[list[Tensor]], Tensor]
) -> Check:
    """Compare programs with a model: on noise and smooth images, and on their codes and codes drawn at random.

    Args:
        model: in evaluation mode, on the CPU.
        encode, decode: what the programs compute, called as `VQVAE.encode` and `VQVAE.decode`.
    """
    config, generator = model.config, torch.Generator().manual_seed(0)
    per_image = sum(h * w for h, w in config.shapes)
    images = _some_images(config, max(_TRACED + 1, -(-_CHECKED // per_image)), generator)
    codes = encode(images)
    own = model.encode(images, coarser=codes)
    differ = sum(int((ours != theirs).sum()) for ours, theirs in zip(own, codes, strict=True))
    shown = [
        torch.cat([level, torch.randint(k, level.shape, generator=generator)])
        for level, k in zip(codes, config.num_embeddings, strict=True)
    ]
    largest = float((decode(shown) - model.decode(shown)).abs().max())
    return Check(len(images), sum(level.numel() for level in codes), differ, largest)


class _Encoder(nn.Module):
    """What encodes images, without the decoders of images."""

    def __init__(self, model: VQVAE) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        decoders = self.model.decoders
        for i in range(len(decoders)) if model.conditioners else [len(decoders) - 1]:
            decoders[i] = nn.Identity()

    def forward(self, image: Tensor) -> list[Tensor]:
        return self.model.encode(image)


class _Decoder(nn.Module):
    """What decodes codes, without the encoders."""

    def __init__(self, model: VQVAE) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        for name in ("encoders", "to_code", "conditioners"):
            setattr(self.model, name, nn.ModuleList())

    def forward(self, codes: list[Tensor]) -> Tensor:
        return self.model.decode(codes)


@dataclass(frozen=True)
class _Part:
    """A program, traced for batches of any size: which axes those are, and names of what it takes and gives."""

    traced: torch.export.ExportedProgram
    axes: tuple[Any, ...]
    takes: list[str]
    gives: list[str]

    def write(self, path: Path, kind: Kind) -> None:
        if kind == "torch":
            torch.export.save(self.traced, path)
            return
        made = torch.onnx.export(
            self.traced,
            (),
            input_names=self.takes,
            output_names=self.gives,
            dynamic_shapes=self.axes,
            opset_version=_OPSET,
            dynamo=True,
            verbose=False,
        )
        assert made is not None
        made.save(path, external_data=False)


def _parts(model: VQVAE) -> dict[str, _Part]:
    """Trace the encoder and the decoder."""
    config, any_size = model.config, {0: torch.export.Dim("batch")}
    image = torch.zeros(_TRACED, config.channels, config.height, config.width)
    codes = [torch.zeros(_TRACED, *shape, dtype=torch.int64) for shape in config.shapes]
    names = [f"codes_{level}" for level in model.levels]
    encoder = _traced(_Encoder(model), image, any_size)
    decoder = _traced(_Decoder(model), codes, [any_size] * len(codes))
    return {
        "encoder": _Part(encoder, (any_size,), ["image"], names),
        "decoder": _Part(decoder, ([any_size] * len(codes),), names, ["image"]),
    }


@torch.no_grad()
def _traced(program: nn.Module, given: Any, axes: Any) -> torch.export.ExportedProgram:
    found = torch.export.export(program.eval(), (given,), dynamic_shapes=(axes,))
    for module in found.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # it names folders of this machine
    return found


def _runner(path: Path, kind: Kind) -> Callable[..., Any]:
    """Read a program; return it as a function like `VQVAE.encode` or `VQVAE.decode`."""
    if kind == "torch":
        return torch.export.load(path).module()
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]

    def run(given: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
        tensors = [given] if isinstance(given, Tensor) else given
        feed = {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}
        found = [torch.from_numpy(array) for array in session.run(None, feed)]
        return found if isinstance(given, Tensor) else found[0]

    return run


def _some_images(config: VQVAEConfig, count: int, generator: torch.Generator) -> Tensor:
    """Draw images in [-1, 1]: half of them noise, half smooth, and each of another contrast."""
    shape = (config.channels, config.height, config.width)
    coarse = [max(2, math.ceil(n / 16)) for n in shape[1:]]
    smooth = F.interpolate(
        torch.randn(count - count // 2, config.channels, *coarse, generator=generator), shape[1:], mode="bicubic"
    )
    noise = torch.rand(count // 2, *shape, generator=generator) * 2 - 1
    contrast = torch.rand(count, 1, 1, 1, generator=generator)
    return (torch.cat([smooth, noise]) * contrast).clamp(-1, 1)
