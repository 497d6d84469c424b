"""A file gives back every pixel: elsewhere, with other neighbours, for every system, and for images that
no model expects. A file that is damaged, foreign or another model's is refused in one line."""
import copy, os, subprocess, sys, zlib
from pathlib import Path

import numpy as np
import pytest, torch
from sklearn.datasets import load_sample_images
from torch import nn
from mulan_vdm import load, preset
from mulan_vdm.codec import Codec
from mulan_vdm.data import available
from mulan_vdm.diffusion import Diffusion, large_variance
from mulan_vdm.objective import x_prediction
from mulan_vdm.schedules import Linear

pytest.importorskip('constriction')
from mulan_vdm.compression import compress, contents, decompress

small = {'vdm-digits': dict(channels=8, blocks=1),
         'mulan-digits': dict(channels=8, blocks=1, encoder_channels=8),
         'repvdm-digits': dict(channels=8, encoder_channels=8, d=6),
         'vdmpp-digits': dict(channels=8, multipliers=(1, 2), attention=())}

def made(name):
    "A small model with weights of its own, the same in every process."
    torch.manual_seed(7)
    model = preset(name, load('digits'), **small[name])
    for p in model.parameters(): p.data += 0.02 * torch.randn_like(p)
    return model

class Shaken(nn.Module):
    "A network on a machine that rounds otherwise."
    def __init__(self, net, size):
        super().__init__()
        self.net = net
        self.size = size
    def forward(self, *args, **kwargs):
        answer = self.net(*args, **kwargs)
        return answer * (1 + self.size * torch.randn_like(answer))

def shaken(model, size):
    "A copy that answers otherwise in the last digits, and says it is the same model."
    other = copy.deepcopy(model)
    whole = other.state_dict()
    other.net = Shaken(other.net, size)
    other.state_dict = lambda: whole
    return other

@pytest.mark.parametrize('name', small)
def test_every_system_gives_back_every_pixel(name):
    model = made(name)
    x = load('digits').test.x[:12]
    file = compress(model, x, T=3, batch_size=8)
    assert file == compress(copy.deepcopy(model), x, T=3, batch_size=8)
    assert torch.equal(decompress(model, file), x)
    assert torch.equal(decompress(model, file, batch_size=1), x)
    assert len(contents(file).groups) > 1

elsewhere = """
import sys, torch
torch.set_num_threads(2)
sys.path.insert(0, sys.argv[2])
from test_compression import made
from mulan_vdm.compression import decompress
x = decompress(made(sys.argv[1]), sys.stdin.buffer.read(), batch_size=3)
sys.stdout.buffer.write(x.numpy().tobytes())
"""

def test_another_process_other_threads_and_neighbours():
    x = load('digits').test.x[:14]
    file = compress(made('mulan-digits'), x, T=3, batch_size=8)
    command = sys.executable, '-c', elsewhere, 'mulan-digits', str(Path(__file__).parent)
    back = subprocess.run(command, input=file, capture_output=True, env=dict(os.environ, OMP_NUM_THREADS='2'))
    assert back.stdout == x.numpy().tobytes(), back.stderr.decode()[-500:]

@pytest.mark.parametrize('name', ['vdm-digits', 'mulan-digits'])
def test_a_machine_that_rounds_otherwise(name):
    model = made(name)
    x = load('digits').test.x[:12]
    file = compress(model, x, T=3)
    assert torch.equal(decompress(shaken(model, 1e-13), file), x)
    with pytest.raises(ValueError, match=r'image \d+ differs from the checksum'):
        decompress(shaken(model, 1e-2), file)

class Guess(nn.Module):
    def forward(self, z_t, gamma, w=None, y=None): return torch.tanh(3 * z_t) * 0.9

def tiny(vocab, shape, **kwargs):
    return Diffusion(Guess(), Linear(-6., 4.), Codec(vocab), shape, prediction=x_prediction, **kwargs)

@pytest.mark.parametrize('shape', [(1, 2, 2), (5,), (3, 2, 1)])
def test_ten_thousand_images_that_no_model_expects(shape):
    noise = torch.randint(5, (2000, *shape), dtype=torch.uint8)
    off = torch.full((500, *shape), 4, dtype=torch.uint8)
    off[:, -1] = 0
    x = torch.cat([noise, 0 * noise[:500], 0 * noise[:500] + 4, off])
    model = tiny(5, shape, reverse=large_variance)
    assert torch.equal(decompress(model, compress(model, x, T=3, batch_size=512)), x)

def test_photographs():
    photos = np.stack(load_sample_images().images)[:, :416, :640]
    patches = photos.reshape(2, 13, 32, 20, 32, 3).transpose(0, 1, 3, 5, 2, 4).reshape(-1, 3, 32, 32)
    x = torch.from_numpy(patches[::20].copy())
    model = tiny(256, (3, 32, 32))
    assert torch.equal(decompress(model, compress(model, x, T=4)), x)

@pytest.mark.skipif(not available().get('fashion_mnist'), reason='Fashion-MNIST is not on this machine')
def test_fashion():
    x = load('fashion_mnist').test.x[:40]
    model = tiny(256, x.shape[1:])
    assert torch.equal(decompress(model, compress(model, x, T=4)), x)

def test_damage_is_seen_at_every_byte():
    x = torch.randint(5, (9, 4), dtype=torch.uint8)
    model = tiny(5, (4,))
    file = compress(model, x, T=2)
    for i in range(len(file)):
        broken = bytearray(file)
        broken[i] ^= 1 << i % 8
        for data in (bytes(broken), file[:i]):
            with pytest.raises(ValueError, match='not written by compress|truncated or damaged'):
                contents(data)

def test_nonsense_under_a_right_checksum_is_refused():
    "Whatever stands in a file: its images, or one line that says why not."
    x = torch.randint(5, (9, 4), dtype=torch.uint8)
    model = tiny(5, (4,))
    file = compress(model, x, T=2)
    rng = np.random.RandomState(0)
    for _ in range(200):
        broken = bytearray(file)
        broken[rng.randint(8, len(file))] ^= 1 << rng.randint(8)
        if rng.rand() < 0.2: del broken[rng.randint(8, len(file)):]
        broken[4:8] = zlib.crc32(broken[8:]).to_bytes(4, 'little')
        try: assert torch.equal(decompress(model, bytes(broken)), x)
        except ValueError as error: assert '\n' not in str(error)

def test_another_model_is_refused():
    x = load('digits').test.x[:6]
    file = compress(made('vdm-digits'), x, T=2)
    other = made('vdm-digits')
    next(other.parameters()).data.view(-1)[0] += 1e-6
    for model, says in ((other, 'another model'), (made('repvdm-digits'), 'another model'),
                        (tiny(256, (1, 8, 8)), 'of 17 levels')):
        with pytest.raises(ValueError, match=says): decompress(model, file)
