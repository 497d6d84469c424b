"What public implementations of these models get wrong, each as a law that holds here."
import itertools, math
import pytest, torch
from torch.testing import assert_close
from mulan_vdm.data import load
from mulan_vdm.codec import bits_per_dim, Codec
from mulan_vdm.diffusion import Diffusion, low_discrepancy_times
from mulan_vdm.noise import alpha, diffuse
from mulan_vdm.objective import x_prediction
from mulan_vdm.schedules import Linear, Monotone
from mulan_vdm.systems import vdm
from mulan_vdm.processes import Rows
from mulan_vdm.training import fit

class Zero(torch.nn.Module):
    def forward(self, z_t, gamma, w=None, y=None): return torch.zeros_like(z_t)

def model(gamma_min=-13.3, vocab=256, event_shape=(1, 4, 4), **kwargs):
    return Diffusion(Zero(), Linear(gamma_min, 5.), Codec(vocab), event_shape, **kwargs).double()

def test_bits_are_nats_divided_by_log_two():
    assert_close(bits_per_dim(torch.tensor(16 * math.log(256.)), (1, 4, 4)).item(), 8.)

def test_reconstruction_is_taken_at_a_drawn_z_0_and_divides_by_alpha_once():
    "0.0108 bits/dim at gamma_0 = -13.3; exactly 0 would mean z_0 = x, 0.033 a second division."
    torch.manual_seed(0)
    x = torch.randint(256, (4000, 1, 4, 4))
    bits = bits_per_dim(model()(x).reconstruction, (1, 4, 4))
    se = bits.std() / len(x)**0.5
    y = Codec(256).encode(torch.arange(256), torch.float64)
    grid = torch.linspace(-9, 9, 4001, dtype=torch.float64)
    density = torch.exp(-grid**2 / 2) / math.sqrt(2 * math.pi) * (grid[1] - grid[0])
    noisy = y[:, None] + math.exp(-13.3 / 2) * grid  # quadrature of the definition, full softmax
    log_p = (-0.5 * math.exp(13.3) * (noisy[..., None] - y)**2).log_softmax(-1)
    exact = -(log_p.diagonal(dim1=0, dim2=2).T * density).sum(1).mean() / math.log(2)
    assert abs(bits.mean() - exact) < 5 * se and abs(exact - 0.011) < 0.001

def test_prior_and_reconstruction_are_part_of_the_bound():
    terms = model(-4.)(torch.randint(256, (64, 1, 4, 4)))
    assert_close(terms.vlb, terms.reconstruction + terms.prior + terms.diffusion + terms.latent)
    assert (terms.reconstruction > 0).all() and (terms.prior > 0).all()

@pytest.mark.parametrize('n', [49, 98, 103, 107, 161, 187, 196])
def test_low_discrepancy_times_have_the_right_number(n):
    t = low_discrepancy_times(n)
    assert len(t) == n and (t >= 0).all() and (t < 1).all()

def test_the_discrete_index_stays_within_the_steps():
    m = Diffusion(Zero(), Linear(-5., 5.), Codec(17), (2,))
    gamma, _ = m.gamma_and_rate(torch.tensor([1., 1 - 2**-24, 0.])[:, None], T=1000)
    assert_close(gamma.flatten(), m.schedule(torch.tensor([1., 1., 0.001])))

def test_monotone_network_keeps_its_ends_while_it_learns():
    torch.manual_seed(0)
    s = Monotone(-13.3, 5., learn_ends=False)
    opt = torch.optim.SGD(s.parameters(), 100.)
    for _ in range(20):
        opt.zero_grad()
        (s(torch.rand(64)) - 5).square().mean().backward()
        opt.step()
        assert_close(s(torch.tensor([0., 1.])), torch.tensor([-13.3, 5.]))

def test_average_is_taken_after_the_step():
    m = vdm((1, 8, 8), 17, channels=8, blocks=1, dropout=0., fourier=())
    for p in itertools.islice(fit(m, load('digits'), 3, 8, ema=0., lr=1e-2, warmup=0, progress=False), 3):
        for a, b in zip(p.model.parameters(), m.parameters()): assert torch.equal(a, b)

def test_loss_is_per_example_whatever_the_batch():
    "Terms of one example do not depend on how many stand beside it."
    x = torch.randint(256, (6, 1, 4, 4))
    t = torch.rand(6).double()
    whole = model()(x, t=t, rows=Rows(torch.Generator().manual_seed(0)))
    assert_close(whole.prior[:2], model()(x[:2], t=t[:2]).prior)
    assert whole.vlb.shape == (6,)

def test_one_noise_is_not_shared_by_all_images():
    terms = model()(torch.zeros(2000, 1, 4, 4, dtype=torch.long), t=torch.full((2000,), 0.5).double())
    expected = 16 * 0.5 * 18.3  # eps_hat = 0, so the loss is rate / 2 |eps|^2
    assert abs(terms.diffusion.mean() - expected) < 5 * expected * math.sqrt(2 / 16 / 2000)
    # five standard errors of the spread of 2000 draws of chi-square with 16 degrees
    assert_close(terms.diffusion.std().item(), expected * math.sqrt(2 / 16), rtol=0.1, atol=0)

def test_noise_of_z_0_is_not_the_noise_of_z_t():
    x = torch.zeros(4000, 1, 4, 4, dtype=torch.long)
    terms = model(-9.)(x, t=torch.full((4000,), 0.5).double())
    r = torch.corrcoef(torch.stack([terms.reconstruction, terms.diffusion]))[0, 1]
    assert abs(r) < 5 / 4000**0.5

@pytest.mark.parametrize('gamma', [-20., 20.])
def test_extremes_of_gamma_in_single_precision(gamma):
    "Every term within 1e-3 of double precision, and nothing that is not a number."
    x = torch.randint(256, (32, 1, 4, 4))
    t = torch.linspace(0, 0.999, 32)
    build = lambda: Diffusion(Zero(), Linear(min(gamma, -19.), max(gamma, 19.)), Codec(256), (1, 4, 4),
                              prediction=x_prediction)
    torch.manual_seed(0)
    noise = torch.randn(2, 32, 1, 4, 4)
    def terms(m, dtype):
        draws = iter(noise.to(dtype))
        original = torch.randn
        torch.randn = lambda *a, **k: next(draws)
        try: return m(x, t=t.to(dtype))
        finally: torch.randn = original
    for a, b in zip(terms(build(), torch.float32), terms(build().double(), torch.float64)):
        assert a.isfinite().all()
        assert_close(a.double(), b, rtol=1e-3, atol=1e-3)

def test_decoding_is_the_inverse_of_coding():
    for vocab in (2, 17, 256, 65536):
        k = torch.arange(vocab)
        g = torch.tensor(-10.).double()
        assert torch.equal(Codec(vocab).decode(alpha(g) * Codec(vocab).encode(k, torch.float64), g), k)
