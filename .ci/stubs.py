"""Write a stub beside every module: signatures as they are at run time, with the methods that notebooks add
to a class cell by cell and the arguments that a function hands on. Type checkers and editors read these.
"""
import ast
import functools
import importlib
import inspect
import re
import sys
import typing
from pathlib import Path

known = 'from typing import Any, Callable, Collection, Iterable, Iterator, Optional, Sequence, Union'
root = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(root))

def annotation(kind):
    "A type as a stub writes it."
    if kind is inspect.Parameter.empty: return 'typing.Any'
    if kind is None or kind is type(None): return 'None'
    if isinstance(kind, str): return kind
    text = inspect.formatannotation(kind)
    return re.sub(r'\bNoneType\b', 'None', text)

def parameter(p, own):
    "One parameter; the first of a method has no type."
    mark = {p.VAR_POSITIONAL: '*', p.VAR_KEYWORD: '**'}.get(p.kind, '')
    if own: return p.name
    default = ' = ...' if p.default is not p.empty else ''
    return f'{mark}{p.name}: {annotation(p.annotation)}{default}'

def signature(function, name, method=False):
    "A function or method without its body."
    said = inspect.signature(function)
    parts = []
    star = False
    for i, p in enumerate(said.parameters.values()):
        star |= p.kind is p.VAR_POSITIONAL
        if p.kind is p.KEYWORD_ONLY and not star:
            parts.append('*')
            star = True
        parts.append(parameter(p, method and i == 0))
    result = 'None' if name == '__init__' else annotation(said.return_annotation)
    return f"def {name}({', '.join(parts)}) -> {result}: ..."

def members(cls):
    "Fields, methods and properties that a class itself defines."
    for name, kind in vars(cls).get('__annotations__', {}).items(): yield f'{name}: {annotation(kind)}'
    for name, value in vars(cls).items():
        if name.startswith('_') and name not in ('__init__', '__call__'): continue
        if name in vars(cls).get('__annotations__', {}): continue
        if isinstance(value, (classmethod, staticmethod)):
            kind = 'classmethod' if isinstance(value, classmethod) else 'staticmethod'
            yield f'@{kind}\n' + signature(value.__func__, name, kind == 'classmethod')
        elif isinstance(value, (property, functools.cached_property)):
            read = value.fget if isinstance(value, property) else value.func
            result = annotation(inspect.signature(read).return_annotation)
            yield f'@property\ndef {name}(self) -> {result}: ...'
        elif inspect.ismethod(value): # a patched classmethod
            yield '@classmethod\n' + signature(value.__func__, name, True)
        elif inspect.isfunction(value):
            yield signature(value, name, method=True)
            if name == 'forward': yield signature(value, '__call__', method=True)
        elif value is None: yield f'{name}: None'
        elif not callable(value) and not hasattr(value, '__get__'): yield f'{name}: {annotation(type(value))}'

def is_tuple(cls): return issubclass(cls, tuple) and hasattr(cls, '_fields')

def fields(cls):
    "Of a named tuple: its fields, then what else it defines."
    for name, kind in inspect.get_annotations(cls).items():
        yield f"{name}: {annotation(kind)}" + (' = ...' if name in cls._field_defaults else '')
    for line in members(cls):
        name = re.match(r'(?:@\w+\n)?(?:def )?(\w+)', line)[1]
        if name not in cls._fields: yield line

def class_stub(cls):
    bases = 'typing.NamedTuple' if is_tuple(cls) else ', '.join(
        annotation(b) for b in cls.__bases__ if b is not object)
    body = list(fields(cls) if is_tuple(cls) else members(cls)) or ['...']
    inside = '\n'.join('    ' + line for part in body for line in part.split('\n'))
    return f"class {cls.__name__}{f'({bases})' if bases else ''}:\n{inside}"

def others(module):
    "Names outside `__all__`: what may be imported by its name, and classes that types may name."
    named = set()
    for node in ast.parse(Path(module.__file__).read_text(encoding='utf-8')).body:
        targets = [getattr(node, 'target', None), *getattr(node, 'targets', ())]
        named |= {getattr(node, 'name', None), *(getattr(t, 'id', None) for t in targets)}
    for name, value in vars(module).items():
        private = name.startswith('_') and not inspect.isclass(value)
        if name in named and value is not None and name not in module.__all__ and not private: yield name

def stub(module):
    "The stub of a module: its public names, then its others."
    parts = [f'__all__ = {module.__all__}']
    for name in [*others(module), *module.__all__]:
        value = getattr(module, name)
        if inspect.isclass(value): parts.append(class_stub(value))
        elif inspect.isfunction(value): parts.append(signature(value, name))
        elif isinstance(value, dict): parts.append(f'{name}: dict[str, typing.Any]')
        elif typing.get_origin(value) is not None: parts.append(f'{name} = {annotation(value)}')
        else: parts.append(f'{name}: {annotation(type(value))}')
    text = '\n\n'.join(parts).replace(f'{module.__name__}.', '')
    used = {m for m in re.findall(r'\b((?:\w+\.)+)\w+', text)}
    modules = sorted({m.rstrip('.') for m in used if m.rstrip('.') in sys.modules})
    return '\n'.join([known, *(f'import {m}' for m in modules)]) + '\n\n' + text + '\n'

def main(package='mulan_vdm'):
    "Write all stubs; every module is imported first, since some add methods to classes of others."
    paths = sorted((root/package).glob('[a-z]*.py'))
    modules = {p: importlib.import_module(f'{package}.{p.stem}') for p in paths}
    for path, module in modules.items(): path.with_suffix('.pyi').write_text(stub(module), encoding='utf-8')

if __name__ == '__main__': main()
