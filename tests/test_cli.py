"""The command line as a user meets it: a process, its exit status, what it prints and
what it leaves on the disk."""
import contextlib, io, json, os, re, signal, subprocess, sys, threading, time
from pathlib import Path
import pytest
import torch

ENV = {**os.environ, 'OMP_NUM_THREADS': str(torch.get_num_threads())}
SMALL = '--channels 8 --blocks 1 --batch_size 16'.split()

def cli(*words, **env):
    return subprocess.run([sys.executable, '-m', 'mulan_vdm.cli', *map(str, words)], capture_output=True,
                          text=True, env={**ENV, **env})

def said(*words):
    "Exit status and what went to either stream, in this process."
    from mulan_vdm.cli import main
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([str(word) for word in words])
    return status, out.getvalue(), err.getvalue()

def files(folder):
    "Content of every file, by path."
    return {p: p.read_bytes() for p in folder.rglob('*') if p.is_file()}

def refused(words, message, status=None):
    "One line, which says so, and nothing else."
    code, out, err = said(*words)
    assert err.count('\n') == 1 and err.startswith('mulan-vdm: ') and message in err, (words, out, err)
    assert 'a bug in' not in err and code == (status or code) and code in (1, 2), (words, err)

def best_of(n, *command):
    "Shortest of n wall times: the machine's noise only ever adds."
    times = []
    for _ in range(n):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, env=ENV)
        times.append(time.perf_counter() - start)
    return min(times)

@pytest.fixture(scope='module')
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp('runs') / 'vdm'
    done = cli('train', '--preset', 'vdm-digits', *SMALL, '--steps', 6, '--out', out)
    assert done.returncode == 0, done.stderr
    return out

@pytest.mark.bench
def test_help_is_quick():
    assert best_of(5, sys.executable, '-m', 'mulan_vdm.cli', '--help') < 1

@pytest.mark.parametrize('words', [[], ['--help']])
def test_plain_help_leaves_torch_alone(words):
    code = ("import sys; before = {*sys.modules}; from mulan_vdm.cli import main\n"
            "try: main(sys.argv[1:])\nfinally: print('torch' in {*sys.modules} - before)")
    done = subprocess.run([sys.executable, '-c', code, *words], capture_output=True, text=True, env=ENV)
    assert done.returncode == 0 and done.stdout.startswith('usage: mulan-vdm')
    assert done.stdout.endswith('False\n')

def test_version_by_either_name():
    for module in ('mulan_vdm', 'mulan_vdm.cli'):
        command = [sys.executable, '-m', module, '--version']
        done = subprocess.run(command, capture_output=True, text=True, env=ENV)
        assert (done.returncode, done.stdout.split()[0]) == (0, 'mulan-vdm')

@pytest.mark.bench
def test_import_costs_little_more_than_torch():
    "Processor time of the second import, in a process that has torch already."
    code = ('import torch, time; start = time.process_time(); import mulan_vdm; '
            'print(time.process_time() - start)')
    done = subprocess.run([sys.executable, '-c', code], check=True, capture_output=True, text=True, env=ENV)
    assert float(done.stdout) < 0.3

def test_the_lines_of_the_readme(run):
    assert cli('train', '--out', run, '--resume', '--steps', 8).returncode == 0
    assert cli('evaluate', run, '--draws', 2).returncode == 0
    assert cli('sample', run, '--n', 4, '--steps', 3).returncode == 0
    told = cli('info', run).stdout
    assert '8 of 8 steps' in told and 'samples.png' in told
    report = json.loads((run / 'report.json').read_text())
    assert report['n'] == 360 and report['data'] == 'digits' and report['steps'] == 8
    assert set(report['terms']) == {'reconstruction', 'prior', 'diffusion', 'latent'} and report['bpd_se'] > 0
    assert abs(report['bpd'] - sum(mean for mean, _ in report['terms'].values())) < 1e-9
    steps = [json.loads(line)['step'] for line in (run / 'metrics.jsonl').read_text().splitlines()]
    assert steps == sorted(set(steps)) and steps[-1] == 8
    for picture in ('samples.png', 'schedule.png', 'metrics.png'):
        assert (run / picture).read_bytes()[:4] == b'\x89PNG'

