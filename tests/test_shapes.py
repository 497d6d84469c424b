"""Events of other shapes: signals, volumes and tables, from the data to bits and samples."""
import math

import numpy as np
import pytest
import torch
from torch.distributions import Categorical
from torch.testing import assert_close

from mulan_vdm import Diffusion, evaluate, fit, load, load_run, mulan, repvdm, sample, vdm, vdmpp
from mulan_vdm.cli import main
from mulan_vdm.codec import Codec, RealCodec
from mulan_vdm.compression import compress
from mulan_vdm.data import Data, Split
from mulan_vdm.evaluation import bits_per_pixel
from mulan_vdm.likelihood import ode_evaluate
from mulan_vdm.objective import x_prediction
from mulan_vdm.oracles import GaussianOracle, MixtureOracle
from mulan_vdm.reports import against_guessing
from mulan_vdm.schedules import Linear

signal = (2, 6)
volume = (1, 2, 4, 2)
small = dict(channels=8, blocks=1, dropout=0.)
adm = dict(network='adm', multipliers=(1, 2), attention=(1,))

class Chain:
    "Signals whose next level is the last one, one higher or one lower; their entropy is known."
    def __init__(self, vocab, length):
        self.length = length
        self.first = torch.ones(vocab) / vocab
        near = torch.eye(vocab) * 8
        for i in range(vocab): near[i, [(i + 1) % vocab, (i - 1) % vocab]] += 1
        self.next = near / near.sum(1, keepdim=True)

    def sample(self, n):
        levels = [Categorical(self.first.expand(n, -1)).sample()]
        while len(levels) < self.length: levels.append(Categorical(self.next[levels[-1]]).sample())
        return torch.stack(levels, 1)[:, None]

    def log_prob(self, x): # nats (N,)
        x = x[:, 0]
        return self.first[x[:, 0]].log() + self.next[x[:, :-1], x[:, 1:]].log().sum(1)

def data_of(x, vocab, test=None):
    test = x if test is None else test
    return Data('own', 'made here', vocab, tuple(x.shape[1:]), Split(x), Split(test))

@pytest.mark.parametrize('event_shape', [signal, volume])
def test_the_bound_the_flow_and_samples_ask_nothing_of_the_shape(event_shape):
    "The best denoiser of pixels in a row, and of the same pixels on a grid: number for number."
    torch.manual_seed(0)
    D = math.prod(event_shape)
    tables = torch.rand(3, D, 4).double() + 0.1
    tables = tables / tables.sum(-1, keepdim=True)
    weights = torch.tensor([0.5, 0.3, 0.2]).double()
    grid, row = (Diffusion(MixtureOracle(weights, tables, shape), Linear(-6., 8.), Codec(4), shape,
                           prediction=x_prediction).double() for shape in (event_shape, (D,)))
    x = grid.net.sample(5)
    flat = x.flatten(1)
    assert_close(evaluate(grid, x, 4).bpd, evaluate(row, flat, 4).bpd)
    found = bits_per_pixel(grid, x, draws=4)
    assert found.bits.shape == x.shape
    assert_close(found.bpd, evaluate(grid, x, 4).bpd)
    paths = [ode_evaluate(model, v[:1], generator=torch.Generator().manual_seed(1), tolerance=1e-4,
                          checked=1) for model, v in ((grid, x), (row, flat))]
    assert_close(paths[0].bpd, paths[1].bpd)
    drawn, other = (sample(model, 3, 5, generator=torch.Generator().manual_seed(1))
                    for model in (grid, row))
    assert torch.equal(drawn, other.reshape(drawn.shape))

@pytest.mark.parametrize('event_shape', [signal, volume])
@pytest.mark.parametrize('build, more', [(vdm, {}), (vdm, dict(network='dit')), (vdmpp, adm),
                                         (mulan, dict(m=4, k=2, encoder_channels=8)),
                                         (repvdm, dict(d=3, encoder_channels=8)),
                                         (repvdm, dict(d=3, network='decoder', prediction='x'))])
