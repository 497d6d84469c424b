"""Files have the size that the bound promised, whatever the variance, and begin at a stated cost; every
network call is counted; memory does not grow with the number of images."""
import math, subprocess, sys, time
from unittest import mock

import numpy as np
import pytest, torch
from sklearn.datasets import load_sample_images
from torch import nn
from mulan_vdm import fit, load, preset
from mulan_vdm.codec import Codec
from mulan_vdm.data import available
from mulan_vdm.diffusion import Diffusion, fixed_variance, large_variance
from mulan_vdm.objective import x_prediction
from mulan_vdm.oracles import MixtureOracle
from mulan_vdm.schedules import Linear, Polynomial

pytest.importorskip('constriction')
from mulan_vdm.compression import _Stack, compress, contents, decompress, picture_sizes

def mixture(levels, shape, softness):
    "An oracle of two clusters, its images, and a model that asks it."
    torch.manual_seed(0)
    tables = torch.rand(2, math.prod(shape), levels).double().pow(softness) + 0.01
    oracle = MixtureOracle(torch.tensor([0.4, 0.6]).double(), tables / tables.sum(-1, keepdim=True), shape)
    low = 2 * math.log(2 / 6 / levels)               # a sixth of a level exactly: edges of grids are met
    model = Diffusion(oracle, Linear(low, 5.), Codec(levels), shape, prediction=x_prediction)
    return oracle, model.double()

def drawn(model, x, T, times):
    "The T-step bound, every step looked at once, several times; bits/dim (times, N)."
    every = (torch.arange(T) + 0.5) / T
    once = lambda: sum(model(x, T=T, t=t.expand(len(x))).vlb for t in every) / T
    return torch.stack([once() for _ in range(times)]).detach() / (x[0].numel() * math.log(2))

def excess(model, x, T, times=6):
    "What a file pays for the images that the model codes more than their bound, and its standard error."
    file = compress(model, x, T)
    held = contents(file)
    bound = drawn(model, x[held.stored:], T, times)
    paid = held.coded_bits / x[held.stored:].numel()
    # the file draws the noise once, the bound so many times
    error = (bound.var(0).mean() / bound.shape[1] * (1 + 1 / times)).sqrt().item()
    return paid - bound.mean().item(), error

@pytest.mark.parametrize('variance', ['fixed', 'large', 'matched', 'learned'])
def test_the_oracles_file_is_its_bound(variance):
    oracle, model = mixture(17, (1, 4, 4), 6)
    x = oracle.sample(2000)
    variances = dict(fixed=lambda: fixed_variance, large=lambda: large_variance,
                     matched=lambda: model.matched(x, levels=32, images=500),
                     learned=lambda: model.learned(x, model.matched(x, levels=32, images=100), steps=100))
    model.reverse = variances[variance]()
    more, error = excess(model, oracle.sample(500), T=10)
    assert abs(more) < 5 * error

def test_unstirred_bits_are_dear():
    "Why the stack is stirred: a wrong variance would return as noise."
    oracle, model = mixture(17, (1, 4, 4), 6)
    x = oracle.sample(500)
    with mock.patch.object(_Stack, 'stir', lambda *args: None):
        file = compress(model, x, 10)
        assert torch.equal(decompress(model, file), x)
        more, error = excess(model, x, T=10)
    assert more > 5 * error

@pytest.mark.parametrize('name', ['vdm-digits', 'mulan-digits'])
def test_a_networks_file_is_its_bound(name):
    from test_compression import made
    model = made(name).double().eval()
    more, error = excess(model, load('digits').test.x[:80], T=4)
    assert more < 5 * error + 0.01

def test_what_a_file_costs_to_start():
    "Marks and digest, the head, a bit per 128 dimensions of an image, the stored images: no more."
    oracle, model = mixture(17, (1, 4, 4), 6)
    sizes = []
    for n in (60, 240):
        file = compress(model, oracle.sample(n), 6)
        held = contents(file)
        rest = len(file) - held.coded_bits / 8 - held.stored_bytes - len(held.checks)
        assert 16 < rest < 16 + 80 + len(held.groups)
        assert len(held.checks) == (n + 7) // 8
        sizes.append((held.stored, rest))
    assert sizes[1][0] <= sizes[0][0] + 2 and sizes[1][1] < sizes[0][1] + 30

def refused(model, x, says):
    "One line, before anything is computed."
    with pytest.raises(ValueError, match=says) as error: compress(model, x, 2)
    assert '\n' not in str(error.value)

