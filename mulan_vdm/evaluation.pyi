from typing import Any, Callable, Collection, Iterable, Iterator, Optional, Sequence, Union
import mulan_vdm.diffusion
import torch
import typing

def mean_se(values: torch.Tensor, strata: torch.Tensor | None = ...) -> tuple[float, float]: ...

class Evaluation(typing.NamedTuple):
    bpd: torch.Tensor
    terms: dict[str, torch.Tensor]
    noise: torch.Tensor
    draws: int
    strata: torch.Tensor | None = ...
    extra: dict[str, object] = ...
    @property
    def noise_se(self) -> float: ...
    def report(self) -> dict: ...
    def table(self) -> str: ...

def check_tail(draws: torch.Tensor, remedy: str) -> float | None: ...

def evaluate(model: mulan_vdm.diffusion.Diffusion, x: torch.Tensor, draws: int | None = ..., strata: torch.Tensor | None = ..., batch_size: int = ..., seed: int = ..., T: int | None = ..., progress: bool = ..., even: bool | None = ..., y: torch.Tensor | None = ...) -> Evaluation: ...

class PixelBits(typing.NamedTuple):
    bits: torch.Tensor
    noise: torch.Tensor
    terms: dict[str, torch.Tensor]
    latent: torch.Tensor
    draws: int
    @property
    def bpd(self) -> torch.Tensor: ...

def bits_per_pixel(model: mulan_vdm.diffusion.Diffusion, x: torch.Tensor, y: torch.Tensor | None = ..., draws: int | None = ..., batch_size: int = ..., seed: int = ..., T: int | None = ..., progress: bool = ..., even: bool | None = ...) -> PixelBits: ...

def importance_evaluate(model: mulan_vdm.diffusion.Diffusion, x: torch.Tensor, samples: int = ..., draws: int = ..., strata: torch.Tensor | None = ..., batch_size: int = ..., seed: int = ..., T: int | None = ..., progress: bool = ..., even: bool | None = ..., y: torch.Tensor | None = ...) -> Evaluation: ...

class AcrossSeeds(typing.NamedTuple):
    mean: float
    se_seeds: float
    se_images: float
    se: float
    t: float

def across_seeds(table: torch.Tensor, strata: torch.Tensor | None = ...) -> AcrossSeeds: ...
