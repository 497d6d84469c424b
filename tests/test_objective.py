"""Schedules, weightings and the adaptive schedule beyond what the notebooks assert: precision, processes,
copies, random parameters, a network's gradient."""
import copy, math
import pytest, torch
from hypothesis import given, settings, strategies as st
from torch.testing import assert_close
from torch.optim.swa_utils import AveragedModel
from mulan_vdm.codec import Codec
from mulan_vdm.diffusion import Diffusion
from mulan_vdm.objective import (edm_monotonic_weighting, edm_weighting, eps_prediction, implied_weighting,
                                 is_monotone, predictions, sigmoid_weighting,
                                 v_prediction, v_weighting, weightings)
from mulan_vdm.processes import Rows
from mulan_vdm.schedules import (Adaptive, Cosine, EDMSampling, EDMTraining, FlowOT, Linear,
                                 LinearBeta, Monotone, Polynomial, Schedule, Truncated, gamma_and_slope)

wide = dict(cosine=Cosine(), shifted=Cosine(-4.), edm=EDMTraining(), flow=FlowOT(),
            sampling=EDMSampling(1e-5, 1e5), ddpm=LinearBeta(4000, 1e-9, 0.02))
few = settings(max_examples=25, deadline=None, derandomize=True)

def cut(schedule):
    low, high = schedule.ends()
    return Truncated(schedule, max(low, -20.), min(high, 20.))

@pytest.mark.parametrize('name', wide)
def test_single_precision_agrees_with_double(name):
    """Over [-20, 20]: level and slope of a time, times and density of a level. A time near one is stored
    to 6e-8 and no better; the level of that time is still right."""
    schedule = cut(wide[name])
    t = torch.linspace(0, 1, 2001)
    g, slope = gamma_and_slope(schedule, t)
    G, Slope = gamma_and_slope(schedule, t.double())
    assert g.dtype == torch.float32 and (g - G).abs().max() < 1e-4 and (slope / Slope - 1).abs().max() < 1e-2
    gamma = torch.linspace(-20, 20, 2001).clamp(*schedule.ends())
    for ours, exact in zip(schedule.times(gamma), schedule.times(gamma.double())):
        assert_close(ours.double(), exact, rtol=2e-3, atol=1e-7)
    assert_close(schedule.density(-gamma).double(), schedule.density(-gamma.double()), rtol=1e-3, atol=1e-9)

@pytest.mark.parametrize('name', wide)
def test_ends_are_met_in_both_precisions(name):
    for dtype, tol in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        schedule = cut(wide[name])
        assert_close(schedule(torch.tensor([0., 1.], dtype=dtype)),
                     torch.tensor(schedule.ends(), dtype=dtype), rtol=0,
                     atol=max(tol, 5e-3 * (name == 'ddpm' and dtype == torch.float32)))

def test_infinite_ends_are_infinite():
    for name in ('cosine', 'shifted', 'edm', 'flow'):
        assert wide[name].ends() == (-math.inf, math.inf)
        assert_close(wide[name](torch.tensor([0., 1.])), torch.tensor([-math.inf, math.inf]))

@given(a=st.floats(-19, 19), b=st.floats(-19, 19),
       which=st.sampled_from(['cosine', 'shifted', 'edm', 'flow', 'sampling']))
@few
def test_truncation_to_any_range(a, b, which):
    low, high = min(a, b), max(a, b)
    if high - low < 1e-3: return
    schedule = Truncated(wide[which], low, high)
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    gamma, slope = gamma_and_slope(schedule, t)
    assert_close(gamma[[0, -1]], gamma.new_tensor([low, high]), rtol=0, atol=1e-9)
    assert (gamma.diff() > 0).all()
    assert_close(slope * schedule.density(-gamma), torch.ones_like(t), rtol=1e-9, atol=0)
    t_back, rest_back = schedule.times(gamma)
    assert_close(schedule.at(t_back, rest_back), gamma, rtol=0, atol=1e-8)
    assert (schedule.density(-gamma.new_tensor([low - 0.1, high + 0.1])) == 0).all()

