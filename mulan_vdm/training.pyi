from typing import Any, Callable, Iterable, Iterator, Optional, Sequence, Union
import mulan_vdm.data
import mulan_vdm.diffusion
import pathlib
import torch
import torch.nn.modules.module
import torch.optim.optimizer
import torch.optim.swa_utils
import typing

class _Session:
    def __init__(self, out: pathlib.Path | str | None = ..., config: dict | None = ..., resume: bool = ..., previous: bool = ..., log_every: int = ..., save_every: int = ..., progress: bool = ..., stop: Callable[[], bool] = ..., precision: str = ..., accumulate: int = ..., checkpointing: bool = ..., compile: bool = ..., shard: bool = ...) -> None: ...
    def opened(self, config: dict) -> Iterator[None]: ...
    def continued(self, like: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], int, float]: ...
    def record(self, now: Progress, last: bool, ending: bool, state: Callable[[], dict[str, torch.Tensor]]) -> None: ...
    def prepare(self, model: mulan_vdm.diffusion.Diffusion, average: torch.optim.swa_utils.AveragedModel, tensors: dict[str, torch.Tensor], **options: typing.Any) -> tuple[torch.nn.modules.module.Module, torch.optim.optimizer.Optimizer]: ...

class Progress(typing.NamedTuple):
    step: int
    loss: float
    terms: dict[str, float]
    lr: float
    grad_norm: float
    seconds: float
    model: mulan_vdm.diffusion.Diffusion
    def line(self) -> str: ...

def adapted(net: torch.nn.modules.module.Module, checkpointing: bool, compile: bool) -> Iterator[None]: ...

def sigterm() -> Iterator[Callable[[], bool]]: ...

def fit(model: mulan_vdm.diffusion.Diffusion, data: mulan_vdm.data.Data, steps: int = ..., batch_size: int = ..., lr: float = ..., weight_decay: float = ..., ema: float = ..., clip: float = ..., warmup: int = ..., T: int | None = ..., beta: float = ..., beta_warmup: int = ..., seed: int = ..., drop: float = ..., *, out: pathlib.Path | str | None = ..., config: dict | None = ..., resume: bool = ..., previous: bool = ..., log_every: int = ..., save_every: int = ..., progress: bool = ..., stop: Callable[[], bool] = ..., precision: str = ..., accumulate: int = ..., checkpointing: bool = ..., compile: bool = ..., shard: bool = ...) -> Iterator[Progress]: ...
