"""Laws over generated shapes, types, vocabularies, noise levels and words: right to the stated digits, or
refused in one line. 2,700 generated cases, the same in every run."""
import gc, io, itertools, math, os, contextlib
import pytest, torch, torch.nn as nn
from hypothesis import HealthCheck, example, given, settings, strategies as st
from torch.overrides import TorchFunctionMode
from torch.testing import assert_close
from mulan_vdm import cli, training
from mulan_vdm.data import batch_indices, batches, load
from mulan_vdm.codec import bits_per_dim, Codec, RealCodec
from mulan_vdm.diffusion import Diffusion, low_discrepancy_times
from mulan_vdm.subsets import log_partition, marginals, sample_subset, subset_kl, subset_log_prob
from mulan_vdm.nets import MLP, Encoder, UNet
from mulan_vdm.noise import alpha, diffuse, posterior, prior_kl, sigma, transition
from mulan_vdm.objective import discrete_rate, eps_error, to_x_eps
from mulan_vdm.schedules import Adaptive, Linear, Monotone, MonotonePerDim, Polynomial, gamma_and_slope
from mulan_vdm.sampling import sample
from mulan_vdm.processes import Rows
from mulan_vdm.systems import predictions, presets, systems

def cases(n):
    return settings(max_examples=n, derandomize=True, deadline=None, database=None,
                    suppress_health_check=list(HealthCheck))
seeds = st.integers(0, 2**31)
floats = lambda low, high: st.floats(low, high, allow_nan=False, width=32)
events = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple)
exact = torch.float64

def randn(seed, *shape, dtype=exact):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=exact).to(dtype)

# ---- the codec

@cases(300)
@given(st.integers(2, 700), events, floats(-25, 12), st.sampled_from([torch.float32, torch.float64]),
       st.sampled_from([torch.uint8, torch.int16, torch.int32, torch.int64]), seeds)
def test_codec_is_the_full_softmax(vocab, event, gamma, dtype, kind, seed):
    """log p(x|z_0) against all levels in double precision: within 1e-5 nats in double precision; in
    single, within the error that the rounding of z_0 itself makes."""
    vocab = min(vocab, 256) if kind == torch.uint8 else vocab
    k = torch.randint(vocab, (3, *event), generator=torch.Generator().manual_seed(seed)).to(kind)
    codec = Codec(vocab)
    g = torch.tensor(gamma, dtype=dtype)
    codec.check(k)
    z = diffuse(codec.encode(k, dtype), g, randn(seed, 3, *event, dtype=dtype))
    got = codec.log_prob(k, z, g)
    y = z.double() / alpha(g.double())
    g64 = g.double()
    levels = codec.encode(torch.arange(vocab), exact)
    full = (-0.5 * torch.exp(-g64)
            * (y[..., None] - levels)**2).log_softmax(-1).gather(-1, k.long()[..., None])[..., 0]
    eps = torch.finfo(dtype).eps
    # nats per bin's rounding, with half a bin in reserve
    slope = torch.exp(-g64) * (2 / vocab * (y - codec.encode(k, exact)).abs() + (2 / vocab)**2)
    assert got.dtype == dtype and got.isfinite().all() and (got <= 1e-5).all()
    assert ((got.double() - full).abs()
            <= 1e-5 + 50 * eps * (1 + full.abs() + vocab * slope * (1 + y.abs()))).all()

@cases(300)
@given(st.integers(2, 70_000), seeds, floats(-30, -20))
def test_codec_round_trip(vocab, seed, gamma):
    "Every level comes back, at noise too small to hide it, and lies inside [-1, 1]."
    k = torch.cat([torch.tensor([0, vocab - 1]),
                   torch.randint(vocab, (20,), generator=torch.Generator().manual_seed(seed))])
    codec = Codec(vocab)
    x = codec.encode(k, exact)
    assert (x.abs() < 1).all() and torch.equal(codec.decode(alpha(torch.tensor(gamma, dtype=exact)) * x,
                                                            torch.tensor(gamma, dtype=exact)), k)

@cases(200)
@given(st.integers(2, 300), st.integers(-5, 400),
       st.sampled_from([torch.int8, torch.uint8, torch.int16, torch.int64, torch.float32, torch.float64,
                        torch.bool, torch.complex64]))
