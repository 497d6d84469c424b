"""What cannot work is refused before the first second of work: no data are read, no network is built, no run
is opened. Whatever was typed is named, in one line."""
import contextlib
import io
import json
import os
import shutil
from pathlib import Path
import pytest
import torch
from mulan_vdm import reports, systems
from mulan_vdm.cli import main
from mulan_vdm.codec import Codec
from mulan_vdm.data import load, sources
from mulan_vdm.diffusion import Diffusion
from mulan_vdm.runs import Run
from mulan_vdm.schedules import Linear, schedules
from mulan_vdm.training import fit

EARLIER = Path(__file__).parent / 'earlier'

def said(*words):
    "Exit status, and the lines of standard error."
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([str(word) for word in words])
    return status, err.getvalue().splitlines()

def refused(words, message):
    "One line, which says so and is no bug."
    status, lines = said(*words)
    assert status in (1, 2) and len(lines) == 1 and lines[0].startswith('mulan-vdm: '), (words, lines)
    assert message in lines[0] and 'a bug in' not in lines[0], (words, lines)

def worked(*_, **__): raise AssertionError('work before the check')

# ---- before the first second of work

TRAIN = {
    'vdm-digits': [
        ('--fourier 7 999', '--fourier 999.0: single precision overflows'),
        ('--gamma_min -89', '--gamma_min -89.0: single precision overflows'),
        ('--gamma_min 6', '--gamma_min 6.0 must be below --gamma_max 5.0'),
        ('--schedule sigmoid', "unknown --schedule 'sigmoid': choose one of linear"),
        ('--schedule cosine --learn_ends', 'has fixed ends'),
        ('--variance', 'variance'),
        ('--prediction noise', "unknown --prediction 'noise': choose one of x, eps"),
        ('--style new', "unknown --style 'new': choose one of ours, released"),
        ('--channels 6', '--channels 6 must be a multiple of 4'),
        ('--decay linear', "unknown --decay 'linear': choose one of constant, cosine"),
        ('--precision fp8', "unknown --precision 'fp8': choose one of no, bf16, fp16"),
        ('--track paper', "unknown --track 'paper': choose one of tensorboard"),
        ('--shard --compile', '--shard with --compile'), ('--shard --precision fp16', 'use bf16'),
        ('--data digits --bits 3', '--bits 3: digits has 17 levels'),
        ('--data mnits', '--data mnits: choose one of digits')],
    'mulan-digits': [
        ('--latent gumbel', "unknown --latent 'gumbel': choose one of khot"),
        ('--estimator score', "unknown --estimator 'score': choose one of identity"),
        ('--k 51', '--k 51: a subset of --m 16'), ('--bound -1', '--bound -1.0: pass a positive bound'),
        ('--schedule sigmoid', "unknown --schedule 'sigmoid'")],
    'vdmpp-digits': [
        ('--weighting snr', "unknown --weighting 'snr'"), ('--network vit', "unknown --network 'vit'"),
        ('--gamma_max 99', '--gamma_max 99.0: single precision')],
    'repvdm-digits': [
        ('--network adm', "unknown --network 'adm': choose one of unet, dit"),
        ('--weighting snr', "unknown --weighting 'snr'")]}

CASES = [(preset, *case) for preset, cases in TRAIN.items() for case in cases]
@pytest.mark.parametrize('preset, words, message', CASES)
def test_before_data_are_read(preset, words, message, tmp_path, monkeypatch):
    monkeypatch.setitem(sources, 'digits', sources['digits']._replace(read=worked))
    monkeypatch.setattr(systems, 'build', worked)
    out = tmp_path / 'run'
    refused(['train', '--preset', preset, *words.split(), '--out', out], message)
    assert not out.exists()

def test_what_any_images_forbid_is_all_that_is_forbidden():
    "Every preset passes, and every preset with any schedule that its system has."
    for preset in systems.presets.values(): systems.check_arguments(preset)
    for name in schedules:
        model = dict(schedule=name, learn_ends=None, gamma_min=-8., gamma_max=8.)
        systems.check_arguments(dict(system='mulan', model=model))
    for network in systems.networks:
        for patch in (1, 3, 5, 14):
            systems.check_arguments(dict(system='vdmpp', model=dict(network=network, patch=patch)))

