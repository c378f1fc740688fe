"""Reads weights files as named tensors. Pickles are opened with `weights_only`, and metadata name no files
of your own (`metadata.py`), so no file runs code.

Other projects wrap tensors in dictionaries (`params_ema`, `state_dict`, ...) and in prefixes (`module.`, `generator.`, ...).
Where a file holds both raw weights and a moving average, the moving average is used.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sr_dist.core.errors import UserError, first_line, nearest_path, with_article
from sr_dist.models.weights_formats import PICKLES

Tensors = dict[str, Tensor]

# Dictionaries around the tensors, in order of preference. A key whose value is no dictionary is skipped.
ENVELOPES = (
    "params_ema", "params-ema", "ema_state_dict", "generator_ema",
    "params", "state_dict", "model_state_dict", "generator", "netG", "net_g", "model", "net", "network", "module",
)  # fmt: skip
# Prefixes of one network among several in a file; other names are dropped.
CHOICES = {
    "generator": ("generator_ema.", "generator.", "netG.", "net_g."),
    "discriminator": ("discriminator.", "netD.", "net_d."),
}
# Prefixes that wrappers put before every name. `model.` before a number is none: RRDB's first names begin so.
WRAPPERS = (r"module\.", r"_orig_mod\.", r"_forward_module\.", r"model\.(?!\d)", r"net\.", r"network\.")
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)  # of counters and positions
COUNTERS = {"n_averaged", "step_counter", "steps"}  # counters of moving averages and frameworks


def header(file: Path, key: str) -> dict[str, str]:
    """The metadata of a .safetensors, without its tensors; empty for other files."""
    return _safetensors(file, key, names=())[1] if file.suffix == ".safetensors" and file.is_file() else {}


def read(file: Path, key: str) -> tuple[Tensors, dict[str, str]]:
    """Tensors under their names in the file, and the file's metadata."""
    if file.is_dir():
        raise UserError(f"{key}: '{file}' is a folder, but not a run's (it has no recipe.yaml)")
    if not file.is_file():
        raise UserError(f"{key}: no run folder or weights file '{file}'{nearest_path(file)}")
    if file.suffix == ".safetensors":
        return _safetensors(file, key)
    if file.suffix in PICKLES:
        return unwrapped(_unpickled(file, key), file, key)
    raise UserError(f"{key}: '{file}' does not have the suffix of a weights file (.safetensors, {', '.join(PICKLES)})")


def _safetensors(file: Path, key: str, names: tuple[str, ...] | None = None) -> tuple[Tensors, dict[str, str]]:
    """The tensors of these names, or all, and the metadata."""
    from safetensors import SafetensorError, safe_open  # with torch, seconds

    try:
        with safe_open(file, "pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in (opened.keys() if names is None else names)}
            return tensors, opened.metadata() or {}
    except (SafetensorError, OSError) as problem:
        raise UserError(f"{key}: '{file}' is not a complete .safetensors file: {problem}") from None


def _unpickled(file: Path, key: str) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as problem:
        forbidden = re.search(r"GLOBAL (\w+(?:\.\w+)+)", str(problem))
        if not forbidden:
            raise UserError(f"{key}: '{file}' is cut short or not a weights file") from None
        raise UserError(
            f"{key}: '{file}' is cut short, or holds Python objects ({forbidden[1]}) beside tensors. It is not opened, because "
            f"reading them runs code; save only the network's state_dict(), best as .safetensors"
        ) from None
    except Exception as problem:  # a cut or foreign file can fail anywhere in torch's readers
        raise UserError(f"{key}: '{file}' is cut short or not a weights file ({first_line(problem)[:120]})") from None


def unwrapped(loaded: Any, file: Path, key: str) -> tuple[Tensors, dict[str, str]]:
    """The tensors inside nested dictionaries, and the texts beside them."""
    metadata: dict[str, str] = {}
    outer: list[Any] = []
    while isinstance(loaded, Mapping):
        if any(loaded is mapping for mapping in outer):
            raise UserError(f"{key}: '{file}' holds a dictionary that holds itself")
        outer.append(loaded)
        metadata |= {name: value for name, value in loaded.items() if isinstance(name, str) and isinstance(value, str)}
        inner = next((loaded[name] for name in ENVELOPES if isinstance(loaded.get(name), Mapping) and loaded[name]), None)
        if inner is None:
            tensors = {str(name): value.detach() for name, value in loaded.items() if isinstance(value, Tensor)}
            if tensors:
                return tensors, metadata
            nested = [value for value in loaded.values() if isinstance(value, Mapping)]
            inner = nested[0] if len(nested) == 1 else None
        if inner is None:
            names = ", ".join(f"'{name}'" for name in list(loaded)[:5]) or "nothing"
            raise UserError(f"{key}: '{file}' holds no tensors of a network; it holds {names}")
        loaded = inner
    raise UserError(f"{key}: '{file}' holds {with_article(type(loaded).__name__)}, not named tensors")


def check_tensors(tensors: Tensors, file: Path, key: str) -> None:
    """Refuses by name what cannot be weights, and what claims more values than the file holds."""
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
            problem = f"is {'meta' if tensor.is_meta else 'quantized' if tensor.is_quantized else tensor.layout}, not dense"
        elif tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            problem = f"claims {tensor.numel()} values, and the file holds fewer"
        elif not tensor.is_floating_point() and tensor.dtype not in INTEGERS:
            problem = f"is of {tensor.dtype}, not of real numbers"
        else:
            continue
        raise UserError(f"{key}: '{file}' cannot be used: its tensor '{name}' {problem}")


def check_values(own: Tensors, tensors: Tensors, file: Path, key: str) -> None:
    """Refuses by name whole numbers where the network has real ones, and values that are not finite."""
    for name, tensor in tensors.items():
        if own[name].is_floating_point() and not tensor.is_floating_point():
            raise UserError(f"{key}: '{file}' cannot be used: its tensor '{name}' is of {tensor.dtype}, not of real numbers")
        if not bool(tensor.to(own[name].dtype).isfinite().all()):
            raise UserError(f"{key}: '{file}' cannot be used: its tensor '{name}' has values that are not finite")


def bare_names(tensors: Tensors, kind: str = "generator") -> Tensors:
    """Names without the prefixes of wrappers, in any order."""
    while True:
        tensors = {name: value for name, value in tensors.items() if name not in COUNTERS}
        choice = next((prefix for prefix in CHOICES.get(kind, ()) if any(name.startswith(prefix) for name in tensors)), None)
        wrapper = next((prefix for prefix in WRAPPERS if tensors and all(re.match(prefix, name) for name in tensors)), None)
        if choice:
            tensors = {name[len(choice) :]: value for name, value in tensors.items() if name.startswith(choice)}
        elif wrapper:
            tensors = {re.sub(f"^{wrapper}", "", name): value for name, value in tensors.items()}
        else:
            return tensors
