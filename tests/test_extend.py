"""A schedule, a latent, a sampler and a data set from outside of the package, as CONTRIBUTING.md shows them,
and with a weighting and a network as the page on one's own parts: at most ten lines each beside imports,
no other file touched, used by name like the package's own."""
import json, math, re
from pathlib import Path
import pytest
import torch
from torch.testing import assert_close
from mulan_vdm import Diffusion, evaluate, fit, load, load_run, mulan, sample, vdm, vdmpp
from mulan_vdm.codec import RealCodec
from mulan_vdm.data import shrink, sources
from mulan_vdm.latents import latents
from mulan_vdm.noise import alpha, sigma
from mulan_vdm.processes import Rows
from mulan_vdm.sampling import samplers
from mulan_vdm.schedules import gamma_and_slope, Linear, schedules
from mulan_vdm.systems import build

page = (Path(__file__).resolve().parent.parent / 'CONTRIBUTING.md').read_text(encoding='utf-8')
blocks = re.findall(r'^```python\n(.*?)^```', page, re.M | re.S)
own = Path(__file__).resolve().parent.parent / 'nbs/use/your_parts.ipynb'
shown = [''.join(c['source']).strip() for c in json.loads(own.read_text(encoding='utf-8'))['cells']
         if c['cell_type'] == 'code']
small = dict(channels=8, blocks=1, fourier=(3,), dropout=0., gamma_min=-7.9)

def rows(seed=0, **part): return Rows(torch.Generator().manual_seed(seed), **part)

@pytest.fixture
def added(request):
    "An entry that the page adds to a table; gone afterwards."
    table, name = request.param
    block, = [b for b in blocks if f"['{name}'] =" in b]
    lines = [l for l in block.splitlines() if l.strip() and not re.match('from |import |    "', l)]
    assert len(lines) <= 10 and name not in table
    exec(block, {})
    yield name
    del table[name]

def only(name):
    table = dict(bent=schedules, coins=latents, midpoint=samplers, bars=sources)[name]
    return pytest.mark.parametrize('added', [(table, name)], indirect=True, ids=[name])

@only('bent')
def test_a_schedule(added):
    "Its ends and its increase; a model with it rebuilt, sampled, and judged like one with the same ends."
    torch.manual_seed(0)
    model = vdm((1, 8, 8), 17, schedule=added, learn_ends=False, **small).eval()
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    gamma, slope = gamma_and_slope(model.schedule, t)
    assert_close(gamma, -7.9 + 12.9 * (t + t**2) / 2)
    assert_close(slope, 12.9 * (1 + 2 * t) / 2)
    assert_close(model.schedule.inverse(gamma), t)
    assert_close(build(model.config).schedule(t), gamma)
    assert sample(model, 3, 5).shape == (3, 1, 8, 8)
    # a network that answers zero has the same error at every level: the integral of the slope is known
    x = load('digits').test.x[:64]
    straight = vdm((1, 8, 8), 17, learn_ends=False, **small).eval()
    straight.load_state_dict(model.state_dict(), strict=False)
    bent, even = (evaluate(m, x, draws=64, seed=1) for m in (model, straight))
    error = math.hypot(bent.noise_se, even.noise_se)
    assert abs(float(bent.bpd.mean() - even.bpd.mean())) < 5 * error

@only('bent')
def test_a_schedule_learns_its_ends(added):
    model = vdm((1, 8, 8), 17, schedule=added, **small)
    model(load('digits').train.x[:8], rows=rows()).loss.sum().backward()
    assert model.schedule.gamma_min.grad.abs() > 0 and model.schedule.log_range.grad.abs() > 0

@only('coins')
def test_a_latent(added):
    """The divergence is what draws cost on average and that of fair coins before training; shares of a
    batch are its rows; schedule and network read it."""
    torch.manual_seed(0)
    model = mulan((1, 8, 8), 17, latent=added, m=6, encoder_channels=8, **small).eval()
    for p in model.parameters(): p.data += 0.1 * torch.randn_like(p)
    x = model.codec.encode(load('digits').test.x[:8])
    _, kl = model.latent(x, rows())
    many = torch.stack([model.latent.log_ratio(model.latent(x, rows(i))[0], x) for i in range(2000)])
    assert ((many.mean(0) - kl).abs() < 5 * many.std(0) / 2000**0.5 + 1e-6).all()
    chances = model.latent.told(x).probs.double()
    cost = chances * (2 * chances).log() + (1 - chances) * (2 - 2 * chances).log()
    assert_close(kl.double(), cost.sum(1), rtol=1e-4, atol=1e-5)
    whole = model.latent(x, rows())[0]
    halves = [model.latent(x[i::2], rows(rank=i, world=2))[0] for i in (0, 1)]
    assert torch.equal(whole[0::2], halves[0]) and torch.equal(whole[1::2], halves[1])
    t = torch.full((2,), 0.4)
    level = [model.gamma(t, torch.full((2, 6), w)) for w in (0., 1.)]
    assert (level[0] - level[1]).abs().max() > 1e-3
    assert sample(model, 3, 5, generator=torch.Generator().manual_seed(0)).shape == (3, 1, 8, 8)
    assert build(model.config).config == model.config

