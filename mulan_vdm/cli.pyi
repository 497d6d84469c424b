from typing import Any, Callable, Collection, Iterable, Iterator, Optional, Sequence, Union
import mulan_vdm.words
import typing

__all__ = ['commands', 'main']

def train_parser(system: str, values: dict[str, typing.Any] = ..., about: str = ...) -> mulan_vdm.words.Parser: ...

commands: dict[str, typing.Any]

def main(argv: list[str] | None = ...) -> int: ...
