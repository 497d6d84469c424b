from typing import Any, Callable, Collection, Iterable, Iterator, Optional, Sequence, Union
import mulan_vdm.words
import typing

commands: dict[str, typing.Any]

def train_parser(system: str, values: dict[str, typing.Any] = ..., about: str = ...) -> mulan_vdm.words.Parser: ...

def main(argv: list[str] | None = ...) -> int: ...
