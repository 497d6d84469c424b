from typing import Any, Callable, Collection, Iterable, Iterator, Optional, Sequence, Union
import mulan_vdm.data
import torch
import typing

__all__ = ['Probes', 'probe', 'describe', 'Axes', 'principal', 'latent_report']

def pixels(x: torch.Tensor) -> torch.Tensor: ...

def information(mean: torch.Tensor, std: torch.Tensor, seed: int = ...) -> tuple[float, float]: ...

class Probes(typing.NamedTuple):
    linear: torch.Tensor
    neighbours: torch.Tensor
    nmi: float
    ari: float
    def report(self, strata: torch.Tensor | None = ...) -> dict: ...

def probe(train: mulan_vdm.data.Split, test: mulan_vdm.data.Split, seed: int = ...) -> Probes: ...

def describe(data: mulan_vdm.data.Data, features: Callable[[torch.Tensor], torch.Tensor]) -> tuple[mulan_vdm.data.Split, mulan_vdm.data.Split]: ...

class Axes(typing.NamedTuple):
    center: torch.Tensor
    directions: torch.Tensor
    spread: torch.Tensor
    def project(self, x: torch.Tensor) -> torch.Tensor: ...
    def at(self, c: torch.Tensor) -> torch.Tensor: ...

def principal(x: torch.Tensor, d: int) -> Axes: ...

def latent_report(mean: torch.Tensor, std: torch.Tensor) -> dict: ...