def test_info_without_a_run():
    _, told, _ = said('info')
    for word in ('vdm-digits', 'vdm-cifar10', 'digits', 'torch', 'device'): assert word in told

def test_train_help_lists_arguments_of_system_and_fit():
    from mulan_vdm.cli import train_parser
    told = train_parser('vdm').format_help()
    for flag in ('--channels', '--gamma_min', '--learn_ends', '--no-learn_ends', '--lr',
                 '--save_every', '--preset'):
        assert flag in told

MISTAKES = [
    (['train', '--preset', 'vdm-digit', '--out', 'NEW'],
     "unknown --preset 'vdm-digit': choose one of vdm-digits"),
    (['train', '--data', 'mnits', '--out', 'NEW'], '--data mnits: choose one of digits'),
    (['train', '--out', 'RUN'], 'add --resume'),
    (['train', '--out', 'NEW', '--resume'], 'no config.json'),
    (['train', '--out', 'RUN', '--resume', '--channels', '12'], '--channels cannot change'),
    (['train', '--out', 'RUN', '--resume', '--preset', 'mulan-digits'], '--preset cannot change'),
    (['train', '--gamma_min', '6', '--out', 'NEW'], '--gamma_min 6.0 must be below --gamma_max 5.0'),
    (['train', '--lr', '-1', '--out', 'NEW'], '--lr -1: pass a number, finite and above 0'),
    (['train', '--steps', '0', '--out', 'NEW'], '--steps 0: pass a whole number, at least 1'),
    (['evaluate', 'NEW'], 'no config.json'),
    (['evaluate', 'RUN', '--draws', '1'], '--draws 1'),
    (['sample', 'RUN', '--steps', '0'], '--steps 0'),
    # numbers out of range, in every notation
    (['train', '--blocks', '-1', '--out', 'NEW'], '--blocks -1: pass a whole number, at least 1'),
    (['train', '--preset', 'mulan-digits', '--m', '0', '--out', 'NEW'], '--m 0'),
    (['train', '--channels', '0', '--out', 'NEW'], '--channels 0'),
    (['train', '--channels', '8.5', '--out', 'NEW'], '--channels 8.5: pass a whole number'),
    (['train', '--seed', '-1', '--out', 'NEW'], '--seed -1: pass a whole number, at least 0'),
    (['train', '--seed', 10**30, '--out', 'NEW'], '--seed 1000'),
    (['train', '--fourier', 'nan', '--out', 'NEW'], '--fourier nan: pass a number, finite'),
    (['train', '--gamma_min=-inf', '--out', 'NEW'], '--gamma_min -inf: pass a number, finite'),
    (['train', '--gamma_min', '-Infinity', '--out', 'NEW'], '--gamma_min -Infinity'),
    (['train', '--beta', 'inf', '--out', 'NEW'], '--beta inf'),
    (['train', '--ema', '1', '--out', 'NEW'], '--ema 1: pass a number, from 0 to below 1'),
    (['train', '--blocks', '1000000000', '--out', 'NEW'],
     '--blocks 1000000000: pass a whole number, at most'),
    (['train', '--bits', '9', '--out', 'NEW'], '--bits 9'),
    (['evaluate', 'RUN', '--batch_size', '0'], '--batch_size 0'),
    (['evaluate', 'RUN', '--samples', '0'], '--samples 0'),
    (['evaluate', 'RUN', '--method', 'ode', '--n', '-3'], '--n -3'),
    (['sample', 'RUN', '--n', '0'], '--n 0'),
    (['sample', 'RUN', '--label', '-1'], '--label -1'),
    # words
    (['train', '--step', '3', '--out', 'NEW'], 'unknown flag --step: did you mean --steps?'),
    (['train', '--batch-sise', '3', '--out', 'NEW'],
     'unknown flag --batch_sise: did you mean --batch_size?'),
    (['train', '--m', '3', '--out', 'NEW'], '--m is no argument of vdm, but of mulan'),
    (['train', '--learn_ends', 'False', '--out', 'NEW'], "--learn_ends takes no value, not 'False'"),
    (['train', '--T', 'many', '--out', 'NEW'], '--T many: pass a whole number'),
    (['train', '--out', ''], "--out '': pass a word that is not empty"),
    (['train'], '--out is missing'), (['train', '--out'], '--out has no value'),
    (['evaluate', 'RUN', 'too', 'many'], "'too' is one word too many"),
    (['evaluate'], 'run is missing'), (['trian'], "unknown command 'trian': did you mean train?"),
    (['--out', 'x'], 'unknown flag --out'),
    # files
    (['compare', 'RUN', '--picture', 'NEW/x.png'], '/new/x.png: there is no folder'),
    (['sample', 'RUN', '--latents', 'NEW'], 'does not exist')]

