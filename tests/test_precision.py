"Half precision, numbers that are none, and devices without double precision."
import math
import pytest
import torch
from functools import partial
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten
from mulan_vdm.codec import Codec
from mulan_vdm.data import Data, Split
from mulan_vdm.diffusion import Diffusion
from mulan_vdm.evaluation import evaluate, importance_evaluate
from mulan_vdm.likelihood import ode_evaluate
from mulan_vdm.sampling import sample, samplers
from mulan_vdm.schedules import Linear
from mulan_vdm.systems import mulan, repvdm, vdm, vdmpp
from mulan_vdm.training import fit

SHAPE = (1, 4, 4)
VOCAB = 8
BUILD = dict(
    vdm=partial(vdm, channels=8, blocks=1, fourier=(), dropout=0., schedule='monotone', gamma_min=-7.),
    vdmpp=partial(vdmpp, network='unet', channels=8, blocks=1, attention=(), fourier=(), gamma_min=-7.,
                  gamma_max=6., dropout=0.),
    mulan=partial(mulan, channels=8, blocks=1, fourier=(), dropout=0., m=6, k=2, hidden=8, encoder_channels=4,
                  gamma_min=-7., clock=True),
    repvdm=partial(repvdm, channels=8, blocks=1, fourier=(), dropout=0., d=4, encoder_channels=4,
                   gamma_min=-7.))


@pytest.fixture(params=list(BUILD))
def model(request):
    "One of the four systems, a little away from its first weights."
    built = BUILD[request.param](SHAPE, VOCAB)
    for p in built.net.parameters(): p.data += 0.02 * torch.randn_like(p)
    return built


def images(n=8):
    return torch.randint(VOCAB, (n, *SHAPE), dtype=torch.uint8)


HALVES = dict(half=lambda m: m.half(), bfloat16=lambda m: m.bfloat16(), to=lambda m: m.to(torch.float16),
              to_like=lambda m: m.to(torch.zeros(1, dtype=torch.bfloat16)),
              type=lambda m: m.type(torch.bfloat16))


@pytest.mark.parametrize('how', list(HALVES))
def test_half_precision_is_refused(model, how):
    "In one line, before a single weight has changed; parts alone too."
    for part in (model, model.schedule, model.latent):
        with pytest.raises(TypeError, match='autocast') as e: HALVES[how](part)
        assert '\n' not in str(e.value)
    assert {v.dtype for v in model.state_dict().values()} == {torch.float32}
    assert math.isfinite(evaluate(model, images(2), 2).report()['bpd'])
    assert model.double().reference.dtype == torch.float64


@pytest.mark.parametrize('name', list(BUILD))
def test_half_precision_by_default_is_refused(name):
    torch.set_default_dtype(torch.bfloat16)
    try:
        with pytest.raises(TypeError, match='bfloat16'): BUILD[name](SHAPE, VOCAB)
    finally: torch.set_default_dtype(torch.float32)


def test_autocast_rounds_networks_alone(model):
    "Bound, flow and samples under autocast are those of single precision, nearly."
    x = images()
    model.net.requires_grad_(False)
    half = partial(torch.autocast, 'cpu', torch.bfloat16)
    plain = evaluate(model, x, 8).bpd.mean()
    with half(): rounded = evaluate(model, x, 8)
    assert rounded.bpd.dtype == torch.float64 and abs(rounded.bpd.mean() / plain - 1) < 0.02
    settings = dict(tolerance=1e-3, batch_size=2)
    follow = lambda: ode_evaluate(model, x[:2], generator=torch.Generator().manual_seed(0), **settings)
    flow = follow().bpd
    with half(): torch.testing.assert_close(follow().bpd, flow, rtol=0.02, atol=0.02)
    for step in samplers:
        if step == 'ode' and model.schedule.event_shape: continue
        with half(): drawn = sample(model, 2, 3, step=step)
        assert drawn.shape == (2, *SHAPE) and drawn.min() >= 0 and drawn.max() < VOCAB


@pytest.mark.parametrize('value', [math.nan, math.inf])
def test_broken_weights_are_named(model, value):
    "Whatever is asked of the model: evaluation, flow, samples, latents."
    x = images(2)
    name, weight = list(model.net.named_parameters())[-1]
    weight.data.flatten()[0] = value
    asked = [lambda: evaluate(model, x, 2), lambda: ode_evaluate(model, x)]
    asked += [partial(sample, model, 2, 3, step=step) for step in samplers]
    if model.latent.size: asked += [lambda: importance_evaluate(model, x, 2, 2), lambda: model.encode(x)]
    for ask in asked:
        with pytest.raises(FloatingPointError, match=f'net.{name}') as e: ask()
        assert '\n' not in str(e.value)


class Broken(torch.nn.Module):
    "Finite weights, and an answer that is no number for some images."
    def forward(self, z_t, gamma, w=None, y=None):
        z_t = z_t.clone()
        z_t[0, 0, 0, 0] = torch.nan
        return z_t


