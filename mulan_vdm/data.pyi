from typing import Any, Callable, Iterable, Iterator, Optional, Sequence, Union
import numpy
import pathlib
import torch
import typing

class _Examples(typing.NamedTuple):
    x: torch.Tensor
    y: torch.Tensor | None = ...

class _Facts(typing.NamedTuple):
    name: str
    release: str
    vocab: int | None
    event_shape: tuple
    train: Split
    test: Split
    path: str | None = ...

class _Archive(typing.NamedTuple):
    file: pathlib.Path
    data: tuple
    labels: tuple
    sums: tuple

sources: dict[str, typing.Any]

class Split(typing.NamedTuple):
    x: torch.Tensor
    y: torch.Tensor | None = ...
    def some(self, n: int | None = ..., seed: int = ...) -> Split: ...

class Data(typing.NamedTuple):
    name: str
    release: str
    vocab: int | None
    event_shape: tuple
    train: Split
    test: Split
    path: str | None = ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def strata(self) -> torch.Tensor | None: ...

class Source(typing.NamedTuple):
    read: Callable
    levels: int | None = ...
    side: int | None = ...
    find: tuple[tuple[str, ...], tuple[str, ...]] | str | None = ...
    fetch: str = ...
    options: tuple[str, ...] = ...
    download: Optional[Callable[[pathlib.Path], object]] = ...

def area_resize(x: torch.Tensor, size: int | tuple[int, int]) -> torch.Tensor: ...

def keep_bits(x: torch.Tensor, bits: int) -> torch.Tensor: ...

def shrink(x: torch.Tensor, size: int | tuple[int, int] | None, bits: int | None) -> torch.Tensor: ...

def load(name: str, bits: int | None = ..., size: int | tuple[int, int] | None = ..., path: str | pathlib.Path | None = ..., grey: bool | None = ..., vocab: int | None = ..., download: bool = ...) -> Data: ...

def available() -> dict[str, str | None]: ...

def batch_indices(n: int, batch_size: int, seed: int, step: int) -> numpy.ndarray: ...

def batches(x: torch.Tensor, y: torch.Tensor | None, batch_size: int, seed: int, step: int = ..., rank: int = ..., world: int = ...) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]: ...
