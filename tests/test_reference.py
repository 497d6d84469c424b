"""The reference pages show what the package says today: their stored outputs are those of a fresh run, and
nothing public is left unsaid."""
import importlib, inspect, json, operator, pkgutil
from pathlib import Path

import pytest
from execnb.nbio import NbCell
from execnb.shell import CaptureShell
from nbdev.process import extract_directives
import mulan_vdm

reference = Path(__file__).resolve().parent.parent/'nbs/reference'

def texts(outputs):
    "Printed text and markdown of a cell."
    return ''.join(''.join(o.get('text') or o.get('data', {}).get('text/markdown', ''))
                   for o in outputs if o.get('name') != 'stderr')

@pytest.mark.parametrize('name', ['api', 'cli', 'presets'])
def test_reference_page_is_up_to_date(name, monkeypatch):
    monkeypatch.setenv('COLUMNS', '80')
    shell = CaptureShell(reference/f'{name}.ipynb')
    for i, cell in enumerate(json.loads((reference/f'{name}.ipynb').read_text(encoding='utf-8'))['cells']):
        if cell['cell_type'] != 'code': continue
        code = NbCell(i, {**cell, 'source': ''.join(cell['source'])})
        extract_directives(code)
        shown = texts(shell.run(code.source))
        assert not shell.exc
        # Python 3.13 spaces the columns of a help text otherwise
        assert shown.split() == texts(cell['outputs']).split(), f'make nbs NB=nbs/reference/{name}.ipynb'

def test_every_public_name_says_what_it_is():
    "Functions, classes and their methods have a docstring, their own or that of the method they replace."
    missing = []
    for module in pkgutil.iter_modules(mulan_vdm.__path__):
        if module.name.startswith('_'): continue
        exported = importlib.import_module(f'mulan_vdm.{module.name}')
        for name in exported.__all__:
            thing = getattr(exported, name)
            if not (inspect.isfunction(thing) or inspect.isclass(thing)): continue
            methods = [f'{name}.{k}' for k, v in vars(thing).items()
                       if inspect.isfunction(v) and not k.startswith('_')
                          and v.__module__ == exported.__name__] if inspect.isclass(thing) else []
            missing += [f'{module.name}.{n}' for n in (name, *methods)
                        if not (inspect.getdoc(operator.attrgetter(n)(exported)) or '').strip()]
    assert not missing
