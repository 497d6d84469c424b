"A figure that an evaluation prints can be trusted, or a line says that it cannot."
import math
import pytest
import torch
import warnings
from contextlib import nullcontext
from types import SimpleNamespace
from unittest import mock
from mulan_vdm import reports
from mulan_vdm.codec import Codec, RealCodec, bits_per_dim
from mulan_vdm.data import Split
from mulan_vdm.diffusion import Diffusion
from mulan_vdm.evaluation import evaluate, importance_evaluate
from mulan_vdm.latents import Categorical
from mulan_vdm.likelihood import ode_evaluate
from mulan_vdm.nets import Uninformed
from mulan_vdm.objective import x_prediction
from mulan_vdm.oracles import GaussianOracle, MixtureOracle
from mulan_vdm.schedules import Adaptive, Between, Cosine, FlowOT, Linear, Monotone, make_schedule

GROUPS = 20
IMAGES = 100


def gaussian():
    A = torch.randn(6, 6).double()
    return GaussianOracle(torch.zeros(6).double(), 0.1 * A @ A.T + 0.05 * torch.eye(6).double())


def model_of(oracle, schedule, codec=None, **parts):
    shape = getattr(oracle, 'event_shape', (6,))
    codec = codec or getattr(oracle, 'codec', RealCodec())
    return Diffusion(oracle, schedule, codec, shape, prediction=x_prediction, **parts).double()


def neglecting(gamma_min, gamma_max):
    "An adaptive schedule that has learned to look at one end alone."
    schedule = Adaptive(gamma_min, gamma_max)
    schedule.average.copy_(torch.linspace(-10, 10, 100).sigmoid() + 1e-6)
    return schedule


def far_below(e, truth):
    "How many of the groups of images, each an evaluation, are more than three errors below."
    found = (e.bpd - truth).reshape(GROUPS, -1)
    z = found.mean(1) / (found.std(1) / found.shape[1]**0.5)
    return int((z < -3).sum())


CASES = [(name, *ends) for name in ('linear', 'edm', 'cosine', 'flow', 'adaptive', 'monotone')
         for ends in ((-20., 20.), (-13.3, 5.), (-8., 12.))]
CASES += [('edm_sampling', -12., 8.), ('beta', -9., 9.), ('neglecting', -20., 20.)]


@pytest.mark.parametrize('oracle', ['gaussian', 'mixture'])
def test_no_bound_is_far_below_the_truth(oracle):
    """Of the evaluations of every schedule at every pair of ends, none but a binomial few: 0.005
    for each allows for skewed draws; more than two of 20, or nine of 420, are one in ten thousand."""
    if oracle == 'gaussian': oracle = gaussian()
    else:
        tables = (2 * torch.randn(3, 4, 8).double()).softmax(-1)
        oracle = MixtureOracle(torch.tensor([0.5, 0.3, 0.2]).double(), tables, (1, 2, 2))
    x = oracle.sample(GROUPS * IMAGES)
    model = model_of(oracle, FlowOT())
    truth = bits_per_dim(-oracle.log_prob(x), model.event_shape)
    total = 0
    for name, *ends in CASES:
        if name == 'neglecting': model.schedule = neglecting(*ends)
        else: model.schedule = make_schedule(name, *ends)
        model.double()
        e = evaluate(model, x, 16, batch_size=len(x))
        assert e.extra['even'], name
        below = far_below(e, truth)
        assert below <= 2, (name, ends, below)
        total += below
    assert total <= 9, total  # of 420


def test_steps_are_drawn_by_their_width():
    "The bound of a few steps, exactly known from many draws, and never far below it."
    oracle = gaussian()
    x = oracle.sample(GROUPS * IMAGES)
    for name, ends in (('edm', (-13., 5.)), ('cosine', (-13., 5.)), ('linear', (-13., 5.))):
        model = model_of(oracle, make_schedule(name, *ends))
        e = evaluate(model, x, 16, T=6, batch_size=len(x))
        t = ((torch.arange(6) + 0.5) / 6).double()
        every = sum(model(x, T=6, t=step.expand(len(x))).vlb for step in t) / 6
        exact = bits_per_dim(every, (6,))
        gap = e.bpd - exact
        assert e.extra['even'] and abs(gap.mean()) < 5 * gap.std() / len(x)**0.5


