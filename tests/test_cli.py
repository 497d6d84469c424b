"""The command line as a user meets it: a process, its exit status, what it prints and
what it leaves on the disk."""
import json, os, subprocess, sys, time
import pytest

ENV = {**os.environ, 'OMP_NUM_THREADS': '1'}
SMALL = '--channels 8 --blocks 1 --batch_size 16'.split()

def cli(*words, **env):
    return subprocess.run([sys.executable, '-m', 'mulan_vdm.cli', *map(str, words)], capture_output=True,
                          text=True, env={**ENV, **env})

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
    told = cli('info').stdout
    for word in ('vdm-digits', 'vdm-cifar10', 'digits', 'torch', 'device'): assert word in told

def test_train_help_lists_arguments_of_system_and_fit():
    told = cli('train', '--help').stdout
    for flag in ('--channels', '--gamma_min', '--learn_ends', '--no-learn_ends', '--lr',
                 '--save_every', '--preset'):
        assert flag in told

@pytest.mark.parametrize('words, message', [
    (['train', '--preset', 'vdm-digit', '--out', 'NEW'],
     "unknown preset 'vdm-digit': choose one of vdm-digits"),
    (['train', '--data', 'mnist', '--out', 'NEW'], "mnist"),
    (['train', '--out', 'RUN'], 'add --resume'),
    (['train', '--out', 'NEW', '--resume'], 'no config.json'),
    (['train', '--out', 'RUN', '--resume', '--channels', '12'], '--channels cannot change'),
    (['train', '--gamma_min', '6', '--out', 'NEW'], 'gamma_min=6.0 must be below'),
    (['train', '--lr', '-1', '--out', 'NEW'], 'lr=-1.0'),
    (['train', '--steps', '0', '--out', 'NEW'], 'steps=0'),
    (['evaluate', 'NEW'], 'no config.json'),
    (['evaluate', 'RUN', '--draws', '1'], 'draws=1'),
    (['sample', 'RUN', '--steps', '0'], 'steps=0'),
   ])
def test_mistakes_end_in_one_line(run, tmp_path, words, message):
    before = {p: p.read_bytes() for p in run.rglob('*') if p.is_file()}
    done = cli(*(str(run) if w == 'RUN' else str(tmp_path / 'new') if w == 'NEW' else w for w in words))
    line = done.stderr.strip().splitlines()[-1]
    assert (done.returncode == 1 and 'Traceback' not in done.stderr and line.startswith('mulan-vdm: ')
            and message in line), done.stderr
    assert ({p: p.read_bytes() for p in run.rglob('*') if p.is_file()} == before
            and not (tmp_path / 'new').exists())

@pytest.mark.parametrize('words', [['train', '--learn_ends', 'False', '--out', 'x'], ['trian'],
                                   ['train', '--T', 'many', '--out', 'x'], ['train']])
def test_words_that_argparse_refuses(words):
    done = cli(*words)
    assert done.returncode == 2 and 'Traceback' not in done.stderr

@pytest.mark.parametrize('damage, message', [(lambda b: b[:len(b) // 2], 'truncated or damaged'),
    (lambda b: b'not a checkpoint' * 100, 'truncated or damaged'), (lambda b: b'', 'truncated or damaged')])
def test_damaged_checkpoint(run, damage, message):
    path = run / 'checkpoint' / 'state.safetensors'; whole = path.read_bytes()
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
