"""A learned reverse variance: it begins as the measured one, never beats the truth, leaves the mean alone,
and everything that takes a variance takes it."""
import copy, math

import pytest, torch
from torch import nn
from torch.testing import assert_close
from mulan_vdm.codec import Codec, RealCodec
from mulan_vdm.diffusion import Diffusion, fixed_variance, Learned
from mulan_vdm.latents import KHot
from mulan_vdm.noise import diffuse
from mulan_vdm.objective import eps_prediction, v_prediction, x_prediction
from mulan_vdm.oracles import MixtureOracle
from mulan_vdm.processes import Rows
from mulan_vdm.sampling import ddpm_step, sample
from mulan_vdm.schedules import Linear, Polynomial

def rows(seed=0): return Rows(torch.Generator().manual_seed(seed))

class Mixed(nn.Module):
    "A network with weights that answers anything."
    def __init__(self, width, latent=0):
        super().__init__()
        self.layer = nn.Linear(width, width)
        self.told = nn.Linear(latent, width) if latent else None
    def forward(self, z_t, gamma, w=None, y=None):
        h = self.layer(z_t.flatten(1)) + gamma.flatten(1).mean(1, keepdim=True) / 9
        if self.told: h = h + self.told(w)
        return torch.tanh(h).reshape(z_t.shape)

def made(shape, prediction=eps_prediction, per_pixel=False, latent=False, codec=None):
    torch.manual_seed(0)
    D = math.prod(shape)
    w = KHot(nn.Sequential(nn.Flatten(), nn.Linear(D, 6)), 6, 2) if latent else None
    schedule = Polynomial(shape, -6., 4.) if per_pixel else Linear(-6., 4.)
    net = Mixed(D, 6 if latent else 0)
    return Diffusion(net, schedule, codec or Codec(9), shape, w, prediction).double().eval()

def random(found):
    "The same with a last layer that says something."
    weights = (*found.weights[:2], torch.randn_like(found.weights[2]))
    return found._replace(weights=weights)

cases = [((7,), eps_prediction, False, False), ((2, 9), v_prediction, True, False),
         ((1, 4, 4), x_prediction, True, True), ((3, 4, 2), eps_prediction, False, True),
         ((1, 2, 3, 4), x_prediction, True, False)]

@pytest.mark.parametrize('shape,prediction,per_pixel,latent', cases)
def test_it_begins_as_the_measured_one(shape, prediction, per_pixel, latent):
    model = made(shape, prediction, per_pixel, latent)
    x = torch.randint(9, (40, *shape))
    measured = model.matched(x, levels=6, images=20, rows=rows())
    found = []
    zero = model._unlearned(measured, rows())
    for model.reverse in (measured, zero, random(zero)):
        found.append(model(x, T=3, rows=rows(1)).vlb.detach())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])

@pytest.mark.parametrize('shape,prediction,per_pixel,latent', cases)
def test_the_network_stands_still_and_its_mean_hears_nothing(shape, prediction, per_pixel, latent):
    model = made(shape, prediction, per_pixel, latent)
    x = torch.randint(9, (40, *shape))
    before = copy.deepcopy(model.state_dict())
    learned = model.learned(x, steps=3, batch_size=8, rows=rows())
    for name, v in model.state_dict().items(): assert torch.equal(v, before[name])
    assert all(p.grad is None and p.requires_grad for p in model.net.parameters())
    assert not any(v.requires_grad for v in learned.tensors().values())
    # the gradient of the bound is that of a variance which knows the same numbers and no network
    model.reverse = random(learned)
    def gradients():
        loss = model(x, T=4, rows=rows(1)).vlb.mean()
        return torch.autograd.grad(loss, list(model.net.parameters()))
    through = gradients()
    seen = []
    kept = model.reverse
    model.reverse = lambda *args: seen.append(kept(*args)) or seen[-1].detach()
    for a, b in zip(through, gradients()): assert torch.equal(a, b)
    assert seen

def test_the_same_numbers_learn_the_same():
    model = made((1, 4, 4))
    x = torch.randint(9, (40, 1, 4, 4))
    a, b, other = (model.learned(x, steps=4, rows=rows(seed)).tensors() for seed in (0, 0, 1))
    for name, v in a.items(): assert torch.equal(v, b[name])
    assert not torch.equal(a['weight.0'], other['weight.0'])
    # in single precision too, read by a model in double
    single = made((1, 4, 4)).float()
    learned = single.learned(x, steps=4, rows=rows())
    assert {v.dtype for v in learned.tensors().values()} == {torch.float32}
    single.double().reverse = learned
    assert single(x, T=3).vlb.dtype == torch.float64

