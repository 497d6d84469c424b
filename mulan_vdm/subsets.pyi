from typing import Any, Callable, Collection, Iterable, Iterator, Optional, Sequence, Union
import mulan_vdm.processes
import torch
import typing

__all__ = ['subset_log_prob', 'marginals', 'subset_kl', 'sample_subset']

def check_subset(m: int, k: int) -> None: ...

class Coins(typing.NamedTuple):
    logit: torch.Tensor
    before: torch.Tensor
    after: torch.Tensor
    log_hit: torch.Tensor

def toss(theta: torch.Tensor, k: int) -> Coins: ...

def log_partition(theta: torch.Tensor, k: int) -> torch.Tensor: ...

def subset_entropy(theta: torch.Tensor, k: int, coins: Coins | None = ...) -> torch.Tensor: ...

def subset_log_prob(w: torch.Tensor, theta: torch.Tensor, k: int) -> torch.Tensor: ...

def marginals(theta: torch.Tensor, k: int, coins: Coins | None = ...) -> torch.Tensor: ...

def subset_kl(theta: torch.Tensor, k: int, coins: Coins | None = ...) -> torch.Tensor: ...

def sample_subset(theta: torch.Tensor, k: int, coins: Coins | None = ..., rows: mulan_vdm.processes.Rows = ...) -> torch.Tensor: ...
