"""What a run survives: kills at any moment, a full disk, a damaged checkpoint, a second process, bad data.
Each fault is made, not imagined."""
import errno, hashlib, json, os, pickle, re, resource, shutil, signal, subprocess, sys, textwrap, time
import traceback
from pathlib import Path
import numpy as np, pytest, torch
from mulan_vdm import cli, runs, training
from mulan_vdm.data import batch_indices, load
from mulan_vdm.codec import Codec, RealCodec
from mulan_vdm.diffusion import Diffusion
from mulan_vdm.nets import MLP, UNet
from mulan_vdm.schedules import Adaptive, Linear
from mulan_vdm.runs import Run
from mulan_vdm.training import fit
from safetensors.torch import save_file

ROOT = Path(__file__).parent.parent
ENV = {**os.environ, 'OMP_NUM_THREADS': str(torch.get_num_threads()), 'CUDA_VISIBLE_DEVICES': '',
       'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])}
options = dict(steps=20, batch_size=8, lr=1e-3, warmup=5, ema=0.9, save_every=2, log_every=1, progress=False)

def tiny(seed=0):
    torch.manual_seed(seed)
    return Diffusion(UNet(1, 4, 1, fourier=(3,), attention=False), Adaptive(-7.9, 5.), Codec(17), (1, 8, 8))

def train(out, **changed):
    "Starts or continues the run, as a user would after a crash."
    for _ in fit(tiny(), load('digits'), out=out, resume=(Path(out) / 'config.json').exists(),
                 **{**options, **changed}):
        pass

def log(run):
    return [{k: v for k, v in json.loads(l).items() if k != 'seconds'}
            for l in (Path(run) / 'metrics.jsonl').read_text().splitlines()]

def equal(a, b):
    (x, i), (y, j) = Run(a).load(), Run(b).load()
    return i == j and x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)

# ---- SIGKILL. A process that has imported everything is forked for each life; it trains until it is killed.

server = textwrap.dedent("""
    import sys; sys.path.insert(0, sys.argv[1])
    import contextlib, importlib, os, signal, random, time, json, torch, test_faults
    from pathlib import Path
    torch.set_num_threads(1)
    folder, sources = Path(sys.argv[2]), {test_faults.training.__file__, test_faults.runs.__file__}

    def imported(run):
        "Names of all modules once a training in a child has run: what it imports as it goes costs seconds."
        r, w = os.pipe()
        if os.fork() == 0:
            test_faults.train(run)
            with os.fdopen(w, 'w') as f: f.write(' '.join(sys.modules))
            os._exit(0)
        os.close(w); names = os.fdopen(r).read().split(); os.wait()
        return names
    for name in imported(folder / 'first'):
        if name not in sys.modules:
            with contextlib.suppress(Exception): importlib.import_module(name)

    class Lines:
        '''Counts lines of training.py and runs.py, in the functions `names` or in all, and kills
        this process before number `fatal`.'''
        def __init__(self, fatal=None, names=()): self.n, self.fatal, self.names = 0, fatal, names
        def __call__(self, frame, event, arg):
            code = frame.f_code
            if event == 'call':
                return (self if code.co_filename in sources and (not self.names or code.co_name in self.names)
                        else None)
            self.n += event == 'line'
            if event == 'line' and self.n == self.fatal: os.kill(os.getpid(), signal.SIGKILL)
            return self

    def life(run, line=None, delay=None, count=False):
        '''Train in a child; kill it when it has executed so many of these lines, or so many seconds
        after its first step. Exit status, lines.'''
        r, w = os.pipe(); pid = os.fork()
        if pid == 0:
            lines = Lines(line)
            if line or count: sys.settrace(lines)
            try: test_faults.train(run)
            except BaseException: sys.settrace(None); import traceback; traceback.print_exc(); os._exit(1)
            sys.settrace(None); os.write(w, str(lines.n).encode()); os._exit(0)
        os.close(w)
        if delay is not None:                                             # from its first step on
            written = run / 'metrics.jsonl'; before = written.stat().st_mtime_ns if written.exists() else 0
            while (not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                   and not (written.exists() and written.stat().st_size
                            and written.stat().st_mtime_ns > before)):
                time.sleep(0.001)
            time.sleep(delay); os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]; n = os.read(r, 20); os.close(r)
        return status, int(n or 0)

    status, total = life(folder / 'whole', count=True)
    assert life(folder / 'timed')[0] == status == 0
    seconds = json.loads((folder / 'timed' / 'metrics.jsonl').read_text().splitlines()[-1])['seconds']
    rng, where, runs = random.Random(0), [], 0
    for way in ('line', 'delay'):
        kills = 0
        while kills < 10:
            run = folder / f'run{runs}'; runs += 1
            for again in range(9):  # a life or two cut short, then one to the end
                how = ({} if kills == 10 or again > 1 else dict(line=rng.randrange(1, total)) if way == 'line'
                       else dict(delay=rng.uniform(0, seconds)))
                status, _ = life(run, **how)
                assert status == 0 or (os.WIFSIGNALED(status)
                                       and os.WTERMSIG(status) == signal.SIGKILL), status
                kills += status != 0
                saved = test_faults.Run(run)
                where.append([str(how), status, saved.load()[1] if saved.steps else 0])
                if status == 0: break
    json.dump(dict(runs=runs, where=where), open(folder / 'said.json', 'w'))
""")

