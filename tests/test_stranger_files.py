"""What somebody new has in files, and does with run folders: it works, or one line says why not."""
import warnings
import numpy as np
import pytest
import torch
from mulan_vdm import fit, load, preset, vdm
from mulan_vdm.reports import describe_run, draw_progress, evaluate_run, sample_run
from mulan_vdm.runs import Run

torch.set_num_threads(1)
few = dict(steps=2, batch_size=8, progress=False)
rng = np.random.RandomState(0)


def trained(model, data, **changes):
    for step in fit(model, data, **few | changes): pass
    return step


def one_line(call, *words):
    with pytest.raises((TypeError, ValueError, OSError)) as caught: call()
    said = str(caught.value)
    assert '\n' not in said and all(word in said for word in words), said


@pytest.mark.parametrize('shape', [(4, 8, 8), (2, 8, 8), (2, 3, 4, 4)], ids=str)
@pytest.mark.parametrize('real', [False, True])
def test_pictures_of_any_image(tmp_path, shape, real):
    "Channels that are no colours, and real numbers, have pictures like others; nothing is lost."
    x = rng.randn(40, *shape).astype('f4') if real else rng.randint(0, 256, (40, *shape)).astype('u1')
    np.savez(tmp_path / 'a.npz', train=x, test=x[:9])
    data = load('arrays', path=tmp_path / 'a.npz', axes='NCHW' if len(shape) == 3 else 'NCDHW')
    step = trained(vdm(data.event_shape, data.vocab, channels=4, blocks=1), data, out=tmp_path / 'run')
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='not every picture')
        draw_progress(tmp_path / 'run', data, step.model)
    found = sample_run(tmp_path / 'run', n=3, steps=2)
    assert Run(tmp_path / 'run').samples().shape == found.x.shape == (3, *shape)
    if len(shape) == 3: evaluate_run(tmp_path / 'run', draws=2, maps=2)
    assert {p.stem for p in Run(tmp_path / 'run').pictures()} >= {'samples', 'progress'}


digits = load('digits')


def small(**changes): return preset('vdm-digits', digits, channels=4, blocks=1, **changes)


def test_a_shared_model_stands_for_a_run(tmp_path, monkeypatch):
    "A folder of save_pretrained is loaded, sampled and evaluated on named data; ~ is the home folder."
    from mulan_vdm import Diffusion, load_run
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    small().save_pretrained('~/shared')
    assert not (tmp_path / '~').exists()
    model, config, steps = load_run('~/shared')
    assert (config['system'], steps) == ('vdm', 0)
    assert Diffusion.from_pretrained('~/shared').event_shape == model.event_shape
    assert len(sample_run('shared', n=2, steps=2).x) == 2
    assert len(evaluate_run('shared', data='digits', draws=2, n=9).bpd) == 9
    one_line(lambda: evaluate_run('shared', draws=2), 'data=')
    said = describe_run('shared')
    assert said.startswith('shared: vdm, shared after ? steps\nmodel ') and '\nfit' not in said


def test_a_part_of_a_run_names_the_run(tmp_path):
    from mulan_vdm import load_run
    run = tmp_path / 'run'
    trained(small(), digits, out=run)
    for part in ('config.json', 'checkpoint'): one_line(lambda: load_run(run / part), f'name {run}')
    one_line(lambda: load_run(run / 'nowhere'), 'train with --out')


def test_a_run_of_own_data_says_how_to_go_on(tmp_path):
    trained(small(), digits._replace(name='mine', loaded=None), out=tmp_path / 'run')
    one_line(lambda: evaluate_run(tmp_path / 'run', draws=2), 'mine', 'evaluate(model, images)', '--plugin')
    assert len(evaluate_run(tmp_path / 'run', data='digits', draws=2, n=9).bpd) == 9


def test_systems_name_what_they_do_not_know():
    for wrong, word in ((dict(chanels=3), 'did you mean channels?'), (dict(lr=3), 'lr')):
        one_line(lambda: preset('vdm-digits', digits, **wrong), 'vdm: ', word)
    one_line(lambda: preset('vdm-digits', 'digits'), 'data is a str', 'load(...)')
    one_line(lambda: preset('vdm-digits', digits.train), 'data is a Split')
    one_line(lambda: vdm(8, 17), 'event_shape is a int', '(1, 8, 8)')
    one_line(lambda: vdm(digits, 17), 'event_shape is a Data')


@pytest.mark.parametrize('scale, shift', [(1, 0), (255, 0), (127.5, -1)])
def test_pixels_as_floats(tmp_path, scale, shift):
    "Pixels saved as floats of any range are levels: a warning; with vocab whole ones are read."
    k = rng.randint(0, 256, (60, 1, 8, 8))
    np.savez(tmp_path / 'x.npz', train=k / scale + shift, test=k[:9] / scale + shift)
    with pytest.warns(UserWarning, match='which are levels.*vocab='):
        data = load('arrays', path=tmp_path / 'x.npz')
    assert data.vocab is None
    if scale == 1:
        data = load('arrays', path=tmp_path / 'x.npz', vocab=256)
        assert data.vocab == 256 and np.array_equal(data.train.x, k)
    else: one_line(lambda: load('arrays', path=tmp_path / 'x.npz', vocab=256), 'not all whole numbers')


def test_arrays_small_in_every_way(tmp_path):
    np.save(tmp_path / 'one.npy', np.float32(3))
    one_line(lambda: load('arrays', path=tmp_path / 'one.npy'), "'x' has shape ()", '(N, D)')
    np.savez(tmp_path / 'two.npz', train=np.zeros((9, 1, 4, 4), 'u1'), test=np.zeros((1, 1, 4, 4), 'u1'))
    with pytest.warns(UserWarning, match='one test image, of which no standard error'):
        data = load('arrays', path=tmp_path / 'two.npz')
    with warnings.catch_warnings(action='error'):
        step = trained(vdm((1, 4, 4), 256, channels=4, blocks=1), data, validate_every=1)
    assert np.isfinite(step.validation[0]) and np.isnan(step.validation[1])


def test_a_place_for_a_name(): one_line(lambda: load('photos/'), "name='photos/'", 'folder', 'path=...')


def test_home_folder_in_every_place(tmp_path, monkeypatch):
    "~ is the home folder for every file that a function is given, not a folder of that name."
    from mulan_vdm.reports import compress_run, decompress_run, encode_run
    monkeypatch.setenv('HOME', str(tmp_path))
    trained(preset('repvdm-digits', digits, channels=4, blocks=1, encoder_channels=4), digits, out='~/run')
    encode_run('~/run', out='~/z')
    found = sample_run('~/run', n=3, steps=2, latents='~/z.npz')
    assert len(found.x) == 3 and Run('~/run').samples().shape == (3, 1, 8, 8)
    compress_run('mulan-digits', out='~/a.mvz', n=2, T=2, variance='fixed')
    decompress_run('~/a.mvz', 'mulan-digits', out='~/back')
    compress_run('mulan-digits', '~/back', out='~/b.mvz', T=2, variance='fixed')
    assert len(list((tmp_path / 'back').iterdir())) == 2 and (tmp_path / 'b.mvz').exists()
