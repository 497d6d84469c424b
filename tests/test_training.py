"""A step and a loop that neither lie nor lose: what is not finite, float16, settings, signals, what is handed
over and what is left behind."""
import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from unittest import mock
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn
from mulan_vdm import cli, training
from mulan_vdm.codec import Codec, RealCodec
from mulan_vdm.data import load, Split
from mulan_vdm.diffusion import Diffusion
from mulan_vdm.nets import MLP, UNet
from mulan_vdm.processes import Rows
from mulan_vdm.runs import Run
from mulan_vdm.schedules import Linear, make_schedule, schedules
from mulan_vdm.systems import build, presets, systems, vdm
from mulan_vdm.training import fit, interruptible

ROOT = Path(__file__).parent.parent
ENV = {**os.environ, 'OMP_NUM_THREADS': str(torch.get_num_threads()), 'CUDA_VISIBLE_DEVICES': '',
       'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])}
moons = load('two_moons')
digits = load('digits')
options = dict(steps=6, batch_size=16, lr=1e-3, warmup=0, ema=0.9, save_every=2, log_every=1, progress=False)
words = ['train', '--preset', 'vdm-digits', '--channels', '4', '--blocks', '1', '--batch_size', '8']

def points(seed=0, schedule=None, net=None):
    "A small model of points in the plane."
    torch.manual_seed(seed)
    return Diffusion(net or MLP(2, 8, 1), schedule or Linear(-8., 5.), RealCodec(), (2,))

def images(seed=0, **more):
    "A small model of the digits."
    torch.manual_seed(seed)
    net = UNet(1, 4, 1, fourier=(3.,), attention=False, **more)
    return Diffusion(net, Linear(-7.9, 5.), Codec(17), (1, 8, 8))

def last(steps):
    *_, now = steps
    return now

def equal(a, b):
    (x, i), (y, j) = (Run(run).load() for run in (a, b))
    return i == j and x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)

def log(run):
    "Lines of metrics.jsonl without seconds; a reader that refuses NaN."
    def refuse(word): raise AssertionError(word)
    lines = Run(run).file('log').read_text().splitlines()
    found = [json.loads(line, parse_constant=refuse) for line in lines]
    return [{k: v for k, v in line.items() if k != 'seconds'} for line in found]

# ---- not a number

class Broken(MLP):
    "Answers with a value that is not finite in one call."
    def __init__(self, call, value):
        super().__init__(2, 8, 1)
        self.left = call
        self.value = value
    def forward(self, z_t, gamma, w=None, y=None):
        self.left -= self.training
        out = super().forward(z_t, gamma)
        return out + self.value if self.left == 0 else out

@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
def test_what_the_network_answers(tmp_path, value):
    "The step that meets it ends the run; the checkpoint before is whole, and continues without it."
    with pytest.raises(FloatingPointError, match='step 4: diffusion and weighted not finite'):
        last(fit(points(net=Broken(4, value)), moons, out=tmp_path / 'a', **options))
    assert [line['step'] for line in log(tmp_path / 'a')] == [1, 2, 3]
    last(fit(points(), moons, out=tmp_path / 'a', resume=True, **options))
    last(fit(points(), moons, out=tmp_path / 'b', **options))
    assert equal(tmp_path / 'a', tmp_path / 'b') and log(tmp_path / 'a') == log(tmp_path / 'b')

@pytest.mark.parametrize('term', ['reconstruction', 'prior', 'latent', 'diffusion'])
def test_a_term_without_gradient(term, tmp_path):
    "Any term, also one that nothing learns from."
    class Lies(Diffusion):
        def forward(self, *args, **kwargs):
            terms = super().forward(*args, **kwargs)
            return terms._replace(**{term: getattr(terms, term).detach() * math.nan})
    model = Lies(MLP(2, 8, 1), Linear(-8., 5.), RealCodec(), (2,))
    with pytest.raises(FloatingPointError, match=f'step 1: {term} not finite'):
        last(fit(model, moons, out=tmp_path / 'a', **options))
    assert not Run(tmp_path / 'a').checkpoint().exists()

@pytest.mark.parametrize('flags, said', [
    (['--gamma_min=-100'], 'gamma_min -100.0: single precision overflows'),
    (['--gamma_min', '-89'], 'gamma_min -89.0: single precision overflows'),
    (['--beta', 'inf'], '--beta inf: pass a number, finite'),
    (['--lr', 'inf'], '--lr inf: pass a number, finite'),
    (['--lr', 'nan'], '--lr nan: pass a number, finite'), (['--clip', 'nan'], '--clip nan'),
    (['--weight_decay', 'inf'], '--weight_decay inf'), (['--lr', '1e30', '--warmup', '0'], 'is beyond 1e19')])
def test_flags_that_make_it(flags, said, tmp_path, capsys):
    "One line, status 1 or, of flags, 2; no log with NaN, no checkpoint that is not finite."
    out = tmp_path / 'run'
    often = ['--steps', '4', '--log_every', '1', '--save_every', '1', '--out', str(out)]
    assert cli.main([*words, *often, *flags]) == (2 if said.startswith('--') else 1)
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith('mulan-vdm:')]
    assert len(error) == 1 and said in error[0]
    if Run(out).file('log').exists(): log(out)
    if Run(out).checkpoint().exists(): assert all(v.isfinite().all() for v in Run(out).load()[0].values())