@pytest.fixture(scope='module')
def killed(tmp_path_factory):
    folder = tmp_path_factory.mktemp('killed')
    done = subprocess.run([sys.executable, '-c', server, str(ROOT / 'tests'), str(folder)], env=ENV,
                          stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr
    return folder, json.loads((folder / 'said.json').read_text())

def test_sigkill_at_random_moments(killed):
    """Ten kills after a random number of lines of the training code, ten after a random time. Each run
    ends bit for bit where the uninterrupted one ends, its log without gap or duplicate."""
    folder, said = killed
    kills = [steps for _, status, steps in said['where'] if status]
    assert len(kills) == 20 and len(set(kills)) >= 5, said  # the moments were spread
    for i in range(said['runs']):
        assert (equal(folder / f'run{i}', folder / 'whole')
                and log(folder / f'run{i}') == log(folder / 'whole'))
    assert [l['step'] for l in log(folder / 'whole')] == list(range(1, 21))

# ---- SIGKILL before each call that changes the disk, and half way through each write

CALLS = 'open', 'write', 'fsync', 'replace', 'link', 'unlink', 'mkdir', 'rmdir', 'ftruncate'

def in_a_child(work, place=None):
    """Does `work` in a forked process that is killed at its call number `place`: before it, or, for a write,
    when half of it is done. Status, and the names of the calls that were made."""
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        made = []
        def counting(name, call):
            def counted(*args, **how):
                made.append(name)
                if len(made) != place: return call(*args, **how)
                if name == 'write': call(args[0], bytes(args[1])[:len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return counted
        write = os.write
        for name in CALLS: setattr(os, name, counting(name, getattr(os, name)))
        try: work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        write(w, ' '.join(made).encode())
        os._exit(0)
    os.close(w)
    with os.fdopen(r) as f: said = f.read().split()
    return os.waitpid(pid, 0)[1], said

def places(calls, all_of_them=False):
    "Where to kill: before every call, and in every write or some of them."
    return [i for i, name in enumerate(calls, 1) if all_of_them or name != 'write' or i % 24 == 0]

def tree(run):
    "What a folder holds, but for what a start sweeps away."
    files = [p for p in sorted(Path(run).rglob('*')) if p.is_file() and not p.name.endswith('.tmp')]
    return tuple((str(p.relative_to(run)), hashlib.sha256(p.read_bytes()).hexdigest()) for p in files)

@pytest.fixture(scope='module')
def stages(tmp_path_factory):
    "A run after five steps of twenty, saved at the fourth; after six; and the run that nobody disturbs."
    folder = tmp_path_factory.mktemp('stages')
    for p in fit(tiny(), load('digits'), out=folder / 'five', **options):
        if p.step == 5: break
    shutil.copytree(folder / 'five', folder / 'more')
    for p in fit(tiny(), load('digits'), out=folder / 'more', resume=True, **options):
        if p.step == 6: break
    train(folder / 'whole')
    return folder

def works(folder):
    "What changes the disk: name, folder before it, and the work, in the folder `run`."
    line = (folder / 'more' / 'metrics.jsonl').read_text().splitlines()[5]
    six, step = Run(folder / 'more').load()
    config = Run(folder / 'five').config
    empty = folder / 'empty'
    empty.mkdir(exist_ok=True)
    def locked(work):
        def do(run):
            with run.lock(): work(run)
        return do
    def first(run):
        run.start(config)
        run.log(line.replace('"step": 6', '"step": 1'))
    def save(run):
        run.log(line)
        run.save(six, step)
    yield 'start', empty, locked(first)
    yield 'save', folder / 'five', locked(save)
    yield 'trim', folder / 'five', locked(lambda run: run.trim_log(4))
    yield 'fall back', folder / 'five', locked(Run.fall_back)

def survives(folder, name, before, work, tmp_path, all_of_them=False):
    "Kills one work at its places, looks at what is left, and continues each state that there is."
    run = tmp_path / 'run'
    ended = {}
    def fresh():
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(before, run)
    fresh()
    status, calls = in_a_child(lambda: work(Run(run)))
    assert status == 0
    left = 0
    for place in [*places(calls, all_of_them), len(calls) + 1]:
        fresh()
        status, _ = in_a_child(lambda: work(Run(run)), place)
        assert os.WIFSIGNALED(status) == (place <= len(calls)), (name, place, status)
        left += any(p.name.endswith('.tmp') for p in run.rglob('*'))
        there = tree(run)
        with Run(run).lock(): assert tree(run) == there
        assert {str(p.relative_to(run)) for p in run.rglob('*') if p.is_file()} == {n for n, _ in there}
        if there in ended: continue
        train(run)
        ended[there] = equal(run, folder / 'whole') and log(run) == log(folder / 'whole')
        assert ended[there], (name, place, there)
    return len(calls), left, len(ended)

def test_sigkill_inside_a_checkpoint(stages, tmp_path):
    """A kill before every call that changes the disk, and in the midst of writes, while a run is started,
    a line and a checkpoint are written, the log is cut and the previous checkpoint made the last: what is
    left is one of a few states, each of which goes on to the end of the run that nobody disturbed, bit for
    bit; and the next start leaves no leftover."""
    found = {name: survives(stages, name, before, work, tmp_path) for name, before, work in works(stages)}
    assert found['save'][0] > 40 and found['save'][1] > 5, found
    assert all(2 <= states <= 4 for _, _, states in found.values()), found

@pytest.mark.nightly
def test_sigkill_at_every_call(stages, tmp_path):
    "The same in every write."
    for name, before, work in works(stages): survives(stages, name, before, work, tmp_path, True)

def test_sigkill_while_a_report_is_written(stages, tmp_path):
    """Figures and their arrays are those of one evaluation or refused, never mixed; the next writing puts it
    right and takes away what was left. Samples and pictures are whole."""
    from matplotlib.figure import Figure
    bpd = np.linspace(1., 2., 9)
    said = dict(data='digits', system='vdm', n=9, steps=4, params=9, seconds=1.5, bpd_se=0.1,
                terms=dict(diffusion=[1.5, 0.1], latent=[0., 0.]))
    def report(i): return lambda run: run.write_report(dict(said, bpd=1.5 + i), bpd=bpd + i)
    x = torch.zeros(2, 1, 8, 8, dtype=torch.int64)
    works = (report(1), lambda run: run.write_samples(x + 1),
             lambda run: run.write_picture('samples', Figure(facecolor='red'), 20))
    old = stages / 'reported'
    shutil.copytree(stages / 'five', old, dirs_exist_ok=True)
    report(0)(Run(old))
    Run(old).write_samples(x)
    Run(old).write_picture('samples', Figure(), 20)
    for work in works:
        run = tmp_path / 'run'
        refused = 0
        def fresh():
            shutil.rmtree(run, ignore_errors=True)
            shutil.copytree(old, run)
        fresh()
        status, calls = in_a_child(lambda: work(Run(run)))
        assert status == 0
        new = tree(run)
        for place in places(calls, True):
            fresh()
            status, _ = in_a_child(lambda: work(Run(run)), place)
            assert os.WIFSIGNALED(status)
            try: assert Run(run).per_image()['bpd'].mean() == Run(run).report()['bpd']
            except ValueError as e:
                assert 'does not belong to report.json' in str(e)
                refused += 1
            assert {str(p.name) for p in run.iterdir() if not p.name.endswith('.tmp')} == set(os.listdir(old))
            work(Run(run))
            assert tree(run) == new
            assert not [p for p in run.rglob('*') if p.name.endswith('.tmp')]
        assert (refused > 0) == (work is works[0])  # the moment between the two files

@pytest.mark.nightly
def test_no_other_call_changes_the_disk(stages, tmp_path):
    "What the system saw of all that, by strace, is what was counted: nothing writes by another way."
    if not shutil.which('strace'): pytest.skip('there is no strace here')
    code = textwrap.dedent("""
        import sys; sys.path.insert(0, sys.argv[1])
        import shutil, test_faults
        from pathlib import Path
        folder, out = Path(sys.argv[2]), Path(sys.argv[3])
        for i, (name, before, work) in enumerate(test_faults.works(folder)):
            run = out / str(i); shutil.copytree(before, run)
            test_faults.os.stat(out / 'begin')
            status, calls = test_faults.in_a_child(lambda: work(test_faults.Run(run)))
            test_faults.os.stat(out / 'end')
            kinds = 'write', 'replace', 'link', 'fsync', 'mkdir'
            print(name, *(f'{kind}={calls.count(kind)}' for kind in kinds), flush=True)
    """)
    (tmp_path / 'begin').touch()
    (tmp_path / 'end').touch()
    traced = tmp_path / 'traced'
    names = dict(write='write|pwrite64|writev', replace='rename|renameat|renameat2', link='link|linkat',
                 fsync='fsync|fdatasync', mkdir='mkdir|mkdirat')
    kinds = ','.join(names.values()).replace('|', ',')
    traces = ['strace', '-f', '-y', '-s', '0', '-e', f'trace={kinds},newfstatat,stat', '-o', traced]
    words = [sys.executable, '-c', code, str(ROOT / 'tests'), str(stages), str(tmp_path)]
    done = subprocess.run([*traces, *words], env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seen = []
    inside = False
    for line in traced.read_text().splitlines():
        if '/begin' in line:
            seen.append(dict.fromkeys(names, 0))
            inside = True
        if '/end' in line: inside = False
        if not inside or str(tmp_path) not in line: continue
        for name, pattern in names.items():
            seen[-1][name] += bool(re.search(rf' ({pattern})\(', line))
    counted = [dict((k, int(v)) for k, v in (word.split('=') for word in said.split() if '=' in word))
               for said in done.stdout.splitlines()]
    assert seen == counted and len(seen) == 4

# ---- the disk

def full(run, limit):
    """A process whose files may not grow beyond `limit` bytes once step 2 is saved:
    what it says on the way out."""
    code = (f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r}); import test_faults, resource, os\n"
            "try:\n  for p in test_faults.fit(test_faults.tiny(), "
            f"test_faults.load('digits'), out={str(run)!r}, **test_faults.options):\n"
            f"    if p.step == 3: resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
            "except OSError as e: print(e, flush=True); os._exit(3)")
    return subprocess.run([sys.executable, '-c', code], env=ENV, capture_output=True, text=True)

def test_no_room_for_a_checkpoint(tmp_path):
    """The write fails half way: one line names the file, the old checkpoint is whole, nothing half is
    left, and the run continues to the same end."""
    done = full(tmp_path / 'run', 20_000)
    assert (done.returncode == 3 and done.stdout.count('\n') == 1
            and 'state.safetensors could not be written at step 4' in done.stdout
            and 'add --resume' in done.stdout), done
    assert Run(tmp_path / 'run').load()[1] == 2 and not list((tmp_path / 'run').rglob('*.tmp'))
    train(tmp_path / 'run')
    train(tmp_path / 'whole')
    assert equal(tmp_path / 'run', tmp_path / 'whole')

def test_full_disk(tmp_path):
    "The same on a disk of 160 KiB that is really full; through the command line."
    if os.geteuid() or subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=160k', 'none', str(tmp_path)],
                                      capture_output=True).returncode:
        pytest.skip('no small disk can be mounted here')
    try:
        words = ['train', '--preset', 'vdm-digits', '--channels', '4', '--blocks', '1', '--batch_size', '4',
                 '--steps', '6', '--save_every', '1', '--out', str(tmp_path / 'run')]
        done = subprocess.run([sys.executable, '-m', 'mulan_vdm.cli', *words], env=ENV,
                              capture_output=True, text=True)
        last = done.stderr.strip().splitlines()[-1]
        assert (done.returncode == 1 and 'Traceback' not in done.stderr and last.startswith('mulan-vdm: ')
                and 'could not be written' in last and 'No space left' in last), done.stderr
        tensors, step = Run(tmp_path / 'run').load()
        assert step >= 1 and all(v.isfinite().all() for v in tensors.values())
    finally: subprocess.run(['umount', '-l', str(tmp_path)], check=True)

def test_error_number_of_a_full_disk(tmp_path, monkeypatch):
    "Whatever fails while a checkpoint is written, the last one stays the last one."
    tensors = {'model.a': torch.ones(3)}
    run = Run(tmp_path)
    run.save(tensors, 1)
    for name in ('_write_all', '_name_again'):
        def fails(*a): raise OSError(errno.ENOSPC, 'No space left on device')
        with monkeypatch.context() as m:
            m.setattr(runs, name, fails)
            with pytest.raises(OSError, match='could not be written at step 2 .No space left'):
                run.save(tensors, 2)
        assert (run.load()[1] == 1 and sorted(os.listdir(tmp_path / 'checkpoint')) == ['state.safetensors'])

def test_read_only_folder(tmp_path, capsys):
    """A folder that may not be written in: one line, status 1. Root may write anywhere but on a disk
    that is mounted for reading."""
    folder = tmp_path / 'fixed'
    folder.mkdir()
    folder.chmod(0o555)
    if os.geteuid() == 0 and subprocess.run(['mount', '-t', 'tmpfs', '-o', 'ro', 'none', str(folder)],
                                            capture_output=True).returncode:
        pytest.skip('nothing can be mounted here')
    try:
        status = cli.main(['train', '--channels', '4', '--blocks', '1', '--steps', '2', '--out',
                           str(folder / 'run')])
    finally: os.geteuid() or subprocess.run(['umount', '-l', str(folder)], check=True)
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert (status == 1 and last.startswith('mulan-vdm: ')
            and ('Permission denied' in last or 'Read-only' in last) and not (folder / 'run').exists()), last

# ---- asked to end, and two at once

def test_sigterm_saves_and_ends_well(tmp_path):
    """Status 0, a checkpoint of the very step, and a continuation that equals the run that was never
    asked. Meanwhile a second process is refused."""
    words = ['train', '--preset', 'vdm-digits', '--channels', '4', '--blocks', '1', '--batch_size', '4',
             '--save_every', '100000', '--log_every', '1', '--out', str(tmp_path / 'run')]
    first = subprocess.Popen([sys.executable, '-m', 'mulan_vdm.cli', *words, '--steps', '1000000'], env=ENV,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.time() + 240
    while time.time() < deadline and not (tmp_path / 'run' / 'metrics.jsonl').exists(): time.sleep(0.1)
    with pytest.raises(BlockingIOError, match='being trained by another process'):
        next(fit(tiny(), load('digits'), out=tmp_path / 'run', resume=True, **options))
    assert cli.main([*words, '--resume', '--steps', '1000000']) == 1
    first.send_signal(signal.SIGTERM)
    said, errors = first.communicate(timeout=240)
    step = Run(tmp_path / 'run').load()[1]
    assert first.returncode == 0 and f'stopped at step {step}, checkpoint saved' in said, errors
    assert log(tmp_path / 'run')[-1]['step'] == step >= 1
    for out, resume in (('run', ['--resume']), ('other', [])):
        assert cli.main([*words[:-1], str(tmp_path / out), '--steps', str(step + 3), *resume]) == 0
    assert equal(tmp_path / 'run', tmp_path / 'other') and log(tmp_path / 'run') == log(tmp_path / 'other')

def test_the_lock_dies_with_its_process(tmp_path):
    code = (f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r}); "
            f"from mulan_vdm.runs import Run; import os, signal\nwith Run({str(tmp_path)!r}).lock(): "
            "print('held', flush=True); os.kill(os.getpid(), signal.SIGSTOP)")
    p = subprocess.Popen([sys.executable, '-c', code], env=ENV, stdout=subprocess.PIPE, text=True)
    try:
        assert p.stdout.readline() == 'held\n'
        with pytest.raises(BlockingIOError): Run(tmp_path).lock().__enter__()
    finally:
        p.kill()
        p.wait()
    with Run(tmp_path).lock(): pass
    assert not os.listdir(tmp_path)

