from typing import Any, Callable, Collection, Iterable, Iterator, Optional, Sequence, Union
import mulan_vdm.diffusion
import torch
import typing

__all__ = ['velocity', 'divergence', 'solve', 'log_density']

def drift(z: torch.Tensor, eps_hat: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor: ...

def check_solver(tolerance: float = ..., max_steps: int = ...) -> None: ...

def check_double(device: torch.device | str) -> None: ...

def standard_normal(z: torch.Tensor) -> torch.Tensor: ...

class _FlowPath(typing.NamedTuple):
    log_prob: torch.Tensor
    z_1: torch.Tensor
    nfe: torch.Tensor

def velocity(model: mulan_vdm.diffusion.Diffusion, t: torch.Tensor, w: torch.Tensor | None = ..., y: torch.Tensor | None = ...) -> Callable[[torch.Tensor], torch.Tensor]: ...

def divergence(f: Callable[[torch.Tensor], torch.Tensor], z: torch.Tensor, probes: torch.Tensor | None = ...) -> tuple[torch.Tensor, torch.Tensor]: ...

def solve(f: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], state: torch.Tensor, D: int, span: tuple[float, float] = ..., tolerance: float = ..., max_steps: int = ...) -> tuple[torch.Tensor, torch.Tensor]: ...

def log_density(model: mulan_vdm.diffusion.Diffusion, z_0: torch.Tensor, w: torch.Tensor | None = ..., y: torch.Tensor | None = ..., probes: torch.Tensor | None = ..., terminal: Callable[[torch.Tensor], torch.Tensor] = ..., **solver: typing.Any) -> _FlowPath: ...
