"""A model whose networks run compiled, as it was kept when it was first read: nothing is imported that only builds it.

What is kept is true of certain files alone: whoever reads it compares their checksums with those it was made of.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..api.calibration import Calibration
from ..api.choices import Sigmas, Solver
from ..api.errors import CheckpointError, ForeignFileError, InvalidRequestError
from ..api.reading import MAX_TENSORS, open_regular, read_object
from ..api.settings import Stage
from ..sampling.sampler import Sampler
from ..sampling.schedule import KeptSchedule, SolverTable, Wanted
from ..sampling.settings import Settings
from ..sampling.solver import solver_table
from . import kept_tokenizer
from .bank import Bank
from .components import Components
from .kept_tokenizer import KeptTokenizer
from .layers import CrossLayer
from .networks import Denoiser
from .preprocessing import Preprocessing
from .segmentation import Segmenter
from .skeleton import Skeleton, SkeletonDenoiser, furniture

if TYPE_CHECKING:
    from .outline import Outline

MODEL, TENSORS = "model.json", "tensors.safetensors"
_STEPS, _OWN_STEPS = (4, 8, 10, 15, 20, 25, 30, 50), (*range(1, 31), 35, 40, 45, 50)
"""Counts of steps whose tables are kept: of every solver, and of the model's own. Others are made when asked for."""
_DENOISERS = ("unet", "controlnet")
_NETWORKS = (*_DENOISERS, "text_encoder", "text_encoder_2", "vae", "preview_vae", "segmenter")
_TOKENIZERS = ("tokenizer", "tokenizer_2")
_PLAIN = ("name", "zero_empty", "upcast_vae")
_TABLE = ("timesteps", "columns", "alphas", "sigmas")


def can_be_kept(components: Components, outline: Outline) -> bool:
    """Whether all that a model is lies in folders, and its requests need no more of PyTorch than `skeleton` has."""
    changed = components.embeddings or components.fused or components.adapters or components.controlnets
    told = components.unet.config.time_cond_proj_dim is not None
    segmenter = components.segmenter
    named = segmenter is not None and segmenter.model.config.model_type == "oneformer"
    return not (changed or told or named or outline.given or outline.files)


def keep(components: Components, outline: Outline, files: Mapping[str, list[str]], folder: Path) -> None:
    """Write a model that was read whole. files: names of those that the hash of each part is of."""
    denoiser = Denoiser(components.unet, components.controlnet)
    networks = {name: found for name in _NETWORKS if (found := getattr(components, name)) is not None}
    said: dict[str, Any] = {name: getattr(components, name) for name in _PLAIN}
    said |= {"hashes": components.hashes, "sources": dict(components.sources), "sampler": asdict(components.sampler)}
    said["scheduler"] = _settings(components.scheduler)
    said["parts"] = {name: [str(part), sorted(files[name])] for name, part in outline.folders.items()}
    said["files"] = {name: str(found) for name in ("calibration", "bank") if (found := getattr(outline, name))}
    said["networks"] = {name: _settings(getattr(found, "model", found)) for name, found in networks.items()}
    said["layers"] = {"unet": denoiser.layers, "controlnet": denoiser.control_layers}
    said["layers"] = {name: [asdict(layer) for layer in layers] for name, layers in said["layers"].items()}
    said["shallow_share"] = denoiser.shallow_share
    if components.segmenter is not None:
        said["preprocessing"] = asdict(components.segmenter.preprocessing)
    tokenizers = {name: found for name in _TOKENIZERS if (found := getattr(components, name)) is not None}
    said["tokenizers"] = {name: kept_tokenizer.kept(found) for name, found in tokenizers.items()}
    tensors = {"alphas_cumprod": components.scheduler.alphas_cumprod}
    for name in _DENOISERS:
        if name in networks:
            own = furniture(networks[name], denoiser.layers if name == "unet" else denoiser.control_layers)
            tensors |= {f"{name}/{place}": tensor for place, tensor in own}
    said["noise"] = {}
    for wanted, table in _tables(components):
        said["noise"][wanted.name] = table.init_noise_sigma
        tensors |= {f"{wanted.name}/{field}": getattr(table, field) for field in _TABLE}
    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, folder / TENSORS)
    (folder / MODEL).write_text(json.dumps(said))


def _settings(part: Any) -> dict[str, Any]:
    """Configuration of a part, with what it leaves to its class."""
    config = part.config
    said = json.loads(config.to_json_string(False)) if hasattr(config, "to_json_string") else dict(config)
    return {name: value for name, value in said.items() if not name.startswith("_") and _is_portable(value)}


def _is_portable(value: Any) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True