@pytest.mark.parametrize('factor', [math.inf, math.nan, 1e25])
def test_weights_are_looked_at_before_they_are_saved(tmp_path, factor):
    "Weights that go bad after step 3, where no loss sees them: step 4 is not saved, step 2 continues."
    model = points(net=MLP(2, 8, 1))
    model.spare = nn.Parameter(torch.ones(3))
    steps = fit(model, moons, out=tmp_path / 'a', **options)
    for _ in range(3): next(steps)
    with torch.no_grad(): model.spare.mul_(factor)
    with pytest.raises(FloatingPointError, match='step 4: model.spare is .* is not saved'):
        next(steps)
    assert Run(tmp_path / 'a').steps == 2
    model = points()
    model.spare = nn.Parameter(torch.ones(3))
    assert last(fit(model, moons, out=tmp_path / 'a', resume=True, **options)).step == 6

# ---- float16

@pytest.fixture
def scaled(monkeypatch):
    "A scaler on the CPU, whose first scales overflow float32 as those of a GPU overflow float16."
    def accelerator_for(precision, *tracking, scale=2.**126):
        accelerator = Accelerator(cpu=True)
        accelerator.scaler = torch.amp.GradScaler('cpu', init_scale=scale, growth_interval=10)
        accelerator.native_amp = True
        accelerator.state._mixed_precision = 'fp16'
        accelerator.autocast = contextlib.nullcontext
        monkeypatch.setattr(accelerator, 'prepare_model', lambda model, **how: model)
        return accelerator
    monkeypatch.setattr(training, '_accelerator_for', accelerator_for)
    yield accelerator_for
    from accelerate.state import AcceleratorState
    AcceleratorState._reset_state()

class Steep(MLP):
    "A network with large gradients."
    def forward(self, z_t, gamma, w=None, y=None):
        out = super().forward(z_t, gamma)
        return out + 1e3 * (out - out.detach())

def test_an_overflow_is_left_out_and_counted(scaled, tmp_path):
    """The first steps overflow: weights and average stay, the scale is halved, the log is JSON. Continued
    in the middle, the run is the one that was not."""
    model = points(net=Steep(2, 8, 1))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    rows = []
    for now in fit(model, moons, out=tmp_path / 'a', **{**options, 'steps': 30}):
        rows.append(now)
        if now.skipped == now.step:
            assert not math.isfinite(now.grad_norm)
            assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
            assert all(torch.equal(before[k], v) for k, v in now.model.state_dict().items())
    assert 3 <= rows[-1].skipped < 20
    assert any(not torch.equal(before[k], v) for k, v in model.state_dict().items())
    for now, line in zip(rows, log(tmp_path / 'a')):
        assert (line['grad_norm'] is None) == (not math.isfinite(now.grad_norm))
    for steps in (4, 12, 30):
        last(fit(points(net=Steep(2, 8, 1)), moons, out=tmp_path / 'b', resume=steps > 4,
                 **{**options, 'steps': steps}))
    assert equal(tmp_path / 'a', tmp_path / 'b') and log(tmp_path / 'a') == log(tmp_path / 'b')

def test_an_overflow_that_stays_is_an_error(scaled, monkeypatch):
    class Cliff(MLP):
        def forward(self, z_t, gamma, w=None, y=None):
            out = super().forward(z_t, gamma)
            out.register_hook(lambda grad: grad * math.inf)
            return out
    model = points(net=Cliff(2, 8, 1))
    with pytest.raises(FloatingPointError, match='step 20: gradient not finite, 20 steps in a row'):
        last(fit(model, moons, **{**options, 'steps': 99}))
    monkeypatch.setattr(training, '_accelerator_for', lambda *how: scaled(*how, scale=4.))
    with pytest.raises(FloatingPointError, match='step 3: gradient not finite.*scale down to 1;'):
        last(fit(points(net=Cliff(2, 8, 1)), moons, **options))

def test_without_a_scaler_it_is_an_error():
    class Cliff(MLP):
        def forward(self, z_t, gamma, w=None, y=None):
            out = super().forward(z_t, gamma)
            out.register_hook(lambda grad: grad * math.inf)
            return out
    with pytest.raises(FloatingPointError, match='step 1: gradient not finite'):
        last(fit(points(net=Cliff(2, 8, 1)), moons, **options))

# ---- what is handed over, and what is left behind

def test_the_average_is_in_evaluation_mode():
    "Dropout is off in what is handed over, and on in what is trained."
    model = images(dropout=0.5)
    bound = lambda m: m(digits.test.x[:8], t=torch.full((8,), 0.5),
                        rows=training.Rows(torch.Generator().manual_seed(0))).vlb
    for now in fit(model, digits, **options):
        assert model.training and not any(part.training for part in now.model.modules())
        assert torch.equal(bound(now.model), bound(now.model))
    assert not torch.equal(bound(model), bound(model))

def test_precision_ends_with_the_training():
    "bf16 leaves nothing on the model: it goes on in float32, and so does a later training of it."
    def curve(model, precision):
        return [p.loss for p in fit(model, digits, precision=precision, **options)]
    model, fresh = images(), images()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    half = curve(model, 'bf16')
    assert not {'forward', '_original_forward', '_is_accelerate_prepared'} & vars(model).keys()
    model.load_state_dict(state)
    whole = curve(model, 'no')
    assert whole == curve(fresh, 'no') and whole != half
    steps = fit(model, digits, precision='bf16', **options)
    next(steps)
    steps.close()
    assert 'forward' not in vars(model)

