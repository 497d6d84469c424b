"""The likelihood of anything: labels, single pixels, other images, and what is made of them."""
import math, os

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from mulan_vdm import Diffusion, evaluate, load, mulan, vdm, vdmpp
from mulan_vdm.cli import main
from mulan_vdm.codec import Codec, RealCodec
from mulan_vdm.evaluation import (_numbers, _paired_costs, bits_per_pixel, classify,
                                  likelihood_ratio)
from mulan_vdm.objective import x_prediction
from mulan_vdm.oracles import fit_mixture, GaussianOracle, MixtureOracle
from mulan_vdm.sampling import inpaint
from mulan_vdm.schedules import Linear

digits = load('digits')
small = dict(channels=8, blocks=1, multipliers=(1,), attention=())

@pytest.fixture(scope='module')
def told():
    "A network of ten labels whose answers depend on them."
    torch.manual_seed(0)
    model = vdmpp((1, 8, 8), 17, classes=10, dropout=0., **small).eval()
    for p in model.parameters(): p.data += 0.1 * torch.randn_like(p)
    return model

@pytest.fixture(scope='module')
def oracle():
    "The best denoiser of a mixture, and so the truth."
    torch.manual_seed(0)
    net = fit_mixture(digits.train.x, 17, components=4, rounds=5)
    return Diffusion(net, Linear(-10., 9.), Codec(17), (1, 8, 8), prediction=x_prediction).double()

@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "A run with classes, hardly trained."
    out = tmp_path_factory.mktemp('runs') / 'told'
    words = ['train', '--preset', 'vdmpp-digits', '--channels', '8', '--multipliers', '1', '--attention',
             '--steps', '2', '--batch-size', '4', '--out', str(out)]
    assert main(words) == 0
    return out

def said(capsys, *words):
    "Exit status of a command, and its one line of error."
    capsys.readouterr()
    status = main([str(w) for w in words])
    return status, capsys.readouterr().err

# labels

def test_each_image_is_told_its_own_label(told):
    x, y = digits.test.some(12)
    whole = evaluate(told, x, 4, batch_size=12, y=y)
    assert not torch.equal(whole.bpd, evaluate(told, x, 4, batch_size=12).bpd)
    kept = torch.arange(12) % 2 == 0
    changed = evaluate(told, x, 4, batch_size=12, y=torch.where(kept, y, (y + 1) % 10))
    assert torch.equal(changed.bpd == whole.bpd, kept)

def test_a_label_below_zero_is_no_label(told):
    x = digits.test.x[:6]
    none = evaluate(told, x, 4, y=torch.full((6,), -1))
    assert_close(none.bpd, evaluate(told, x, 4).bpd)

@pytest.mark.parametrize('y, says', [
    (torch.tensor([0, 10]), 'y has labels 0..10, the network knows 0..9'),
    (torch.tensor([-2, 0]), 'the network knows 0..9'), (torch.tensor([1, 2, 3]), 'pass 2 integer labels'),
    (torch.tensor([1., 2.]), 'pass 2 integer labels')])
@pytest.mark.parametrize('asked', [
    lambda model, x, y: evaluate(model, x, 2, y=y), lambda model, x, y: model.log_prob(x, y),
    lambda model, x, y: model.log_prob(x, y, method='ode'), lambda model, x, y: model.sample(2, 1, y=y)])
def test_labels_that_the_network_does_not_know_are_refused(told, asked, y, says):
    with pytest.raises(ValueError, match=says): asked(told, digits.test.x[:2], y)

def test_a_network_without_classes_is_told_no_labels():
    model = vdm((1, 8, 8), 17, channels=8, blocks=1)
    x, y = digits.test.some(2)
    with pytest.raises(ValueError, match='leave y out'): evaluate(model, x, 2, y=y)

# a distribution

