"""Notebooks by themselves, copied into an empty folder: three here, all in `make notebooks-alone`. And
the package without its extras: what needs one says so in one line, before any work."""
import ast, configparser, json, re, shutil, subprocess, sys
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

brought = {'torch', 'torchvision', 'numpy', 'fastcore', 'matplotlib', 'accelerate', 'safetensors', 'tqdm',
           'sklearn', 'scipy', 'PIL', 'psutil', 'huggingface_hub', 'msgpack', 'IPython', 'mulan_vdm'}

def imported(source):
    "Packages that a cell imports as it stands, not under an `if` or `try` of its own."
    if source.startswith('#| hide\n#| eval: false'): return
    for n in ast.parse(source).body:
        if isinstance(n, ast.Import): yield from (a.name.split('.')[0] for a in n.names)
        if isinstance(n, ast.ImportFrom) and not n.level: yield n.module.split('.')[0]

@pytest.mark.parametrize('path', notebooks, ids=lambda p: p.stem)
def test_a_page_says_what_it_needs_before_it_imports_it(path):
    said = ''
    for source in code(path):
        said += source
        for name in {*imported(source)} - brought - sys.stdlib_module_names:
            assert re.search(rf"extra\('{name}\b", said), f'{name}: {source}'

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

extras = dict(torchode='flow', torchmetrics='scores', ipywidgets='notebook')

def test_extras_are_not_required():
    ini = configparser.ConfigParser()
    ini.read(root / 'settings.ini', encoding='utf-8')
    for package, name in extras.items():
        assert package not in ini['DEFAULT']['requirements']
        assert package in ini['DEFAULT'][f'{name}_requirements']

def test_every_module_is_imported_without_extras():
    lines = ["import sys", *(f"sys.modules['{package}'] = None" for package in extras),
             "import importlib, pkgutil, mulan_vdm",
             "for m in pkgutil.iter_modules(mulan_vdm.__path__):",
             "    if m.name != '__main__': importlib.import_module(f'mulan_vdm.{m.name}')"]
    done = subprocess.run([sys.executable, '-c', '\n'.join(lines)], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

@pytest.mark.parametrize('words, package', [('evaluate {} --method ode', 'torchode'),
                                            ('sample {} --step ode', 'torchode'),
                                            ('sample {} --score', 'torchmetrics')])
def test_a_command_says_which_extra_it_needs(words, package, tmp_path, monkeypatch, capsys):
    from mulan_vdm import reports
    from mulan_vdm.cli import main
    def no_work(*args, **kwargs): raise AssertionError('work before the check')
    for name in ('sample', 'ode_evaluate', 'load_run'): monkeypatch.setattr(reports, name, no_work)
    monkeypatch.setitem(sys.modules, package, None)
    shutil.copytree(root / 'tests/earlier/vdm', tmp_path / 'run')
    assert main(words.format(tmp_path / 'run').split()) == 1
    said = capsys.readouterr().err
    assert said == f"mulan-vdm: {package} is not installed: pip install 'mulan-vdm[{extras[package]}]'\n"

def test_a_widget_says_which_extra_it_needs(monkeypatch):
    import torch
    from mulan_vdm.plots import explore_schedule
    monkeypatch.setitem(sys.modules, 'ipywidgets', None)
    with pytest.raises(ModuleNotFoundError, match=r'^ipywidgets is not installed: .*\[notebook\]'):
        explore_schedule(torch.zeros(1, 8, 8))