@pytest.mark.parametrize('schedule', ['edm', 'cosine', 'neglecting', 'linear'])
def test_a_heavy_tail_warns(schedule):
    "With the schedule's own levels it warns where the bound cannot be trusted; evenly never."
    ends = -20., 20.
    own = neglecting(*ends) if schedule == 'neglecting' else make_schedule(schedule, *ends)
    oracle = gaussian()
    model = model_of(oracle, own)
    x = oracle.sample(1000)
    heavy = schedule != 'linear'
    with pytest.warns(UserWarning, match='a few draws carry') if heavy else nullcontext():
        e = evaluate(model, x, 16, batch_size=1000, even=False)
    assert (e.extra['tail'] > 0.5) == heavy
    assert evaluate(model, x, 16, batch_size=1000).report()['tail'] < 0.5


class Root(Between):
    "Hardly any time at low noise: the slope has a tail of index 0.8."
    def climb(self, t, w=None): return t**0.2


def test_a_schedule_per_pixel_warns_too():
    "Levels cannot be even there; what cannot be trusted is said."
    oracle = gaussian()
    model = model_of(oracle, Root(-20., 20., event_shape=(6,)))
    with pytest.warns(UserWarning, match='take more draws'):
        e = evaluate(model, oracle.sample(1000), 16, batch_size=1000)
    assert not e.extra['even']


class Told(torch.nn.Module):
    "The best denoiser of the component that the latent names."
    def __init__(self, tables):
        super().__init__()
        self.parts = torch.nn.ModuleList(MixtureOracle(torch.ones(1).double(), t[None], (2,))
                                         for t in tables)

    def forward(self, z_t, gamma, w=None, y=None):
        return sum(w[:, [c]] * part(z_t, gamma) for c, part in enumerate(self.parts))


@pytest.mark.parametrize('T', [None, 7])
def test_several_latents_use_even_levels(T):
    tables = torch.tensor([[0.7, 0.2, 0.1], [0.2, 0.3, 0.5]]).double()[:, None].expand(2, 2, 3)
    mixture = MixtureOracle(torch.tensor([0.5, 0.5]).double(), tables, (2,))
    x = mixture.sample(GROUPS * IMAGES)
    truth = bits_per_dim(-mixture.log_prob(x), (2,))
    latent = Categorical(Uninformed(2), 2)
    model = Diffusion(Told(tables), make_schedule('edm', -12., 8.), Codec(3), (2,), latent,
                      x_prediction).double()
    e = importance_evaluate(model, x, 2, 16, batch_size=len(x), T=T)
    assert e.extra['even'] and far_below(e, truth) <= 2
    assert not importance_evaluate(model, x[:4], 2, 4, T=T, even=False).extra['even']


def test_infinite_ends_keep_their_own_levels():
    "Without ends there is nothing to be even between."
    model = model_of(gaussian(), Cosine())
    with pytest.raises(ValueError, match='even=True with Cosine'):
        evaluate(model, torch.zeros(4, 6).double(), 2, even=True)


def test_a_straight_line_gives_the_same_numbers():
    oracle = gaussian()
    x = oracle.sample(10)
    model = model_of(oracle, make_schedule('linear', -10., 8.))
    for T in (None, 5):
        own, even = (evaluate(model, x, 4, T=T, even=even).bpd for even in (False, None))
        assert torch.equal(own, even)
    bent = model_of(oracle, Monotone(-10., 8., learn_ends=False))
    assert bent.schedule.ends() == pytest.approx((-10, 8)) and math.isfinite(sum(bent.schedule.ends()))


def test_noise_holds_every_term():
    "One step of a crude network: the reconstruction is most of what a draw changes."
    oracle = MixtureOracle(torch.ones(1).double(), torch.full((1, 4, 8), 1 / 8).double(), (4,))
    model = model_of(oracle, make_schedule('linear', -2., 5.))
    x = oracle.sample(1).expand(400, 4)
    e = evaluate(model, x, 8, T=1, batch_size=400)
    claimed = e.noise.square().mean().sqrt()
    actual = e.bpd.std()
    assert abs(claimed / actual - 1) < 5 / (2 * 400)**0.5 + 0.05
    assert e.terms['reconstruction'].std() > 0.3 * actual


def small_mixture():
    tables = (2 * torch.randn(3, 4, 8).double()).softmax(-1)
    return MixtureOracle(torch.tensor([0.5, 0.3, 0.2]).double(), tables, (4,))


