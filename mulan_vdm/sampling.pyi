from typing import Any, Callable, Collection, Iterable, Iterator, Optional, Sequence, Union
import mulan_vdm.diffusion
import torch
import torch._C
import typing

__all__ = ['Denoise', 'Step', 'Grid', 'samplers', 'grids', 'fillers', 'Maker', 'churned_heun', 'trajectory', 'sample', 'inpaint', 'points_between']

def ddpm_step(denoise: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]], z_t: torch.Tensor, gamma_t: torch.Tensor, gamma_s: torch.Tensor, noise: torch.Tensor, reverse: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor] = ...) -> torch.Tensor: ...

def ddpm_large_step(denoise: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]], z_t: torch.Tensor, gamma_t: torch.Tensor, gamma_s: torch.Tensor, noise: torch.Tensor) -> torch.Tensor: ...

def ddim_step(denoise: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]], z_t: torch.Tensor, gamma_t: torch.Tensor, gamma_s: torch.Tensor, noise: torch.Tensor, eta: float = ...) -> torch.Tensor: ...

def heun_step(denoise: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]], z_t: torch.Tensor, gamma_t: torch.Tensor, gamma_s: torch.Tensor, noise: torch.Tensor) -> torch.Tensor: ...

dpmpp_2m: Maker

def ode_step(denoise: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]], z_t: torch.Tensor, gamma_t: torch.Tensor, gamma_s: torch.Tensor, noise: torch.Tensor, tolerance: float = ..., max_steps: int = ...) -> torch.Tensor: ...

def check_labels(model: mulan_vdm.diffusion.Diffusion, y: torch.Tensor | None, n: int) -> None: ...

class _Stage(typing.NamedTuple):
    t: float
    gamma: torch.Tensor
    z: torch.Tensor

class _Known(typing.NamedTuple):
    x: torch.Tensor
    where: torch.Tensor

Denoise = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]

Step = Callable[[Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]], torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

Grid = Callable[[Callable[[float], torch.Tensor], float], torch.Tensor]

samplers: dict[str, typing.Any]

grids: dict[str, typing.Any]

fillers: dict[str, typing.Any]

class Maker(typing.NamedTuple):
    start: Callable[[int], Callable[[Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]], torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]]

def churned_heun(S_churn: float = ..., S_tmin: float = ..., S_tmax: float = ..., S_noise: float = ...) -> Maker: ...

def trajectory(model: mulan_vdm.diffusion.Diffusion, n: int, steps: int, step: Union[Callable[[Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]], torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor], Maker, str] = ..., grid: Union[Callable[[Callable[[float], torch.Tensor], float], torch.Tensor], torch.Tensor, list[float], str] = ..., w: torch.Tensor | None = ..., z_1: torch.Tensor | None = ..., y: torch.Tensor | None = ..., guidance: float = ..., clip: float | None = ..., clean: bool = ..., generator: torch._C.Generator | None = ..., batch_size: int | None = ...) -> Iterator[_Stage]: ...

def sample(model: mulan_vdm.diffusion.Diffusion, n: int, steps: int, progress: bool = ..., **kwargs: typing.Any) -> torch.Tensor: ...

def inpaint(model: mulan_vdm.diffusion.Diffusion, x: torch.Tensor, mask: torch.Tensor, n: int = ..., steps: int = ..., fill: str = ..., repeats: int | None = ..., step: Union[Callable[[Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]], torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor], str] = ..., generator: torch._C.Generator | None = ..., **kwargs: typing.Any) -> torch.Tensor: ...

def points_between(a: torch.Tensor, b: torch.Tensor, n: int, spherical: bool = ...) -> torch.Tensor: ...
