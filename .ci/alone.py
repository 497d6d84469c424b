"""Every notebook by itself: a copy in an empty folder, run by `jupyter nbconvert --execute`
in an environment that holds the wheel and nothing of the repository. It runs, or ends with one line that says
what it needs.
"""
import os, re, subprocess, sys, tempfile, time
from pathlib import Path

from fastcore.script import Param, call_parse

root = Path(__file__).resolve().parent.parent
needs = re.compile(r'^\w*Error: (\S+ is not (?:here: this page reads|installed: pip install) .*)$', re.M)

def environment(folder, extras='all'):
    "The interpreter of a new environment in `folder`: the wheel with `extras`, and what runs notebooks."
    pip = [sys.executable, '-m', 'pip', '--quiet']
    subprocess.run([*pip, 'wheel', '--no-deps', '-w', folder/'wheel', root], check=True)
    subprocess.run([sys.executable, '-m', 'venv', folder/'venv'], check=True)
    wheel, = (folder/'wheel').glob('*.whl')
    python = folder/'venv/bin/python'
    wanted = f'{wheel}[{extras}]', 'nbconvert', 'ipykernel'
    subprocess.run([python, '-m', 'pip', '--quiet', 'install', *wanted], check=True)
    return python

def alone(python, notebook, **also):
    "Run a copy of `notebook` in an empty folder: (did it end well?, what it needs or what went wrong)."
    env = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'SLOW')}
    env |= dict(OMP_NUM_THREADS='1', NO_COLOR='1', **also)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder)/notebook.name).write_bytes(notebook.read_bytes())
        words = '-m', 'nbconvert', '--execute', '--to', 'notebook', '--output', 'done', notebook.name
        done = subprocess.run([python, *words], cwd=folder, env=env, capture_output=True, text=True)
    if not done.returncode: return True, ''
    said = re.sub(r'\x1b\[[\d;]*m', '', done.stderr)
    if need := needs.search(said): return True, need[1]
    return False, said[-2000:]

@call_parse
def main(
    notebooks:Param('notebooks to run (default: all)', Path, opt=False, nargs='*')=None,
):
    "Run notebooks alone, from the wheel."
    notebooks = [p.resolve() for p in notebooks or sorted((root/'nbs').rglob('*.ipynb'))]
    notebooks = [p for p in notebooks if '.ipynb_checkpoints' not in p.parts]
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        python = environment(Path(folder))
        for notebook in notebooks:
            start = time.perf_counter()
            good, said = alone(python, notebook)
            if not good: failed.append(notebook)
            seconds = time.perf_counter() - start
            print(f'{notebook.relative_to(root)} {seconds:.0f} s {said or "ran"}', flush=True)
    if failed: sys.exit(f"failed: {', '.join(p.name for p in failed)}")
    print(f'{len(notebooks)} notebooks ran alone, or said what they need')