OTHERS = [
    ('evaluate', '--split valid', "unknown --split 'valid': choose one of test, train"),
    ('evaluate', '--method elbo', "unknown --method 'elbo': choose one of vlb, ode"),
    ('evaluate', '--T 9 --variance small', "unknown --variance 'small': choose one of fixed"),
    ('evaluate', '--T 9 --grid log', "unknown --grid 'log': choose one of time, best"),
    ('evaluate', '--variance large', '--variance large and --grid time are of steps back'),
    ('evaluate', '--method ode --trace none', "unknown --trace 'none': choose one of rademacher"),
    ('evaluate', '--method ode --dequantization none', "unknown --dequantization 'none'"),
    ('evaluate', '--method ode --T 9', '--T 9 goes with --method vlb'),
    ('evaluate', '--tolerance 1e-4', '--tolerance 0.0001 goes with --method ode'),
    ('evaluate', '--draws 1', '--draws 1: pass at least 2'),
    ('evaluate', '--data mnits', "unknown --data 'mnits': choose one of digits"),
    ('evaluate', '--bits 3', '--bits 3 without'), ('evaluate', '--table new/x', "there is no folder 'new'"),
    ('sample', '--step euler', "unknown --step 'euler': choose one of ddpm"),
    ('sample', '--grid log', "unknown --grid 'log': choose one of time"),
    ('encode', '--data mnits', "unknown --data 'mnits'"), ('encode', '--path x', '--path x without'),
    ('encode', '--out new/x', "there is no folder 'new'"),
    ('explore', '--n 1', '--n 1: pass at least 2'),
    ('compress', '--split valid', "unknown --split 'valid'"),
    ('compress', '--grid log', "unknown --grid 'log'"),
    ('compress', '--variance small', "unknown --variance 'small'"),
    ('compress', '--out new/x', "there is no folder 'new'"),
    ('compress', '--out there', 'exists: name another'),
    ('decompress', '--run x --out new/x', "there is no folder 'new'"),
    ('decompress', '--run x --out there', 'exists: name another'),
    ('decompress', '--run x --out x', 'is no file'),
    ('convert', '--preset mulan --out x', "unknown --preset 'mulan'"),
    ('convert', '--prediction noise --out x', "unknown --prediction 'noise'")]

