"""Networks trained elsewhere: the numbers that their own package gives, and everything else on top."""
import math
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from mulan_vdm import evaluate, from_diffusers, load, ode_evaluate, sample
from mulan_vdm.evaluation import bits_per_pixel, classify, mean_se
from mulan_vdm.foreign import best_start, from_adm, from_edm, from_network
from mulan_vdm.noise import alpha, sigma
from mulan_vdm.oracles import fit_mixture
from mulan_vdm.processes import Rows
from mulan_vdm.sampling import inpaint, samplers, trajectory

diffusers = pytest.importorskip('diffusers')
digits = load('digits')
small = dict(sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16), norm_num_groups=4,
             layers_per_block=1, down_block_types=('DownBlock2D', 'AttnDownBlock2D'),
             up_block_types=('AttnUpBlock2D', 'UpBlock2D'))

def precise(scheduler):
    "Its table in double precision, in which 1 - 0.9999 has more than four digits."
    scheduler.alphas_cumprod = (1 - scheduler.betas.double()).cumprod(0)
    scheduler.one = torch.ones(()).double()
    scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    return scheduler

@pytest.fixture(scope='module')
def unet():
    torch.manual_seed(0)
    return diffusers.UNet2DModel(**small).double().eval()

# oracles in disguise

@pytest.fixture(scope='module')
def oracle():
    torch.manual_seed(0)
    return fit_mixture(digits.train.x, 17, components=4, rounds=5).double()

c = 17 / 16 # their scale of pixels over ours
table = precise(diffusers.DDPMScheduler()).alphas_cumprod

class Disguised(torch.nn.Module):
    "The best denoiser, as somebody else's network: their images, their steps, their target."
    dtype = torch.float64
    config = SimpleNamespace(in_channels=1, sample_size=8)

    def __init__(self, oracle, kind='eps'):
        super().__init__()
        self.oracle = oracle
        self.kind = kind

    def image(self, noisy, s): # x' + s eps -> x'
        gamma = 2 * (s / c).log()
        return c * self.oracle(alpha(gamma) * noisy / c, gamma)

    def level(self, step): # of a table, and between its entries
        gammas = torch.log1p(-table) - table.log()
        low = step.floor().long().clamp(max=998)
        return gammas[low] + (step - low) * (gammas[low + 1] - gammas[low])

    def forward(self, z, step, **told):
        level = self.level(step.double())[:, None, None, None]
        x = self.image(z / alpha(level), torch.exp(level / 2))
        eps = (z - alpha(level) * x) / sigma(level)
        v = alpha(level) * eps - sigma(level) * x
        answer = dict(x=x, eps=eps, v=v, both=torch.cat([eps, 7 + 0 * eps], 1))[self.kind]
        return (answer,) if told else answer

class Denoiser(Disguised):
    "The same with EDM's preconditioning."
    def forward(self, noisy, s): return self.image(noisy, s.double()[:, None, None, None])

def scheduler_of(kind): return precise(diffusers.DDPMScheduler(prediction_type=kind))

adapters = {
    'network, eps': lambda net: from_network(Disguised(net), table, (1, 8, 8), 17),
    'network, x': lambda net: from_network(Disguised(net, 'x'), table, (1, 8, 8), 17, 'x'),
    'network, v': lambda net: from_network(Disguised(net, 'v'), table, (1, 8, 8), 17, 'v'),
    'diffusers, epsilon': lambda net: from_diffusers(Disguised(net), scheduler_of('epsilon'), 17),
    'diffusers, sample': lambda net: from_diffusers(Disguised(net, 'x'), scheduler_of('sample'), 17),
    'diffusers, v': lambda net: from_diffusers(Disguised(net, 'v'), scheduler_of('v_prediction'), 17),
    'adm': lambda net: from_adm(Disguised(net, 'both'), (1, 8, 8), 17),
    'edm': lambda net: from_edm(Denoiser(net), (1, 8, 8), 17)}

@pytest.mark.parametrize('name', adapters)
def test_the_bound_of_an_oracle_in_disguise_is_its_own(oracle, name):
    "Above the truth; in continuous time it meets it, but for what the ends leave."
    model = adapters[name](oracle).double()
    torch.manual_seed(0)
    x = oracle.sample(96)
    truth = -oracle.log_prob(x) / (64 * math.log(2))
    gap, error = (float(v) for v in mean_se(evaluate(model, x, 32, batch_size=96).bpd - truth))
    assert -5 * error < gap < 5 * error + 0.01
    if name == 'edm': return # its straight line has no steps of its own
    chain, error = (float(v) for v in mean_se(evaluate(model, x, 16, T=999, batch_size=96).bpd - truth))
    assert -5 * error < chain

# the same numbers as diffusers