# ---- checkpoints that are not what they were

@pytest.fixture(scope='module')
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp('runs') / 'run'
    train(out, steps=6)
    return out

def test_any_flipped_bit_or_cut_is_refused(run):
    """300 flipped bits and 100 cuts, anywhere in the file: refused with one line that names the file, or,
    where the bit carries nothing, loaded as it was."""
    path = Run(run).checkpoint()
    whole = path.read_bytes()
    good, step = Run(run).load()
    rng = np.random.default_rng(0)
    harmless = 0
    header = 8 + int.from_bytes(whole[:8], 'little')
    try:
        for i in range(400):
            if i < 300:
                damaged = bytearray(whole)
                damaged[rng.integers(header if i % 2 else len(whole))] ^= 1 << rng.integers(8)
            else: damaged = whole[:rng.integers(len(whole))]
            path.write_bytes(damaged)
            try: tensors, s = Run(run).load()
            except ValueError as e:
                assert str(path) in str(e) and '\n' not in str(e) and '--previous' in str(e)
                continue
            harmless += 1
            assert s == step and tensors.keys() == good.keys() and all(
                torch.equal(tensors[k], good[k]) and tensors[k].dtype == good[k].dtype for k in good)
    finally: path.write_bytes(whole)
    assert harmless < 5