def test_log_prob_is_the_bound_in_nats(told):
    x, y = digits.test.some(6)
    nats = told.log_prob(x.reshape(2, 3, 1, 8, 8), y.reshape(2, 3), draws=4)
    assert_close(nats.flatten(), -evaluate(told, x, 4, y=y).bpd * 64 * math.log(2))
    assert nats.shape == (2, 3) and not nats.requires_grad

def test_log_prob_of_samples_is_the_entropy(oracle):
    torch.manual_seed(0)
    x = oracle.net.sample(200)
    below = oracle.net.log_prob(x) - oracle.log_prob(x, draws=32, batch_size=200)
    se = below.std() / len(x)**0.5
    assert -5 * se < below.mean() < 0.3 + 5 * se # nats: what the finite ends cost

def test_samples_come_in_any_shape(oracle):
    x = oracle.sample((2, 3), steps=5, generator=torch.Generator().manual_seed(0))
    again = oracle.sample(6, steps=5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(x.flatten(0, 1), again) and x.shape == (2, 3, 1, 8, 8)

# commands

def test_a_command_tells_the_labels(run, capsys):
    words = 'evaluate', run, '--n', '6', '--draws', '2', '--data', 'digits'
    assert main([str(w) for w in (*words, '--labels')]) == 0
    assert '6 images, told their labels, 2 draws each' in capsys.readouterr().out
    assert main([str(w) for w in words]) == 0
    assert 'told' not in capsys.readouterr().out

def test_data_of_other_levels_say_how_to_requantize(run, capsys):
    status, error = said(capsys, 'evaluate', run, '--data', 'fashion_mnist', '--size', '8')
    if 'not found' in error: pytest.skip('Fashion-MNIST is not here')
    assert status == 1 and 'x.astype(int) * 17 // 256' in error and error.count('\n') == 1

def test_pixels_of_other_levels_say_how_to_requantize(oracle):
    x = torch.randint(256, (4, 1, 8, 8), dtype=torch.uint8)
    x[0, 0, 0, 0] = 255
    with pytest.raises(ValueError, match=r'x.long\(\) \* 17 // 256'): evaluate(oracle, x, 2)
    evaluate(oracle, x.long() * 17 // 256, 2)

# pixels

def with_schedule_per_pixel():
    "MuLAN with a schedule that differs between pixels and latents."
    torch.manual_seed(0)
    model = mulan((1, 8, 8), 17, channels=8, blocks=1, m=6, k=2, encoder_channels=4, hidden=8).eval()
    for p in model.parameters(): p.data += 0.1 * torch.randn_like(p)
    return model.double()

@pytest.mark.parametrize('T', [None, 5])
def test_bits_of_pixels_add_up_to_the_bound_under_a_schedule_per_pixel(T):
    model = with_schedule_per_pixel()
    x = digits.test.x[:5]
    maps = bits_per_pixel(model, x, draws=4, batch_size=3, T=T)
    bound = evaluate(model, x, 4, batch_size=3, T=T)
    assert_close(maps.bpd, bound.bpd, rtol=1e-6, atol=0)
    assert_close(maps.latent / 64, bound.terms['latent'], rtol=1e-6, atol=0)
    assert (maps.latent > 0).all() and maps.bits.shape == x.shape

def test_a_pixel_that_nothing_is_known_of_costs_its_entropy():
    tables = torch.full((1, 4, 8), 1 / 8).double()
    tables[0, 0] = torch.tensor([0.93] + [0.01] * 7)
    net = MixtureOracle(torch.ones(1).double(), tables, (1, 2, 2))
    model = Diffusion(net, Linear(-12., 12.), Codec(8), (1, 2, 2), prediction=x_prediction).double()
    torch.manual_seed(0)
    maps = bits_per_pixel(model, net.sample(500), draws=32, batch_size=500)
    entropy = -(tables * tables.log2()).sum(-1).reshape(1, 2, 2)
    se = maps.bits.std(0) / 500**0.5
    assert ((maps.bits.mean(0) - entropy).abs() < 5 * se + 0.01).all()

def test_a_command_draws_maps(run, capsys):
    words = 'evaluate', run, '--n', '3', '--draws', '2', '--maps', '2', '--labels'
    assert main([str(w) for w in words]) == 0
    assert f'picture: {run}/bits.png' in capsys.readouterr().out and (run / 'bits.png').exists()

# labels that are found

@pytest.fixture(scope='module')
def halves():
    "Three labels, each a mixture of its own, and the best denoiser of every one."
    class Known(torch.nn.Module):
        classes = 3
        def __init__(self):
            super().__init__()
            parts = (fit_mixture(x, 17, components=2, rounds=3) for x in digits.train.x.chunk(3))
            self.parts = torch.nn.ModuleList(parts)
        def forward(self, z_t, gamma, w=None, y=None):
            answers = torch.stack([part(z_t, gamma) for part in self.parts])
            return answers[y, torch.arange(len(y))]
    return Diffusion(Known(), Linear(-10., 9.), Codec(17), (1, 8, 8), prediction=x_prediction).double()

def test_differences_of_labels_are_true_on_average(halves):
    x = digits.test.x[:40]
    true = -torch.stack([part.log_prob(x) for part in halves.net.parts], 1)
    found = classify(halves, x, calls=240, margin=1e9, batch_size=40)
    error = (found.nats - found.nats[:, :1]) - (true - true[:, :1])
    assert (error.mean(0).abs() <= 5 * error.std(0) / 40**0.5).all()
    assert (found.draws == 80).all()

def test_no_image_takes_more_calls_than_it_may(halves):
    found = classify(halves, digits.test.x[:20], calls=60, each=4)
    assert (found.calls <= 60).all() and (found.draws >= 8).all()
    least = found.nats.sort(1).values
    assert (least[:, 0] == 0).all() and (least[:, 1] > 0).all()

def test_a_label_costs_the_same_alone_as_among_others(halves):
    "Paired draws are those of the image: which other labels are asked does not matter."
    x = digits.test.x[:8]
    drawn = lambda: _numbers(halves, 8, 3, 1, torch.Generator().manual_seed(0))
    ask = lambda image, y: _paired_costs(halves, x[image], y, image, None, *drawn(), True)
    image = torch.arange(8).repeat_interleave(3)
    all_three = ask(image, torch.arange(3).repeat(8)).reshape(3, 8, 3)
    assert_close(ask(torch.arange(8), torch.full((8,), 2)), all_three[:, :, 2])

def test_a_ratio_of_versions_is_the_truth(oracle):
    x = digits.test.x[0]
    versions = torch.stack([x, x.roll(1, -1), x.flip(-2)])
    more, se = likelihood_ratio(oracle, versions, draws=1024)
    true = oracle.net.log_prob(versions)
    true = (true[0] - true) / math.log(2)
    assert ((more - true).abs() <= 5 * se + 1).all() and more[0] == 0

# filling in

def pair_of(correlation):
    "Two numbers whose conditional law is known."
    cov = torch.tensor([[1., correlation], [correlation, 1.]]).double()
    net = GaussianOracle(torch.zeros(2).double(), cov)
    return Diffusion(net, Linear(-9., 7.), RealCodec(), (2,), prediction=x_prediction).double()

@pytest.mark.parametrize('step', ['ddpm', 'ddim', 'heun'])
def test_guidance_draws_from_the_conditional_law(step):
    given = torch.tensor([[1., 0.]]).double()
    hole = torch.tensor([False, True])
    generator = torch.Generator().manual_seed(0)
    v = inpaint(pair_of(0.8), given, hole, 2000, 60, 'guide', step=step, generator=generator)[:, 1]
    assert abs(v.mean() - 0.8) < 5 * 0.6 / 2000**0.5 + 0.02
    assert abs(v.var() / 0.36 - 1) < 5 * (2 / 2000)**0.5 + 0.15 # sixty steps are a few

def test_repeats_bring_in_what_is_known():
    given = torch.tensor([[1., 0.]]).double()
    hole = torch.tensor([False, True])
    mean = lambda repeats: inpaint(pair_of(0.8), given, hole, 2000, 40, repeats=repeats,
                                   generator=torch.Generator().manual_seed(0))[:, 1].mean()
    assert mean(1) < mean(4) < mean(12) < 0.8 + 5 * 0.6 / 2000**0.5

@pytest.mark.parametrize('fill', ['repeat', 'guide'])
def test_known_pixels_stay_and_the_rest_is_drawn(oracle, fill):
    x = digits.test.x[:1]
    hole = torch.zeros(1, 8, 8, dtype=torch.bool)
    hole[:, 4:] = True
    drawn = inpaint(oracle, x, hole, 6, 8, fill, repeats=2, generator=torch.Generator().manual_seed(0))
    assert (drawn[:, :, :4] == x[:, :, :4]).all() and len(drawn[:, :, 4:].flatten(1).unique(dim=0)) > 1
    again = inpaint(oracle, x, hole, 6, 8, fill, repeats=2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(drawn, again)

def test_the_fill_is_more_probable_than_a_strange_one(oracle):
    torch.manual_seed(0)
    x = oracle.net.sample(1)
    hole = torch.zeros(1, 8, 8, dtype=torch.bool)
    hole[:, 2:6, 2:6] = True
    drawn = inpaint(oracle, x, hole, 1, 30, 'guide', generator=torch.Generator().manual_seed(0))
    strange = torch.where(hole, 16 - x, x)
    more, se = likelihood_ratio(oracle, torch.cat([drawn, strange]), draws=4096)
    assert more[1] > 5 * se[1]

def pictures(folder, picture, mask):
    for name, values in (('given', picture), ('mask', mask)):
        Image.fromarray(values.numpy()).save(folder / f'{name}.png')
    return '--given', folder / 'given.png', '--mask', folder / 'mask.png'

@pytest.mark.parametrize('fill', ['repeat', 'guide'])
def test_a_command_fills_a_picture(run, tmp_path, capsys, fill):
    x = digits.test.x[0, 0]
    mask = torch.zeros(8, 8, dtype=torch.uint8)
    mask[:4] = 255
    files = pictures(tmp_path, (x.float() * 255 / 16).round().byte(), mask)
    words = 'sample', run, '--n', '4', '--steps', '3', '--fill', fill, '--repeats', '2', *files
    assert main([str(w) for w in words]) == 0
    drawn = torch.from_numpy(np.load(run / 'samples.npy'))
    assert drawn.shape == (4, 1, 8, 8) and (drawn[:, 0, 4:] == x[4:]).all()

def test_what_cannot_be_filled_is_one_line(run, tmp_path, capsys):
    grey = torch.zeros(8, 8, dtype=torch.uint8)
    given, g, mask, m = pictures(tmp_path, grey, grey + 255)
    Image.fromarray(grey[:, 1:].contiguous().numpy()).save(tmp_path / 'small.png')
    (tmp_path / 'text.png').write_text('no picture')
    Image.new('L', (8, 8)).save(tmp_path / 'program.png', 'EPS') # which Pillow would hand to Ghostscript
    Image.new('I;16', (8, 8)).save(tmp_path / 'deep.png')
    Image.new('1', (20_000, 20_000)).save(tmp_path / 'vast.png')
    os.mkfifo(tmp_path / 'pipe.png')
    unreadable = 'text', 'program', 'deep', 'vast', 'pipe'
    for words, says in (((given, g), 'given and mask go together'), ((mask, m), 'given and mask go together'),
                        ((given, g, mask, tmp_path / 'small.png'), "8x7 pixels, the run's images 8x8"),
                        *(((given, tmp_path / f'{name}.png', mask, m), 'is not a readable 8-bit image')
                          for name in unreadable),
                        ((given, g, mask, g), 'there is nothing to fill'),
                        ((given, g, mask, m, '--fill', 'paint'), 'choose one of repeat, guide')):
        status, error = said(capsys, 'sample', run, '--n', '1', '--steps', '1', *words)
        assert status == 1 and says in error and error.count('\n') == 1, error
