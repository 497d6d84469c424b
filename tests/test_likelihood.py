"Likelihood by the probability flow: what it must equal, what it must not depend on, what it refuses."
import math
import pytest, torch
from scipy.stats import kstest, truncnorm, uniform
from torch.testing import assert_close
from mulan_vdm.codec import Codec, RealCodec
from mulan_vdm.diffusion import Diffusion
from mulan_vdm.latents import Gaussian, KHot
from mulan_vdm.likelihood import _combine, _follow, _in_bits, begin, dequantizations, ode_evaluate
from mulan_vdm.flow import divergence, log_density, solve, velocity
from mulan_vdm.nets import UNet
from mulan_vdm.noise import alpha, sigma
from mulan_vdm.objective import x_prediction
from mulan_vdm.oracles import GaussianOracle, MixtureOracle
from mulan_vdm.schedules import Linear, Polynomial, Schedule

generator = lambda seed=0: torch.Generator().manual_seed(seed)

class Shifted(Schedule):
    "Both ends of every dimension depend on w, and on the dimension."
    def forward(self, t, w=None):
        d = 0 if w is None else w.mean(1).reshape(-1, *[1] * (t.ndim - 1)) / 2
        return (-6.4 + d + (22 + d) * t * torch.linspace(1, 1.1, 4, dtype=t.dtype)
                + torch.linspace(-0.5, 0.5, 4, dtype=t.dtype))

def pixels(latent=None, schedule=None, vocab=8, seed=0):
    g = generator(seed)
    tables = (2 * torch.randn(3, 4, vocab, generator=g).double()).softmax(-1)
    return Diffusion(MixtureOracle(torch.tensor([0.5, 0.3, 0.2]).double(), tables, (4,)),
                     schedule or Linear(-6.4, 9.), Codec(vocab), (4,), latent,
                     x_prediction).double().requires_grad_(False)

def in_nats(e, dims): return e.bpd * dims * math.log(2)

def draw(model, n, seed=0):
    torch.manual_seed(seed)
    return model.net.sample(n)

def encoded(kind, width, *sizes):
    torch.manual_seed(3)
    return kind(torch.nn.Linear(4, width), *sizes)

def true_figure(model, x, s, dequantization):
    "Every draw's -log p by the oracle's marginal and scipy's truncated normal; nats (K,)."
    gamma_0 = model.gamma(torch.zeros(len(s.z_0)), s.w).expand_as(s.z_0)
    a = alpha(gamma_0)
    offset = s.z_0 / a - Codec(8).encode(x, torch.float64)
    std = sigma(gamma_0) / a
    if dequantization == 'uniform': log_q = torch.full_like(offset, math.log(8 / 2))
    else:
        log_q = torch.from_numpy(truncnorm.logpdf(offset.numpy(), (-1 / 8 / std).numpy(),
                                                  (1 / 8 / std).numpy(), scale=std.numpy()))
    assert (offset.abs() <= 1 / 8).all()
    return -model.net.log_marginal(s.z_0, gamma_0) - a.log().sum(1) + log_q.sum(1) + s.latent

@pytest.mark.parametrize('dequantization', dequantizations)
@pytest.mark.parametrize('latent', [None, 'gaussian', 'khot'])
def test_equals_the_closed_form_draw_by_draw(dequantization, latent):
    "Density, Jacobian, dequantization and latent, also where gamma_0 depends on w and on the dimension."
    made = {None: None, 'gaussian': encoded(Gaussian, 4, 2), 'khot': encoded(KHot, 5, 5, 2)}[latent]
    model = pixels(made, Shifted())
    x = draw(model, 5)
    e = ode_evaluate(model, x, draws=3, trace='exact', dequantization=dequantization, tolerance=1e-7,
                     generator=generator())
    seeds = torch.randint(2**62, (5,), generator=generator()).tolist()
    for k, seed, nats in zip(x, seeds, in_nats(e, 4)):
        s = begin(model, k[None], 3, dequantization, 'exact', 1, False, generator(seed))
        # of which 1e-3 for the prior in place of the marginal at t = 1
        assert_close(nats, true_figure(model, k, s, dequantization).mean(), rtol=0, atol=2e-3)
    coded = Codec(8).encode(x, torch.float64)
    assert_close(e.terms['latent'] * 4 * math.log(2), model.latent(coded)[1])
    assert_close(e.bpd, sum(e.terms.values()))
    assert (e.terms['dequantization'] == 0).all() == (dequantization == 'uniform')

