"""What nobody said follows from the data: ends, features and network of images of any number of levels,
whichever way they come."""
import math

import numpy as np
import pytest
import torch
from PIL import Image

from mulan_vdm import load, load_run, preset
from mulan_vdm.cli import main
from mulan_vdm.codec import bits_per_dim
from mulan_vdm.data import Source, Split, sources
from mulan_vdm.systems import clean_end, preset_for, presets, repvdm, mulan, systems, vdm

small = dict(channels=8, blocks=1)


def left(model):
    "Noise at the clean end, in levels."
    return model.codec.vocab / 2 * math.exp(model.schedule.ends()[0] / 2)

def stripes(folder, n=40, side=12):
    "Pictures that differ, as files."
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(n):
        wave = 127 + 100 * np.sin(np.arange(side) * rng.uniform(0.2, 1.) + rng.uniform(0, 6))
        picture = np.clip(wave[:, None, None] + rng.normal(0, 5, (side, side, 3)), 0, 255)
        Image.fromarray(picture.astype(np.uint8)).save(folder / f'{i}.png')

@pytest.mark.parametrize('system', [vdm, mulan, repvdm])
@pytest.mark.parametrize('vocab', [2, 3, 17, 32, 256])
def test_a_sixth_of_a_level_is_left_whatever_the_system(system, vocab):
    model = system((1, 8, 8), vocab, **small)
    assert abs(left(model) - 1 / 6) < 0.01
    assert model.net.fourier == pytest.approx((math.log2(vocab) - 1, math.log2(vocab)), abs=1e-4)
    x = torch.randint(0, vocab, (64, 1, 8, 8))
    with torch.no_grad(): cost = bits_per_dim(model.eval()(x).reconstruction, (1, 8, 8)).mean()
    assert cost < 0.05  # what remains of the levels is nearly nothing

@pytest.mark.parametrize('system', [vdm, mulan, repvdm])
def test_what_is_said_stays(system):
    said = dict(gamma_min=-5., fourier=(1., 2.), learn_ends=False, attention=False)
    config = system((1, 8, 8), 256, **small, **said).config['model']
    assert {k: config[k] for k in said} == said

def test_real_numbers_have_no_features_of_levels():
    model = vdm((2,), None, channels=8, blocks=1)
    assert model.net.fourier == () and model.config['model']['gamma_min'] == -13.3

def test_a_stored_configuration_holds_what_was_decided():
    for name, system in systems.items():
        flat = dict(multipliers=(1,), attention=()) if name == 'vdmpp' else {}
        config = system((1, 8, 8), 17, **small, **flat).config['model']
        assert all(config[k] is not None for k in ('gamma_min', 'fourier', 'attention'))

def test_a_folder_from_the_command_line(tmp_path, monkeypatch):
    stripes(tmp_path / 'photos')
    monkeypatch.chdir(tmp_path)
    words = 'train --data folder --path photos --out run --steps 2 --channels 8 --blocks 1 --batch_size 4'
    assert main(words.split()) == 0
    model, config, _ = load_run('run')
    assert config['preset'] == 'folder' and config['model']['gamma_min'] == -13.3
    assert tuple(config['model']['fourier']) == (7., 8.) and left(model) < 0.2

def test_a_source_of_ones_own(tmp_path, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    def read(place, size, bits):
        x = torch.randint(0, 32, (60, 1, 6, 6), generator=generator).byte()
        return 'mine', Split(x[:40], None), Split(x[40:], None)
    monkeypatch.setitem(sources, 'mine', Source(read, levels=32, side=6))
    assert preset_for('mine') == 'folder'
    monkeypatch.chdir(tmp_path)
    words = 'train --data mine --out run --steps 2 --channels 8 --blocks 1 --batch_size 4'
    assert main(words.split()) == 0
    assert abs(left(load_run('run')[0]) - 1 / 6) < 0.01
    assert preset('folder', load('mine'), **small).config['model']['gamma_min'] == clean_end(32)

@pytest.mark.parametrize('name', [n for n in presets if n != 'vae-digits'])
def test_no_preset_leaves_noise_behind(name):
    chosen = presets[name]
    vocab = 17 if chosen['data']['name'] == 'digits' else 256
    shape = (1, 8, 8) if vocab == 17 else (3, 32, 32)
    with torch.device('meta'):
        made = systems[chosen['system']](shape, vocab, **{**chosen['model'], 'blocks': 1})
    low = made.config['model']['gamma_min']
    assert vocab / 2 * math.exp(low / 2) < 0.2