def test_what_another_machine_could_not_repeat_is_refused():
    _, model = mixture(17, (1, 4, 4), 6)
    x = torch.randint(17, (9, 1, 4, 4), dtype=torch.uint8)
    weighed = lambda: Diffusion(Weighed(), Linear(-6., 4.), Codec(17), (1, 4, 4), prediction=x_prediction)
    short = weighed()
    short.net.bfloat16()
    refused(short, x, 'few digits')
    compiled = weighed()
    compiled.net.compile()
    refused(compiled, x, 'a compiler')
    with torch.autocast('cpu', torch.bfloat16): refused(weighed(), x, 'few digits')
    file = compress(model, x, 2)
    elsewhere = contents(file)._replace(device='cuda').to_bytes()
    with pytest.raises(ValueError, match='written on a device cuda, the model is on cpu'):
        decompress(model, elsewhere)

class Weighed(nn.Linear):
    "A network with weights."
    def __init__(self): super().__init__(4, 4)
    def forward(self, z_t, gamma, w=None, y=None): return super().forward(z_t)

def test_answers_that_are_not_finite_are_refused():
    model = Diffusion(Weighed(), Linear(-6., 4.), Codec(17), (1, 4, 4), prediction=x_prediction)
    model.net.weight.data.fill_(math.inf)
    refused(model, torch.randint(17, (90, 1, 4, 4), dtype=torch.uint8), 'not finite')

def test_a_full_disk_leaves_no_file(tmp_path):
    from mulan_vdm.reports import compress_run
    def full(self, data): raise OSError(28, 'No space left on device')
    with mock.patch('pathlib.Path.write_bytes', full), pytest.raises(OSError, match='No space left'):
        compress_run('mulan-digits', n=5, T=1, variance='fixed', out=str(tmp_path / 'digits.mvz'))
    assert not list(tmp_path.iterdir())

class Asked(nn.Module):
    "A denoiser that counts the images it is asked about."
    images = 0
    def forward(self, z_t, gamma, w=None, y=None):
        self.images += len(z_t)
        return torch.tanh(z_t)

@pytest.mark.parametrize('schedule', [Linear(-6., 4.), Polynomial((1, 4, 4), -6., 4.)])
def test_a_call_for_each_step_and_image(schedule):
    model = Diffusion(Asked(), schedule, Codec(17), (1, 4, 4), prediction=x_prediction)
    x = torch.randint(17, (90, 1, 4, 4), dtype=torch.uint8)
    T = 7
    counts = []
    with mock.patch('mulan_vdm.compression._exact', lambda model: model.double()):
        file = compress(model, x, T, batch_size=16)
        coded = len(x) - contents(file).stored
        counts.append(model.net.images)
        decompress(model, file)
    assert model.net.images - counts[0] == T * coded
    # the writer asks once more about a group that the stack was too short for
    assert T * coded <= counts[0] < T * (coded + 16)

grows = """
import sys, torch
sys.path.insert(0, 'tests')
from test_paid import Asked
from mulan_vdm.codec import Codec
from mulan_vdm.compression import compress, decompressed
from mulan_vdm.diffusion import Diffusion
from mulan_vdm.objective import x_prediction
from mulan_vdm.schedules import Linear
class Made:
    "Images that exist when they are asked for."
    def __init__(self, n): self.n = n
    def __len__(self): return self.n
    def __getitem__(self, part):
        first, last, _ = part.indices(self.n)
        made = [torch.Generator().manual_seed(i) for i in range(first, last)]
        return torch.stack([torch.randint(256, (3, 8, 8), generator=g, dtype=torch.uint8) for g in made])
n = int(sys.argv[1])
model = Diffusion(Asked(), Linear(-13.3, 5.), Codec(256), (3, 8, 8), prediction=x_prediction)
file = compress(model, Made(n), T=2, batch_size=16)
for first, images in decompressed(model, file): pass
peak = next(line for line in open('/proc/self/status') if line.startswith('VmHWM'))
print(1024 * int(peak.split()[1]), len(file))
"""