def test_a_folder_in_three_lines(unet, tmp_path):
    unet.save_pretrained(tmp_path)
    diffusers.DDPMScheduler().save_pretrained(tmp_path)
    net = diffusers.UNet2DModel.from_pretrained(tmp_path)
    scheduler = diffusers.DDPMScheduler.from_pretrained(tmp_path)
    model = from_diffusers(net, scheduler, vocab=17)
    x = digits.test.x[:8]
    kept = from_diffusers(unet.float(), diffusers.DDPMScheduler(), vocab=17)
    found = evaluate(model, x, 4)
    assert torch.equal(found.bpd, evaluate(kept, x, 4).bpd)
    assert found.bpd.isfinite().all() and found.report()['bpd_se'] > 0
    unet.double()

def test_the_steps_of_a_chain_add_up_to_the_divergences_of_its_scheduler(unet):
    "All 999 of one image: mean and variance by the scheduler's words, noise as ours."
    scheduler = precise(diffusers.DDPMScheduler(clip_sample=False))
    model = from_diffusers(unet, scheduler, vocab=17).double()
    steps = torch.arange(1, 1000)
    k = digits.test.x[:1].expand(999, 1, 8, 8)
    seeded = lambda: torch.Generator().manual_seed(1)
    with torch.no_grad(): ours = model(k, T=999, t=(steps - 0.5) / 999, rows=Rows(seeded())).diffusion / 999

    x = 2 * k.double() / 16 - 1
    eps = torch.randn(x.shape, generator=seeded(), dtype=x.dtype)
    z = scheduler.add_noise(x, eps, steps)
    with torch.no_grad(): answers = unet(z, steps).sample
    theirs = []
    for n, i in enumerate(steps.tolist()):
        variance = scheduler._get_variance(i)
        noise = torch.randn(1, 1, 8, 8, generator=seeded(), dtype=x.dtype)
        drawn = scheduler.step(answers[n:n + 1], i, z[n:n + 1], generator=seeded()).prev_sample
        b, a = scheduler.alphas_cumprod[[i - 1, i]]
        mean = (b.sqrt() * (1 - a / b) * x[n] + (a / b).sqrt() * (1 - b) * z[n]) / (1 - a)
        theirs.append(((mean - drawn + variance.sqrt() * noise)**2).sum() / (2 * variance))
    theirs = torch.stack(theirs)
    assert_close(ours, theirs, rtol=1e-5, atol=1e-8)
    assert_close(ours.sum(), theirs.sum(), rtol=1e-5, atol=0)

@torch.no_grad()
def test_a_whole_loop_of_ddim_is_that_of_diffusers(unet):
    "From pure noise, 37 strides of 27 steps, state by state."
    scheduler = precise(diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False))
    scheduler.set_timesteps(37)
    model = from_diffusers(unet, scheduler, vocab=17).double()
    levels = torch.log1p(-scheduler.alphas_cumprod) - scheduler.alphas_cumprod.log()
    ours_over_theirs = lambda i: alpha(levels[i] - model.net.shift) / (alpha(levels[i]) * model.net.scale)
    theirs = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    states = trajectory(model, 2, 37, step='ddim', z_1=theirs * ours_over_theirs(999))
    next(states) # the noise
    for i, state in zip(range(999, 0, -27), states):
        theirs = scheduler.step(unet(theirs, i).sample, i, theirs).prev_sample
        assert_close(state.z, theirs * ours_over_theirs(i - 27), rtol=1e-5, atol=1e-5)

# everything else

@pytest.fixture(scope='module')
def labelled():
    torch.manual_seed(0)
    net = diffusers.UNet2DModel(num_class_embeds=11, **small)
    net.class_embedding.weight.data *= 3
    return from_diffusers(net, diffusers.DDPMScheduler(), vocab=17, none=10)

@pytest.mark.parametrize('step', [name for name in samplers if name != 'ode']) # the flow: below
def test_every_sampler_and_guidance(labelled, step):
    y = torch.tensor([3, 7])
    def drawn(**how):
        return sample(labelled, 2, 4, step=step, generator=torch.Generator().manual_seed(0), **how)
    plain = drawn(y=y)
    labelled.codec.check(plain)
    assert torch.equal(plain, drawn(y=y, guidance=1.)) and not torch.equal(plain, drawn())
    assert torch.equal(drawn(y=y, guidance=0.), drawn())
    assert not torch.equal(drawn(y=y, guidance=3.), plain)

def test_bits_labels_pixels_and_flow(labelled):
    x, y = digits.test.some(4)
    bound = evaluate(labelled, x, 4, y=y)
    assert not torch.equal(bound.bpd, evaluate(labelled, x, 4).bpd)
    assert_close(labelled.log_prob(x, y, draws=4), -bound.bpd * 64 * math.log(2))
    assert_close(bits_per_pixel(labelled, x, draws=4, y=y).bpd, bound.bpd, rtol=1e-6, atol=0)
    assert_close(evaluate(labelled, x, 4, y=torch.full((4,), -1)).bpd, evaluate(labelled, x, 4).bpd)
    assert ode_evaluate(labelled, x[:2], tolerance=1e-2, checked=0).bpd.isfinite().all()
    found = classify(labelled, x, calls=40, each=2)
    assert found.posterior().shape == (4, 10)
    hole = torch.zeros(1, 8, 8, dtype=torch.bool)
    hole[:, 4:] = True
    filled = inpaint(labelled, x[:1], hole, 2, 4, y=y[:1].expand(2))
    assert (filled[:, ~hole] == x[:1, ~hole]).all()