def test_broken_answers_are_named(model):
    x = images(5)
    model.net = Broken()
    with pytest.raises(FloatingPointError, match='diffusion of 1 of 5 images'): evaluate(model, x, 2)
    if model.latent.size:
        with pytest.raises(FloatingPointError, match='diffusion of 1 of 5'):
            importance_evaluate(model, x, 2, 2)
    with pytest.raises(FloatingPointError, match='not finite'): ode_evaluate(model, x)
    for step in ('ddpm', 'ddim', 'heun', 'dpmpp_2m'):
        with pytest.raises(FloatingPointError, match='1 of 3 samples'): sample(model, 3, 2, step=step)


class Pretended(TorchFunctionMode):
    """A second device on the CPU: 'cpu:0', where the marked tensors are, and what is made of them
    or there. Whatever is double precision on it is an error, as on an Apple GPU."""
    place = torch.device('cpu', 0)

    def on(self, v): return getattr(v, '_on', False)

    def lands(self, function, args, kwargs):
        "Where the result is: what was asked for, or where the arguments are."
        flat = tree_flatten((args[1:], kwargs))[0]
        named = [a for a in flat if isinstance(a, torch.device) or a == 'cpu' and isinstance(a, str)]
        if function is torch.Tensor.cpu: return False
        if named: return named[0] == self.place and getattr(named[0], 'index', None) == 0
        if function is torch.Tensor.to and len(args) > 1 and isinstance(args[1], torch.Tensor):
            return self.on(args[1])
        return any(self.on(a) for a in tree_flatten((args, kwargs))[0] if isinstance(a, torch.Tensor))

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(function, '__name__', '') == '__get__' and function.__self__ is torch.Tensor.device:
            return self.place if self.on(args[0]) else torch.device('cpu')
        lands = self.lands(function, args, kwargs)
        out = function(*args, **kwargs)
        if not isinstance(out, (torch.Tensor, tuple, list)): return out
        def marked(v):
            if not isinstance(v, torch.Tensor): return v
            if lands and v.dtype == torch.float64:
                raise AssertionError(f'double precision on the device: {function}')
            if self.on(v) != lands and any(v is a for a in args): v = v.view(v.shape)
            v._on = lands
            return v
        if isinstance(out, torch.Tensor): return marked(out)
        return type(out)(map(marked, out)) if type(out) in (tuple, list) else out


def put(model):
    for v in (*model.parameters(), *model.buffers()): v._on = True
    return model


def test_the_pretended_device_has_teeth():
    "What used to be done is caught: an offset in double precision, made where the model is."
    with Pretended():
        model = put(vdm(SHAPE, VOCAB, channels=8, blocks=1))
        where = model.reference.device
        assert where.index == 0
        for make in (lambda: torch.rand((), dtype=torch.float64, device=where),
                     lambda: model.reference.new_zeros(3).double(),
                     lambda: model.reference.new_zeros(3).to(torch.float64)):
            with pytest.raises(AssertionError, match='double precision on the device'): make()
        assert model.reference.new_zeros(3).cpu().double().device.index is None
        with pytest.raises(AssertionError, match='double precision'): ode_evaluate(model, images(2))


def test_no_double_precision_on_the_device(model):
    "Training, evaluation and samples keep it on the CPU."
    x = images()
    with Pretended():
        put(model)
        evaluate(model, x, 2)
        evaluate(model, x, 2, T=3)
        evaluate(model, x, 2, even=False)
        if model.latent.size: importance_evaluate(model, x, 2, 2)
        for step in ('ddpm', 'ddpm_large', 'ddim', 'heun', 'dpmpp_2m'): sample(model, 2, 2, step=step)
        data = Data('noise', 'noise', VOCAB, SHAPE, Split(x), Split(x))
        for now in fit(model, data, steps=2, batch_size=4, progress=False): pass
    assert math.isfinite(now.loss)


class Watched(torch.nn.Module):
    "Notes how a GPU would multiply whenever it is asked."
    classes = 0

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def forward(self, z_t, gamma, w=None, y=None):
        cudnn = torch.backends.cudnn
        self.seen.append((torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.benchmark))
        return self.scale * z_t


def asked(model, *works):
    "What the network saw while the model was put to work."
    model.net.seen.clear()
    for work in works: work()
    return set(model.net.seen)


def test_products_are_fast_in_training_and_exact_where_a_model_is_measured():
    model = Diffusion(Watched(), Linear(-7., 5.), Codec(VOCAB), SHAPE)
    data = Data('noise', '', VOCAB, SHAPE, Split(images()), Split(images()))
    x = images(2)
    model(x)
    before = set(model.net.seen)
    train = lambda: [*fit(model, data, steps=2, batch_size=4, progress=False)]
    assert asked(model, train) == {('high', True, True)}
    exact = {('highest', False, False)}
    works = (partial(evaluate, model, x, draws=2), partial(model.log_prob, x), partial(sample, model, 2, 2),
             partial(ode_evaluate, model, x, tolerance=1e-4, checked=0))
    for work in works:
        assert asked(model, work) == exact
    assert asked(model, lambda: model(x)) == before # nothing is set for good
