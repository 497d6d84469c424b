from typing import Any, Callable, Collection, Iterable, Iterator, Optional, Sequence, Union
import mulan_vdm.diffusion
import mulan_vdm.evaluation
import torch
import torch._C
import typing

__all__ = ['dequantizations', 'traces', 'ode_evaluate']

class _Start(typing.NamedTuple):
    z_0: torch.Tensor
    w: torch.Tensor | None
    probes: torch.Tensor | None
    volume: torch.Tensor
    dequantization: torch.Tensor
    latent: torch.Tensor

def begin(model: mulan_vdm.diffusion.Diffusion, x: torch.Tensor, draws: int, dequantization: str, trace: str, probes: int, ratio: bool, generator: torch._C.Generator) -> _Start: ...

dequantizations: dict[str, typing.Any]

traces: dict[str, typing.Any]

def ode_evaluate(model: mulan_vdm.diffusion.Diffusion, x: torch.Tensor, y: torch.Tensor | None = ..., draws: int = ..., trace: str = ..., probes: int = ..., dequantization: str = ..., importance: bool = ..., exact_limit: int = ..., strata: torch.Tensor | None = ..., batch_size: int = ..., generator: torch._C.Generator | None = ..., progress: bool = ..., tolerance: float = ..., checked: int = ..., *, max_steps: int = ...) -> mulan_vdm.evaluation.Evaluation: ...
