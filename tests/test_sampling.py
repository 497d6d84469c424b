"Samplers against other people's algorithms, other solvers, and bad input."
import math
from functools import partial
import pytest, torch
import torch.nn as nn
from torch.testing import assert_close
from torchdiffeq import odeint
from mulan_vdm.codec import Codec, RealCodec
from mulan_vdm.diffusion import Diffusion
from mulan_vdm.latents import Gaussian
from mulan_vdm.nets import Uninformed, MLP, Coefficients
from mulan_vdm.noise import alpha, sigma
from mulan_vdm.objective import edm_prediction, x_prediction
from mulan_vdm.oracles import GaussianOracle
from mulan_vdm.sampling import (_guided, churned_heun, dpmpp_2m, grids, ode_step,
                                sample, samplers, trajectory)
from mulan_vdm.schedules import Linear, Polynomial

generator = lambda seed=0: torch.Generator().manual_seed(seed)
ends = 2 * math.log(0.002), 2 * math.log(80.)  # EDM's smallest and largest sigma

class Preconditioned(nn.Module):
    "EDM's network: F(c_in y, c_noise), by its own formulas; also counts its calls."
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.calls = []
        self.layers = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(),
                                    nn.Linear(32, 3))
        self.label = nn.Embedding(3, 3)
    def F(self, u, c_noise, y=None):
        out = self.layers(torch.cat([u, c_noise.expand(len(u), 1)], 1))
        return out if y is None else out + self.label(y)
    def forward(self, z, gamma, w=None, y=None):
        self.calls.append((len(z), y is not None))
        return self.F(z / alpha(gamma) / (torch.exp(gamma) + 0.25).sqrt(), gamma / 8, y)

def edm():
    return Diffusion(Preconditioned(), Linear(*ends), RealCodec(), (3,), prediction=edm_prediction).double()

def D(net, x, s, sd=0.5):
    "EDM table 1, the denoiser in its own notation."
    s = torch.as_tensor(s, dtype=x.dtype)
    return (sd**2 / (s**2 + sd**2) * x
            + s * sd / (s**2 + sd**2).sqrt() * net.F(x / (s**2 + sd**2).sqrt(), s.log() / 4))

def edm_sampler(net, x, N, noise, S_churn=0., S_tmin=0., S_tmax=math.inf,
                S_noise=1., rho=7, low=0.002, high=80.):
    "EDM algorithm 2, algorithm 1 without churn, transcribed from the paper in sigma(t) = t."
    t = [(high**(1 / rho) + i / (N - 1) * (low**(1 / rho) - high**(1 / rho)))**rho for i in range(N)] + [0.]
    for i in range(N):
        churn = min(S_churn / N, math.sqrt(2) - 1) if S_tmin <= t[i] <= S_tmax else 0.
        hat = t[i] + churn * t[i]
        x_hat = x + math.sqrt(hat**2 - t[i]**2) * S_noise * noise[min(i, N - 2)]
        d = (x_hat - D(net, x_hat, hat)) / hat
        x = x_hat + (t[i + 1] - hat) * d
        if t[i + 1]: x = x_hat + (t[i + 1] - hat) * (d / 2 + (x - D(net, x, t[i + 1])) / t[i + 1] / 2)
    return x

@pytest.mark.parametrize('churn',
                         [None, dict(S_churn=40., S_tmin=0.05, S_tmax=50., S_noise=1.003),
                          dict(S_churn=3., S_tmin=0.01, S_tmax=math.inf, S_noise=1.), dict(S_churn=0.)])
def test_heun_is_the_algorithm_of_edm(churn):
    model = edm()
    N = 18
    g = generator()
    draws = [torch.randn(7, 3, generator=g, dtype=torch.float64) for _ in range(N)]
    start = draws[0] / alpha(torch.tensor(ends[1]).double())
    step = 'heun' if churn is None else churned_heun(**churn)
    ours = sample(model, 7, N - 1, step=step, grid='rho', clean=True, generator=generator())
    theirs = edm_sampler(model.net, start, N, draws[1:], **(churn or {}))
    assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert len(model.net.calls) == 2 * N - 1                                     # EDM's count
    plain = edm_sampler(model.net, start, N, draws[1:])
    assert (((theirs - plain).abs().max() > 1e-2) == bool(churn and churn['S_churn']))

def test_edm_denoiser_is_the_prediction():
    model = edm()
    y = torch.randn(6, 3, generator=generator()).double() * 3
    for s in (0.002, 0.5, 7., 80.):
        gamma = torch.full((6, 1), 2 * math.log(s), dtype=torch.float64)
        assert_close(model.denoise_at(alpha(gamma) * y, gamma)[0], D(model.net, y, s), rtol=0, atol=1e-9)

