"""The front door: what `import mulan_vdm` offers, and that it costs nothing until it is used."""
import ast, importlib, re, shutil, subprocess, sys
from pathlib import Path
import pytest
import mulan_vdm

root = Path(__file__).resolve().parent.parent

def python(*words, **how):
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=root, **how)
    assert done.returncode == 0, done.stderr
    return done.stdout

@pytest.mark.parametrize('name', mulan_vdm.__all__)
def test_a_name_is_what_its_module_holds(name):
    module = importlib.import_module(f'mulan_vdm.{mulan_vdm._home[name]}')
    assert getattr(mulan_vdm, name) is getattr(module, name)
    assert f'`{name}`' in mulan_vdm.__doc__ and name in dir(mulan_vdm)

def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(mulan_vdm.__file__).read_text())
    lazy = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in lazy.body for alias in node.names}
    assert seen == mulan_vdm._home
    assert sorted(seen) == sorted(mulan_vdm.__all__)

def test_other_names_are_refused_and_modules_found():
    with pytest.raises(AttributeError, match="module 'mulan_vdm' has no attribute 'train'"): mulan_vdm.train
    with pytest.raises(ImportError): from mulan_vdm import train
    from mulan_vdm import sampling
    assert sampling.sample is mulan_vdm.sample

def test_importing_it_imports_nothing_else():
    before, after = (set(python('-c', f'{line}import sys; print(*sys.modules)').split())
                     for line in ('', 'import mulan_vdm; dir(mulan_vdm); '))
    assert 'mulan_vdm' in after
    new = {name for name in after - before if name.split('.')[0] not in sys.stdlib_module_names}
    assert new == {'mulan_vdm'}

def test_a_name_imports_no_more_than_it_needs():
    loaded = python('-c', 'from mulan_vdm import Schedule; import sys; print(*sys.modules)').split()
    assert 'mulan_vdm.schedules' in loaded and 'mulan_vdm.diffusion' not in loaded

def test_python_m_is_the_command():
    words = '-c', 'import sys; from mulan_vdm.cli import main; sys.exit(main(sys.argv[1:]))'
    assert python('-m', 'mulan_vdm', '--help') == python(*words, '--help')
    assert re.search('train.*evaluate.*sample', python('-m', 'mulan_vdm', '--help'), re.S)

def test_the_mark_for_type_checkers_is_installed(tmp_path):
    for name in ('setup.py', 'settings.ini', 'README.md', 'mulan_vdm'):
        copy = shutil.copytree if (root / name).is_dir() else shutil.copy
        copy(root / name, tmp_path / name)
    command = [sys.executable, 'setup.py', '--quiet', 'build_py', '-d', 'built']
    subprocess.run(command, cwd=tmp_path, check=True)
    built = {p.name for p in (tmp_path / 'built/mulan_vdm').iterdir()}
    assert {'py.typed', '__main__.py', 'systems.py'} <= built
