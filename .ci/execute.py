"""Run notebooks in place and store their outputs, the same bytes every time.

As in `nbdev_test`, cells marked `eval: false`, cells under a flag of `tst_flags` and notebooks marked
`skip_exec` are not run: they keep the outputs they have. Standard error and live widgets are not stored.
"""
import os, re, sys, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from execnb.nbio import NbCell, read_nb, write_nb
from execnb.shell import CaptureShell, format_exc
from fastcore.script import Param, call_parse
from nbdev.clean import clean_nb
from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.frontmatter import FrontmatterProc
from nbdev.process import NBProcessor, extract_directives

root = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(root)) # notebooks import the package of this checkout
fixed = dict(PYTHONHASHSEED='0', OMP_NUM_THREADS='1', COLUMNS='80')
widget = 'application/vnd.jupyter.widget-view+json'

def stored(outputs):
    """The `outputs` worth keeping: no standard error, no erased lines, no view of a widget whose
    model ends with the process."""
    kept = [o for o in outputs
            if o.get('name') != 'stderr'
               and not (o.get('name') == 'stdout' and re.fullmatch(r'(\x1b\[2K|\s)*', ''.join(o['text'])))]
    for o in kept: o.get('data', {}).pop(widget, None)
    return kept

def execute(path, off):
    """Run the notebook at `path` except cells under the flags `off`; return an error
    message, empty if all went well."""
    os.chdir(path.parent)
    name, start = path.relative_to(root), time.perf_counter()
    print(name, end=' ', flush=True)
    if NBProcessor(path, FrontmatterProc, process=True).nb.frontmatter_.get('skip_exec'): return ''
    nb, shell = read_nb(path), CaptureShell(path, mpl_format='png')
    # matplotlib was imported before the folder changed: its `matplotlibrc` is read now
    shell.run('import matplotlib; matplotlib.rc_file(matplotlib.matplotlib_fname())')
    for i, cell in enumerate(nb.cells):
        if cell.cell_type != 'code': continue
        code = NbCell(i, cell)
        flags = extract_directives(code)
        if off & flags.keys() or flags.get('eval:') == ['false'] or 'nbdev_export(' in code.source: continue
        cell.outputs = stored(shell.run(code.source))
        if not shell.exc: continue
        print('FAILED', flush=True)
        return f"{name}: cell {i} ({cell.id}) failed:\n{''.join(format_exc(shell.exc))}"
    clean_nb(nb)
    write_nb(nb, path)
    print(f'{time.perf_counter() - start:.1f} s', flush=True)
    return ''

def in_own_process(path, off):
    "`execute` in a process that no other notebook has touched."
    with ProcessPoolExecutor(1, get_context('spawn')) as pool: return pool.submit(execute, path, off).result()

@call_parse
def main(
    notebooks:Param('notebooks to run (default: all)', Path, opt=False, nargs='*')=None,
    flags:str='', # space-separated flags of `tst_flags` whose cells run all the same
):
    "Run notebooks in place and store their outputs."
    notebooks = [p.resolve() for p in notebooks or nbglob(root/'nbs', as_path=True).sorted()]
    off = set(get_config(path=root).tst_flags.split()) - set(flags.split())
    os.environ.update(fixed)
    failed = [e for p in notebooks if (e := in_own_process(p, off))]
    if failed: sys.exit('\n'.join(failed))
