from typing import Any, Callable, Iterable, Iterator, Optional, Sequence, Union
import mulan_vdm.runs
import pathlib
import torch

def read_flax(file: str | pathlib.Path) -> dict[str, torch.Tensor]: ...

def convert(file: str | pathlib.Path, out: str | pathlib.Path, preset: str | None = ..., prediction: str | None = ..., k: int | None = ..., gamma_min: float | None = ..., gamma_max: float | None = ...) -> mulan_vdm.runs.Run: ...