def test_continue_from_the_previous_checkpoint(run, tmp_path):
    import shutil
    out = tmp_path / 'run'
    shutil.copytree(run, out)
    path = Run(out).checkpoint()
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match='state.safetensors: truncated or damaged.*--resume --previous'):
        train(out, steps=8)
    train(out, steps=8, previous=True)
    train(tmp_path / 'whole', steps=8)
    assert equal(out, tmp_path / 'whole') and [l['step'] for l in log(out)] == list(range(1, 9))
    for previous in (False, True): Run(out).checkpoint(previous).write_bytes(b'')
    with pytest.raises(ValueError, match='previous.safetensors: truncated or damaged'):
        train(out, steps=9, previous=True)

def test_a_pickle_is_refused_and_not_run(run, tmp_path):
    class Trap:
        def __reduce__(self): return os.mkdir, (str(tmp_path / 'sprung'),)
    path = Run(run).checkpoint()
    whole = path.read_bytes()
    archive = tmp_path / 'a.pt'
    torch.save({'model.a': Trap()}, archive)
    try:
        for content in (pickle.dumps(Trap()), archive.read_bytes()):
            path.write_bytes(content)
            for load_it in (lambda: Run(run).load(), lambda: train(run, steps=8)):
                with pytest.raises(ValueError, match='truncated or damaged'): load_it()
    finally: path.write_bytes(whole)
    assert not (tmp_path / 'sprung').exists()
    pickle.loads(pickle.dumps(Trap()))
    assert (tmp_path / 'sprung').exists()  # the trap works