@pytest.mark.parametrize('command, words, message', OTHERS)
def test_before_a_run_is_opened(command, words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('there').touch()
    for name in ('load_run', '_opened', 'contents', 'Run'): monkeypatch.setattr(reports, name, worked)
    refused([command, EARLIER / 'vdm', *words.split()], message)
    assert os.listdir() == ['there']

def test_before_the_data_of_a_run_are_read(monkeypatch, tmp_path):
    "What the model alone forbids."
    monkeypatch.setattr(Run, 'data', worked)
    refused(['probe', EARLIER / 'vdm'], 'the model has no latent to encode with')
    refused(['encode', EARLIER / 'vdm', '--out', tmp_path / 'z'], 'the model has no latent to encode with')
    refused(['explore', EARLIER / 'mulan'], 'these pictures need a Gaussian latent of images')
    refused(['sample', EARLIER / 'vdm', '--score', '--guidance', '2'], '--guidance 2.0')
    refused(['sample', EARLIER / 'vdm', '--score', '--label', '2'], '--label 2')

# ---- a run and its folder

@pytest.fixture
def run(tmp_path):
    "A copy of a run of 20 steps."
    return Run(shutil.copytree(EARLIER / 'vdm', tmp_path / 'run'))

def rewritten(run, **changed):
    "Lays other parts over a configuration."
    run.file('config').write_text(json.dumps({**run.config, **changed}))

@pytest.mark.parametrize('part', ['model', 'data', 'fit'])
def test_an_entry_of_another_version(part, run, monkeypatch):
    "A key that is not known here names its part and the version that wrote it, also on resuming."
    monkeypatch.setitem(sources, 'digits', sources['digits']._replace(read=worked))
    rewritten(run, **{part: {**run.config[part], 'flux': 3}})
    before = run.file('config').read_bytes()
    refused(['train', '--out', run, '--resume'], f'config.json: {part} has flux, which this version')
    assert run.file('config').read_bytes() == before

def test_a_run_without_its_settings(run):
    "What it is can be said; it can be continued in Python."
    config = {k: v for k, v in run.config.items() if k != 'fit'}
    run.file('config').write_text(json.dumps(config))
    assert said('info', run) == (0, [])
    refused(['train', '--out', run, '--resume'], 'config.json has no fit: resume it in Python')

def test_an_empty_report(run):
    (run.path / 'report.json').write_text('')
    for command in ('info', 'compare'):
        refused([command, run], 'report.json is damaged')
        assert 'write it again by mulan-vdm evaluate' in said(command, run)[1][0]

# ---- images that move, or that lie around the run

def pictures(folder, n=12):
    "Small images that differ."
    from PIL import Image
    folder.mkdir(parents=True)
    for k in range(n): Image.new('L', (8, 8), 20 * k).save(folder / f'{k}.png')

def trained(out, **flags):
    words = dict(channels=4, blocks=1, batch_size=4, steps=1, out=out, **flags)
    return said('train', *(word for name, value in words.items() for word in (f'--{name}', value)))

def test_images_that_were_moved(tmp_path):
    "The same ones in another place: the run goes on and knows where they are. Others are refused."
    for side in ('train', 'test'): pictures(tmp_path / 'images' / side)
    out = tmp_path / 'run'
    assert trained(out, data='folder', path=tmp_path / 'images')[0] == 0
    (tmp_path / 'images').rename(tmp_path / 'moved')
    refused(['evaluate', out], f"say where they are, mulan-vdm train --out {out} --resume --path")
    again = ['train', '--out', out, '--resume', '--steps', '2', '--path']
    assert said(*again, tmp_path / 'moved')[0] == 0
    assert said('evaluate', out, '--draws', '2')[0] == 0
    (tmp_path / 'moved/train/3.png').unlink()
    refused([*again, tmp_path / 'moved'], 'was trained on other images')

@pytest.mark.parametrize('inside', ['', 'cat'])
def test_a_run_among_its_images(inside, tmp_path, monkeypatch):
    "Refused at the start, and nothing is left."
    for side in ('train', 'test'): pictures(tmp_path / side / inside)
    monkeypatch.chdir(tmp_path)
    status, lines = trained('run', data='folder', path='.')
    assert status == 1 and 'among the images: name a folder outside' in lines[-1]
    assert sorted(os.listdir()) == ['test', 'train']

@pytest.mark.parametrize('n', [1, 2])
def test_one_test_image(n, tmp_path):
    "No standard error: said before it is evaluated; two are enough."
    pictures(tmp_path / 'images/train')
    pictures(tmp_path / 'images/test', n)
    assert trained(tmp_path / 'run', data='folder', path=tmp_path / 'images')[0] == 0
    with pytest.MonkeyPatch.context() as patch:
        if n == 1: patch.setattr(reports, 'evaluate', worked)
        status, lines = said('evaluate', tmp_path / 'run', '--draws', '2')
    assert status == (n == 1) and (n == 2 or 'of one image no standard error' in lines[-1])
    if n == 2: refused(['evaluate', tmp_path / 'run', '--n', '1'], '--n 1: of one image')

def test_reading_many_images_is_watched(monkeypatch):
    "A bar that says what is read and how much of it there is, once it takes more than two seconds."
    from mulan_vdm import data
    made = []
    class Bar:
        def __init__(self, **how): made.append(how)
        def __enter__(self): return self
        def __exit__(self, *_): pass
        def update(self): made[-1]['done'] = made[-1].get('done', 0) + 1
    monkeypatch.setattr(data, 'tqdm', Bar)
    assert list(data._in_threads(str, range(50), 'reading images')) == [str(k) for k in range(50)]
    assert made == [dict(desc='reading images', total=50, delay=2, done=50)]

# ---- stopped, asked again, copied

def test_the_last_step_is_logged(tmp_path):
    "However seldom lines are due: what a signal ended can be evaluated."
    from mulan_vdm.systems import vdm
    from mulan_vdm.training import fit
    model = vdm((1, 8, 8), 17, channels=4, blocks=1)
    done = []
    how = dict(steps=99, batch_size=8, log_every=10**6, save_every=3, progress=False)
    stop = lambda: len(done) == 3
    for now in fit(model, load('digits'), out=tmp_path / 'a', stop=stop, **how): done.append(now)
    assert Run(tmp_path / 'a').metrics()['step'].tolist() == [4] and Run(tmp_path / 'a').steps == 4
    assert said('evaluate', tmp_path / 'a', '--draws', '2')[0] == 0

@pytest.mark.parametrize('name', ['vdm', 'mulan', 'vdmpp', 'repvdm'])
def test_models_can_be_copied(name):
    "By pickle, before and after a step: the same weights and the same bound."
    from mulan_vdm.processes import Rows
    from mulan_vdm.training import fit
    digits = load('digits')
    small = dict(channels=8, multipliers=(1,), attention=()) if name == 'vdmpp' else dict(channels=8)
    torch.manual_seed(0)
    model = systems.systems[name]((1, 8, 8), 17, blocks=1, **small)
    bound = lambda m: m.eval()(digits.test.x[:4], rows=Rows(torch.Generator().manual_seed(0))).vlb
    for _ in range(2):
        torch.save(model, packed := io.BytesIO())
        packed.seek(0)
        assert torch.equal(bound(torch.load(packed, weights_only=False)), bound(model))
        for _ in fit(model, digits, steps=1, batch_size=8, progress=False): pass

@pytest.mark.parametrize('kind', ['f8', 'f2', 'i4'])
def test_latents_of_any_kind_of_number(kind, tmp_path):
    import numpy as np
    mean = np.ones((2, 16)).astype(kind)
    np.savez(tmp_path / 'z.npz', mean=mean)
    found = reports._read_latents(tmp_path / 'z.npz', 16)
    assert found.dtype == torch.float32 and torch.equal(found, torch.ones(2, 16))

def test_no_compiler():
    "Whatever the compiler says, the flag is named and the way out."
    from mulan_vdm.words import told
    error = type('InvalidCxxCompiler', (RuntimeError,), dict(__module__='torch._inductor.exc'))
    line, status = told(error('No working C++ compiler found\nand so on'))
    assert (line, status) == ('--compile: No working C++ compiler found: install a compiler, or leave '
                              '--compile out', 1)

def test_a_pipe_and_a_device_are_not_read(tmp_path):
    "Commands that take a file neither wait nor read without end."
    os.mkfifo(tmp_path / 'pipe')
    for place in (tmp_path / 'pipe', '/dev/zero'):
        refused(['decompress', place, '--run', EARLIER / 'vdm', '--out', tmp_path / 'out'], 'is no file')
        refused(['convert', place, '--out', tmp_path / 'out'], 'is not a file')
        refused(['sample', EARLIER / 'mulan', '--latents', place], 'is no file')

def test_from_python():
    "What the command line would not let through is named too, before the network is asked."
    import numpy as np
    from mulan_vdm import evaluate, ode_evaluate, sample
    from mulan_vdm.evaluation import importance_evaluate
    digits = load('digits')
    model = systems.repvdm((1, 8, 8), 17, channels=8, blocks=1, d=4)
    model.net.register_forward_pre_hook(worked)
    x = digits.test.x[:4]
    for size in (0, -3):
        for call in (evaluate, importance_evaluate, ode_evaluate):
            with pytest.raises(ValueError, match=f'batch_size={size}: pass at least 1'):
                call(model, x, batch_size=size)
        with pytest.raises(ValueError, match=f'batch_size={size}'): sample(model, 2, 2, batch_size=size)
    for name, value in dict(y=[3, 1], w=np.zeros((2, 4)), z_1=[[0.]]).items():
        with pytest.raises(TypeError, match=f'^{name} is a {type(value).__name__}: pass a tensor'):
            sample(model, 2, 2, **{name: value})
    told = systems.vdmpp((1, 8, 8), 17, channels=8, multipliers=(1,), attention=(), classes=10)
    with pytest.raises(ValueError, match='y has labels 3..10, the network knows 0..9'):
        sample(told, 2, 2, y=torch.tensor([3, 10]))

@pytest.mark.bench
def test_an_image_just_below_the_limit(tmp_path):
    "Ninety-five million pixels in a small file: read with less than 8 bytes each."
    import resource
    from PIL import Image
    from mulan_vdm import data
    Image.new('1', (10_000, 9_500), 1).save(tmp_path / 'a.png')
    peak = lambda: 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    before = peak()
    assert data.read_image(tmp_path / 'a.png', 32).eq(255).all()
    assert peak() - before < 8 * 95e6

@pytest.mark.parametrize('run, words, message', [
    ('vdm', '--samples 4', 'no latent to draw several of'), ('mulan', '--even', 'leave it out'),
    ('vdm', '--samples 0', '--samples')])
def test_a_bound_that_the_model_cannot_have_is_refused_before_data(monkeypatch, run, words, message):
    monkeypatch.setattr(reports, '_images', worked)
    refused(('evaluate', EARLIER / run, *words.split()), message)

def test_a_network_without_blocks_is_refused_and_leaves_no_folder(tmp_path):
    model = Diffusion(torch.nn.Identity(), Linear(-5., 4.), Codec(17), (1, 8, 8))
    with pytest.raises(ValueError, match='keeps no blocks'):
        next(fit(model, load('digits'), steps=1, checkpointing=True, out=tmp_path / 'run', progress=False))
    assert not (tmp_path / 'run').exists()
