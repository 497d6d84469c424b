"MuLAN as a whole: its bound against an oracle, its generator, its checkpoints, its cost."
import statistics
import time

import pytest
import torch
from torch.testing import assert_close

from mulan_vdm.data import load
from mulan_vdm.codec import Codec
from mulan_vdm.diffusion import Diffusion
from mulan_vdm.latents import Gaussian, KHot
from mulan_vdm.nets import Encoder, Coefficients
from mulan_vdm.objective import x_prediction
from mulan_vdm.oracles import fit_mixture
from mulan_vdm.schedules import MonotonePerDim, Polynomial
from mulan_vdm.systems import build, mulan, vdm
from mulan_vdm.processes import Rows
from mulan_vdm.training import fit

digits = load('digits')
small = dict(channels=8, blocks=1, fourier=(3., 4.), dropout=0., m=6, k=2, hidden=8,
             encoder_channels=8)


def rough(module, scale=0.3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        p.data += scale * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return module


@pytest.mark.parametrize('family, numbers', [(Polynomial, 3), (MonotonePerDim, 9)])
@pytest.mark.parametrize('kind', ['khot', 'gaussian'])
def test_with_the_best_denoiser_an_adaptive_schedule_costs_its_divergence_and_nothing_else(family,
                                                                                           numbers, kind):
    """-log p(x) + KL(q(w|x) || p(w)) = bound, image by image, for a schedule that bends every
    pixel's path by w: law 6."""
    oracle = fit_mixture(digits.train.x, 17, components=4, rounds=8)
    encoder = Encoder((1, 8, 8), 12, 8, scale=3.)
    latent = KHot(encoder, 12, 4) if kind == 'khot' else Gaussian(encoder, 6)
    schedule = family((1, 8, 8), -10., 9., network=rough(Coefficients(12 if kind == 'khot' else 6, numbers,
                                                                      (1, 8, 8), 16, scale=1.), 0.6))
    model = Diffusion(oracle, schedule, Codec(17), (1, 8, 8), latent, x_prediction).double().eval()
    torch.manual_seed(0)
    x = oracle.sample(300)
    with torch.no_grad():
        runs = [model(x, rows=Rows(torch.Generator().manual_seed(i))) for i in range(12)]
        w, kl = model.latent(model.codec.encode(x, torch.float64), Rows(torch.Generator().manual_seed(0)))
        spread = model.gamma(torch.full((300,), 0.5), w).std(0).mean()
    assert spread > 0.1 and kl.mean() > 0.5 # the schedule depends on the image, and the latent says something
    excess = torch.stack([run.vlb for run in runs]).mean(0) + oracle.log_prob(x) - kl
    assert abs(excess.mean()) < 5 * excess.std() / len(x)**0.5


def test_a_generator_decides_latents_too():
    model = rough(mulan((1, 8, 8), 17, **small)).eval()
    draw = lambda: torch.stack(model(digits.test.x[:8], rows=Rows(torch.Generator().manual_seed(3))))
    first = draw()
    torch.manual_seed(1)
    assert torch.equal(draw(), first)


def test_given_latents_are_charged_for_themselves():
    model = rough(mulan((1, 8, 8), 17, **small)).eval()
    x = digits.test.x[:4].repeat(500, 1, 1, 1)
    with torch.no_grad():
        w, kl = model.latent(model.codec.encode(x))
        price = model(x, w=w).latent
    for image in range(4):
        mine = price[image::4]
        assert abs(mine.mean() - kl[image]) < 5 * mine.std() / 500**0.5 + 1e-6


@pytest.mark.parametrize('latent', ['khot', 'categorical', 'gaussian'])
def test_resumed_training_of_a_latent_is_the_uninterrupted_one(tmp_path, latent):
    config = dict(system='mulan', model=dict(event_shape=[1, 8, 8], vocab=17, latent=latent, **small),
                  fit=dict(seed=2))
    options = dict(batch_size=8, lr=1e-3, warmup=2, save_every=4, progress=False, seed=2, beta_warmup=5)
    for whole in fit(build(config), digits, 8, **options): pass
    for _ in fit(build(config), digits, 4, out=tmp_path / 'run', config=config, **options): pass
    for parts in fit(build(config), digits, 8, out=tmp_path / 'run', config=config, resume=True, **options):
        pass
    for a, b in zip(whole.model.state_dict().values(), parts.model.state_dict().values()):
        assert torch.equal(a, b)


def test_half_precision_does_not_touch_the_schedule_or_the_divergence():
    model = rough(mulan((1, 8, 8), 17, **small), 0.1).eval()
    x = digits.test.x[:8]
    w = model.latent.prior(8, Rows(torch.Generator().manual_seed(0)))
    t = torch.linspace(0, 0.99, 8)
    with torch.no_grad():
        exact = model.gamma(t, w)
        with torch.autocast('cpu', torch.bfloat16):
            assert torch.equal(model.gamma(t, w), exact)
            assert model(x).vlb.dtype == torch.float32


def test_a_latent_of_another_width_is_refused_by_name():
    model = mulan((1, 8, 8), 17, **small)
    with pytest.raises(ValueError, match=r'reads a latent of width 6, it was given \(3, 5\)'):
        model.denoise(torch.zeros(3, 1, 8, 8), torch.full((3,), 0.5), torch.zeros(3, 5))
    with pytest.raises(ValueError, match="made for events"):
        Diffusion(model.net, Polynomial((1, 9, 9)), Codec(17), (1, 8, 8))


@pytest.mark.bench
def test_a_step_of_mulan_costs_at_most_1_3_of_vdm():
    """Median of interleaved steps of the digits presets' networks; the best of three tries, since other
    programs share the machine."""
    options = dict(channels=32, blocks=2, fourier=(3., 4.), dropout=0.)
    models = [vdm((1, 8, 8), 17, **options), mulan((1, 8, 8), 17, m=16, k=5, **options)]
    x = digits.train.x[:128]
    ratios = []
    for _ in range(3):
        times = [[], []]
        for _ in range(7):
            for model, spent in zip(models, times):
                start = time.perf_counter()
                model(x).loss.mean().backward()
                spent.append(time.perf_counter() - start)
        ratios.append(statistics.median(times[1]) / statistics.median(times[0]))
        if ratios[-1] <= 1.3: return
    pytest.fail(f'a step of MuLAN takes {min(ratios):.2f} times one of VDM, in three tries')