def test_nothing_here_unpickles():
    "No module of the package loads a pickle by itself, or runs text."
    called = r'pickle\.load|torch\.load|allow_pickle=True|joblib|(?<![.|\w])(eval|exec)\('
    for module in (ROOT / 'mulan_vdm').glob('*.py'):
        assert not (found := re.search(called, module.read_text())), (module, found)

# ---- data

def picture(path, side=8, seed=0):
    from PIL import Image
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)

@pytest.mark.parametrize('damage, message',
                         [(lambda f: f.write_bytes(f.read_bytes()[:40]), 'is not a readable 8-bit image'),
                             (lambda f: f.write_bytes(b''), 'is not a readable'),
                             (lambda f: f.write_text('notes'), 'is not a readable'),
                             (lambda f: picture(f, 6), 'smaller than --size 8'), (lambda f: None, '')])
def test_a_folder_with_a_broken_image(tmp_path, capsys, damage, message):
    """A broken, empty or small file among good ones of odd sizes: one line that names it; without it the
    sizes are evened out and the run goes."""
    for i in range(12): picture(tmp_path / 'images' / ('test' if i < 3 else 'train') / f'{i}.png', 8 + i, i)
    damage(tmp_path / 'images' / 'train' / '5.png')
    status = cli.main(['train', '--preset', 'vdm-digits', '--data', 'folder', '--path',
                       str(tmp_path / 'images'), '--size', '8', '--channels', '4', '--blocks', '1',
                       '--batch_size', '4', '--steps', '2', '--out', str(tmp_path / 'run')])
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert (status == bool(message) and message in last
            and (not message or ('5.png' in last and not (tmp_path / 'run').exists()))), last