def test_2m_is_the_algorithm_of_dpm_solver():
    "Lu et al. 2022, algorithm 2, in their lambda = log(alpha / sigma) and r."
    model = edm()
    N = 12
    lam = -torch.linspace(ends[1], ends[0], N + 1, dtype=torch.float64) / 2
    a = (1 / (1 + torch.exp(-2 * lam))).sqrt()
    s = (1 / (1 + torch.exp(2 * lam))).sqrt()
    x = torch.randn(5, 3, generator=generator(), dtype=torch.float64)
    Q = []
    for i in range(1, N + 1):
        Q.append(model.denoise_at(x, torch.full((5, 1), -2 * lam[i - 1].item(), dtype=torch.float64))[0])
        h = lam[i] - lam[i - 1]
        if i == 1: dd = Q[0]
        else:
            r = (lam[i - 1] - lam[i - 2]) / h
            dd = (1 + 1 / (2 * r)) * Q[-1] - 1 / (2 * r) * Q[-2]
        x = s[i] / s[i - 1] * x - a[i] * (torch.exp(-h) - 1) * dd
    *_, last = trajectory(model, 5, N, step='dpmpp_2m', grid='logsnr', generator=generator())
    assert_close(last.z, x, rtol=0, atol=1e-9)

def test_ode_agrees_with_another_solver():
    "torchdiffeq on dy / d sigma = (y - D) / sigma, and whatever the grid."
    model = edm()
    first, *_, last = trajectory(model, 5, 1, step=partial(ode_step, tolerance=1e-9), generator=generator())
    y = odeint(lambda u, y: (y - D(model.net, y, u.exp())), first.z / alpha(first.gamma),
               torch.tensor([math.log(80.), math.log(0.002)]).double(), rtol=1e-9, atol=1e-9)[-1]
    assert_close(last.z / alpha(last.gamma), y, rtol=0, atol=1e-6)
    for grid in grids:
        assert_close(sample(model, 5, 3, step=partial(ode_step, tolerance=1e-8), grid=grid,
                            generator=generator()), y, rtol=0, atol=1e-5)
    assert_close(sample(model, 5, 400, step='heun', grid='rho', generator=generator()), y, rtol=0, atol=1e-3)

def gaussian(schedule=None):
    torch.manual_seed(1)
    A = torch.randn(3, 3).double()
    return Diffusion(GaussianOracle(torch.randn(3).double(), A @ A.T + 0.1 * torch.eye(3).double()),
                     schedule or Linear(-10., 8.), RealCodec(), (3,),
                     prediction=x_prediction).double().requires_grad_(False)

def test_ode_of_a_gaussian_is_the_closed_form():
    "Along every eigenvector the flow keeps the standardized value."
    model = gaussian()
    first, *_, last = trajectory(model, 6, 2, step=partial(ode_step, tolerance=1e-9), generator=generator())
    value, vector = torch.linalg.eigh(model.net.cov)
    score = lambda stage: ((stage.z - alpha(stage.gamma) * model.net.mean) @ vector
                           / (alpha(stage.gamma)**2 * value + sigma(stage.gamma)**2).sqrt())
    assert_close(score(last), score(first), rtol=0, atol=1e-6)

def per_pixel(latent=False):
    "A schedule per pixel, from a latent if there is one."
    torch.manual_seed(2)
    network = Coefficients(2, 3, (3,)) if latent else None
    schedule = Polynomial((3,), -10., 8., network=network).double()
    nn.init.normal_(schedule.coefficients, std=0.5)
    if latent: nn.init.normal_(network.layers[-1].weight)
    model = gaussian(schedule)
    if latent: model.latent = Gaussian(Uninformed(4), 2).double()
    return model

@pytest.mark.parametrize('latent', [False, True])
@pytest.mark.parametrize('name', ['ddpm', 'ddpm_large', 'ddim', 'heun', 'dpmpp_2m'])
def test_a_schedule_per_pixel_ends_in_the_data(name, latent):
    model = per_pixel(latent)
    n = 2000
    x = sample(model, n, 200, step=name, generator=generator())
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(model.net.cov),
                                          (x - model.net.mean).T, upper=False)
    assert ((white.mean(1).abs() < 5 / n**0.5 + 0.01).all()
            and (torch.cov(white) - torch.eye(3)).abs().max() < 5 * (2 / n)**0.5 + 0.05)