@only('midpoint')
def test_a_sampler(added):
    "On Gaussian data, whose flow is known, it is a second-order method, and better than the package's first."
    scale = 0.3
    class Known(torch.nn.Module):
        def forward(self, z_t, gamma, w=None, y=None):
            return sigma(gamma) * z_t / (alpha(gamma)**2 * scale**2 + sigma(gamma)**2)
    model = Diffusion(Known(), Linear(-8., 5.), RealCodec(), (2,)).double()
    z_1 = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    def width(gamma): return (alpha(gamma)**2 * scale**2 + sigma(gamma)**2).sqrt()
    gamma_0 = torch.tensor(-8.).double()
    gamma_1 = torch.tensor(5.).double()
    def error(steps, name):
        z_0 = sample(model, 50, steps, step=name, z_1=z_1) * alpha(gamma_0)
        return (z_0 - z_1 * width(gamma_0) / width(gamma_1)).abs().max()
    errors = torch.stack([error(steps, added) for steps in (50, 100, 200)])
    assert ((errors[:-1] / errors[1:]).log2() - 2).abs().max() < 0.2
    assert errors[-1] < 0.1 * error(200, 'ddim')

@only('bars')
def test_a_data_set(added, tmp_path):
    "Its changes are the package's, wrong ones are refused, and a run trained on it finds it again."
    data = load(added, size=8, bits=4)
    whole = load(added)
    assert (data.vocab, data.event_shape, len(data.train.x), len(data.test.x)) == (16, (1, 8, 8), 12, 4)
    assert torch.equal(data.train.x, shrink(whole.train.x, 8, 4))
    with pytest.raises(ValueError, match='from 1 to 16'): load(added, size=17)
    torch.manual_seed(0)
    model = vdm(data.event_shape, data.vocab, **small)
    config = dict(model.config, data=dict(name=added, size=8, bits=4), fit={})
    for step in fit(model, data, steps=2, batch_size=4, out=tmp_path / 'run', config=config, progress=False):
        pass
    again, stored, steps = load_run(tmp_path / 'run')
    assert torch.equal(load(**stored['data']).test.x, data.test.x) and steps == 2
    x = data.test.x
    assert torch.equal(evaluate(again, x, 2).bpd, evaluate(step.model, x, 2).bpd)

def test_the_page_shows_the_same_parts_and_two_more():
    for block in blocks: assert block.strip() in shown, block
    defined = [s for s in shown if re.search(r"^(def|class) ", s, re.M) and 'def trained' not in s]
    assert len(defined) == 6
    for source in defined:
        lines = [l for l in source.splitlines() if l.strip() and not re.match('from |import | +"|@system', l)]
        for part in re.split(r'\n(?=class |def )', '\n'.join(lines)):
            assert len(part.splitlines()) <= 10, part

def given(definition):
    "What the cell of the page with this definition brings."
    source, = (s for s in shown if f'\n{definition}(' in s)
    scope = {}
    exec(source, scope)
    return scope

def test_a_weighting():
    "It weighs the bound's term of each noise level, up to one factor for all; it only falls, so it bounds."
    from mulan_vdm.objective import is_monotone, weightings
    soft = given('def soft')['soft']
    try:
        torch.manual_seed(0)
        model = vdmpp((1, 8, 8), 17, weighting='soft', schedule='linear', network='unet', **small)
        x = load('digits').test.x[:8]
        t = torch.linspace(0.1, 0.9, 8)
        terms = model(x, t=t, rows=rows())
        factor = terms.weighted / terms.diffusion / soft(-model.gamma(t)).flatten()
        assert_close(factor, factor[:1].expand(8), rtol=1e-4, atol=0)
        assert is_monotone(soft) and build(model.config).config == model.config
    finally: del weightings['soft']

def test_a_network_and_a_system():
    "Its answer moves with the noise level; it is trained, sampled, and built again by name."
    from mulan_vdm.systems import systems
    plain = given('class Plain')['plain']
    try:
        torch.manual_seed(0)
        model = plain((1, 8, 8), 17, channels=8)
        z = torch.randn(4, 1, 8, 8)
        quiet, loud = (model.net(z, torch.full((4, 1, 1, 1), g)) for g in (-5., 5.))
        assert quiet.shape == z.shape and (quiet - loud).abs().max() > 1e-3
        model(load('digits').train.x[:8], rows=rows()).loss.sum().backward()
        assert all(p.grad.abs().max() > 0 for p in model.net.parameters())
        assert sample(model, 3, 5).shape == (3, 1, 8, 8)
        assert build(model.config).net.first.out_channels == 8
    finally: del systems['plain']
