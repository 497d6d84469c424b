"""What somebody new has in files, and does with run folders: it works, or one line says why not."""
import warnings
import numpy as np
import pytest
import torch
from mulan_vdm import fit, load, preset, vdm
from mulan_vdm.reports import draw_progress, evaluate_run, sample_run
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