@pytest.mark.parametrize('precision', ['fp7', 'float16', '', 'BF16', 'fp8',
                                       'fp16'])
def test_an_unknown_precision_breaks_nothing(precision):
    "One that is unknown, or that a CPU does not have, is refused, and the next training is as ever."
    expected = [p.loss for p in fit(points(), moons, **options)]
    with pytest.raises(ValueError, match=precision or "''"):
        next(fit(points(), moons, precision=precision, **options))
    assert [p.loss for p in fit(points(), moons, **options)] == expected

# ---- labels and settings

class Plain(nn.Module):
    "Somebody's own network, which says nothing of classes."
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 64)
        self.seen = []
    def forward(self, z_t, gamma, w=None, y=None):
        self.seen.append(y)
        return self.layer(z_t.flatten(1)).view_as(z_t)

def test_labels_that_nobody_reads():
    "A network that does not say whether it reads labels: a warning. One that says so is given them."
    own = Plain()
    model = Diffusion(own, Linear(-7.9, 5.), Codec(17), (1, 8, 8))
    with pytest.warns(UserWarning, match='Plain has no attribute `classes`'):
        next(fit(model, digits, **options))
    assert own.seen == [None]
    own.classes = 10
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        next(fit(model, digits, **options))
        assert own.seen[1].shape == (16,)
        own.classes = 0
        next(fit(model, digits, **options))
    assert own.seen[2] is None

wrong = dict(steps=(0, -1, 1e1, 2.5, math.nan, True, '10', None), batch_size=(0, -8, 16., True),
             lr=(0, -1e-3, math.nan, math.inf, '1e-3', None, False), weight_decay=(-1, math.nan, math.inf),
             ema=(1., -0.1, math.nan), clip=(0, -1, math.nan), warmup=(-1, 2.5), T=(0, -5, 10., True),
             beta=(0, -1, math.inf, math.nan), beta_warmup=(-1, 0.5), seed=(-1, 0.5, True),
             drop=(1., -0.1, math.nan), log_every=(0, 1.5), save_every=(0, 2.5, -1),
             save_minutes=(0, math.nan), hours=(0, -1, math.nan, math.inf), precision=(16, True),
             accumulate=(0, 1.), checkpointing=(1, 'yes'), compile=(0,), shard=(None,), resume=('yes', 1),
             progress=(2,), validate_every=(-1, 0.5), track=(3, True), decay=(1, None), flip=(1, 'yes'),
             cuda_graphs=(1, 'yes'))

@pytest.mark.parametrize('name', wrong)
def test_impossible_settings(name, tmp_path):
    "Argument and value are named, and nothing was done: no folder, no step."
    for value in wrong[name]:
        model = points()
        with pytest.raises((TypeError, ValueError), match=f'{name}=') as error:
            next(fit(model, moons, **{**options, 'out': tmp_path / 'run', name: value}))
        assert str(value) in str(error.value) and '\n' not in str(error.value)
        assert not (tmp_path / 'run').exists()

def test_every_setting_is_looked_at():
    "An argument that is added is added above too, or has no wrong values."
    import inspect
    free = {'model', 'data', 'out', 'config', 'previous', 'stop'}
    assert set(inspect.signature(fit).parameters) - free == set(wrong)

def test_arguments_that_are_not():
    with pytest.raises(TypeError, match='no argument step: did you mean steps'):
        next(fit(points(), moons, step=3))
    with pytest.raises(TypeError, match='data is of type Tensor'):
        next(fit(points(), moons.train.x))

@pytest.mark.parametrize('x, y, said', [
    (digits.train.x.numpy(), None, 'x is a ndarray'),
    (digits.train.x, digits.train.y.float(), 'y is torch.float32'),
    (digits.train.x, digits.train.y.tolist(), 'y is a list'),
    (digits.train.x, digits.train.y.bool(), 'y is torch.bool'),
    (digits.train.x, digits.train.y[:5], 'one label for each'),
    (digits.train.x, digits.train.y[:, None], 'one label for each'),
    (digits.train.x, digits.train.y + 1, 'labels 1..10: set classes=11'),
    (digits.train.x, digits.train.y - 1, 'classes from 0'),
    (digits.train.x + 1, None, 'vocab=17 allows 0 to 16'),
    (digits.train.x[:15], None, 'batch_size=16: there are 15 examples'),
    (digits.train.x[:0], None, 'no examples'),
    (digits.train.x.float(), None, 'x is torch.float32'),
    (digits.train.x[:, 0], None, 'of shape')])
def test_data_that_do_not_fit(x, y, said, tmp_path):
    "Refused by the data or by `fit`, before any work."
    with pytest.raises((TypeError, ValueError), match=said):
        data = digits._replace(train=Split(x, y))
        next(fit(images(classes=0 if y is None else 10), data, out=tmp_path / 'run', **options))
    assert not (tmp_path / 'run').exists()

def test_more_levels_than_the_model_has():
    with pytest.raises(ValueError, match='vocab=17 but the data have 32 levels'):
        next(fit(images(), digits._replace(vocab=32), **options))