def test_single_precision_survives_a_flat_stretch():
    "Rounding may lift a level that stands still; formerly the square root of a negative variance."
    schedule = Polynomial((3,), -10., 8.).requires_grad_(False)
    schedule.coefficients.data = torch.tensor([[0., 8., 20.], [0., -12., -30.], [0., 2., 10.]])
    schedule.delta = 1e-6
    model = Diffusion(gaussian().net.float(), schedule, RealCodec(), (3,), prediction=x_prediction)
    g = torch.stack([model.gamma(torch.full((1,), i / 1000))[0] for i in range(1001)])
    assert (g.diff(dim=0) < 0).any()
    for name in ('ddpm', 'dpmpp_2m'):
        assert sample(model, 1, 1000, step=name, generator=generator()).isfinite().all()

@pytest.mark.parametrize('name', samplers)
def test_batch_size_and_seed(name):
    model = edm()
    draw = lambda seed, size=None: sample(model, 7, 4, step=name, clip=2., clean=True,
                                          generator=generator(seed), batch_size=size)
    one = draw(0)
    for size in (1, 3, 7, 100):
        assert_close(draw(0, size), one, rtol=0, atol=1e-6 if name == 'ode' else 1e-10)
    assert torch.equal(draw(0), one) and (draw(1) - one).abs().max() > 0.1

def test_chunks_carry_their_labels_and_latents():
    torch.manual_seed(0)
    model = Diffusion(MLP(3, 16, 1, classes=3, latent=2), Linear(-6., 6.), RealCodec(), (3,),
                      Gaussian(Uninformed(4), 2)).double()
    [nn.init.normal_(p, std=0.3) for p in model.parameters()]
    draw = lambda size: sample(model, 5, 4, y=torch.tensor([0, 1, 2, 1, 0]), guidance=2.,
                               generator=generator(), batch_size=size)
    for size in (1, 2): assert_close(draw(size), draw(None))

def test_the_network_meets_latents_of_the_prior_in_evaluation_mode():
    seen = []
    class Watch(nn.Module):
        def forward(self, z, gamma, w=None, y=None):
            seen.append((w, self.training))
            return z
    model = Diffusion(Watch(), Linear(-6., 6.), RealCodec(), (3,), Gaussian(Uninformed(4), 2)).train()
    n = 4000
    sample(model, n, 3, generator=generator())
    (w, _), *_ = seen
    assert all(torch.equal(v, w) and not training for v, training in seen) and model.training
    assert (w.mean(0).abs() < 5 / n**0.5).all() and (w.std(0) - 1).abs().max() < 5 / (2 * n)**0.5
    sample(model, 2, 1, w=w[5:7])
    assert torch.equal(seen[-1][0], w[5:7])

def test_trajectories_do_not_share_a_memory():
    model = edm()
    alone = [list(trajectory(model, 4, 5, step=dpmpp_2m, generator=generator(i))) for i in range(2)]
    turns = list(zip(*(trajectory(model, 4, 5, step=dpmpp_2m, generator=generator(i)) for i in range(2))))
    for i in range(2): assert all(torch.equal(a.z, b[i].z) for a, b in zip(alone[i], turns, strict=True))
    assert not callable(dpmpp_2m)                                                # no step to share