def test_codec_refuses_what_it_cannot_code(vocab, level, kind):
    if kind in (torch.int8, torch.uint8) and not torch.iinfo(kind).min <= level <= torch.iinfo(kind).max:
        level = 1
    k = torch.full((2, 3), level).to(kind)
    if kind.is_floating_point or kind.is_complex or kind == torch.bool: refused = TypeError
    else: refused = None if 0 <= level < vocab else ValueError
    if refused is None: return Codec(vocab).check(k)
    with pytest.raises(refused) as e: Codec(vocab).check(k)
    assert '\n' not in str(e.value) and 'x has' in str(e.value)

# ---- noise and predictions

@cases(250)
@given(floats(-20, 20), floats(-20, 20), seeds, st.sampled_from(list(predictions)))
def test_kernel_and_predictions(a, b, seed, name):
    "Steps compose, Bayes holds, and every prediction gives back data and noise, in double precision."
    s, t = sorted((a, b))
    g_s = torch.tensor(s, dtype=exact)
    g_t = torch.tensor(t + 0.01, dtype=exact)
    x, eps = randn(seed, 2, 8)
    scale, std = transition(g_s, g_t)
    assert_close(alpha(g_s) * scale, alpha(g_t), rtol=1e-9, atol=0)
    assert_close((scale * sigma(g_s))**2 + std**2, sigma(g_t)**2, rtol=1e-9, atol=0)
    z_t = diffuse(x, g_t, eps)
    mean, spread = posterior(z_t, x, g_s, g_t)
    precision = 1 / sigma(g_s)**2 + scale**2 / std**2
    assert_close(spread**2, 1 / precision, rtol=1e-6, atol=0)
    assert_close(mean, (alpha(g_s) * x / sigma(g_s)**2 + scale * z_t / std**2) / precision,
                 rtol=1e-5, atol=1e-7)
    f_x, f_eps = predictions[name](g_t)
    F = f_x * x + f_eps * eps
    x_hat, eps_hat = to_x_eps(F, z_t, g_t, predictions[name])
    size = 1 + math.exp(abs(t) / 2)
    assert_close(x_hat, x, rtol=0, atol=1e-12 * size**2)
    assert_close(eps_hat, eps, rtol=0, atol=1e-12 * size**2)

# ---- schedules and times

def a_schedule(kind, low, high, seed):
    torch.manual_seed(seed)
    made = dict(linear=lambda: Linear(low, high), monotone=lambda: Monotone(low, high, features=8),
                polynomial=lambda: Polynomial((3,), low, high), steps=lambda: MonotonePerDim((3,), low, high),
                adaptive=lambda: Adaptive(low, high, bins=7))[kind]()
    for p in made.parameters(): p.data += 0.3 * torch.randn(p.shape) if p.ndim else 0
    if kind == 'adaptive': made.average.copy_(torch.rand(7) + 0.05)
    return made.double()

@cases(150)
@given(st.sampled_from(['linear', 'monotone', 'polynomial', 'steps', 'adaptive']), floats(-20, 19),
       floats(0.5, 39), seeds)
def test_schedules_climb_from_end_to_end(kind, low, width, seed):
    "Ends as asked, never falling, slope the derivative, and the inverse brings every time back."
    schedule = a_schedule(kind, low, low + width, seed)
    t = torch.linspace(0, 1, 41, dtype=exact)[:, None].expand(41, 3 if kind in ('polynomial', 'steps') else 1)
    with torch.no_grad(): gamma, slope = gamma_and_slope(schedule, t)
    assert_close(gamma[[0, -1]].mean(1), torch.tensor([low, low + width], dtype=exact), rtol=0,
                 atol=1e-4 * (1 + abs(low) + width))
    assert (gamma.diff(dim=0) >= -1e-9 * width).all() and (slope >= 0).all()
    inner = 0.3 + 0.4 * t[5:36]
    h = 1e-6
    with torch.no_grad():
        rise = (schedule(inner + h) - schedule(inner - h)) / (2 * h)
        at = gamma_and_slope(schedule, inner)[1]
    close = (rise - at).abs() <= 1e-4 * width * (1 + at / width)
    assert (close | (kind == 'adaptive')).all() and close.double().mean() > 0.8  # knots have two slopes
    steep = (at > 1e-3 * width)
    with torch.no_grad(): back = schedule.inverse(schedule(inner))
    assert ((back - inner).abs() < 1e-6)[steep].all()

