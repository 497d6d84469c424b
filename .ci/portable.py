"""Notebooks and tests as on other machines: other instructions of the processor, numbers of threads, seeds,
versions of Python and of the libraries. One row a setting; the status is zero only if all of them passed.

An environment per interpreter and versions lies in `.venv-portable`, made anew when `settings.ini` changes,
with the log of every setting beside it. Interpreters are taken from PATH.
"""
import configparser, os, re, shlex, shutil, subprocess, sys, time
from pathlib import Path
from typing import NamedTuple

from fastcore.script import call_parse

root = Path(__file__).resolve().parent.parent
place = root/'.venv-portable'

class Setting(NamedTuple):
    "What differs from one thread on this machine, the newest versions and the oldest Python."
    env: dict = {}
    python: str = 'python3.11'
    versions: str = 'newest'

generic = dict(ATEN_CPU_CAPABILITY='default', ONEDNN_MAX_CPU_ISA='SSE41')
avx2 = dict(ATEN_CPU_CAPABILITY='avx2', ONEDNN_MAX_CPU_ISA='AVX2')
seeds = dict(SEED_SHIFT='1000', PYTHONPATH=str(root/'.ci/seeds')) # another number added to every seed

# Few rows try everything: but for the first, each differs from it in several ways at once.
settings = dict(
    newest=Setting(),
    # two threads each: busy waiting would take the cores from those that work
    oldest=Setting(dict(OMP_NUM_THREADS='2', OMP_WAIT_POLICY='passive'), versions='oldest'),
    generic=Setting(generic, python='python3.12'),
    avx2=Setting({**avx2, **seeds}, python='python3.13'))

def lower_bounds():
    "The oldest promised version of every requirement, as pip's constraints."
    config = configparser.ConfigParser(interpolation=None)
    config.read(root/'settings.ini')
    keys = 'requirements', *(f'{extra}_requirements' for extra in ('notebook', 'scores', 'flow', 'compress'))
    wanted = [r for key in keys for r in shlex.split(config['DEFAULT'][key])]
    return '\n'.join(f'{m[1]}=={m[2]}' for r in wanted if (m := re.match(r'([\w-]+)>=([\d.]+)', r)))

def environment(python, versions):
    "The interpreter of an environment with these versions, made if needed; None without such a `python`."
    found = shutil.which(python)
    if not found or subprocess.run([found, '-c', ''], capture_output=True).returncode: return None
    folder = place/f'{python}-{versions}'
    done = folder/'installed'
    inside = str(folder/'bin/python')
    if done.exists() and done.stat().st_mtime > (root/'settings.ini').stat().st_mtime: return inside
    subprocess.run([found, '-m', 'venv', '--clear', folder], check=True)
    (folder/'oldest.txt').write_text(lower_bounds())
    pinned = ['-c', folder/'oldest.txt'] if versions == 'oldest' else []
    subprocess.run([inside, '-m', 'pip', 'install', '--quiet', *pinned, '-e', f'{root}[dev]'], check=True,
                   stderr=subprocess.DEVNULL)
    done.touch()
    return inside

def tried(name, setting, workers):
    "Run all notebooks, then all tests, under `setting`; what came of it, in words."
    python = environment(setting.python, setting.versions)
    log = place/f'{name}.log'
    if not python: return f'FAILED: no {setting.python} on PATH'
    env = {'OMP_NUM_THREADS': '1', 'KINETO_LOG_LEVEL': '99', **os.environ, **setting.env}
    commands = (['.ci/execute.py', '--check', '--workers', str(workers)],
                ['-m', 'pytest', '-q', '-n', str(workers), '--dist', 'loadfile', 'tests'])
    with log.open('w') as f:
        failed = [c[0] for c in commands
                  if subprocess.run([python, *c], cwd=root, env=env, stdout=f, stderr=f).returncode]
    if not failed: return 'passed'
    print('\n'.join(log.read_text().splitlines()[-60:]))
    return f'FAILED: see {log.relative_to(root)}'

@call_parse
def main(
    only:str='', # run this one setting alone
    workers:int=2, # notebooks and test files at the same time
):
    "Run notebooks and tests as on other machines."
    if only and only not in settings: sys.exit(f"only={only!r}: choose one of {', '.join(settings)}")
    place.mkdir(exist_ok=True)
    rows = []
    for name in [only] if only else settings:
        start = time.perf_counter()
        rows.append((name, tried(name, settings[name], workers), time.perf_counter() - start))
    print('\n'.join('{:10} {} ({:.0f} s)'.format(*row) for row in rows))
    sys.exit(any(came != 'passed' for _, came, _ in rows))