def test_the_error_of_the_solver_is_measured():
    "What a tenth of the tolerance changes is nearly all that a thousandth does."
    oracle = small_mixture()
    model = model_of(oracle, make_schedule('linear', -6.4, 9.))
    x = oracle.sample(6)
    follow = lambda tolerance, **how: ode_evaluate(model, x, trace='exact', tolerance=tolerance,
                                                   generator=torch.Generator().manual_seed(0), **how)
    e = follow(1e-4, checked=6)
    gap = e.bpd - follow(1e-7, checked=0).bpd
    assert e.extra['solver'] == pytest.approx(gap.mean().item(), rel=0.5, abs=1e-5)
    assert e.extra['solver_max'] == pytest.approx(gap.abs().max().item(), rel=0.5, abs=1e-5)
    assert e.report()['solver'] == e.extra['solver']
    assert follow(1e-4, checked=0).extra['solver'] is None


@pytest.mark.parametrize('tolerance', [1e-5, 1e-4, 2e-4, 1e-2])
def test_a_rough_solver_warns(tolerance, recwarn):
    oracle = small_mixture()
    model = model_of(oracle, make_schedule('linear', -6.4, 9.))
    ode_evaluate(model, oracle.sample(2), trace='exact', tolerance=tolerance, checked=0)
    said = [w for w in recwarn if 'may flatter' in str(w.message)]
    assert len(said) == (tolerance > 1e-4)


def test_some_images_are_not_the_first():
    "The first images of a labelled folder are its first class."
    test = Split(torch.arange(100)[:, None], torch.arange(100) // 10)
    data = SimpleNamespace(test=test, strata=test.y)
    found = mock.Mock(side_effect=lambda model, x, *rest, **how: seen.append(x) or 1 / 0)
    seen = []
    for n in (20, 20, None):
        with mock.patch.object(reports, 'ode_evaluate', found), pytest.raises(ZeroDivisionError):
            reports._flow(None, data, {}, None, n, 0, {})
    assert torch.equal(seen[0], seen[1]) and len(seen[0]) == 20
    assert len((seen[0] // 10).unique()) > 5 and (seen[0].diff(dim=0) > 0).all()
    assert torch.equal(seen[2], test.x)


@pytest.mark.parametrize('way', [-1e4, -300., 300., 1e4])
def test_ends_cannot_run_away(way):
    "Wherever a long training has pushed them, levels and bound are finite, and nothing pushes on."
    oracle = small_mixture()
    model = model_of(oracle, Linear(-8., 6., learn_ends=True))
    x = oracle.sample(50)
    with torch.no_grad():
        model.schedule.gamma_min += min(way, 0.)
        model.schedule.log_range += max(way, 0.)
    low, high = model.schedule.ends()
    assert low >= -22 - 1e-9 and high - low <= 42 + 1e-9
    terms = model(x)
    terms.loss.mean().backward()
    pushed = model.schedule.gamma_min if way < 0 else model.schedule.log_range
    assert terms.vlb.isfinite().all() and pushed.grad == 0


def test_the_command_line_warns_in_one_line(capsys):
    "A warning of the package has no place in the code, and leaves the answer alone."
    from mulan_vdm import cli
    def answer(command, words):
        warnings.warn('a few draws\ncarry the figure')
        return '3.14 ± 0.01 bits/dim'
    with mock.patch.object(cli, '_answer', answer): assert cli.main(['evaluate', 'a']) == 0
    said = capsys.readouterr()
    assert said.out.strip() == '3.14 ± 0.01 bits/dim'
    assert said.err == 'mulan-vdm: a few draws carry the figure\n'


def test_errors_hold_what_all_seeds_share():
    "Trainings that agree with each other, on images that are hard for all of them."
    from mulan_vdm.evaluation import across_seeds, mean_se
    hard = torch.randn(40).double()
    table = hard + 0.01 * torch.randn(3, 40).double()
    found = across_seeds(table)
    assert found.se_seeds < 0.01 and abs(found.se / mean_se(hard)[1] - 1) < 0.05
    two = across_seeds(torch.tensor([[1.], [2.]]) + 0.001 * torch.randn(2, 40))
    assert two.se == pytest.approx(0.5, rel=0.01) and two.t == pytest.approx(12.7, rel=0.01)
    with pytest.raises(ValueError, match='1 training'): across_seeds(table[:1])