def test_odd_sizes_without_a_size(tmp_path, capsys):
    for i in range(6): picture(tmp_path / 'images' / ('test' if i < 3 else 'train') / f'{i}.png', 8 + i, i)
    assert cli.main(['train', '--data', 'folder', '--path', str(tmp_path / 'images'), '--out',
                     str(tmp_path / 'run')]) == 1
    assert 'differ in size; pass --size' in capsys.readouterr().err

def test_not_a_number_in_a_batch(tmp_path):
    """A point that is not finite, in a batch to come: the step that meets it stops, its weights unchanged,
    the last checkpoint whole."""
    data = load('two_moons')
    bad = data._replace(train=data.train._replace(x=data.train.x.clone()))
    x = bad.train.x
    x[batch_indices(len(x), 16, 0, 20)[3]] = float('nan')  # after it was looked at
    torch.manual_seed(0)
    model = Diffusion(MLP(2, 8, 1), Linear(-8., 5.), RealCodec(), (2,))
    met = 0
    with pytest.raises(FloatingPointError, match='step 21: .* not finite'):
        for p in fit(model, bad, 100, 16, 1e-3, out=tmp_path / 'run', save_every=1, progress=False):
            met = p.step
            before = {k: v.clone() for k, v in model.state_dict().items()}
    tensors, step = Run(tmp_path / 'run').load()
    assert step == met == 20 and all(v.isfinite().all() for v in tensors.values())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())

def test_not_a_number_in_the_loss(tmp_path):
    class Poisoned(MLP):
        def forward(self, z_t, gamma, w=None, y=None):
            out = super().forward(z_t, gamma)
            return out * (float('nan') if self.training and self.calls() == 7 else 1)
        def calls(self):
            self.n = getattr(self, 'n', 0) + 1
            return self.n
    torch.manual_seed(0)
    model = Diffusion(Poisoned(2, 8, 1), Adaptive(-8., 5.), RealCodec(), (2,))
    with pytest.raises(FloatingPointError, match='step 7: diffusion and weighted not finite'):
        for p in fit(model, load('two_moons'), 20, 16, 1e-3, out=tmp_path / 'run', save_every=3,
                     progress=False):
            pass
    tensors, step = Run(tmp_path / 'run').load()
    assert (step == 6 and all(v.isfinite().all() for v in model.state_dict().values())
            and all(v.isfinite().all() for v in tensors.values()))

# ---- forged: whole, with right sums, and not of this model

