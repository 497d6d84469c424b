from typing import Any, Callable, Collection, Iterable, Iterator, Optional, Sequence, Union
import mulan_vdm.diffusion
import mulan_vdm.processes
import torch
import typing

__all__ = ['mean_se', 'Evaluation', 'evaluate', 'PixelBits', 'bits_per_pixel', 'likelihood_ratio', 'Classified', 'fit_temperature', 'classify', 'importance_evaluate', 'AcrossSeeds', 'across_seeds']

def check_tail(draws: torch.Tensor, remedy: str) -> float | None: ...

def check_asked(model: mulan_vdm.diffusion.Diffusion, x: torch.Tensor, y: torch.Tensor | None, strata: torch.Tensor | None = ...) -> None: ...

class _Shared(typing.NamedTuple):
    rows: mulan_vdm.processes.Rows
    image: torch.Tensor
    images: int
    def randn(self, n: int, *shape: int, **how: typing.Any) -> torch.Tensor: ...
    def rand(self, n: int, *shape: int, **how: typing.Any) -> torch.Tensor: ...

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

def likelihood_ratio(model: mulan_vdm.diffusion.Diffusion, x: torch.Tensor, y: torch.Tensor | None = ..., draws: int = ..., batch_size: int = ..., seed: int = ..., T: int | None = ..., even: bool | None = ...) -> tuple[torch.Tensor, torch.Tensor]: ...

class Classified(typing.NamedTuple):
    nats: torch.Tensor
    draws: torch.Tensor
    @property
    def label(self) -> torch.Tensor: ...
    @property
    def calls(self) -> torch.Tensor: ...
    def posterior(self, temperature: float = ...) -> torch.Tensor: ...

def fit_temperature(found: Classified, y: torch.Tensor) -> float: ...

def classify(model: mulan_vdm.diffusion.Diffusion, x: torch.Tensor, calls: int = ..., each: int = ..., margin: float = ..., batch_size: int = ..., seed: int = ..., progress: bool = ..., even: bool | None = ...) -> Classified: ...

def importance_evaluate(model: mulan_vdm.diffusion.Diffusion, x: torch.Tensor, samples: int = ..., draws: int = ..., strata: torch.Tensor | None = ..., batch_size: int = ..., seed: int = ..., T: int | None = ..., progress: bool = ..., even: bool | None = ..., y: torch.Tensor | None = ...) -> Evaluation: ...

class AcrossSeeds(typing.NamedTuple):
    mean: float
    se_seeds: float
    se_images: float
    se: float
    t: float

def across_seeds(table: torch.Tensor, strata: torch.Tensor | None = ...) -> AcrossSeeds: ...