@pytest.mark.parametrize('words, message', MISTAKES)
def test_mistakes_end_in_one_line(run, tmp_path, words, message):
    before = files(run)
    named = dict(RUN=str(run), NEW=str(tmp_path / 'new'))
    refused([re.sub('RUN|NEW', lambda found: named[found[0]], str(word)) for word in words], message)
    assert files(run) == before and not (tmp_path / 'new').exists()

def test_a_mistake_is_one_line_of_the_program_too(tmp_path):
    done = cli('train', '--blocks', -1, '--out', tmp_path / 'new')
    assert (done.returncode, done.stderr.count('\n'), done.stdout) == (2, 1, '')

def test_hyphens_are_underscores(run, tmp_path):
    out = tmp_path / 'x'
    words = ['train', *SMALL[:-2], '--batch-size', 16, '--no-learn-ends', '--steps', 1, '--out', out]
    status, _, err = said(*words)
    assert status == 0, err
    assert json.loads((out / 'config.json').read_text())['fit']['batch_size'] == 16

def test_help_shows_the_preset_in_force(capsys):
    from mulan_vdm.cli import main
    for words, held in (([], '(default: 32)'), (['--preset', 'vdm-cifar10'], '(default: 128)'),
                        (['--preset', 'vdm-imagenet32'], '(default: 256)')):
        with pytest.raises(SystemExit): main(['train', *words, '--help'])
        told = ' '.join(capsys.readouterr().out.split())
        assert held in re.search('--channels CHANNELS (width.*?) --blocks', told)[1]
        assert f"Preset {words[-1] if words else 'vdm-digits'} is in force" in told