@pytest.mark.parametrize('latent', [encoded(Gaussian, 4, 2), encoded(KHot, 5, 5, 2)])
def test_importance_weights_are_densities_over_proposals(latent):
    model = pixels(latent, Shifted())
    x = draw(model, 3)
    e = ode_evaluate(model, x, draws=4, trace='exact', importance=True, tolerance=1e-7,
                     generator=generator(1))
    for k, seed, nats in zip(x, torch.randint(2**62, (3,), generator=generator(1)).tolist(), in_nats(e, 4)):
        s = begin(model, k[None], 4, 'truncated_normal', 'exact', 1, True, generator(seed))
        assert_close(s.latent, latent.log_ratio(s.w, Codec(8).encode(k[None], torch.float64).expand(4, -1)))
        assert_close(nats, math.log(4) - (-true_figure(model, k, s, 'truncated_normal')).logsumexp(0),
                     rtol=0, atol=2e-3)
    assert (e.terms['importance'] <= 0).all()
    assert_close(e.bpd, sum(e.terms.values()))

def test_probes_agree_with_the_exact_trace():
    model = pixels()
    x = draw(model, 24)
    exact, *noisy = (ode_evaluate(model, x, draws=2, probes=n, trace=trace, generator=generator())
                     for n, trace in ((1, 'exact'), (8, 'rademacher'), (8, 'gaussian')))
    for e in noisy:
        d = e.bpd - exact.bpd
        assert abs(d.mean()) < 5 * d.std() / 24**0.5 and d.std() > 1e-3
        # a probe that changes on the way takes ten times as many
        assert e.extra['nfe'].max() < 2 * exact.extra['nfe'].max()

def test_real_data_need_no_dequantization():
    "Density of real data in nats, charged with nothing, and the same with bits/dim."
    torch.manual_seed(0)
    A = torch.randn(5, 5).double()
    oracle = GaussianOracle(torch.randn(5).double(), A @ A.T / 5 + 0.1 * torch.eye(5).double())
    schedule = Polynomial((5,), -17., 26.).double()
    torch.nn.init.normal_(schedule.coefficients)
    model = Diffusion(oracle, schedule, RealCodec(), (5,), prediction=x_prediction).double()
    x = oracle.sample(6)
    e = ode_evaluate(model, x, trace='exact', tolerance=1e-7, generator=generator())
    assert_close(in_nats(e, 5), -oracle.log_prob(x), rtol=0, atol=2e-4)
    assert (e.terms['dequantization'] == 0).all() and (e.terms['latent'] == 0).all()

def test_labels_stay_with_their_images():
    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.oracles = torch.nn.ModuleList(
                GaussianOracle(torch.full((2,), m).double(), torch.eye(2).double() / 4) for m in (-1., 1.))
        def forward(self, z, gamma, w=None, y=None):
            return torch.where(y[:, None] == 0, *(o(z, gamma) for o in self.oracles))
    model = Diffusion(Two(), Linear(-16., 26.), RealCodec(), (2,), prediction=x_prediction).double()
    x = torch.randn(5, 2, generator=generator()).double()
    y = torch.tensor([0, 1, 1, 0, 1])
    e = ode_evaluate(model, x, y, draws=2, trace='exact', batch_size=2, tolerance=1e-7, generator=generator())
    known = torch.stack([-model.net.oracles[c].log_prob(k[None])[0] for k, c in zip(x, y)])
    assert_close(in_nats(e, 2), known, rtol=0, atol=2e-4)

def random_unet(**kwargs):
    torch.manual_seed(0)
    net = UNet(1, channels=8, blocks=1, fourier=(), **kwargs)
    for p in net.parameters(): p.data.add_(0.05 * torch.randn_like(p))
    return Diffusion(net, Linear(-7.9, 5.), Codec(17), (1, 4, 4))