def test_whole_numbers_of_any_kind(tmp_path):
    how = {**options, 'steps': np.int64(2), 'lr': np.float32(1e-3), 'seed': np.int32(3)}
    last(fit(points(), moons, out=tmp_path / 'run', **how))
    assert Run(tmp_path / 'run').config['fit']['steps'] == 2

# ---- what a resumed run remembers

def test_settings_that_change_are_remembered(tmp_path, capsys):
    "config.json keeps the run's own model, data and preset, and a history of the training's settings."
    out = str(tmp_path / 'run')
    assert cli.main([*words, '--steps', '2', '--out', out]) == 0
    first = Run(out).config
    assert cli.main(['train', '--out', out, '--resume', '--steps', '3', '--lr', '1e-4']) == 0
    assert cli.main(['train', '--out', out, '--resume', '--steps', '4', '--clip', '0.5']) == 0
    assert cli.main(['train', '--out', out, '--resume', '--steps', '4']) == 0
    found = Run(out).config
    assert {k: found[k] for k in ('system', 'model', 'data', 'preset')} == {
        k: first[k] for k in ('system', 'model', 'data', 'preset')}
    assert found['history'] == [dict(step=2, changed=dict(steps=[2, 3], lr=[2e-3, 1e-4])),
                                dict(step=3, changed=dict(steps=[3, 4], clip=[1., 0.5]))]
    before = Run(out).file('config').read_bytes()
    assert cli.main(['train', '--preset', 'mulan-digits', '--out', out, '--resume', '--steps', '9']) == 1
    assert '--preset cannot change when resuming' in capsys.readouterr().err
    Run(out).checkpoint().write_bytes(b'')
    assert cli.main(['train', '--out', out, '--resume', '--steps', '9']) == 1
    assert Run(out).file('config').read_bytes() == before

def test_other_images_are_not_gone_on_with(tmp_path):
    "A data set of the same name with other pixels is another one."
    last(fit(images(), digits, out=tmp_path / 'run', **options))
    other = digits._replace(train=Split(16 - digits.train.x, digits.train.y))
    with pytest.raises(ValueError, match='was trained on other images'):
        next(fit(images(), other, out=tmp_path / 'run', resume=True, **options))

# ---- asked to end

listening = """
import signal # whatever the process that runs the tests ignores
for s in (signal.SIGINT, signal.SIGHUP): signal.signal(s, signal.SIG_DFL)
"""
code = listening + """
import sys
from mulan_vdm import cli
sys.exit(cli.main(sys.argv[1:]))
"""