def test_guidance_one_is_the_conditional_model_bit_for_bit():
    model = edm()
    y = torch.tensor([0, 1, 2, 0])
    draw = lambda **kw: sample(model, 4, 5, step='heun', generator=generator(), **kw)
    class Told(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net
        def forward(self, z, gamma, w=None, y=None): return self.net(z, gamma, y=torch.tensor([0, 1, 2, 0]))
    always = Diffusion(Told(model.net), model.schedule, RealCodec(), (3,), prediction=edm_prediction).double()
    assert (torch.equal(draw(y=y), sample(always, 4, 5, step='heun', generator=generator()))
            and torch.equal(draw(y=y, guidance=1.), draw(y=y)))
    assert (torch.equal(draw(y=y, guidance=0.), draw())
            and (draw(y=y, guidance=2.) - draw(y=y)).abs().max() > 1e-2)

@pytest.mark.parametrize('guidance, calls', [(1., [(5, True)]), (0., [(5, False)]),
                                             (3., [(5, True), (5, False)]), (-1., [(5, True), (5, False)])])
def test_no_call_is_wasted(guidance, calls):
    model = edm()
    z = torch.randn(5, 3).double()
    gamma = torch.zeros(5, 1).double()
    y = torch.tensor([0, 1, 2, 0, 1])
    _guided(model, z, gamma, None, y, guidance)
    assert model.net.calls == calls

def test_guidance_works_on_the_networks_of_the_package():
    torch.manual_seed(0)
    model = Diffusion(MLP(3, 16, 1, classes=4), Linear(-6., 6.), Codec(8), (3,))
    [nn.init.normal_(p, std=0.3) for p in model.parameters()]
    model.train()
    x = sample(model, 5, 4, y=torch.tensor([0, 1, 2, 3, 0]), guidance=2., clip=1., generator=generator(),
               step='heun', grid='rho', batch_size=2)
    assert x.dtype == torch.int64 and 0 <= x.min() and x.max() < 8 and model.training

def test_clip_bounds_every_estimate():
    "With clean=True the sample is an estimate itself."
    model = edm()
    free, bound = (sample(model, 64, 8, step='heun', clip=clip, clean=True, generator=generator())
                   for clip in (None, 0.4))
    assert free.abs().max() > 0.5 and bound.abs().max() <= 0.4

def test_explicit_levels_are_the_grid():
    model = per_pixel()
    g = per_pixel().schedule
    same = torch.stack([g(torch.full((1, 1), 1 - i / 6, dtype=torch.float64)) for i in range(7)])
    for step in ('heun', 'ddpm'):
        assert_close(sample(model, 4, 6, step=step, grid=same, generator=generator()),
                     sample(model, 4, 6, step=step, generator=generator()))
    model = gaussian()
    lin = [8., 5., 2., -1., -4., -7., -10.]
    assert_close(sample(model, 4, 6, grid=lin, generator=generator()),
                 sample(model, 4, 6, generator=generator()))
    *_, last = trajectory(model, 4, 3, grid=[8., 0., -1., -3.], generator=generator())
    assert_close(last.gamma, torch.full((4, 1), -3.).double())

bad = [(dict(n=0), ['n=0', 'at least 1']), (dict(steps=0), ['steps=0', 'at least 1']),
       (dict(batch_size=-2), ['batch_size=-2', 'at least 1']),
       (dict(step='euler'), ["step 'euler'", 'heun', 'ode']), (dict(grid='karras'), ["grid 'karras'", 'rho']),
       (dict(grid=partial(grids['rho'], rho=-1.)), ['rho=-1', '7']),
       (dict(grid=[1., 2., 3.]), ['level 1 of 2', 'falling']),
       (dict(grid=[3., 2., 2.]), ['level 2 of 2', 'falling']),
       (dict(grid=[3., math.nan, 2.]), ['level 1 of 2', 'finite']),
       (dict(grid=[3., 2., -math.inf]), ['level 2 of 2', 'clean=True']),
       (dict(grid=[3., 2.]), ['grid has shape (2,)', 'steps + 1 = 3']),
       (dict(grid=lambda level, u: level(1 - u)), ['level 1 of 2', 'falling']),
       (dict(guidance=2.), ['guidance=2', 'pass y']),
       (dict(guidance=math.inf, y=[0, 1, 2]), ['guidance=inf', 'finite']),
       (dict(clip=-1.), ['clip=-1', 'positive']), (dict(w=[[0.], [1.]]), ['w has shape (2, 1)', 'n=3']),
       (dict(y=[0, 1]), ['(2,)', '3 integer labels']), (dict(y=[0., 1., 2.]), ['float', '3 integer labels']),
       (dict(step=partial(ode_step, tolerance=-1.)), ['tolerance=-1', '1e-5'])]
@pytest.mark.parametrize('options, said', bad)
def test_bad_input_is_named(options, said):
    options = dict(n=3, steps=2) | options
    options |= {k: torch.tensor(options[k]) for k in 'wy' if k in options}
    model = edm()
    with pytest.raises(ValueError) as e: sample(model, **options)
    assert (all(s in str(e.value) for s in said) and '\n' not in str(e.value)
            and (not model.net.calls or 'tolerance' in said[0]))

@pytest.mark.parametrize('options',
                         [dict(grid='rho'), dict(grid='logsnr'), dict(step='ode'), dict(step=churned_heun())])
def test_what_a_schedule_per_pixel_cannot_do(options):
    with pytest.raises(ValueError, match="one noise level per example.*grid='time'"):
        sample(per_pixel(), 3, 2, **options)

def test_a_failed_solver_says_so():
    with pytest.raises(FloatingPointError, match='max_steps=2'):
        sample(edm(), 3, 1, step=partial(ode_step, max_steps=2))
