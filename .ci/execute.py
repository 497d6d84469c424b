"""Run notebooks in place and store their outputs, the same bytes every time; or only check that they run.

As in `nbdev_test`, cells marked `eval: false`, cells under a flag of `tst_flags` and notebooks marked
`skip_exec` are not run: they keep the outputs they have. Standard error and live widgets are not stored.
A check goes on after a failed assertion and tells the values that were compared.
"""
import ast, os, re, sys, time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from _pytest.assertion.rewrite import rewrite_asserts
from execnb.nbio import NbCell, read_nb, write_nb
from execnb.shell import CaptureShell, format_exc
from fastcore.script import Param, call_parse, store_true
from nbdev.clean import clean_nb
from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.frontmatter import FrontmatterProc
from nbdev.process import NBProcessor, extract_directives

root = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(root)) # notebooks import the package of this checkout
fixed = dict(PYTHONHASHSEED='0', OMP_NUM_THREADS='1', COLUMNS='80', KINETO_LOG_LEVEL='99')
widget = 'application/vnd.jupyter.widget-view+json'

class ShowValues:
    "Let a failed `assert` tell the values that it compared, as pytest does."
    def visit(self, tree):
        rewrite_asserts(tree, b'')
        for node in ast.walk(tree):
            if getattr(node, 'end_lineno', 1) is None: node.end_lineno = node.lineno
        return tree

def blamed(exc):
    "Traceback of `exc` from the notebook's first line on."
    lines = format_exc(exc)
    first = next((i for i, l in enumerate(lines) if 'ipython-input' in l), 0)
    return ''.join(lines[first:])

def stored(outputs):
    """The `outputs` worth keeping: no standard error, no erased lines, no view of a widget whose
    model ends with the process."""
    kept = [o for o in outputs
            if o.get('name') != 'stderr'
               and not (o.get('name') == 'stdout' and re.fullmatch(r'(\x1b\[2K|\s)*', ''.join(o['text'])))]
    for o in kept: o.get('data', {}).pop(widget, None)
    return kept

def execute(path, off, store):
    """Run the notebook at `path` except cells under the flags `off`, and `store` its outputs; return
    seconds and an error message, empty if all went well. A check goes on after a failed assertion."""
    os.chdir(path.parent)
    name = path.relative_to(root)
    start = time.perf_counter()
    failures = []
    if NBProcessor(path, FrontmatterProc, process=True).nb.frontmatter_.get('skip_exec'): return 0., ''
    nb = read_nb(path)
    shell = CaptureShell(path, mpl_format='png')
    shell.ast_transformers.append(ShowValues())
    # matplotlib was imported before the folder changed: its `matplotlibrc` is read now
    shell.run('import matplotlib; matplotlib.rc_file(matplotlib.matplotlib_fname())')
    for i, cell in enumerate(nb.cells):
        if cell.cell_type != 'code': continue
        code = NbCell(i, cell)
        flags = extract_directives(code)
        if off & flags.keys() or flags.get('eval:') == ['false'] or 'nbdev_export(' in code.source: continue
        cell.outputs = stored(shell.run(code.source))
        if not shell.exc: continue
        failures.append(f'{name}: cell {i} ({cell.id}) failed:\n{blamed(shell.exc)}')
        if store or not isinstance(shell.exc, AssertionError): break
    if store and not failures:
        clean_nb(nb)
        write_nb(nb, path)
    return time.perf_counter() - start, '\n'.join(failures)

@call_parse
def main(
    notebooks:Param('notebooks to run (default: all)', Path, opt=False, nargs='*')=None,
    flags:str='', # space-separated flags of `tst_flags` whose cells run all the same
    check:store_true=False, # only check that they run: store nothing
    workers:int=1, # notebooks at the same time, each in a process that no other notebook has touched
):
    "Run notebooks in place and store their outputs."
    notebooks = [p.resolve() for p in notebooks or nbglob(root/'nbs', as_path=True).sorted()]
    off = set(get_config(path=root).tst_flags.split()) - set(flags.split())
    os.environ.update(fixed | {k: os.environ[k] for k in ('OMP_NUM_THREADS',) if check and k in os.environ})
    if 'slow' in flags.split(): os.environ['SLOW'] = '1'  # the cells ask for it themselves
    failures = []
    with ProcessPoolExecutor(workers, get_context('spawn'), max_tasks_per_child=1) as pool:
        jobs = {pool.submit(execute, p, off, not check): p.relative_to(root) for p in notebooks}
        for job in as_completed(jobs):
            seconds, failure = job.result()
            print(f'{jobs[job]} {seconds:.1f} s' + ' FAILED' * bool(failure), flush=True)
            if failure: failures.append(failure)
    if failures: sys.exit('\n'.join(failures))
    print(f'{len(notebooks)} notebooks passed')