def test_network_in_single_precision():
    """Exact trace and many probes agree through convolutions, normalization and attention; the
    mode of the model is kept."""
    model = random_unet(dropout=0.5)
    x = torch.randint(17, (2, 1, 4, 4))
    exact = ode_evaluate(model, x, trace='exact', generator=generator())
    assert model.training and all(m.training for m in model.modules())
    assert exact.bpd.dtype == torch.float64 and not exact.bpd.requires_grad and exact.bpd.isfinite().all()
    model.eval()
    z = torch.randn(2, 1, 4, 4).double()
    v = torch.randn(128, 2, 1, 4, 4).sign()
    noisy = (log_density(model, z, probes=v, tolerance=1e-4).log_prob
             - log_density(model, z, tolerance=1e-4).log_prob)
    assert (noisy.mean(1).abs() < 5 * noisy.std(1) / 128**0.5 + 0.01).all() and (noisy.std(1) > 0.05).all()

def test_divergence_is_the_trace_of_the_jacobian():
    model = random_unet().eval().requires_grad_(False)
    z = torch.randn(3, 1, 4, 4)
    t = torch.tensor([0.1, 0.5, 0.9])
    jacobian = torch.func.jacrev(lambda z: velocity(model, t)(z).sum(0))(z).reshape(16, 3, 16)
    assert_close(divergence(velocity(model, t), z)[1][:, 0], torch.einsum('ibi->b', jacobian),
                 rtol=1e-4, atol=1e-4)

def test_an_image_does_not_depend_on_its_neighbours():
    "Alone, in batches of any size, beside easy and hard ones."
    model = pixels()
    x = draw(model, 7)
    options = dict(draws=2, probes=2)
    whole = ode_evaluate(model, x, batch_size=7, generator=generator(), **options)
    for size in (1, 3):
        e = ode_evaluate(model, x, batch_size=size, generator=generator(), **options)
        assert_close(e.bpd, whole.bpd, rtol=0, atol=1e-9)
        assert_close(e.extra['nfe'], whole.extra['nfe'], rtol=0, atol=0)
        assert_close(e.noise, whole.noise, rtol=0, atol=1e-9)
    z = torch.cat([torch.full((1, 4), 0.3), 100 * torch.randn(3, 4), torch.zeros(30, 4)]).double()
    assert_close(log_density(model, z[:1]).log_prob, log_density(model, z).log_prob[:1], rtol=0, atol=1e-9)

def test_the_batch_split_does_not_matter_with_a_latent():
    model = pixels(encoded(KHot, 5, 5, 2), Shifted())
    x = draw(model, 5)
    a, b = (ode_evaluate(model, x, draws=2, batch_size=size, generator=generator()).bpd for size in (5, 2))
    assert_close(a, b, rtol=0, atol=1e-9)

def test_same_generator_same_numbers():
    model = pixels()
    x = draw(model, 4)
    run = lambda seed: ode_evaluate(model, x, generator=generator(seed)).bpd
    assert torch.equal(run(1), run(1)) and (run(1) != run(2)).all()
    torch.manual_seed(5)
    a = ode_evaluate(model, x).bpd
    torch.manual_seed(5)
    assert torch.equal(a, ode_evaluate(model, x).bpd)

def test_images_do_not_share_their_noise():
    model = pixels()
    x = draw(model, 1).expand(6, 4)
    assert len(ode_evaluate(model, x, generator=generator()).bpd.unique()) == 6

def test_evaluations_are_counted():
    model = pixels()
    net = model.net.forward
    calls = []
    model.net.forward = lambda *args, **kwargs: (calls.append(1), net(*args, **kwargs))[1]
    e = ode_evaluate(model, draw(model, 1), generator=generator(), checked=0)
    assert len(calls) == e.extra['nfe'].item()