@given(m=st.floats(-3, 3), s=st.floats(0.3, 3.), d=st.sampled_from([16, 64, 128, 512]))
@few
def test_weightings_follow_their_parameters(m, s, d):
    "EDM's weighting with any mean, width and data scale; v-prediction with any shift."
    l = torch.linspace(-10, 10, 201, dtype=torch.float64)
    from functools import partial
    from mulan_vdm.objective import edm_prediction
    ratio = implied_weighting(partial(edm_prediction,
                                      sigma_data=s), EDMTraining(m, s))(l) / edm_weighting(l, m, s, s)
    assert_close(ratio, torch.full_like(l, 2 / s**2), rtol=1e-9, atol=0)
    shift = 2 * math.log(64 / d)
    ratio = implied_weighting(v_prediction, Cosine(shift))(l) / v_weighting(l)
    assert_close(ratio / ratio[100], torch.cosh(l / 2) / torch.cosh((l - shift) / 2) * math.cosh(shift / 2),
                 rtol=1e-9, atol=0)

def test_a_truncated_schedule_implies_the_same_weighting_up_to_a_constant():
    l = torch.linspace(-5, 5, 101, dtype=torch.float64)
    for prediction in predictions.values():
        ratio = (implied_weighting(prediction, Truncated(Cosine(), -6., 6.))(l)
                 / implied_weighting(prediction, Cosine())(l))
        assert_close(ratio, ratio[:1].expand_as(l))

@pytest.mark.parametrize('name', weightings)
def test_weightings_are_positive_and_keep_shape_and_dtype(name):
    for dtype in (torch.float32, torch.float64):
        l = torch.linspace(-20, 20, 12, dtype=dtype).reshape(3, 1, 4)
        w = weightings[name](l)
        assert w.shape == l.shape and w.dtype == dtype and (w >= 0).all() and (w[l < 11] > 0).all()

def test_monotone_is_computed():
    assert not is_monotone(
        lambda l: 1 - 1e-3 * torch.exp(-(l - 3.003)**2 / 1e-4)), 'a dip of one percent width is seen'
    assert is_monotone(edm_monotonic_weighting) and is_monotone(sigmoid_weighting, -30., 30.)

# --- adaptive -----------------------------------------------------------------------------------------------

def fed(steps=50, **kwargs):
    torch.manual_seed(0)
    schedule = Adaptive(-8., 5., bins=20, decay=0.9, **kwargs)
    for _ in range(steps):
        g = schedule(torch.rand(64, 1))
        schedule.observe(g, torch.exp(-g / 3) * torch.ones(1, 3))
    return schedule

def test_observe_averages_dimensions_and_examples_and_leaves_other_bins():
    schedule = Adaptive(0., 4., bins=4, decay=0.75)
    schedule.visits.fill_(1e6)  # the short start is over
    # bin 0: mean of 2 and 6; bin 2: 10
    schedule.observe(torch.tensor([[0.5], [0.9], [2.5]]), torch.tensor([[1., 3.], [5., 7.], [9., 11.]]))
    assert_close(schedule.average, torch.tensor([0.75 + 4 / 4, 1., 0.75 + 10 / 4, 1.]))
    times, gammas = schedule.knots()
    a = schedule.average
    assert_close(times.diff(), 0.99 * a / a.sum() + 0.01 / 4)
    assert_close(gammas, torch.arange(5.))
    schedule.observe(torch.tensor(3.5), torch.full((2, 1, 2, 2), 5.))
    assert_close(schedule.average[3], torch.tensor(0.75 + 5 / 4))  # gamma broadcasts

def test_state_dict_round_trip_and_copies():
    schedule = fed()
    fresh = Adaptive(-8., 5., bins=20)
    fresh.load_state_dict(schedule.state_dict())
    t = torch.linspace(0, 1, 101)
    assert (not torch.equal(schedule.average, torch.ones(20)) and torch.equal(fresh(t), schedule(t))
            and torch.equal(copy.deepcopy(schedule)(t), schedule(t)))
    model = Diffusion(Net(), fed(), Codec(17), (3,))
    average = AveragedModel(model, multi_avg_fn=lambda a, b, n: None)
    model.train()
    x = torch.randint(17, (32, 3))
    model(x)
    assert not torch.equal(average.module.schedule.average, model.schedule.average)
    average.update_parameters(model)
    assert torch.equal(average.module.schedule.average, model.schedule.average)
    before = model.schedule.average.clone()
    model.eval()(x)
    assert torch.equal(model.schedule.average, before), 'evaluation must not teach the schedule'
    assert schedule.double()(t.double()).dtype == torch.float64 and schedule.float()(t).dtype == torch.float32