@cases(150)
@given(st.integers(1, 40), st.integers(1, 9), seeds)
def test_shares_are_rows(n, world, seed):
    "Times and noise of every share are rows of the whole batch's."
    whole_t = low_discrepancy_times(n * world, Rows(torch.Generator().manual_seed(seed)))
    g = torch.Generator().manual_seed(seed)
    whole = torch.randn(n * world, 2, generator=g), torch.rand(n * world, generator=g)
    assert (whole_t >= 0).all() and (whole_t < 1).all()
    assert_close(whole_t.double().sort().values.diff(),
                 torch.full((n * world - 1,), 1 / (n * world), dtype=exact), rtol=0, atol=1e-6)
    for rank in range(world):
        assert torch.equal(low_discrepancy_times(n, Rows(torch.Generator().manual_seed(seed), rank, world)),
                           whole_t[rank::world])
        rows = Rows(torch.Generator().manual_seed(seed), rank, world)
        part = rows.randn(n, 2), rows.rand(n)
        assert all(torch.equal(a, b[rank::world]) for a, b in zip(part, whole))

@cases(200)
@given(st.integers(1, 60), st.integers(1, 8), st.integers(1, 4), st.integers(0, 50), st.integers(0, 5))
def test_batches_visit_every_example_once(n, per, world, step, seed):
    "An epoch holds each example once, and the processes' batches are the global one."
    size = per * world
    indices = np_concat([batch_indices(n, size, seed, k) for k in range(math.ceil(n / size))])
    assert sorted(indices[:n]) == list(range(n))
    parts = [next(batches(torch.arange(n), None, size, seed, step, rank, world))[0] for rank in range(world)]
    assert torch.equal(torch.stack(parts, 1).reshape(-1),
                       torch.from_numpy(batch_indices(n, size, seed, step)))

def np_concat(parts):
    import numpy as np
    return np.concatenate(parts)

# ---- latents

@cases(150)
@given(st.integers(1, 7), st.integers(1, 7), floats(0, 6), seeds)
def test_subsets_by_enumeration(m, k, scale, seed):
    "Partition function, probabilities, marginals and divergence against all subsets."
    k = min(k, m)
    theta = scale * randn(seed, 2, m)
    every = torch.tensor([[float(i in s) for i in range(m)] for s in itertools.combinations(range(m), k)],
                         dtype=exact)
    scores = theta @ every.T
    log_q = scores.log_softmax(-1)
    q = log_q.exp()
    assert_close(log_partition(theta, k), scores.logsumexp(-1), rtol=1e-8, atol=1e-8)
    assert_close(marginals(theta, k), q @ every, rtol=1e-7, atol=1e-9)
    for i, w in enumerate(every[:5]):
        assert_close(subset_log_prob(w.expand(2, m), theta, k), log_q[:, i], rtol=1e-7, atol=1e-7)
    assert_close(subset_kl(theta, k), (q * (log_q + math.log(len(every)))).sum(-1), rtol=1e-6, atol=1e-7)
    assert (sample_subset(theta, k).sum(-1) == k).all()

# ---- the whole bound at the edges of its range

class OneNoise(TorchFunctionMode):
    "The same random numbers in both precisions."
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.randn, torch.rand) and 'dtype' in kwargs:
            return func(*args, **{**kwargs, 'dtype': exact}).to(kwargs['dtype'])
        return func(*args, **kwargs)

class Optimal(nn.Module):
    "The best denoiser of N(0, s^2), answering with the noise; written so that it loses no digits itself."
    def forward(self, z, gamma, w=None, y=None):
        s = 0.5
        return z * sigma(gamma) / (alpha(gamma)**2 * s**2 + sigma(gamma)**2)

@cases(250)
@given(floats(-20, -2), floats(2, 20), st.sampled_from(['optimal', 'net']),
       st.sampled_from([None, 1, 7, 1000]), st.sampled_from([2, 17, 256]), seeds)
@example(-20., 20., 'net', None, 256, 0)
@example(-20., 20., 'optimal', 1000, 256, 0)
def test_single_precision_at_the_ends(low, high, which, T, vocab, seed):
    """gamma to -20 and 20: in single precision every term is finite and within a thousandth of double
    precision, or within 1e-4 nats per dimension. The loss of a long step is rate / 2 times the square
    of a small error, which rounding moves by its own size: four times that is allowed."""
    torch.manual_seed(seed)
    net = Optimal() if which == 'optimal' else MLP(6, 16, 1)
    if which == 'net': nn.init.normal_(net.out.weight, std=0.1)
    model = Diffusion(net, Linear(low, high), Codec(vocab), (6,)).eval()
    x = torch.randint(vocab, (16, 6))
    t = low_discrepancy_times(16)
    def terms(model):
        with torch.no_grad(), OneNoise():
            return model(x, T=T, t=t, rows=Rows(torch.Generator().manual_seed(seed)))
    single = terms(model)
    double = terms(model.double())
    rate = high - low if T is None else T * math.expm1((high - low) / T)
    rounding = torch.finfo(torch.float32).eps
    for name, a, b in zip(single._fields, single, double):
        allowed = 1e-3 * b.abs() + 6e-4 + 4 * rounding * (rate * b.abs()).sqrt()
        assert a.isfinite().all() and b.isfinite().all(), (name, a, b)
        assert ((a.double() - b).abs() <= allowed).all(), (name, (a.double() - b).abs().max(), b)