def test_there_and_back():
    model = pixels(schedule=Shifted())
    f = lambda t, s: torch.cat([*divergence(velocity(model, t), s[:, :4])],
                               1) / torch.tensor([1, 1, 1, 1, 4]).double()
    start = torch.cat([torch.randn(5, 4).double(), torch.zeros(5, 1).double()], 1)
    there, _ = solve(f, start, 4, tolerance=1e-10)
    assert (there - start).abs().min(0).values.max() > 0.01
    assert_close(solve(f, there, 4, (1., 0.), 1e-10)[0], start, rtol=0, atol=1e-5)

def test_the_batch_solver_of_others_agrees():
    from torchdiffeq import odeint
    model = pixels(schedule=Shifted())
    f = lambda t, z: velocity(model, t * torch.ones(3).double())(z)
    z = torch.randn(3, 4).double()
    assert_close(log_density(model, z, tolerance=1e-8).z_1,
                 odeint(f, z, torch.tensor([0., 1.]).double(), rtol=1e-8, atol=1e-8)[-1], rtol=0, atol=1e-5)

def test_noisy_weights_are_cross_fitted():
    """Importance weighting of noisy densities lies above the one of exact ones;
    plugged in, it would lie below."""
    model = pixels()
    x = draw(model, 16)
    options = dict(draws=8, importance=True, batch_size=16, tolerance=1e-4)
    exact = ode_evaluate(model, x, trace='exact', generator=generator(), **options)
    noisy = ode_evaluate(model, x, probes=2, generator=generator(), **options)
    d = noisy.bpd - exact.bpd
    assert d.mean() > -5 * d.std() / 4  # not below; above, with noises enough:
    truth, first, second = 2 * torch.randn(3, 10_000, 8, generator=generator()).double()
    d = _combine(truth + first, truth + second, True)[0] - _combine(truth, truth, True)[0]
    assert d.mean() > 5 * d.std() / len(d)**0.5
    assert_close(noisy.bpd, sum(noisy.terms.values()))
    parts = _follow(model, x, None, list(range(16)), 8, 'rademacher', 2, 'truncated_normal', True,
                   tolerance=1e-4)
    mean = (parts[0] + parts[1]) / 2 + parts[2] + parts[3]
    assert (_combine(mean, mean, True)[0] < _in_bits(parts, (1,), True, None).bpd * math.log(2)).all()
    alone = ode_evaluate(model, x[:2], importance=True, probes=2)
    assert_close(alone.terms['importance'], torch.zeros(2).double(), rtol=0, atol=1e-12)

def test_log_k_is_part_of_the_bound():
    nats = torch.full((3, 9), 2.).double()
    assert_close(_combine(nats, nats, True)[0], nats[:, 0])
    nats = torch.randn(50, 9).double()
    assert (_combine(nats, nats, True)[0] < _combine(nats, nats, False)[0]).all()

def test_standard_errors_of_the_draws():
    "Claimed errors of an image's figure match the spread of repeated figures."
    for importance in (False, True):
        nats = 0.5 * torch.randn(4000, 64, generator=generator()).double()
        bound, _, error = _combine(nats, nats, importance)
        assert abs(bound.std() / error.square().mean().sqrt() - 1) < 0.06  # five standard errors of 4000

def test_report_and_table_of_an_evaluation():
    model = pixels()
    e = ode_evaluate(model, draw(model, 6), draws=2, strata=torch.tensor([0, 0, 0, 1, 1, 1]),
                     generator=generator())
    r = e.report()
    assert (set(r['terms']) == {'density', 'dequantization', 'latent'}
            and r['bpd_se_noise'] > 0 and r['n'] == 6)
    assert_close(r['bpd'], e.bpd.mean().item())
    assert 'dequantization' in e.table()
    assert ode_evaluate(model, draw(model, 2)).noise.isnan().all()

@pytest.mark.parametrize('options, message', [(dict(draws=0), 'draws=0'),
    (dict(probes=0), 'probes=0'), (dict(trace='sobol'), "unknown trace 'sobol': choose one of rademacher"),
    (dict(dequantization='normal'), "unknown dequantization 'normal': choose one of uniform"),
    (dict(trace='exact', exact_limit=3), 'exact_limit=3'), (dict(tolerance=0.), 'tolerance=0.0'),
    (dict(tolerance=-1e-5), 'tolerance=-1e-05'), (dict(tolerance=math.nan), 'tolerance=nan'),
    (dict(max_steps=0), 'max_steps=0'), (dict(draws=4, importance=True), 'lucky probes'),
   ])