def started(out, *more):
    "A training in a process of its own that has done its first step."
    flags = ['--steps', '1000000', '--save_every', '1000000', '--log_every', '1', '--out', str(out), *more]
    process = subprocess.Popen([sys.executable, '-c', code, *words, *flags], env=ENV, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None and not Run(out).file('log').exists():
        time.sleep(0.05)
    return process

@pytest.mark.parametrize('name', ['SIGINT', 'SIGHUP'])
def test_signals_save(name, tmp_path):
    "The step is finished and saved; status 0, no traceback, and what follows equals the uninterrupted run."
    process = started(tmp_path / 'run')
    try:
        process.send_signal(getattr(signal, name))
        said, errors = process.communicate(timeout=240)
    finally: process.kill()
    step = Run(tmp_path / 'run').steps
    assert process.returncode == 0 and f'stopped at step {step}, checkpoint saved' in said, errors
    assert 'Traceback' not in errors and log(tmp_path / 'run')[-1]['step'] == step >= 1

def test_a_second_signal_ends_at_once(tmp_path):
    "A step that takes a minute is not waited for."
    slow = listening + """
import os, sys, time, torch
from mulan_vdm.training import interruptible
with interruptible() as stop:
    print('ready', flush=True)
    end = time.monotonic() + 60
    while time.monotonic() < end: time.sleep(0.05)
"""
    for name in ('SIGINT', 'SIGTERM'):
        process = subprocess.Popen([sys.executable, '-c', slow], env=ENV, text=True, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE)
        assert process.stdout.readline() == 'ready\n'
        process.send_signal(getattr(signal, name))
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(getattr(signal, name))
        process.communicate(timeout=20)
        assert process.returncode not in (0, None)

def test_nothing_is_heard_that_was_ignored():
    "Under nohup a closed terminal ends nothing."
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop()
    finally: signal.signal(signal.SIGHUP, before)

def test_the_command_in_a_thread(tmp_path, capsys):
    status = []
    run = lambda: status.append(cli.main([*words, '--steps', '2', '--out', str(tmp_path / 'run')]))
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert status == [0] and Run(tmp_path / 'run').steps == 2

def test_a_kept_generator_gives_its_folder_up(tmp_path):
    "Left in the middle, in the same process: the next one continues, and the first says so if asked."
    kept = fit(points(), moons, out=tmp_path / 'a', **options)
    for _ in range(3): next(kept)
    last(fit(points(), moons, out=tmp_path / 'a', resume=True, **options))
    last(fit(points(), moons, out=tmp_path / 'b', **options))
    before = Run(tmp_path / 'a').checkpoint().read_bytes()
    with pytest.raises(BlockingIOError, match='taken over by a later fit'): next(kept)
    assert equal(tmp_path / 'a', tmp_path / 'b') and log(tmp_path / 'a') == log(tmp_path / 'b')
    assert Run(tmp_path / 'a').checkpoint().read_bytes() == before
    with Run(tmp_path / 'a').lock(): pass

def test_an_interrupt_inside_a_step_gives_the_folder_up(tmp_path):
    class Interrupted(MLP):
        def forward(self, z_t, gamma, w=None, y=None): raise KeyboardInterrupt
    kept = fit(points(net=Interrupted(2, 8, 1)), moons, out=tmp_path / 'a', **options)
    with pytest.raises(KeyboardInterrupt): next(kept)
    with Run(tmp_path / 'a').lock(): pass

def test_minutes_between_checkpoints(tmp_path, monkeypatch):
    "Steps of some minutes, told by a clock that nobody sets back: a checkpoint after ten minutes."
    ticks = iter(range(10**6))
    monkeypatch.setattr(training.time, 'monotonic', lambda: 60. * next(ticks))
    how = {**options, 'steps': 12, 'save_every': 500}
    saved = [now.step for now in fit(points(), moons, out=tmp_path / 'run', **how) if now.saved]
    assert 2 <= len(saved) < 12 and saved[-1] == 12
    seconds = Run(tmp_path / 'run').metrics()['seconds'].tolist()
    assert seconds == sorted(seconds)
    assert Run(tmp_path / 'run').steps == 12

def test_the_clock_of_the_wall_may_jump(tmp_path, monkeypatch):
    monkeypatch.setattr(time, 'time', lambda: -1e9)
    assert all(now.seconds >= 0 for now in fit(points(), moons, **options))

def test_hours_end_well(tmp_path, monkeypatch):
    "A budget that is used up: the step is saved, and the rest gives what an endless one would have."
    ticks = iter(range(10**6))
    with monkeypatch.context() as patched:
        patched.setattr(training.time, 'monotonic', lambda: 60. * next(ticks))
        now = last(fit(points(), moons, out=tmp_path / 'a', hours=0.1, **options))
    assert 1 <= now.step < 6 and now.saved and Run(tmp_path / 'a').steps == now.step
    last(fit(points(), moons, out=tmp_path / 'a', resume=True, **options))
    last(fit(points(), moons, out=tmp_path / 'b', **options))
    assert equal(tmp_path / 'a', tmp_path / 'b')

# ---- watching it

def test_the_bound_on_test_images(tmp_path):
    """Every third step, in the log and in what is handed over; it changes nothing else, it is the bound that
    an evaluation finds on these images within their errors, and a resumed run finds the same."""
    from mulan_vdm.evaluation import evaluate
    how = {**options, 'log_every': 5, 'steps': 7}
    seen = {now.step: now for now in fit(images(), digits, out=tmp_path / 'a', validate_every=3, **how)}
    assert [step for step, now in seen.items() if now.validation] == [3, 6]
    lines = {line['step']: line for line in log(tmp_path / 'a')}
    assert list(lines) == [3, 5, 6, 7]
    assert (lines[6]['validation'], lines[6]['validation_se']) == seen[6].validation
    assert 'validation' not in lines[5]
    plain = [now.loss for now in fit(images(), digits, **how)]
    assert plain == [now.loss for now in seen.values()]
    for steps in (4, 7):
        now = {**how, 'steps': steps, 'resume': steps > 4}
        last(fit(images(), digits, out=tmp_path / 'b', validate_every=3, **now))
    assert log(tmp_path / 'b')[-3:] == log(tmp_path / 'a')[-3:]
    *_, now = fit(images(), digits, validate_every=6, **{**options, 'steps': 6})
    bound, se = now.validation
    whole = evaluate(now.model, digits.test.some(256).x, 8)
    assert abs(whole.bpd.mean() - bound) < 5 * (se**2 + whole.noise_se**2)**0.5
    columns = Run(tmp_path / 'a').metrics()
    assert np.isnan(columns['validation']).tolist() == [False, True, False, True]

@pytest.mark.parametrize('schedule', ['edm', 'adaptive', 'linear'])
def test_the_quick_bound_uses_even_levels(schedule):
    from mulan_vdm.oracles import GaussianOracle
    from mulan_vdm.objective import x_prediction
    from mulan_vdm.codec import bits_per_dim
    torch.manual_seed(0)
    oracle = GaussianOracle(torch.zeros(4).double(), torch.eye(4).double())
    levels = make_schedule(schedule, -20., 20.)
    model = Diffusion(oracle, levels, RealCodec(), (4,), prediction=x_prediction)
    x = oracle.sample(2000)
    bound, se = training._quick_bound(model.double(), x, None, 500)
    truth = bits_per_dim(-oracle.log_prob(x), (4,)).mean()
    assert se < 0.5 and abs(bound - truth) < 5 * se

def test_the_learning_rate_falls():
    "By half a cosine, almost to zero; constant by default; the same however often it is resumed."
    rates = lambda **how: [now.lr for now in fit(points(), moons, **{**options, 'warmup': 2, **how})]
    assert rates() == [5e-4] + [1e-3] * 5
    fallen = rates(decay='cosine')
    assert fallen[1:] == sorted(fallen[1:], reverse=True) and 0 < fallen[-1] < 1e-4
    with pytest.raises(ValueError, match="unknown decay 'linear': choose one of constant, cosine"):
        rates(decay='linear')

def test_mirrored_images(tmp_path):
    "Half of them; the run's data say so; a set of points has no left and right."
    seen = []
    class Sees(UNet):
        def forward(self, z_t, *args, **kwargs):
            seen.append(z_t.detach())
            return super().forward(z_t, *args, **kwargs)
    half = torch.zeros(64, 1, 8, 8, dtype=torch.uint8)
    half[..., :4] = 16
    data = digits._replace(train=Split(half, None))
    model = Diffusion(Sees(1, 4, 1, fourier=(3.,)), Linear(-20., -19.), Codec(17), (1, 8, 8))
    last(fit(model, data, flip=True, **{**options, 'batch_size': 64, 'steps': 8}))
    left = torch.cat([z[..., :4].mean((1, 2, 3)) > 0 for z in seen]).float()
    assert abs(left.mean() - 0.5) < 5 * 0.5 / 512**0.5 and (left == left.round()).all()
    with pytest.raises(ValueError, match='flip=True'): next(fit(points(), moons, flip=True, **options))
    last(fit(images(), digits, flip=True, out=tmp_path / 'a', **options))
    assert Run(tmp_path / 'a').data().release == digits.release + ', training images mirrored at random'
    last(fit(images(), digits, out=tmp_path / 'a', resume=True, **{**options, 'steps': 8}))
    assert 'mirrored' in Run(tmp_path / 'a').data().release
    last(fit(images(), digits, out=tmp_path / 'b', **options))
    assert Run(tmp_path / 'b').data().release == digits.release

def test_a_log_file_holds_no_bar(tmp_path):
    "Standard error in a file: a line with the time it will take, a line per checkpoint, and nothing else."
    flags = ['--steps', '60', '--save_every', '25', '--out', str(tmp_path / 'run')]
    with open(tmp_path / 'log.txt', 'w') as file:
        assert subprocess.run([sys.executable, '-c', code, *words, *flags], env=ENV, stderr=file,
                              stdout=subprocess.DEVNULL).returncode == 0
    lines = (tmp_path / 'log.txt').read_text().splitlines()
    steps = [line.split(':')[0] for line in lines if line.startswith('step')]
    assert steps == [f'step {n} of 60' for n in range(6, 61, 6)]
    assert sum('s a step on' in line for line in lines) == 1 and '%|' not in ''.join(lines)
    assert all('bits/dim' in line for line in lines if line.startswith('step'))

def test_a_terminal_has_a_bar(monkeypatch):
    import io
    class Terminal(io.StringIO):
        def isatty(self): return True
    def shown(**env):
        for name, value in env.items(): monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, 'stderr', Terminal())
        last(fit(points(), moons, **{**options, 'steps': 30, 'progress': True}))
        return sys.stderr.getvalue()
    said = shown()
    assert 'training on' in said and 'bits/dim' in said and 's a step on' in said
    said = shown(TQDM_DISABLE='1')
    assert '%|' not in said and 'step 30 of 30' in said