@cases(150)
@given(floats(-20, 0), floats(1, 20), st.integers(1, 5), st.sampled_from([None, 1, 5, 50]))
def test_gaussian_data_have_a_closed_form(low, width, D, T):
    """The discrete loss is the closed sum, never below the continuous one, for data that are normal with
    standard deviation 1/2; double precision."""
    s2 = 0.25
    schedule = Linear(low, low + width).double()
    n = T or 400
    g = schedule(torch.arange(n + 1, dtype=exact) / n)
    snr = torch.exp(-g)
    mse = s2 * snr[1:] / (1 + s2 * snr[1:])
    closed = 0.5 * D * (discrete_rate(g[:-1], g[1:], n) / n * mse).sum()
    limit = 0.5 * D * torch.log((1 + s2 * snr[0]) / (1 + s2 * snr[-1]))
    i = torch.arange(n, dtype=exact)
    model = Diffusion(Optimal(), schedule, RealCodec(), (D,)).double()
    gamma, rate = model.gamma_and_rate((i[:, None] + 0.5) / n, n)
    assert_close((0.5 * D * rate[:, 0] * mse).mean(), closed, rtol=1e-9, atol=0)
    assert closed >= limit * (1 - 1e-9)
    assert_close(bits_per_dim(limit, (D,)), limit / D / math.log(2), rtol=1e-12, atol=0)

# ---- bad input to functions

data = load('digits')
@cases(150)
@given(st.sampled_from(['steps', 'batch_size', 'lr', 'clip', 'log_every', 'save_every', 'beta', 'ema',
                        'accumulate']), st.sampled_from([0, -1, -3.5, float('nan'), 2.5]), seeds)
def test_fit_refuses_settings(name, value, seed):
    if value == 2.5 and name != 'ema': value = -2.5
    model = Diffusion(MLP(2, 8, 1), Linear(-8., 5.), RealCodec(), (2,))
    if name == 'ema' and value == 0: return
    with pytest.raises((ValueError, TypeError), match=f'^{name}=') as e:
        next(training.fit(model, load('two_moons'), progress=False, **{name: value}))
    assert '\n' not in str(e.value)

@cases(150)
@given(events, events, st.integers(0, 3),
       st.sampled_from([torch.uint8, torch.int64, torch.float32, torch.bool]), st.integers(0, 40),
       st.sampled_from([None, 0, -1, 3]))
def test_model_refuses_or_answers(event, shape, n, kind, top, T):
    "Other shapes, types, levels or steps: one line. Otherwise one finite number per example and term."
    model = Diffusion(Optimal(), Linear(-8., 5.), Codec(17), event)
    x = torch.full((n, *shape), top).to(kind)
    fine = (shape == event and kind in (torch.uint8, torch.int64) and top < 17 and n > 0
            and (T is None or T >= 1))
    if fine:
        assert all(v.shape == (n,) and v.isfinite().all() for v in model(x, T=T))
        return
    with pytest.raises((ValueError, TypeError)) as e: model(x, T=T)
    assert '\n' not in str(e.value)

# ---- the command line: any words end with a status, never with a traceback

numbers = st.sampled_from(['0', '-1', '1', '2', '3', '4', '8', '12', '1e3', '0.5', 'nan', 'inf', '-inf', '',
                           'many', '1.5', '9' * 30])
names = st.sampled_from(['digits', 'cifar10', 'folder', 'two_moons', 'mnist', 'linear', 'adaptive', 'v',
                         'khot', 'none', 'elbo', 'ode', 'heun', 'rho', '../x', '--', 'é', 'a b'])