def test_the_model_shows_the_weighted_error():
    class Seen(Linear):
        def observe(self, gamma, loss): self.seen = gamma, loss
    weighting = lambda l: torch.exp(-l / 2)
    torch.manual_seed(0)
    x = torch.randint(17, (8, 3))
    net = Net()
    losses = []
    for w in (weightings['elbo'], weighting):
        model = Diffusion(net, Seen(-5., 4.), Codec(17), (3,), weighting=w)
        terms = model(x, t=torch.rand(8, generator=torch.Generator().manual_seed(3)),
                      rows=Rows(torch.Generator().manual_seed(1)))
        gamma, loss = model.schedule.seen
        losses.append(loss)
        assert not loss.requires_grad
        assert_close(terms.weighted, 0.5 * 9. * loss.sum(1))  # the slope is 9
    assert_close(losses[1], weighting(-gamma) * losses[0])

def worker(rank, path, results):
    import torch.distributed as dist
    dist.init_process_group('gloo', init_method=f'file://{path}', rank=rank, world_size=2)
    torch.manual_seed(rank)
    # of different sizes too
    schedule = Adaptive(-8., 5., bins=10, decay=0.5)
    g = torch.rand(16 + 16 * rank, 1) * 13 - 8
    schedule.observe(g, g.exp())
    torch.save((schedule.average, g), f'{results}/{rank}.pt')
    dist.destroy_process_group()

def test_processes_keep_the_same_schedule(tmp_path):
    torch.multiprocessing.start_processes(worker, (str(tmp_path / 'init'), str(tmp_path)), nprocs=2,
                                          start_method='spawn')
    (a, g), (b, h) = (torch.load(tmp_path / f'{rank}.pt') for rank in (0, 1))
    alone = Adaptive(-8., 5., bins=10, decay=0.5)
    both = torch.cat([g, h])
    alone.observe(both, both.exp())
    assert torch.equal(a, b)
    assert_close(a, alone.average)

@given(values=st.lists(st.tuples(st.floats(-30, 30),
                                 st.floats(allow_nan=True, allow_infinity=True, width=32)),
                       min_size=1, max_size=20), decay=st.sampled_from([0., 0.5, 0.999]))
@few
def test_nothing_observed_breaks_the_adaptive_schedule(values, decay):
    schedule = Adaptive(-13.3, 5., decay=decay)
    for gamma, loss in values * 5: schedule.observe(torch.full((2, 1), gamma), torch.full((2, 1), loss))
    times, _ = schedule.knots()
    gamma = schedule(torch.linspace(0, 1, 5001))
    assert (times.diff() > 0.9e-4).all() and (gamma.diff() > 0).all()
    assert_close(gamma[[0, -1]], torch.tensor([-13.3, 5.]), rtol=0, atol=1e-4)

# --- variance -----------------------------------------------------------------------------------------------

class Net(torch.nn.Module):
    "A small network that sees the noise level."
    def __init__(self, d=3):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(d + 1, 16), torch.nn.Tanh(), torch.nn.Linear(16, d))
    def forward(self, z_t, gamma, w=None, y=None):
        self.calls = getattr(self, 'calls', 0) + 1
        return self.layers(torch.cat([z_t, gamma.expand(len(z_t), 1) / 5], -1))