def mixture(levels, shape, components):
    torch.manual_seed(0)
    tables = torch.rand(components, math.prod(shape), levels).double().pow(5) + 0.01
    weights = torch.rand(components).double() + 0.2
    oracle = MixtureOracle(weights / weights.sum(), tables / tables.sum(-1, keepdim=True), shape)
    model = Diffusion(oracle, Linear(-8., 5.), Codec(levels), shape, prediction=x_prediction)
    return oracle, model.double().eval()

@pytest.mark.parametrize('levels,shape,components', [(2, (6,), 3), (17, (1, 4, 4), 2), (5, (2, 8), 2)])
@pytest.mark.parametrize('guess', [False, True])
def test_the_truth_is_never_beaten(levels, shape, components, guess):
    "Whatever the convolutions say, learned or drawn at random."
    oracle, model = mixture(levels, shape, components)
    learned = model.learned(oracle.sample(1000), steps=60, rows=rows())
    model.reverse = random(learned) if guess else learned
    x = oracle.sample(3000)
    for T in (2, 9):
        more = model(x, T=T, t=torch.rand(len(x)).double()).vlb + oracle.log_prob(x)
        assert more.mean() > -5 * more.std() / len(x)**0.5

def test_a_step_of_the_sampler_has_its_variance():
    oracle, model = mixture(17, (1, 4, 4), 2)
    model.reverse = random(model.learned(oracle.sample(500), steps=3, rows=rows()))
    gamma_t, gamma_s = (torch.full((1, 1, 1, 1), v).double() for v in (1., -2.))
    coded = model.codec.encode(oracle.sample(5), torch.float64)
    z_t = diffuse(coded, gamma_t, torch.randn_like(coded))
    ask = lambda z, gamma: model.denoise_at(z, gamma)
    one = torch.ones_like(z_t)
    def spread(reverse):
        step = lambda noise: ddpm_step(ask, z_t, gamma_t, gamma_s, noise, reverse=reverse)
        return step(one) - step(0 * one)
    reckoned = model.reverse(gamma_t, z_t, ask(z_t, gamma_t)[0])
    factor = 1 + torch.expm1(gamma_t - gamma_s) * reckoned
    assert_close(spread(model.reverse)**2, spread(fixed_variance)**2 * factor)
    assert reckoned.std(0).min() > 0
    assert sample(model, 3, 4).shape == (3, 1, 4, 4)

def test_the_best_steps_know_it():
    oracle, model = mixture(17, (1, 4, 4), 2)
    x = oracle.sample(3000)
    model.reverse = random(model.learned(x, steps=30, rows=rows()))
    times = torch.arange(9).double() / 8
    costs = model._step_costs(x, times, rows(1))
    price = sum(costs[i, i + 1].item() for i in range(8))
    loss = model(x, T=8, t=torch.rand(len(x)).double()).diffusion
    assert abs(loss.mean() - price) < 5 * loss.std() * (2 / len(x))**0.5
    assert len(model.best_steps(x[:100], 3, 8)) == 4

def test_real_data_have_no_levels():
    model = made((6,), codec=RealCodec())
    learned = model.learned(torch.randn(50, 6).double(), steps=3)
    assert learned.phase == 0
    model.reverse = random(learned)
    assert model(torch.randn(9, 6).double(), T=3).vlb.isfinite().all()

def test_a_vocabulary_of_every_dimension():
    vocab = torch.tensor([2, 5, 9, 300])
    model = made((4,), codec=Codec(vocab))
    x = (torch.rand(50, 4) * vocab).long()
    model.reverse = random(model.learned(x, steps=3))
    assert_close(model.reverse.phase, math.pi * vocab.double())
    assert model(x, T=3).vlb.isfinite().all()

@pytest.mark.parametrize('far', [1e3, 1e6])
def test_what_it_never_saw_gets_a_finite_variance(far):
    model = made((3, 4, 2))
    measured = model.matched(torch.randint(9, (40, 3, 4, 2)), levels=6, images=20)
    found = random(model._unlearned(measured, rows()))
    gamma = torch.zeros(2, 1, 1, 1).double()
    z = far * torch.randn(2, 3, 4, 2).double()
    factor = found(gamma, z, z) / measured(gamma)
    assert (factor.log().abs() <= 8 + 1e-9).all()