def forge(path, tensors, step=6, **header):
    "Writes a checkpoint whose sums are right, whatever is in it."
    sums = json.dumps({k: runs._digest(k, v) for k, v in tensors.items()})
    said = dict(format=runs._FORMAT, step=str(step), sums=sums, seal=runs._header_sum(str(step), sums))
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata={**said, **header})

def other_kinds(v):
    "Tensors of other shapes and types than v."
    wider = torch.cat([v.reshape(-1), v.reshape(-1)])
    yield from (v.new_zeros(0), v.new_zeros(1), v.new_zeros(1, 1), wider, v[None], v.reshape(-1)[None, None])
    yield from (v.double(), v.to(torch.int32), v.to(torch.uint8))

def forgeries(tensors):
    "What else a file may hold: a name of each kind changed, left out or added."
    for k in ('model.net.conv_in.weight', 'ema.module.net.conv_in.weight', 'ema.n_averaged',
              'optimizer.0.step', 'optimizer.0.exp_avg', 'optimizer.3.exp_avg_sq'):
        for v in other_kinds(tensors[k]):
            if (v.shape, v.dtype) != (tensors[k].shape, tensors[k].dtype): yield k, {**tensors, k: v}
        yield k, {name: v for name, v in tensors.items() if name != k}
        bad = torch.full_like(tensors[k], float('nan')) if tensors[k].is_floating_point() else -tensors[k] - 1
        yield k, {**tensors, k: bad}
    for k in ('optimizer.0.max_exp_avg_sq', 'optimizer.999.step', 'optimizer.one.step', 'optimizer',
              'momentum.0', 'model.net.conv_in.weight.', 'Model.x', 'ema.module'):
        yield k, {**tensors, k: torch.ones(1)}
    for k in ('optimizer.1.exp_avg_sq', 'optimizer.1.step'): yield k, {**tensors, k: -tensors[k] - 1}
    scale = {f'scaler.{k}': torch.tensor(1., dtype=torch.float64)
             for k in (*torch.amp.GradScaler('cpu').state_dict(), 'skipped', 'row')}
    for k, v in scale.items():
        yield k, {**tensors, **{name: v for name, v in scale.items() if name != k}}
        for bad in (v[None], v.float(), -v, v * float('nan')): yield k, {**tensors, **scale, k: bad}

def test_a_forged_checkpoint_is_refused(tmp_path):
    """Moments of one element and of none, which the fused optimizer would leave behind; weights, averages,
    counters of other shapes and types; names too many and too few; numbers that make no sense. Each with
    right sums. Refused before a step, the name said."""
    train(tmp_path / 'run', steps=6)
    run = Run(tmp_path / 'run')
    whole = run.checkpoint().read_bytes()
    tried = 0
    tensors = {k: v.clone() for k, v in run.load()[0].items()} # not mapped from the file that is overwritten
    for name, forged in forgeries(tensors):
        forge(run.checkpoint(), forged)
        with pytest.raises(ValueError) as e: train(run, steps=8)
        said = str(e.value)
        tried += 1
        assert f'{name}' in said and str(run.checkpoint()) in said and '\n' not in said, said
        assert 'another model' in said or 'is not finite' in said or 'is negative' in said, said
    assert tried > 50
    run.checkpoint().write_bytes(whole)
    train(run, steps=8)

# ---- the data of a run

def test_other_images_of_the_same_name_are_refused(tmp_path):
    """A folder with one picture exchanged, or one more: not to be continued, not evaluated; put back as it
    was, the run goes on. A run that does not know its images goes on with any."""
    images = tmp_path / 'images'
    for i in range(12): picture(images / ('test' if i < 3 else 'train') / f'{i}.png', 8, i)
    words = ['train', '--data', 'folder', '--path', str(images), '--channels', '4', '--blocks', '1',
             '--batch_size', '4', '--out', str(tmp_path / 'run')]
    assert cli.main([*words, '--steps', '2']) == 0
    run = Run(tmp_path / 'run')
    assert run.config['fingerprint'] == run.data().fingerprint
    kept = {p: p.read_bytes() for p in images.rglob('*.png')}
    def exchange(): picture(images / 'train' / '5.png', 8, 99)
    def add(): picture(images / 'test' / '99.png', 8, 99)
    for change in (exchange, add):
        change()
        with pytest.raises(ValueError, match='was trained on other images: their fingerprint'): run.data()
        for again in ([*words, '--resume', '--steps', '4'], ['evaluate', str(run)]):
            assert cli.main(again) == 1
        assert run.steps == 2
        for p in images.rglob('*.png'): p.unlink()
        for p, content in kept.items(): p.write_bytes(content)
    assert cli.main([*words, '--resume', '--steps', '3']) == 0
    exchange()
    config = {k: v for k, v in run.config.items() if k != 'fingerprint'}
    run.file('config').write_text(json.dumps(config))
    assert cli.main([*words, '--resume', '--steps', '4']) == 0 and run.steps == 4