class Notes:
    "What a tracker is told."
    name = 'notes'
    def __init__(self): self.told = []
    def log(self, values, step=None, **_): self.told.append((step, values))
    def finish(self): self.told.append('finished')

def test_a_tracker_hears_what_is_logged(tmp_path, monkeypatch):
    "Every line of the log, and the end, also of a run that is left; metrics.jsonl stays as it is."
    notes = Notes()
    started = []
    def init(self, project, config=None, init_kwargs={}):
        started.append((config, init_kwargs))
        self.trackers = [notes]
    monkeypatch.setattr(Accelerator, 'init_trackers', init)
    monkeypatch.setattr(training, '_check_tracker', lambda track: None)
    last(fit(points(), moons, out=tmp_path / 'a', track='tensorboard', **options))
    (settings, own), = started
    assert settings['lr'] == 1e-3 and None not in settings.values() and own == {'tensorboard': {}}
    *told, end = notes.told
    assert end == 'finished' and [step for step, _ in told] == [1, 2, 3, 4, 5, 6]
    assert all('step' not in values for _, values in told) # trackio keeps the word for itself
    told = [{'step': step, **values} for step, values in told]
    assert [{k: v for k, v in line.items() if k != 'seconds'} for line in told] == log(tmp_path / 'a')
    steps = fit(points(), moons, track='tensorboard', **options)
    next(steps)
    steps.close()
    assert notes.told[-1] == 'finished'

@pytest.mark.parametrize('track, name', [('wandb', 'name'), ('trackio', 'name'), ('mlflow', 'run_name')])
def test_a_run_has_the_name_of_its_folder(tmp_path, monkeypatch, track, name):
    started = []
    monkeypatch.setattr(Accelerator, 'init_trackers', lambda self, *told: started.append(told[-1]))
    monkeypatch.setattr(Accelerator, 'log', lambda self, values, step: None)
    monkeypatch.setattr(training, '_check_tracker', lambda track: None)
    monkeypatch.setattr(Accelerator, '__init__', without_trackers(Accelerator.__init__))
    last(fit(points(), moons, out=tmp_path / 'seventh', track=track, **options))
    last(fit(points(), moons, track=track, **options))
    assert started == [{track: {name: 'seventh'}}, {track: {}}]

def without_trackers(init):
    "An accelerator that does not look for their packages."
    return lambda self, *args, log_with=None, **kwargs: init(self, *args, **kwargs)