def test_bad_options(options, message):
    model = pixels()
    model.train()
    with pytest.raises(ValueError) as e: ode_evaluate(model, draw(model, 2), **options)
    assert message in str(e.value) and '\n' not in str(e.value) and model.training

def test_bad_images():
    model = pixels()
    with pytest.raises(ValueError, match='no examples'):
        ode_evaluate(model, torch.zeros(0, 4, dtype=torch.long))
    with pytest.raises(ValueError, match='outside the vocabulary'): ode_evaluate(model, torch.full((2, 4), 8))
    with pytest.raises(ValueError, match="the model's events are"):
        ode_evaluate(model, torch.zeros(2, 5, dtype=torch.long))

def test_failure_names_tolerance_and_evaluations():
    model = pixels()
    x = draw(model, 2)
    model.train()
    with pytest.raises(FloatingPointError,
                       match=r'tolerance=1e-08 after 20 evaluations, max_steps=3 reached') as e:
        ode_evaluate(model, x, tolerance=1e-8, max_steps=3)
    assert '\n' not in str(e.value) and model.training
    model.net.tables.fill_(math.nan)
    with pytest.raises(FloatingPointError, match='not finite'): ode_evaluate(model, x)

def test_a_failing_image_does_not_pass_in_silence():
    "One hopeless image among good ones."
    f = lambda t, s: torch.where((s[:, :1] > 50) & (t[:, None] > 0.5), torch.nan, -s)
    with pytest.raises(FloatingPointError, match='of 3 trajectories failed'):
        solve(f, torch.tensor([[1.], [2.], [100.]]).double(), 1)

def test_halves_of_the_probes_are_independent_and_unbiased():
    "Cross-fitting rests on it: one half chooses the weights, the other is charged."
    model = pixels()
    x = draw(model, 48)
    run = lambda trace, n: _follow(model, x, None, list(range(48)), 4, trace, n, 'uniform', False,
                                  tolerance=1e-4)
    exact, noisy = run('exact', 1), run('gaussian', 4)
    assert torch.equal(exact[0], exact[1])
    assert_close(exact[2:4], noisy[2:4])
    first, second = ((half - exact[0]).flatten() for half in noisy[:2])
    n = len(first)
    for error in (first, second): assert error.std() > 0.1 and abs(error.mean()) < 5 * error.std() / n**0.5
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 5 / n**0.5
    assert_close(((first + second) / 2).var(), first.var() / 2, rtol=0.4, atol=0)

@pytest.mark.parametrize('name', dequantizations)
@pytest.mark.parametrize('spread', [0.01, 0.17, 1., 1e6])
def test_draws_have_the_density_they_claim(name, spread):
    "log q(o(u)) + log do/du = log 1/2 inside the bin, and the ends of u reach its edges."
    u = torch.linspace(-0.999, 0.999, 51).double()
    f = lambda u: dequantizations[name](u, torch.full_like(u, spread))
    slope = torch.func.jvp(lambda u: f(u)[0], (u,), (torch.ones_like(u),))[1]
    assert_close(f(u)[1] + slope.log(), torch.full_like(u, 0.5).log(), rtol=0, atol=1e-7)
    assert_close(f(torch.tensor([-1., 1.]).double())[0], torch.tensor([-0.5, 0.5]).double())

@pytest.mark.parametrize('name', dequantizations)
def test_offsets_fill_the_bin(name):
    model = pixels()
    x = draw(model, 1)
    s = begin(model, x, 4000, name, 'exact', 1, False, generator())
    gamma_0 = model.gamma(torch.zeros(1))
    offset = 4 * (s.z_0 / alpha(gamma_0) - Codec(8).encode(x, torch.float64))
    spread = math.exp(-6.4 / 2) * 4
    law = uniform(-0.5, 1) if name == 'uniform' else truncnorm(-0.5 / spread, 0.5 / spread, scale=spread)
    assert kstest(offset.flatten().numpy(), law.cdf).pvalue > 6e-7  # five standard errors
