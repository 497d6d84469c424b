from typing import Any, Callable, Iterable, Iterator, Optional, Sequence, Union
import argparse
import typing

commands: dict[str, typing.Any]

def train_parser(system: str) -> argparse.ArgumentParser: ...

def train(argv: list[str]) -> str: ...

def main(argv: list[str] | None = ...) -> int: ...
