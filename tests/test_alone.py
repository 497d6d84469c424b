"""Notebooks by themselves, copied into an empty folder: three here, all of them in `make notebooks-alone`."""
import json, re, sys
from pathlib import Path
import pytest
from mulan_vdm._needs import clone, extra

root = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(root / '.ci'))
from alone import alone

@pytest.mark.parametrize('name, need', [('notation', ''), ('04_subsets', ''),
                                        ('use/choices', '../reports is not here')])
def test_a_notebook_runs_or_says_what_it_needs(name, need):
    good, said = alone(sys.executable, root / f'nbs/{name}.ipynb', PYTHONPATH=str(root))
    assert good, said
    assert said.startswith(need) and bool(said) == bool(need)

def code(path):
    for cell in json.loads(path.read_text(encoding='utf-8'))['cells']:
        if cell['cell_type'] == 'code': yield ''.join(cell['source'])

notebooks = sorted(p for p in (root / 'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)

@pytest.mark.parametrize('path', notebooks, ids=lambda p: p.stem)
def test_what_is_long_or_live_is_guarded(path):
    "By an `if` of its own: other tools than this repository's know no flags. And no page needs its tools."
    for source in code(path):
        assert not re.search(r'^(from|import) (nbdev|execnb|pytest)\b', source, re.M), source
        flag = re.search(r'^#\|\s*(slow|gpu|eval:\s*false)', source, re.M)
        if not flag: continue
        lines = [l for l in source.splitlines() if not re.match(r'#\||import |from |\s*$', l)]
        assert lines[0].startswith('if '), f'{flag[0]}: {lines[0]}'
        assert all(l.startswith((' ', 'if ', ')')) for l in lines)

def test_what_is_missing_is_said_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"^\.\./none is not here: .* git clone https://\S+$"):
        clone('../none')
    assert clone('..') == Path('..')
    with pytest.raises(ModuleNotFoundError, match=r"^absent is not installed: pip install '.*\[notebook\]'$"):
        extra('absent.part', 'notebook')
    assert extra('json', 'notebook') is json
    (tmp_path / 'broken.py').write_text('import absent_too')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="^No module named 'absent_too'$"):
        extra('broken', 'notebook')