def test_every_system_learns_judges_and_draws(event_shape, build, more):
    torch.manual_seed(0)
    x = torch.randint(5, (32, *event_shape))
    model = build(event_shape, 5, **{**small, **more})
    before = {name: p.clone() for name, p in model.named_parameters()}
    fitting = dict(steps=3, batch_size=16, lr=1e-2, ema=0.5, warmup=1, progress=False)
    for now in fit(model, data_of(x, 5), **fitting): pass
    moved = sum(not torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert moved > len(before) / 2
    found = evaluate(now.model, x[:4], 2)
    assert found.bpd.isfinite().all()
    assert_close(bits_per_pixel(now.model, x[:4], draws=2).bpd, found.bpd, rtol=1e-5, atol=0)
    assert sample(now.model, 2, 3).shape == (2, *event_shape)
    if event_shape == signal and build is vdm:
        assert ode_evaluate(now.model, x[:1], tolerance=1e-4, checked=1).bpd.isfinite().all()

def test_a_trained_bound_lies_above_the_entropy_of_a_chain():
    "Whatever was learned: the mean of log p - (log of the bound) is a divergence, never negative."
    torch.manual_seed(0)
    chain = Chain(6, 8)
    model = vdm((1, 8), 6, learn_ends=False, **small)
    x, test = chain.sample(512), chain.sample(256)
    fitting = dict(steps=80, batch_size=64, lr=3e-3, ema=0.9, progress=False)
    for now in fit(model, data_of(x, 6, test), **fitting): pass
    gap = evaluate(now.model, test, 8).bpd * 8 * math.log(2) + chain.log_prob(test)
    assert gap.mean() > -5 * gap.std() / len(gap)**0.5

def test_the_flow_of_a_gaussian_signal_is_its_density():
    "Real-valued signals: the flow of the best denoiser gives the density within its solver's error."
    torch.manual_seed(0)
    a = torch.randn(12, 12).double()
    oracle = GaussianOracle(torch.randn(12).double() / 3, a @ a.T / 24 + 0.2 * torch.eye(12))
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.oracle = oracle
        def forward(self, z, gamma, w=None, y=None):
            gamma = gamma.expand_as(z).flatten(1)
            return self.oracle(z.flatten(1), gamma).reshape(z.shape)
    model = Diffusion(Net(), Linear(-13., 9.), RealCodec(), signal, prediction=x_prediction).double()
    x = oracle.sample(2).reshape(2, *signal)
    found = ode_evaluate(model, x, draws=1, trace='exact', tolerance=1e-6, checked=1)
    exact = -oracle.log_prob(x.flatten(1)) / (12 * math.log(2))
    assert_close(found.bpd, exact, rtol=0, atol=2e-3)

def test_a_run_of_signals_is_kept_and_read(tmp_path):
    x = torch.randint(5, (40, *signal))
    model = vdm(signal, 5, **small)
    for now in fit(model, data_of(x, 5), steps=2, batch_size=8, progress=False, out=tmp_path / 'run'): pass
    again, _, steps = load_run(tmp_path / 'run')
    assert (again.event_shape, steps) == (signal, 2)
    assert torch.equal(evaluate(again, x[:4], 2).bpd, evaluate(now.model, x[:4], 2).bpd)
    assert Diffusion.from_pretrained(model.save_pretrained(tmp_path / 'kept')).event_shape == signal

def test_volumes_from_a_file_by_the_command_line(tmp_path):
    np.save(tmp_path / 'volumes.npy', torch.randint(5, (60, *volume)).int().numpy())
    words = f'train --data arrays --path {tmp_path}/volumes.npy --vocab 5 --channels 8 --blocks 1'
    assert main([*words.split(), '--steps', '2', '--batch-size', '8', '--out', str(tmp_path / 'run')]) == 0
    assert main(['sample', str(tmp_path / 'run'), '--n', '3', '--steps', '3']) == 0
    assert np.load(tmp_path / 'run' / 'samples.npy').shape == (3, *volume)
    assert (tmp_path / 'run' / 'samples.png').exists()

def test_what_only_images_have_is_refused_in_one_line():
    x = torch.randint(5, (8, *signal))
    with pytest.raises(ValueError, match=r'flip=True: examples of shape \(2, 6\) are no images'):
        next(fit(vdm(signal, 5, **small), data_of(x, 5), steps=1, batch_size=4, flip=True, progress=False))
    with pytest.raises(ValueError, match='events of 4 axes beside their channels'):
        vdm((1, 2, 2, 2, 2), 5, **small)
    with pytest.raises(ValueError, match='events of 4 axes beside their channels'):
        mulan((1, 2, 2, 2, 2), 5, **small)
    with pytest.raises(ValueError, match="VDM's U-Net for images"):
        vdm(signal, 5, style='released', channels=64, blocks=1)
    with pytest.raises(ValueError, match='signals of 6 cannot be halved 2 times'):
        vdmpp(signal, 5, **{**small, 'multipliers': (1, 1, 1), 'attention': ()})

# tables

vocab = [2, 9, 3]

class Columns(torch.nn.Module):
    "The best denoiser of independent columns, each with levels of its own; their tables are known."
    def __init__(self, tables):
        super().__init__()
        self.tables = tables
        self.codecs = [Codec(len(table)) for table in tables]

    def sample(self, n):
        return torch.stack([Categorical(table).sample((n,)) for table in self.tables], 1)

    def log_prob(self, k): # nats (N, D)
        return torch.stack([table.log()[k[:, d]] for d, table in enumerate(self.tables)], 1)

    def forward(self, z, gamma, w=None, y=None):
        gamma = gamma.expand_as(z)
        found = []
        for d, (codec, table) in enumerate(zip(self.codecs, self.tables)):
            levels = codec.encode(torch.arange(len(table)), z.dtype)
            signal = torch.sigmoid(-gamma[:, d])
            noise = torch.sigmoid(gamma[:, d])
            off = z[:, d, None] - signal[:, None].sqrt() * levels
            p = (table.log() - 0.5 * off**2 / noise[:, None]).softmax(1)
            found.append(p @ levels)
        return torch.stack(found, 1)

@pytest.fixture(scope='module')
def columns():
    torch.manual_seed(0)
    return Columns([(table := torch.rand(n).double() + 0.05) / table.sum() for n in vocab])

def model_of(columns, gamma_0=-10.):
    return Diffusion(columns, Linear(gamma_0, 9.), Codec(vocab), (len(vocab),),
                     prediction=x_prediction).double()

def test_each_column_costs_its_own_entropy(columns):
    "With the best denoiser and clean ends the mean bound of a column is -log p of what it holds."
    model = model_of(columns)
    x = columns.sample(400)
    found = bits_per_pixel(model, x, draws=16)
    gap = found.bits + columns.log_prob(x) / math.log(2)
    assert (gap.mean(0).abs() < 5 * gap.std(0) / 20 + 1e-3).all()

def test_a_column_by_quadrature(columns):
    "What z_0 says of a column, integrated over its density: the levels add to one and are the table."
    z = torch.linspace(-2.5, 2.5, 8001, dtype=torch.float64)
    g = torch.tensor(-9.).double()
    a = torch.sigmoid(-g).sqrt()
    s = torch.sigmoid(g).sqrt()
    for d, table in enumerate(columns.tables):
        levels = Codec(len(table)).encode(torch.arange(len(table)), torch.float64)
        near = torch.exp(-0.5 * ((z[:, None] - a * levels) / s)**2)
        density = (table * near).sum(1) / (s * math.sqrt(2 * math.pi))
        rows = z[:, None].expand(-1, len(vocab))
        k = torch.zeros(len(z), len(vocab), dtype=torch.int64)
        p = []
        for level in range(len(table)):
            k[:, d] = level
            p.append(torch.trapezoid(Codec(vocab).log_prob(k, rows, g)[:, d].exp() * density, z))
        p = torch.stack(p)
        assert_close(p.sum(), torch.tensor(1.).double(), rtol=0, atol=1e-6)
        assert_close(p, table, rtol=0, atol=1e-6)

def test_the_flow_and_samples_of_a_table(columns):
    model = model_of(columns, -11.)
    x = columns.sample(12)
    how = dict(trace='exact', tolerance=1e-4, checked=1, draws=4)
    found = ode_evaluate(model, x, **how, generator=torch.Generator().manual_seed(0))
    gap = found.bpd + columns.log_prob(x).sum(1) / (3 * math.log(2))
    assert gap.mean().abs() < 5 * (gap.std() / 12**0.5 + found.noise_se) + 0.02
    drawn = sample(model, 600, 60, generator=torch.Generator().manual_seed(0))
    Codec(vocab).check(drawn)
    for d, table in enumerate(columns.tables):
        share = torch.bincount(drawn[:, d], minlength=len(table)) / 600
        assert ((share - table).abs() < 5 * (table * (1 - table) / 600).sqrt() + 0.02).all()

def test_the_network_of_a_table_is_trained_kept_and_read(columns, tmp_path):
    x = columns.sample(64)
    data = data_of(x, vocab)
    model = vdm((3,), torch.tensor(vocab), channels=16, blocks=1)
    assert model.config['model']['vocab'] == vocab
    for now in fit(model, data, steps=3, batch_size=16, progress=False, out=tmp_path / 'run'): pass
    again, _, _ = load_run(tmp_path / 'run')
    assert again.codec.vocab == vocab
    assert torch.equal(evaluate(again, x[:8], 2).bpd, evaluate(now.model, x[:8], 2).bpd)
    model.save_pretrained(tmp_path / 'kept')
    assert Diffusion.from_pretrained(tmp_path / 'kept').codec.vocab == vocab
    kept = fit(again, data, steps=4, batch_size=16, progress=False)
    assert next(kept).loss > 0

def test_a_table_from_a_file_by_the_command_line(tmp_path, capsys):
    columns = Columns([torch.ones(n).double() / n for n in vocab])
    np.save(tmp_path / 'table.npy', columns.sample(200).int().numpy())
    words = f'train --data arrays --path {tmp_path}/table.npy --vocab 2 9 3 --channels 8 --blocks 1'
    words = [*words.split(), '--steps', '2', '--batch-size', '8', '--out', str(tmp_path / 'run')]
    assert main(words) == 0
    assert main(['evaluate', str(tmp_path / 'run'), '--draws', '2']) == 0
    assert 'bits/dim' in capsys.readouterr().out
    with pytest.raises(ValueError, match='train.x has 0..8 in feature 1, outside its vocabulary 0..7'):
        load('arrays', path=tmp_path / 'table.npy', vocab=[2, 8, 3])

def test_what_a_table_cannot_do_is_one_line(columns):
    x = columns.sample(16)
    model = vdm((3,), vocab, channels=8, blocks=1)
    with pytest.raises(ValueError, match='x has 9..9 in feature 1, outside its vocabulary 0..8: req'):
        evaluate(model, torch.tensor([[0, 9, 0], [1, 9, 2]]))
    with pytest.raises(ValueError, match=r'vocab of shape \(3,\) for events \(4,\)'):
        vdm((4,), vocab, channels=8, blocks=1)
    with pytest.raises(ValueError, match='a file holds pixels of one number of levels'):
        compress(model, x)
    assert against_guessing(2., vocab) == ' (knowing nothing costs 1.918: all levels, each as likely)'
    with pytest.raises(ValueError, match=r'but the data have \[2, 9, 3\] levels'):
        next(fit(vdm((3,), [2, 9, 4], channels=8), data_of(x, vocab), steps=1, batch_size=4))