def test_a_tracker_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="unknown track 'paper': choose one of tensorboard, wandb, trackio"):
        next(fit(points(), moons, out=tmp_path / 'a', track='paper', **options))
    assert not (tmp_path / 'a').exists()

def test_tensorboard(tmp_path):
    pytest.importorskip('tensorboard')
    last(fit(points(), moons, out=tmp_path / 'a', track='tensorboard', **options))
    assert list((tmp_path / 'a').rglob('events.out.tfevents.*'))
    assert len(log(tmp_path / 'a')) == 6

def test_batches_fetched_ahead_are_the_same(tmp_path, monkeypatch):
    last(fit(points(), moons, out=tmp_path / 'near', **options))
    monkeypatch.setattr(training, '_many', 0)
    last(fit(points(), moons, out=tmp_path / 'far', **options))
    assert log(tmp_path / 'near') == log(tmp_path / 'far')

# ---- one wait a step, one graph

class Waits(torch.utils._python_dispatch.TorchDispatchMode):
    "Counts what reads a number off its device, or needs one to know a shape."
    asking = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default,
              torch.ops.aten.equal.default, torch.ops.aten.is_nonzero.default}

    def __init__(self):
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.n += op in self.asking
        return op(*args, **(kwargs or {}))

class Fetches(torch.overrides.TorchFunctionMode):
    "Counts what copies a tensor to the host at once."
    def __init__(self):
        super().__init__()
        self.n = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.n += getattr(function, '__name__', '') in ('tolist', 'numpy', 'cpu')
        return function(*args, **(kwargs or {}))

def small(name, **more):
    "A preset's model, small."
    preset = presets[name]
    arguments = {**preset['model'], 'channels': 8, 'blocks': 1, 'event_shape': (1, 8, 8), 'vocab': 17, **more}
    return build(dict(system=preset['system'], model=arguments))

systems_small = [('vdm-digits', {}), ('vdm-digits', dict(schedule='adaptive')),
                 ('mulan-digits', dict(encoder_channels=8, clock=True)),
                 ('mulan-digits', dict(encoder_channels=8, latent='categorical')),
                 ('mulan-digits', dict(encoder_channels=8, latent='gaussian')),
                 ('vdmpp-digits', {}), ('repvdm-digits', dict(encoder_channels=8))]

@pytest.mark.parametrize('name, more', systems_small)
@pytest.mark.parametrize('how', [dict(), dict(accumulate=2), dict(flip=True, drop=0.5)])
def test_a_step_waits_once(name, more, how):
    "Loss, terms, norm, and whether to end or to save, are fetched together; nothing else is asked for."
    steps = fit(small(name, **more), digits, **{**options, **how})
    next(steps)
    with Waits() as waits, Fetches() as fetches: next(steps)
    assert (waits.n, fetches.n) == (0, 1)

def test_a_learned_end_is_asked_for():
    "What the counter is able to see."
    steps = fit(small('vdm-digits', learn_ends=True), digits, **options)
    next(steps)
    with Waits() as waits, Fetches() as fetches: next(steps)
    assert (waits.n, fetches.n) == (1, 1)

@pytest.mark.parametrize('name, more', [systems_small[i] for i in (0, 1, 2, 5, 6)])
def test_the_objective_is_one_graph(name, more):
    """What `compile` compiles is one graph for all parts of a batch: nothing breaks it (`fullgraph` raises
    where something does), it draws the numbers of eager, and gives its value, gradient and schedule."""
    model = small(name, **more).train()
    x = digits.train.x[:8]
    y = digits.train.y[:8] if name.startswith('vdmpp') else None
    before = {k: v.clone() for k, v in model.state_dict().items()}
    def found():
        model.load_state_dict(before)
        values = []
        for part in (0, 1, 1):
            torch.manual_seed(part) # of dropout
            rows = Rows(torch.Generator().manual_seed(3), part, 2)
            model.zero_grad()
            loss = model(x, y=y, rows=rows, check=False).loss.mean()
            loss.backward()
            values.append(loss.detach())
        gradient = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
        return values, gradient, {k: v.clone() for k, v in model.named_buffers() if v.numel()}
    expected = found()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with training._compiled(model, backend='eager', fullgraph=True): seen = found()
    counters = torch._dynamo.utils.counters
    assert (counters['stats']['unique_graphs'], sum(counters['graph_break'].values())) == (1, 0)
    torch.testing.assert_close(seen, expected, rtol=1e-5, atol=1e-6)