train_flags = st.sampled_from(['--channels', '--blocks', '--fourier', '--dropout', '--attention',
                               '--no-attention', '--gamma_min', '--gamma_max', '--schedule', '--variance',
                               '--prediction', '--data', '--bits', '--size', '--path', '--lr', '--T',
                               '--beta', '--seed', '--precision', '--accumulate', '--previous', '--resume',
                               '--latent', '--m', '--k', '--multipliers', '--classes', '--weighting',
                               '--shift', '--batch_size', '--steps', '--ema', '--nonsense', '--network'])
other_flags = st.sampled_from(['--method', '--draws', '--samples', '--n', '--batch_size', '--T',
                               '--tolerance', '--trace', '--seed', '--steps', '--step', '--grid', '--label',
                               '--guidance', '--score', '--picture', '--columns', '--nonsense'])
def words(flags):
    return st.lists(st.tuples(flags, st.lists(st.one_of(numbers, names), max_size=2)), max_size=4).map(
        lambda pairs: [w for flag, values in pairs for w in (flag, *values)])

@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "An empty place, and a run of two steps."
    here = tmp_path_factory.mktemp('words')
    patch = pytest.MonkeyPatch()
    patch.chdir(here)
    for _ in training.fit(Diffusion(MLP(2, 8, 1), Linear(-8., 5.), RealCodec(), (2,)),
                          load('two_moons'), 2, 8, out='foreign',
                          config=dict(system='vdm', data=dict(name='two_moons'),
                                      model=dict(event_shape=[2], vocab=None, channels=8, blocks=1,
                                                 fourier=[]), fit={}), progress=False):
        pass
    yield here
    patch.undo()

def refuse(*how): raise ValueError('everything was accepted')

def said(argv):
    out, err = io.StringIO(), io.StringIO()
    with (contextlib.redirect_stdout(out), contextlib.redirect_stderr(err),
          pytest.MonkeyPatch.context() as patch):
        patch.setattr(training, '_accelerator_for', refuse)                      # no step is ever taken
        try: status = cli.main(argv)
        except SystemExit as e: status = e.code
    lines = [l for l in err.getvalue().splitlines() if l.strip() and '\r' not in l]
    return status, lines

@cases(150)
@given(st.sampled_from([None, *presets, 'vdm']), words(train_flags))
def test_train_takes_any_words(place, preset, typed):
    "Up to the first step of training, which is stopped."
    status, lines = said(['train', '--out', 'new',
                          *(['--preset', preset]
                            if preset and not preset.endswith(('cifar10', '32', '64', 'fashion')) else []),
                          '--channels', '8', '--blocks', '1', *typed])
    assert (status in (0, 1, 2) and lines
            and (status != 1 or (len(lines) == 1 and lines[0].startswith('mulan-vdm: ')))), (typed, lines)
    assert status != 0 and not (place / 'new').exists()

@cases(150)
@given(st.sampled_from(['evaluate', 'sample', 'info', 'compare', 'trian', '']),
       st.sampled_from(['missing', '.', 'foreign/config.json', '/dev/null', '', 'a\0b']), words(other_flags))
def test_other_commands_take_any_words(place, command, run, typed):
    status, lines = said([command, run, *typed])
    assert status in (0, 1, 2) and (status == 0 or lines) and (
        status != 1 or (len(lines) == 1 and lines[0].startswith('mulan-vdm: '))), (command, run, typed, lines)

# ---- the long run

def memory():
    gc.collect()
    with open('/proc/self/statm') as f: return int(f.read().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 2**20

def long_run(steps, out):
    "Growth in MiB and in tensors between a fifth of the way and the end."
    torch.manual_seed(0)
    model = Diffusion(MLP(2, 4, 1), Adaptive(-8., 5.), RealCodec(), (2,))
    at = {}
    for p in training.fit(model, load('two_moons'), steps, 4, 1e-3, out=out, log_every=50,
                          save_every=steps // 5, progress=False):
        if p.step in (steps // 5, steps):
            at[p.step] = memory(), sum(torch.is_tensor(o) for o in gc.get_objects())
    assert all(v.isfinite().all() for v in p.model.state_dict().values())
    (before, tensors), (after, later) = at.values()
    return after - before, later - tensors

@pytest.mark.bench
@pytest.mark.skipif(not os.path.exists('/proc/self/statm'), reason='memory is read from /proc')
@pytest.mark.parametrize('steps', [1500, 10_000])
def test_memory_stays_flat(tmp_path, steps):
    "Less than 4 MiB and no tensor more, however many steps."
    growth, tensors = long_run(steps, tmp_path / 'run')
    assert growth < 4 and tensors <= 0, (growth, tensors)
