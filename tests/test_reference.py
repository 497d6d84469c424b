"""The reference pages show what the package says today: their stored outputs are those of a fresh run."""
import json
from pathlib import Path

import pytest
from execnb.nbio import NbCell
from execnb.shell import CaptureShell
from nbdev.process import extract_directives

reference = Path(__file__).resolve().parent.parent/'nbs/reference'

def texts(outputs):
    "Printed text and markdown of a cell."
    return ''.join(''.join(o.get('text') or o.get('data', {}).get('text/markdown', '')) for o in outputs if o.get('name') != 'stderr')

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
        assert shown == texts(cell['outputs']), f'make nbs NB=nbs/reference/{name}.ipynb'