def _tables(components: Components) -> Iterator[tuple[Wanted, SolverTable]]:
    """The tables of every solver and of the model's own, for so many steps as pictures are usually drawn in."""
    own = [components.sampler.settled(Stage(steps=count)) for count in _OWN_STEPS]
    asked = {Wanted(solver, count) for solver in Solver for count in _STEPS}
    asked |= {Wanted(s.solver, s.steps, s.spacing, s.sigmas, s.eta) for s in own if s.solver is not None}
    for wanted in sorted(asked, key=lambda each: each.name):
        try:
            yield wanted, solver_table(
                wanted.solver, wanted.num_steps, components.scheduler, components.sampler,
                spacing=wanted.spacing, sigmas=wanted.sigmas, eta=wanted.eta,
            )  # fmt: skip
        except (InvalidRequestError, CheckpointError):
            continue  # a request is told so when it asks


def is_current(folder: Path) -> bool:
    """Whether the files that a kept model was made of hold what they held."""
    try:
        said = read_object(folder / MODEL)
    except ForeignFileError:
        return False
    return all(_digest(Path(part), files) == said["hashes"][name] for name, (part, files) in said["parts"].items())


def _digest(part: Path, files: list[str]) -> str | None:
    """As `layout.digest`, of the same files."""
    total = hashlib.sha256()
    for name in files:
        try:
            with open_regular(part / name, MAX_TENSORS) as stream:
                total.update(f"{name}\0{hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
        except (OSError, ValueError):
            return None
    return total.hexdigest()


def read(folder: Path, dtype: torch.dtype, device: torch.device | str, whole: Callable[[], Components]) -> Components:
    """The model that is kept in `folder`. whole: reads all of it, where a request needs what is not compiled."""
    said = read_object(folder / MODEL)
    tensors = _tensors(folder / TENSORS)
    made: dict[str, Any] = {name: said[name] for name in _PLAIN}
    for name, config in said["networks"].items():
        kind = torch.float32 if name == "vae" and said["upcast_vae"] and dtype is torch.float16 else dtype
        made[name] = Skeleton(config, kind, device)
    for name in _DENOISERS:
        if name in made:
            own = {key.removeprefix(f"{name}/"): each for key, each in tensors.items() if key.startswith(f"{name}/")}
            layers = [CrossLayer(**layer) for layer in said["layers"][name]]
            made[name].furnish(layers, {key: each.to(device, dtype) for key, each in own.items()})
    made["unet"].shallow_share = said["shallow_share"]
    if "segmenter" in made:
        values: dict[str, Any] = {
            name: tuple(v) if isinstance(v, list) else v for name, v in said["preprocessing"].items()
        }
        made["segmenter"] = Segmenter(made["segmenter"], Preprocessing(**values))
    made |= {name: KeptTokenizer.from_kept(found) for name, found in said["tokenizers"].items()}
    files = {name: Path(found) for name, found in said["files"].items()}
    return Components(
        **{"controlnet": None, "segmenter": None, **made},
        scheduler=_schedule(said, tensors),
        sampler=_sampler(said["sampler"]),
        calibration=Calibration.load(files["calibration"]) if "calibration" in files else None,
        bank=Bank.load(files["bank"]) if "bank" in files else None,
        hashes=said["hashes"],
        sources=said["sources"],
        whole=cache(whole),
    )


def _tensors(file: Path) -> dict[str, Tensor]:
    with safe_open(file, framework="pt") as there:
        return {name: there.get_tensor(name) for name in there.keys()}  # noqa: SIM118 - it is no mapping


def _schedule(said: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> KeptSchedule:
    def table(wanted: Wanted) -> SolverTable | None:
        if wanted.name not in said["noise"]:
            return None
        own = {field: tensors[f"{wanted.name}/{field}"] for field in _TABLE}
        return SolverTable(init_noise_sigma=said["noise"][wanted.name], **own)

    return KeptSchedule(Settings(said["scheduler"]), tensors["alphas_cumprod"], table)


def _sampler(said: Mapping[str, Any]) -> Sampler:
    sigmas = said["sigmas"]
    return Sampler(**{**said, "solver": Solver(said["solver"]), "sigmas": None if sigmas is None else Sigmas(sigmas)})


def whole(components: Components, denoiser: Denoiser) -> tuple[Components, Denoiser]:
    """Both with all of their networks; as they are where nothing is missing."""
    if components.whole is None:
        return components, denoiser
    found = components.whole()
    return found, Denoiser(found.unet, found.controlnet, found.controlnets)


def denoiser_of(components: Components) -> Denoiser:
    """The networks that denoise, as far as they are there."""
    if components.whole is None:
        return Denoiser(components.unet, components.controlnet, components.controlnets)
    unet: Any = components.unet
    controlnet: Any = components.controlnet
    return SkeletonDenoiser(unet, controlnet)