@pytest.mark.parametrize('name', ['elbo', 'sigmoid', 'edm_monotonic'])
def test_interior_follows_the_second_moment_through_a_network(name):
    """The gradient of mean L^2 over mean L for the interior; of the mean loss for the ends and the
    network; one call of the network."""
    torch.manual_seed(0)
    net = Net()
    schedule = Monotone(-6., 4., features=8)
    x = torch.randint(17, (32, 3))
    t = torch.rand(32).double()
    def build(variance):
        return Diffusion(net, schedule, Codec(17), (3,), weighting=weightings[name], prediction=v_prediction,
                         variance=variance).double().train()
    def draw(model): return model(x, t=t, rows=Rows(torch.Generator().manual_seed(2)))
    inside = list(schedule.interior().values())
    others = [schedule.gamma_min, schedule.log_range, *net.parameters()]
    plain = draw(build(False))
    L = plain.weighted
    calls = net.calls
    split = draw(build(True))
    assert net.calls == calls + 1
    for a, b in zip(plain, split): assert torch.equal(a, b)
    square = torch.autograd.grad((L**2).mean() / L.mean().detach(), inside, retain_graph=True)
    first = torch.autograd.grad(L.mean(), inside, retain_graph=True)
    # of the whole loss: the end terms do not see the interior
    got = torch.autograd.grad(split.loss.mean(), inside, retain_graph=True)
    for a, b, c in zip(got, square, first):
        assert_close(a, b, rtol=1e-8, atol=1e-10)
        assert (a - c).abs().max() > 1e-4 * c.abs().max()
    for a, b in zip(torch.autograd.grad(split.loss.mean(), others),
                    torch.autograd.grad(plain.loss.mean(), others)):
        assert_close(a, b, rtol=1e-9, atol=1e-12)

def test_variance_applies_to_training_in_continuous_time_only():
    torch.manual_seed(0)
    schedule = Monotone(-6., 4., features=8)
    x = torch.randint(17, (16, 3))
    t = torch.rand(16)
    net = Net()
    inside = list(schedule.interior().values())
    def grads(variance, train=True, T=None):
        model = Diffusion(net, schedule, Codec(17), (3,), variance=variance).train(train)
        rows = Rows(torch.Generator().manual_seed(2))
        return torch.autograd.grad(model(x, t=t, T=T, rows=rows).loss.mean(),
                                   inside)
    for case in (dict(T=10), dict(train=False)):
        for a, b in zip(grads(True, **case), grads(False, **case)): assert torch.equal(a, b)
    assert any(not torch.allclose(a, b) for a, b in zip(grads(True), grads(False)))
    with torch.no_grad(): Diffusion(net, schedule, Codec(17), (3,), variance=True).train()(x)

# --- refusals -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize('make, says', [(lambda: Truncated(Cosine(), 5., -5.),
                                         ['gamma_min=5.0', 'gamma_max=-5.0', 'gamma increases']),
    (lambda: Truncated(Cosine(), -math.inf, 5.), ['gamma_min=-inf', 'finite']),
    (lambda: Truncated(LinearBeta(), -13.3, 5.), ['gamma_min=-13.3', '-9.21024..10.1177', 'wider']),
    (lambda: Truncated(Polynomial((3,), -8., 5.), -9., 5.), ['gamma_min=-9.0', '-8..5', 'wider']),
    (lambda: EDMTraining(std=-1.), ['std=-1.0', 'positive']),
    (lambda: EDMSampling(0., 1.), ['sigma_min=0.0', 'sigma_max=1.0', 'grows']),
    (lambda: EDMSampling(rho=-7.), ['rho=-7.0', 'takes 7']), (lambda: LinearBeta(1), ['T=1', 'two steps']),
    (lambda: LinearBeta(10, 0.5, 0.1), ['beta_min=0.5', 'beta_max=0.1', 'shares']),
    (lambda: LinearBeta(10, 0.5, 1.), ['beta_max=1.0']),
    (lambda: Adaptive(5., 5.), ['gamma_min=5.0', 'gamma_max=5.0']),
    (lambda: Adaptive(decay=1.), ['decay=1.0', '[0, 1)']),
    (lambda: Adaptive(decay=float('nan')), ['decay=nan']),
    (lambda: Adaptive(bins=0), ['bins=0', 'at least one']),
    (lambda: Adaptive(bins=100_000), ['bins=100000', 'floor=0.01']),
    (lambda: Adaptive(floor=2.), ['floor=2.0']),
    (lambda: is_monotone(v_weighting, 5., -5.), ['gamma_min=5.0', 'gamma_max=-5.0']),
    (lambda: Diffusion(Net(), Linear(), Codec(17), (3,), variance=True),
     ['variance=True', 'Linear', 'take Monotone'])])
def test_refusals_name_argument_value_and_remedy(make, says):
    with pytest.raises(ValueError) as e: make()
    assert '\n' not in str(e.value)
    for s in says: assert s in str(e.value)

def test_unfinished_schedules_say_so():
    with pytest.raises(NotImplementedError, match='must define forward'): Schedule()(torch.zeros(1))
