"""A stand-in for Apple's MPS device: tensors that say they are there and lie in the host's memory.

As on the device there is no float64, and no operator that has no kernel for MPS in PyTorch's table.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torchgen
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map_only

MPS = torch.device("mps:0")
_MIXING = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default, torch.ops.aten.index.Tensor}
"""Copies between devices; indices may lie on the host."""


@cache
def _operators() -> dict[str, str]:
    """PyTorch's own table of its operators, by name."""
    table = Path(torchgen.__file__).parent / "packaged" / "ATen" / "native" / "native_functions.yaml"
    entries = re.split(r"^- func: ", table.read_text(), flags=re.MULTILINE)[1:]
    return {entry.partition("(")[0]: entry for entry in entries}


@cache
def _has_kernel(name: str) -> bool:
    """Whether the device has a kernel of an operator, or needs none since it is made of others."""
    entry = _operators().get(name, "")
    delegate = re.search(r"^  structured_delegate: (\S+)", entry, re.MULTILINE)
    if delegate:
        return _has_kernel(delegate[1])
    kernels = re.findall(r"^    ([\w, ]+):", entry.partition("\n  dispatch:")[2], re.MULTILINE)
    keys = {key.strip() for line in kernels for key in line.split(",")}
    return not keys or any(key == "MPS" or key.startswith("Composite") for key in keys)


class OnMPS(Tensor):
    """A tensor of the device, around one on the host."""

    host: Tensor

    @staticmethod
    def __new__(cls, host: Tensor) -> "OnMPS":
        if host.dtype in (torch.float64, torch.complex128):
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, host.size(), host.stride(), host.storage_offset(), dtype=host.dtype, device="meta"
        )
        made.host = host
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Where the tensor says to be; for PyTorch's own code, which has no such device here, it is a meta tensor."""
        return MPS

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __getitem__(self, index: Any) -> Tensor:
        """Take lists for indices on the host: for a meta tensor PyTorch would not read them."""
        parts = index if isinstance(index, tuple) else (index,)
        return super().__getitem__(tuple(torch.tensor(i) if isinstance(i, list | tuple) else i for i in parts))

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnMPS({self.host!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Do on the host what is asked of the device."""
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, OnMPS)]
    if there and not _has_kernel(func.name().removeprefix("aten::")):
        raise NotImplementedError(f"The operator {func} is not currently implemented for the MPS device")
    mixing = func in _MIXING
    # Numbers of zero dimensions come along, as to every device.
    strangers = [tensor for tensor in tensors if not isinstance(tensor, OnMPS) and tensor.ndim]
    if there and strangers and not mixing:
        raise RuntimeError(f"{func}: expected all tensors to be on the same device, but found mps and cpu")
    asked = kwargs.get("device")
    here = there if asked is None else torch.device(asked).type in ("mps", "meta")
    if asked is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    host_args, host_kwargs = tree_map_only(OnMPS, lambda tensor: tensor.host, (args, kwargs))
    out = func(*host_args, **host_kwargs)
    if here:
        out = tree_map_only(Tensor, lambda tensor: tensor if isinstance(tensor, OnMPS) else OnMPS(tensor), out)
        if there:
            out = return_and_correct_aliasing(func, args, kwargs, out)
    return out


class _Mode(TorchDispatchMode):
    """Takes what names the device, such as ``torch.zeros(2, device="mps:0")`` and ``x.to("mps:0")``, away from PyTorch.

    The device is named with its number: PyTorch asks the device itself for a number that is left out.
    """

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Generator(torch.Generator):
    """Draws on the host whatever its device."""

    def __new__(cls, device: object = "cpu") -> "_Generator":
        return super().__new__(cls, "cpu")


@contextmanager
def fake_mps() -> Iterator[torch.device]:
    """Let the device work for the length of a ``with`` block."""
    own = torch.Generator().manual_seed(0)
    random = {"get_rng_state": own.get_state, "set_rng_state": own.set_state}
    with _Mode(), patch.object(torch, "Generator", _Generator), patch.multiple(torch.mps, **random):
        yield MPS