@pytest.mark.parametrize('damage, message', [(lambda b: b[:len(b) // 2], 'truncated or damaged'),
    (lambda b: b'not a checkpoint' * 100, 'truncated or damaged'), (lambda b: b'', 'truncated or damaged')])
def test_damaged_checkpoint(run, damage, message):
    path = run / 'checkpoint' / 'state.safetensors'
    whole = path.read_bytes()
    try:
        path.write_bytes(damage(whole))
        for words in (['evaluate', run], ['sample', run], ['train', '--out', run, '--resume']):
            done = cli(*words)
            assert done.returncode == 1 and message in done.stderr and 'Traceback' not in done.stderr
    finally: path.write_bytes(whole)

def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    out = tmp_path / 'run'
    done = cli('train', *SMALL, '--steps', 20, '--save_every', 1, '--lr', 1e18, '--warmup', 0, '--clip',
               1e30, '--out', out)
    assert done.returncode == 1 and 'not finite' in done.stderr and 'Traceback' not in done.stderr
    from safetensors.torch import load_file
    tensors = load_file(out / 'checkpoint' / 'state.safetensors')
    assert tensors and all(v.isfinite().all() for name, v in tensors.items() if name.startswith('model.'))

def test_a_bug_says_how_to_report_it(run, monkeypatch):
    import mulan_vdm.reports
    def broken(*_, **__): return {}['nothing']
    monkeypatch.setattr(mulan_vdm.reports, 'describe_run', broken)
    status, out, err = said('info', run)
    assert status == 1 and err.count('\n') == 1
    found = re.search(r"a bug in mulan-vdm [\d.]+ \(KeyError: 'nothing'\); please send (\S+) to http", err)
    kept = Path(found[1])
    assert "in broken" in kept.read_text() and f'info {run}' not in err
    kept.unlink()
    with pytest.raises(KeyError): said('info', run, '--debug')

@pytest.mark.parametrize('command', ['info', 'sample', 'evaluate', 'probe', 'encode', 'explore', 'compare'])
def test_the_model_that_the_package_brings_has_no_folder(command):
    status, out, err = said(command, 'mulan-digits')
    assert status == 1 and err.count('\n') == 1 and 'comes with the package' in err

def test_control_c_is_one_line_and_130(run):
    code = ('import signal, sys; from mulan_vdm import cli\n'
            'signal.signal(signal.SIGINT, signal.default_int_handler); print(flush=True)\n'
            'sys.exit(cli.main(sys.argv[1:]))')
    words = [sys.executable, '-c', code, 'evaluate', str(run), '--draws', '100000']
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV)
    with subprocess.Popen(words, **pipes) as process:
        process.stdout.readline()
        time.sleep(3)
        process.send_signal(signal.SIGINT)
        err = process.communicate()[1]
    assert (process.returncode, err) == (130, 'mulan-vdm: interrupted\n')

NO_HOME = """
import os, pwd, sys
os.environ.pop('HOME', None)
def unknown(*_): raise KeyError('no such user')
pwd.getpwuid = pwd.getpwnam = unknown
from mulan_vdm.cli import main
sys.exit(main())
"""

@pytest.mark.parametrize('words, surroundings', [
    ('evaluate RUN --draws 2', dict(PYTHONIOENCODING='ascii')), ('train', dict(MPLBACKEND='nonsense')),
    ('train', dict(WORLD_SIZE='', RANK='', LOCAL_RANK='')), ('info', 'home'), ('compare RUN', 'read')])
def test_surroundings_change_nothing(run, tmp_path, words, surroundings):
    "Encodings without signs, unknown screens, empty variables, no home, a folder for reading only."
    env = surroundings if isinstance(surroundings, dict) else {}
    # matplotlib's first promised version looks for a home itself, unless it is told a folder
    if surroundings == 'home': env = dict(MPLCONFIGDIR=str(tmp_path))
    start = ['-c', NO_HOME] if surroundings == 'home' else ['-m', 'mulan_vdm']
    where = '/proc' if surroundings == 'read' else tmp_path
    words = [str(run) if word == 'RUN' else word for word in words.split()]
    if words == ['train']: words += [*SMALL, '--steps', '1', '--out', 'é']
    if surroundings == 'read': said('evaluate', run, '--draws', 2)
    done = subprocess.run([sys.executable, *start, *words], capture_output=True, cwd=where,
                          env={**ENV, 'PYTHONPATH': os.pathsep.join(sys.path), **env})
    assert done.returncode == 0, done.stderr
    if 'PYTHONIOENCODING' in env: assert b'+-' in done.stdout

def test_a_closed_pipe_and_a_full_disk():
    command = f'{sys.executable} -m mulan_vdm'
    done = subprocess.run(['bash', '-c', f'{command} info | head -1; echo ${{PIPESTATUS[0]}}'],
                          capture_output=True, text=True, env=ENV)
    assert (done.stdout.splitlines()[1], done.stderr) == ('0', '')
    full = subprocess.run(['bash', '-c', f'{command} info > /dev/full'], capture_output=True, text=True,
                          env=ENV)
    assert (full.returncode, full.stderr) == (1, 'mulan-vdm: no space left on device: make room\n')

def test_a_log_is_short_and_has_the_loss(tmp_path):
    done = cli('train', *SMALL, '--steps', 60, '--out', tmp_path / 'x')
    assert done.returncode == 0 and '\r' not in done.stderr and '%|' not in done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) <= 12 and len(done.stderr) < 1000
    assert re.fullmatch(r'step 60 of 60: \d\.\d{3} bits/dim, \d+ s', lines[-1])

def test_train_in_a_thread(tmp_path):
    found = []
    words = ['train', *SMALL, '--steps', '1', '--out', tmp_path / 'x']
    thread = threading.Thread(target=lambda: found.append(said(*words)))
    thread.start()
    thread.join()
    assert found[0][0] == 0, found