def test_a_learned_end_breaks_the_graph():
    "The decoder asks for it; value and gradient are those of eager."
    model = small('vdm-digits', learn_ends=True).train()
    def found():
        torch.manual_seed(0)
        model.zero_grad()
        loss = model(digits.train.x[:8], rows=Rows(torch.Generator().manual_seed(3)), check=False).loss.mean()
        loss.backward()
        return loss.detach(), {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    expected = found()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with training._compiled(model, backend='eager'): seen = [found() for _ in range(2)]
    assert torch._dynamo.utils.counters['graph_break']
    for one in seen: torch.testing.assert_close(one, expected, rtol=1e-5, atol=1e-6)

def test_what_cannot_be_compiled(tmp_path):
    model = small('vdm-digits', schedule='monotone', variance=True)
    with pytest.raises(ValueError, match='compile=True with variance=True'):
        next(fit(model, digits, compile=True, out=tmp_path / 'run', **options))
    assert not (tmp_path / 'run').exists()

def test_nothing_to_compile_with_is_said_before_any_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr('torch._inductor.cpp_builder.get_cpp_compiler', mock.Mock(side_effect=RuntimeError))
    words = ['train', '--preset', 'vdm-digits', '--compile', '--out', str(tmp_path / 'run')]
    assert cli.main(words) == 1
    said = capsys.readouterr().err.strip()
    assert '--compile needs a C++ compiler' in said and len(said.splitlines()) == 1
    assert not (tmp_path / 'run').exists()

@pytest.mark.parametrize('name', list(schedules))
@pytest.mark.parametrize('learned', [False, True])
def test_a_fixed_start_is_where_it_starts(name, learned):
    "What the decoder is told instead of asking is gamma(0), also after the schedule has learned."
    if learned and not schedules[name].learns_ends: return
    torch.manual_seed(0)
    schedule = make_schedule(name, -8., 4., learned, event_shape=(1, 2, 2))
    for p in schedule.parameters(): torch.nn.init.normal_(p, std=0.3)
    for _ in range(3): schedule.observe(torch.empty(50, 1, 1, 1).uniform_(-8, 4), torch.rand(50, 1, 1, 1))
    start = schedule.fixed_start()
    found = schedule(torch.zeros(1, 1, 1, 1))
    assert (start is None) == learned
    if start is not None: torch.testing.assert_close(found, torch.full_like(found, start), rtol=0, atol=1e-3)

# ---- a run made from Python, at the command line

OWN = """
import torch
from torch import nn
from mulan_vdm.codec import codec_for
from mulan_vdm.diffusion import Diffusion
from mulan_vdm.schedules import Linear
from mulan_vdm.systems import system

class Net(nn.Module):
    classes = 0
    def __init__(self, n):
        super().__init__()
        self.layer = nn.Linear(n, n)
    def forward(self, z_t, gamma, w=None, y=None): return self.layer(z_t.flatten(1)).view_as(z_t)

@system
def somebodys(event_shape: tuple[int, ...], vocab: int | None, start: float = -7.9) -> Diffusion:
    n = torch.Size(event_shape).numel()
    return Diffusion(Net(n), Linear(start, 5.), codec_for(vocab), event_shape)
"""

def used(run, *more):
    "Every command that needs nothing but the folder."
    for command in (['info'], ['evaluate', '--draws', '2'], ['sample', '--n', '2', '--steps', '2']):
        assert cli.main([command[0], str(run), *command[1:], *more]) == 0, command
    assert cli.main(['train', '--out', str(run), '--resume', '--steps', '3', *more]) == 0
    assert Run(run).steps == 3

def test_a_run_from_python(tmp_path):
    model = vdm((1, 8, 8), 17, channels=4, blocks=1, fourier=(3.,))
    last(fit(model, digits, out=tmp_path / 'run', **{**options, 'steps': 2}))
    used(tmp_path / 'run')

def test_a_run_of_images_from_a_folder(tmp_path):
    "The folder is named with the run, by an absolute path."
    from PIL import Image
    for i in range(40):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        (tmp_path / 'images').mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / 'images' / f'{i}.png')
    data = load('folder', bits=4, path=tmp_path / 'images')
    model = vdm(data.event_shape, data.vocab, channels=4, blocks=1, fourier=(3.,))
    last(fit(model, data, out=tmp_path / 'run', **{**options, 'steps': 2}))
    assert repr(Run(tmp_path / 'run').data()) == repr(data)
    used(tmp_path / 'run')

def test_a_system_of_ones_own(tmp_path, monkeypatch, capsys):
    "Known once its module is imported, by --plugin from the current folder; else the remedy is named."
    (tmp_path / 'somebodys_parts.py').write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', [str(tmp_path), *sys.path])
    from somebodys_parts import somebodys
    last(fit(somebodys((1, 8, 8), 17, start=-6.), digits, out='run', **{**options, 'steps': 2}))
    systems.pop('somebodys')
    sys.modules.pop('somebodys_parts')
    for words in (['evaluate', 'run'], ['train', '--out', 'run', '--resume', '--steps', '3']):
        assert cli.main(words) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert "unknown system 'somebodys'" in error and '--plugin' in error
    try: used('run', '--plugin', 'somebodys_parts')
    finally: systems.pop('somebodys', None)
    assert cli.main(['info', 'run', '--plugin', 'nobodys_parts']) != 0
    assert '--plugin nobodys_parts: no such module' in capsys.readouterr().err

def test_a_model_put_together_by_hand(tmp_path, capsys):
    "Its folder says what is missing; weights and log are there."
    last(fit(points(), moons, out=tmp_path / 'run', **{**options, 'steps': 2}))
    assert cli.main(['evaluate', str(tmp_path / 'run')]) == 1
    assert 'has no model and no system' in capsys.readouterr().err
    assert Run(tmp_path / 'run').steps == 2

def test_pictures_at_checkpoints(tmp_path):
    "The curve and some samples, while it trains; the log is as ever."
    out = tmp_path / 'run'
    often = ['--steps', '4', '--save_every', '2', '--validate_every', '2', '--out', str(out)]
    assert cli.main([*words, *often]) == 0
    assert Run(out).picture('progress').exists() and Run(out).picture('metrics').exists()
