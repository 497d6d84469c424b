"""Networks, schedules, encoder and bound of VDM and MuLAN as released, against a forward pass written here:
plain functions of numpy over nested dictionaries of arrays named as Flax names them, channels last. Random
weights go through a checkpoint file of that layout, `convert` and `load_run`."""
import math

import msgpack
import numpy as np
import pytest
import torch

from mulan_vdm import load_run
from mulan_vdm.foreign import convert
from mulan_vdm.processes import Rows

LOW = -13.3
HIGH = 5.
WIDTH = 64
SIDE = 32


# the forward pass, float64

def swish(x): return x / (1 + np.exp(-x))

def sigmoid(x): return 1 / (1 + np.exp(-x))

def dense(p, x): return x @ p['kernel'] + p.get('bias', 0.)

def conv(p, x):
    "3x3, zeros around the image."
    h, w = x.shape[1:3]
    around = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    places = [(i, j) for i in range(3) for j in range(3)]
    return sum(around[:, i:i + h, j:j + w] @ p['kernel'][i, j] for i, j in places) + p['bias']

def group_norm(p, x):
    "32 groups of neighbouring channels: mean 0, variance 1 over channels and pixels of each."
    b, h, w, c = x.shape
    grouped = x.reshape(b, h, w, 32, c // 32)
    mean, var = (f(grouped, axis=(1, 2, 4), keepdims=True) for f in (np.mean, np.var))
    return ((grouped - mean) / np.sqrt(var + 1e-6)).reshape(x.shape) * p['scale'] + p['bias']

def fourier(z):
    "Channel by channel the two waves, first all sines, then all cosines."
    angle = np.stack([2 * np.pi * 2.**n * z for n in (6, 7)], -1).reshape(*z.shape[:-1], -1)
    return np.concatenate([z, np.sin(angle), np.cos(angle)], -1)

def embedding(place, width):
    frequencies = np.exp(-np.log(10000) * np.arange(width // 2) / (width // 2 - 1))
    angle = 1000 * place[:, None] * frequencies
    return np.concatenate([np.sin(angle), np.cos(angle)], 1)

def condition(p, place, told):
    c = np.concatenate([embedding(place, WIDTH), told], 1)
    return swish(dense(p['dense1'], swish(dense(p['dense0'], c))))

def block(p, x, c):
    h = conv(p['conv1'], swish(group_norm(p['GroupNorm_0'], x)))
    h = h + dense(p['cond_proj'], c)[:, None, None]
    h = conv(p['conv2'], swish(group_norm(p['GroupNorm_1'], h)))
    return h + (dense(p['nin_shortcut'], x) if 'nin_shortcut' in p else x)

def attention(p, x):
    h = group_norm(p['GroupNorm_0'], x).reshape(len(x), -1, x.shape[-1])
    q, k, v = (dense(p[name], h) for name in 'qkv')
    scores = q @ k.transpose(0, 2, 1) / math.sqrt(x.shape[-1])
    share = np.exp(scores - scores.max(-1, keepdims=True))
    share = share / share.sum(-1, keepdims=True)
    return x + dense(p['proj_out'], share @ v).reshape(x.shape)

def inward(p, h, c):
    "The way in and the middle; what each block in gave, the first convolution included."
    given = [h]
    while (name := f'down.block_{len(given) - 1}') in p:
        h = block(p[name], h, c)
        if (attends := name.replace('block', 'attn')) in p: h = attention(p[attends], h)
        given.append(h)
    h = attention(p['mid.attn_1'], block(p['mid.block_1'], h, c))
    return block(p['mid.block_2'], h, c), given

def score(p, z, gamma, told):
    "VDM's ScoreUNet: noisy images, one level each, and what else it is told."
    c = condition(p, (gamma - LOW) / (HIGH - LOW), told)
    h, given = inward(p, conv(p['conv_in'], fourier(z)), c)
    for i in range(len(given)):
        h = block(p[f'up.block_{i}'], np.concatenate([h, given.pop()], -1), c)
        if f'up.attn_{i}' in p: h = attention(p[f'up.attn_{i}'], h)
    return z + conv(p['conv_out'], swish(group_norm(p['GroupNorm_0'], h)))

def encoder(p, x):
    "MuLAN's UnetEncoder: logits of the 50 items."
    c = condition(p, np.zeros(len(x)), np.zeros((len(x), 1)))
    h, _ = inward(p, conv(p['conv_in'], fourier(x)), c)
    h = conv(p['conv_out'], swish(group_norm(p['GroupNorm_0'], h)))
    return dense(p['dense_layer_final'], swish(h.reshape(len(x), -1)))

def polynomial(p, w, t):
    "MuLAN's gamma and its slope, images (B, H, W, C)."
    h = swish(dense(p['dense_2'], swish(dense(p['dense_1'], w))))
    a, b, c = (dense(p[f'dense_out_{name}'], h).reshape(len(w), SIDE, SIDE, 3) for name in 'abc')
    c = 1e-3 + np.log1p(np.exp(c))
    t = t.reshape(-1, 1, 1, 1)
    integral = lambda t: (a**2 * t**5 / 5 + (b**2 + 2 * a * c) * t**3 / 3 + a * b * t**4 / 2 + b * c * t**2
                          + c**2 * t)
    slope = (a * t**2 + b * t + c)**2
    return LOW + (HIGH - LOW) * integral(t) / integral(1.), (HIGH - LOW) * slope / integral(1.)


# random weights in the released layout

class Draw:
    "Arrays of the released shapes, of the size that keeps signals near one."
    def __init__(self, seed): self.rng = np.random.default_rng(seed)

    def array(self, *shape, scale=None):
        scale = 1 / math.sqrt(math.prod(shape[:-1])) if scale is None else scale
        return (scale * self.rng.standard_normal(shape)).astype(np.float32)

    def dense(self, n, m, bias=True):
        kernel = dict(kernel=self.array(n, m))
        return dict(kernel, bias=self.array(m, scale=0.1)) if bias else kernel

    def conv(self, n, m): return dict(kernel=self.array(3, 3, n, m), bias=self.array(m, scale=0.1))

    def norm(self, n): return dict(scale=1 + self.array(n, scale=0.1), bias=self.array(n, scale=0.1))

    def block(self, n, m=WIDTH):
        p = dict(GroupNorm_0=self.norm(n), conv1=self.conv(n, m), cond_proj=self.dense(4 * m, m, bias=False),
                 GroupNorm_1=self.norm(m), conv2=self.conv(m, m))
        return p | dict(nin_shortcut=self.dense(n, m)) if n != m else p

    def attention(self, n=WIDTH):
        layers = {name: self.dense(n, n) for name in ('q', 'k', 'v', 'proj_out')}
        return dict(GroupNorm_0=self.norm(n), **layers)

    def network(self, told, blocks, out, everywhere=False):
        p = dict(dense0=self.dense(WIDTH + told, 4 * WIDTH), dense1=self.dense(4 * WIDTH, 4 * WIDTH),
                 conv_in=self.conv(15, WIDTH), GroupNorm_0=self.norm(WIDTH), conv_out=self.conv(WIDTH, out))
        p |= {f'mid.block_{i}': self.block(WIDTH) for i in (1, 2)}
        p['mid.attn_1'] = self.attention()
        p |= {f'down.block_{i}': self.block(WIDTH) for i in range(blocks)}
        if everywhere: p |= {f'down.attn_{i}': self.attention() for i in range(blocks)}
        return p

    def score(self, told, blocks, everywhere=False):
        p = self.network(told, blocks, 3, everywhere)
        p |= {f'up.block_{i}': self.block(2 * WIDTH) for i in range(blocks + 1)}
        if everywhere: p |= {f'up.attn_{i}': self.attention() for i in range(blocks + 1)}
        return p

    def vdm(self, everywhere=False):
        schedule = dict(w=np.float32([-18.]), b=np.float32([-13.1]))  # the code takes |w|
        return dict(score_model=self.score(1, 2, everywhere), gamma=schedule)

    def mulan(self, m=50, hidden=24):
        reader = self.network(1, 4, 1)
        reader['dense_layer_final'] = self.dense(SIDE**2, m)
        schedule = dict(dense_1=self.dense(m, hidden), dense_2=self.dense(hidden, hidden),
                        **{f'dense_out_{name}': self.dense(hidden, 3 * SIDE**2) for name in 'abc'})
        return dict(encoder_model=reader, score_model=self.score(m, 1), gamma=schedule)

def packed(tree):
    "A tree as Flax packs it: arrays are extension type 1, numbers type 3."
    def extension(v):
        if not isinstance(v, (np.ndarray, np.generic)): raise TypeError(type(v))
        content = msgpack.packb((v.shape, v.dtype.name, v.tobytes()), use_bin_type=True)
        return msgpack.ExtType(1 if isinstance(v, np.ndarray) else 3, content)
    return msgpack.packb(tree, default=extension, strict_types=True)

def double(tree):
    return {k: double(v) for k, v in tree.items()} if isinstance(tree, dict) else tree.astype(np.float64)

def channels_last(x): return x.detach().permute(0, 2, 3, 1).numpy()

def channels_first(x): return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))

def state(average, step=1234):
    "What the released training loops keep: the average is what is evaluated."
    current = {k: {n: (v + 1 if isinstance(v, np.ndarray) else v) for n, v in part.items()}
               for k, part in average.items()}
    return dict(step=np.int32(step), params=current, ema_params=average, opt_state={'0': None})

def close(found, said): np.testing.assert_allclose(found, said, rtol=1e-5, atol=1e-8)

@pytest.fixture(scope='module')
def inputs():
    rng = np.random.default_rng(0)
    return rng.standard_normal((2, SIDE, SIDE, 3)), rng.uniform(LOW, HIGH, 2), rng

def converted(tree, folder, **how):
    (folder / 'ckpt.flax').write_bytes(packed(state(tree)))
    run = convert(folder / 'ckpt.flax', folder / 'run', **how)
    model, config, steps = load_run(run)
    assert steps == 1234
    return model.double(), config


@pytest.mark.parametrize('everywhere', [False, True])
def test_score_network_of_vdm(everywhere, inputs, tmp_path):
    z, gamma, _ = inputs
    tree = Draw(1).vdm(everywhere)
    model, config = converted(tree, tmp_path)
    assert config['model']['blocks'] == 2 and config['model']['style'] == 'released'
    said = score(double(tree)['score_model'], z, gamma, np.zeros((2, 1)))
    with torch.no_grad():
        found = model.net(channels_first(z), torch.from_numpy(gamma).reshape(2, 1, 1, 1))
        close(model.gamma(torch.tensor([0., 0.3, 1.])).flatten(), -13.1 + 18. * np.array([0., 0.3, 1.]))
    assert np.abs(said - z).max() > 0.1
    close(channels_last(found), said)

@pytest.fixture(scope='module')
def mulan(tmp_path_factory):
    tree = Draw(2).mulan()
    model, config = converted(tree, tmp_path_factory.mktemp('mulan'), preset='mulan-cifar10')
    return double(tree), model, config

def test_parts_of_mulan(mulan, inputs):
    tree, model, config = mulan
    z, gamma, rng = inputs
    assert config['model']['prediction'] == 'v' and config['model']['hidden'] == 24
    w = (rng.random((2, 50)) < 0.3).astype(float)
    t = np.array([0.2, 0.7])
    with torch.no_grad():
        close(model.latent.encoder(channels_first(np.tanh(z))), encoder(tree['encoder_model'], np.tanh(z)))
        levels = model.gamma(torch.from_numpy(t), torch.from_numpy(w))
        close(channels_last(levels), polynomial(tree['gamma'], w, t)[0])
        uneven = channels_first(gamma.reshape(2, 1, 1, 1) + z)  # the network hears its mean
        found = model.net(channels_first(z), uneven, torch.from_numpy(w))
    level = gamma + z.mean((1, 2, 3))
    close(channels_last(found), score(tree['score_model'], z, level, w))

def test_bound_of_mulan(mulan, inputs):
    "Terms of the loss as the released code writes them, but for its divergence of the latent."
    tree, model, _ = mulan
    rng = inputs[2]
    k = rng.integers(0, 256, (2, SIDE, SIDE, 3))
    w = (rng.random((2, 50)).argsort(-1) < 15).astype(float)
    t = np.array([0.15, 0.6])
    with torch.no_grad():
        terms = model(channels_first(k), t=torch.from_numpy(t), w=torch.from_numpy(w),
                      rows=Rows(torch.Generator().manual_seed(0)))
    again = torch.Generator().manual_seed(0)
    eps, eps_0 = (channels_last(torch.randn(2, 3, SIDE, SIDE, generator=again, dtype=torch.float64))
                  for _ in range(2))
    f = 2 * (k + 0.5) / 256 - 1
    (g_0, _), (g_1, _), (g_t, rate) = (polynomial(tree['gamma'], w, s) for s in (0 * t, 0 * t + 1, t))
    var_1, var_t = sigmoid(g_1), sigmoid(g_t)
    logits = -0.5 * ((f + np.exp(0.5 * g_0) * eps_0)[..., None] - (2 * (np.arange(256) + 0.5) / 256 - 1))**2 \
        * np.exp(-g_0)[..., None]
    top = logits.max(-1, keepdims=True)
    log_p = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
    close(terms.reconstruction, -np.take_along_axis(log_p, k[..., None], -1).sum((1, 2, 3, 4)))
    close(terms.prior, 0.5 * ((1 - var_1) * f**2 + var_1 - np.log(var_1) - 1).sum((1, 2, 3)))
    z = np.sqrt(1 - var_t) * f + np.sqrt(var_t) * eps
    v_hat = score(tree['score_model'], z, g_t.mean((1, 2, 3)), w)
    v = np.sqrt(1 - var_t) * eps - np.sqrt(var_t) * f
    close(terms.diffusion, 0.5 * ((1 - var_t) * rate * (v - v_hat)**2).sum((1, 2, 3)))