@pytest.mark.bench
def test_memory_does_not_grow_with_the_images():
    def peak(n):
        command = [sys.executable, '-c', grows, str(n)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return map(int, done.stdout.split())
    (few, small), (many, large) = peak(50), peak(500)
    print(f'peak {few / 1e6:.0f} MB for 50 images, {many / 1e6:.0f} MB for 500; '
          f'files {small}, {large} bytes')
    assert many - few < 8 * (large - small) + 8e6    # the file itself, and what an allocator keeps

@pytest.mark.bench
def test_the_coder_takes_less_than_half():
    from mulan_vdm import load_run
    model, _, _ = load_run('mulan-digits')
    spent = []
    ask = type(model).denoise_at
    def timed(*args):
        start = time.perf_counter()
        answer = ask(*args)
        spent.append(time.perf_counter() - start)
        return answer
    start = time.perf_counter()
    with mock.patch.object(type(model), 'denoise_at', timed): compress(model, load('digits').test.x[:128], 10)
    seconds = time.perf_counter() - start
    print(f'{seconds:.1f} s, {sum(spent):.1f} s of them in the network')
    assert sum(spent) > seconds / 2

def coded(shape, levels=256):
    return Diffusion(Asked(), Linear(-13.3, 5.), Codec(levels), shape, prediction=x_prediction)

@pytest.mark.nightly
@pytest.mark.parametrize('shape', [(1, 3, 3), (3, 2, 2), (7,)])
def test_ten_thousand_of_each_kind(shape):
    noise = torch.randint(256, (4000, *shape), dtype=torch.uint8)
    off = torch.zeros(2000, *shape, dtype=torch.uint8)
    off.flatten(1)[torch.arange(2000), torch.arange(2000) % math.prod(shape)] = 255
    x = torch.cat([noise, 0 * noise[:2000], 0 * noise[:2000] + 255, off])[torch.randperm(10_000)]
    model = coded(shape)
    assert torch.equal(decompress(model, compress(model, x, T=3, batch_size=256)), x)

@pytest.mark.nightly
def test_every_patch_of_two_photographs():
    photos = np.stack(load_sample_images().images)[:, :416, :640]
    patches = photos.reshape(2, 13, 32, 20, 32, 3).transpose(0, 1, 3, 5, 2, 4).reshape(-1, 3, 32, 32)
    x = torch.from_numpy(patches.copy())
    model = coded((3, 32, 32))
    assert torch.equal(decompress(model, compress(model, x, T=4)), x)

@pytest.mark.nightly
def test_all_digits():
    from mulan_vdm import load_run
    model, _, _ = load_run('mulan-digits')
    digits = load('digits')
    model.reverse = model.matched(digits.train.x)
    file = compress(model, digits.test.x, T=20)
    assert torch.equal(decompress(model, file), digits.test.x)
    for each, one in picture_sizes(digits.test.x).values(): assert len(file) < min(each, one)

@pytest.mark.nightly
@pytest.mark.skipif(not available().get('fashion_mnist'), reason='Fashion-MNIST is not on this machine')
def test_a_thousand_of_fashion():
    "A short training of a small network: whatever it has learned, every pixel comes back."
    data = load('fashion_mnist')
    torch.manual_seed(0)
    model = preset('vdm-fashion', data, channels=16, blocks=1, position=True)
    for _ in fit(model, data, steps=600, batch_size=32, lr=2e-3, ema=0.99): pass
    model.reverse = model.matched(data.train.x, images=64)
    x = data.test.x[:1000]
    file = compress(model, x, T=10)
    assert torch.equal(decompress(model, file), x)
    bits = {'this file': len(file)}
    for name, (each, one) in picture_sizes(x).items():
        bits |= {f'{name}, a file each': each, f'{name}, one file': one}
    print(*(f'{name}: {size:,} bytes, {8 * size / x.numel():.3f} bits/dim' for name, size in bits.items()),
          sep='\n')

@pytest.mark.parametrize('variance', ['matched', 'learned'])
def test_a_processors_chunks_change_nothing(variance):
    "Few images at once are fast on a processor; how many is nothing that a file knows of."
    oracle, model = mixture(17, (1, 4, 4), 6)
    x = oracle.sample(60)
    model.reverse = model.matched(x, levels=16, images=60)
    if variance == 'learned': model.reverse = model.learned(x, model.reverse, steps=5)
    files = []
    for numbers in (16, 2**12):
        with mock.patch('mulan_vdm.compression._fast_numbers', numbers): files.append(compress(model, x, 4))
    assert files[0] == files[1]
    with mock.patch('mulan_vdm.compression._fast_numbers', 7 * 16):
        assert torch.equal(decompress(model, files[0]), x)