# ---- what a folder may hold before a run, and lose during it

def test_a_folder_that_is_no_run_yet(tmp_path, monkeypatch):
    """A log that a shell began, what a file browser leaves and what a kill left are no use; a start that
    fails takes back what it made, with the folders above; a file, and a folder with pictures, are refused."""
    run = tmp_path / 'a' / 'run'
    def fails():
        def late(*_, **__): raise ValueError('too late')
        with monkeypatch.context() as m, pytest.raises(ValueError, match='too late'):
            m.setattr(training, '_adamw', late)
            train(run)
    fails()
    assert not (tmp_path / 'a').exists()
    run.mkdir(parents=True)
    for name in ('log.txt', '.DS_Store', 'nohup.out', '.config.json.0123abcd.tmp'): (run / name).touch()
    fails()
    assert sorted(os.listdir(run)) == ['.DS_Store', 'log.txt', 'nohup.out']
    train(run, steps=2)
    assert Run(run).steps == 2
    file, pictures = tmp_path / 'file', tmp_path / 'pictures'
    file.touch()
    picture(pictures / 'a.png')
    for place, said in ((file, 'is a file: name a folder'), (pictures, 'a.png belongs to no run'),
                        (file / 'run', 'could not be written .Not a directory')):
        with pytest.raises(OSError, match=said) as e: train(place)
        assert '\n' not in str(e.value) and not list(pictures.glob('*.json'))

def test_a_missing_checkpoint_is_not_a_new_start(tmp_path):
    """The last one is gone and the one before it is there: refused, the remedy said, the log untouched; from
    the previous one the run goes on to the same end."""
    for out in ('run', 'whole'): train(tmp_path / out, steps=6)
    run = Run(tmp_path / 'run')
    run.checkpoint().unlink()
    kept = run.file('log').read_text()
    with pytest.raises(FileNotFoundError, match='no checkpoint at .*--resume --previous'): train(run, steps=8)
    with pytest.raises(FileNotFoundError, match='--resume --previous'): run.steps
    assert run.file('log').read_text() == kept
    train(run, steps=8, previous=True)
    train(tmp_path / 'whole', steps=8)
    assert equal(run, tmp_path / 'whole') and log(run) == log(tmp_path / 'whole')

def test_a_deleted_folder_is_not_written_in(tmp_path):
    """Deleted, or deleted and made anew by another training: the first stops in one line and leaves nothing
    in the second's folder. Emptied: the next checkpoint brings the configuration back."""
    def started(out):
        steps = fit(tiny(), load('digits'), out=out, **options)
        for _ in range(3): next(steps)
        return steps
    run = tmp_path / 'run'
    first = started(run)
    shutil.rmtree(run)
    with pytest.raises(OSError, match='deleted meanwhile'): next(first)
    assert not run.exists()
    again = started(run)
    shutil.rmtree(run)
    in_another_process = f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r}); import test_faults; "
    subprocess.run([sys.executable, '-c', in_another_process + f"test_faults.train({str(run)!r}, steps=4)"],
                   env=ENV, check=True, capture_output=True)
    there = tree(run)
    with pytest.raises(OSError, match='deleted meanwhile'): next(again)
    assert tree(run) == there and Run(run).steps == 4
    emptied = tmp_path / 'emptied'
    steps = started(emptied)
    config = Run(emptied).config
    for p in emptied.iterdir(): shutil.rmtree(p) if p.is_dir() else p.unlink()
    next(steps)
    steps.close()
    assert Run(emptied).config == config and Run(emptied).steps == 4

def test_four_evaluations_at_once(tmp_path):
    "Each writes its own pair; the last pair is a pair, whoever read meanwhile saw pairs, nothing is left."
    run = Run(shutil.copytree(ROOT / 'tests' / 'earlier' / 'vdm', tmp_path / 'run'))
    said, arrays = run.report(), run.per_image()
    run.write_report(said, **arrays)
    def many(i):
        for k in range(25):
            shift = 100 * i + k
            moved = dict(arrays, bpd=arrays['bpd'] + shift)
            run.write_report(dict(said, bpd=said['bpd'] + shift), **moved)
    before = sorted(os.listdir(run))
    pids = []
    for i in range(4):
        if not (pid := os.fork()):
            try: many(i)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        pids.append(pid)
    for _ in range(50): assert len(run.per_image()['bpd']) == said['n']
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 4
    assert abs(run.per_image()['bpd'].mean() - run.report()['bpd']) < 1e-9
    assert sorted(os.listdir(run)) == before