def test_the_best_start_is_the_cheapest_and_the_bound_says_which_term_pays(unet):
    model = from_diffusers(unet.float(), diffusers.DDPMScheduler(), vocab=256)
    x = digits.test.x[:8].long() * 255 // 16
    best, tried = best_start(model, x, [-14., -9., -4.], draws=8)
    assert tried[best.schedule.ends()[0]].bpd.mean() == min(e.bpd.mean() for e in tried.values())
    paid = [tried[g].terms['reconstruction'].mean() for g in (-14., -9., -4.)]
    assert paid[0] < paid[1] < paid[2]
    unet.double()

# what cannot be, in one line

flowing = SimpleNamespace(prediction_type='flow')
ddpm = diffusers.DDPMScheduler()
endless = diffusers.DDPMScheduler(rescale_betas_zero_snr=True)
falling = torch.tensor([0.9, 0.5, 0.1])
plain = lambda z, step: z

@pytest.mark.parametrize('ask, says', [
    (lambda unet: from_diffusers(unet, flowing, 17), 'without alphas_cumprod: pass the one of the training'),
    (lambda unet: from_diffusers(unet, SimpleNamespace(config=flowing, alphas_cumprod=falling), 17),
     "unknown prediction_type 'flow': choose one of epsilon, sample, v_prediction"),
    (lambda unet: from_diffusers(unet, endless, 17), 'leave it out'),
    (lambda unet: from_diffusers(unet, ddpm, 17, (1, 7, 7)), 'event_shape=(1, 7, 7)'),
    (lambda unet: from_diffusers(unet, ddpm, 17, (3, 8, 8)), 'event_shape=(3, 8, 8)'),
    (lambda unet: from_network(plain, falling.flip(0), (1, 8, 8)), 'must fall from step to step'),
    (lambda unet: from_network(plain, falling[:1], (1, 8, 8)), 'pass one number per step, two at least'),
    (lambda unet: from_network(plain, falling, (1, 8, 8), prediction='noise'), "unknown prediction 'noise'"),
    (lambda unet: from_adm(plain, (1, 8, 8), betas=[0.1, 1.2]), 'inside (0, 1)'),
    (lambda unet: from_edm(plain), 'pass event_shape=(C, H, W)'),
    (lambda unet: from_edm(plain, (1, 8, 8), sigma_min=90.), 'standard deviations of the noise'),
    (lambda unet: from_diffusers(unet, ddpm, 17)(digits.test.x[:2] + 8),
     'requantize the data, x.long() * 17 // 256'),
    (lambda unet: evaluate(from_diffusers(unet, ddpm, 17), digits.test.x[:2, :, 1:]),
     "the model's events are (1, 8, 8)")])
def test_what_does_not_fit_is_one_line(unet, ask, says):
    with pytest.raises(ValueError) as e: ask(unet.float())
    unet.double()
    assert says in str(e.value) and '\n' not in str(e.value)

@pytest.mark.parametrize('y', [torch.tensor([3, 11]), torch.tensor([3, -2])])
def test_labels_out_of_range_are_one_line(labelled, y):
    with pytest.raises(ValueError, match=r'y.*labels.*0\.\.9') as e:
        evaluate(labelled, digits.test.x[:2], 2, y=y)
    assert '\n' not in str(e.value)

def test_a_network_that_was_always_told_a_label_wants_one():
    net = diffusers.UNet2DModel(num_class_embeds=10, **small)
    model = from_diffusers(net, diffusers.DDPMScheduler(), vocab=17)
    with pytest.raises(ValueError, match='labels 0..9: pass one of them for each image'):
        evaluate(model, digits.test.x[:2], 2)
    with pytest.raises(ValueError, match='labels 0..9'):
        sample(model, 2, 2, y=torch.tensor([1, 2]), guidance=2.)

def test_no_label_is_zeros_for_edm():
    class Net(torch.nn.Module):
        img_channels = 1
        img_resolution = 8
        label_dim = 3
        def forward(self, noisy, level, told): return noisy * told.sum(1)[:, None, None, None]
    z = torch.randn(2, 1, 8, 8)
    model = from_edm(Net(), vocab=17, unlabelled=True)
    x_hat = model.denoise_at(z, torch.zeros(2, 1, 1, 1), y=torch.tensor([2, -1]))[0]
    assert_close(x_hat, model.denoise_at(z, torch.zeros(2, 1, 1, 1), y=torch.tensor([0, -1]))[0])
    assert (x_hat[0] != 0).any() and x_hat[1].abs().max() < 1e-5
    with pytest.raises(ValueError, match='labels 0..2'): from_edm(Net(), vocab=17)(digits.test.x[:2])
