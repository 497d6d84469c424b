"""What somebody new passes from Python in place of what is meant: named at once, with a remedy."""
from types import SimpleNamespace
import pytest
import torch
from torch import nn
from mulan_vdm import evaluate, fit, load, ode_evaluate, preset, sample

torch.set_num_threads(1)
digits = load('digits')
x = digits.test.x[:8]
few = dict(steps=2, batch_size=8, progress=False)


def small(name='vdm-digits', **changes): return preset(name, digits, channels=4, blocks=1, **changes)


def refused(call, *words, kind=(TypeError, ValueError)):
    "The error is one line with these words."
    with pytest.raises(kind) as caught: call()
    said = str(caught.value)
    assert '\n' not in said and all(word in said for word in words), said


model = small()
not_models = ((model, {}, 3), 'load_run(...)[0]'), ('runs/vdm', 'load_run(...)[0]'), \
    (nn.DataParallel(model), '.module'), (SimpleNamespace(model=model), '.model'), \
    (nn.Linear(2, 2), 'from_diffusers'), (None, 'preset')
asked = dict(evaluate=lambda m: evaluate(m, x, draws=2), sample=lambda m: sample(m, 2, 2),
             ode=lambda m: ode_evaluate(m, x), fit=lambda m: next(fit(m, digits, **few)))


@pytest.mark.parametrize('name', asked)
@pytest.mark.parametrize('wrong, remedy', not_models)
def test_no_model(name, wrong, remedy):
    refused(lambda: asked[name](wrong), f'model is a {type(wrong).__name__}', remedy)


images = (digits, 'data.test.x'), (digits.test, 'split.x'), (x.numpy(), 'torch.as_tensor'), \
    (x.tolist(), 'a list'), (x / 16, 'integer pixels'), (x.permute(0, 2, 3, 1), '(B, 1, 8, 8)'), \
    (x[:, 0], '(B, 1, 8, 8)'), (x[0], '(B, 1, 8, 8)'), (torch.cat([x, x + 1]), 'outside the vocabulary')


@pytest.mark.parametrize('wrong, remedy', images)
@pytest.mark.parametrize('ask', [evaluate, ode_evaluate])
def test_no_images(ask, wrong, remedy): refused(lambda: ask(model, wrong), remedy)


def test_last_image_is_looked_at_before_any_work(monkeypatch):
    monkeypatch.setattr(type(model), 'forward', lambda *_, **__: pytest.fail('work was done'))
    refused(lambda: evaluate(model, torch.cat([x, x + 1]), batch_size=1), 'outside the vocabulary')
    refused(lambda: evaluate(model, x, strata=digits.test.y), 'strata', '(360,)', '8 images')
    refused(lambda: evaluate(model, x, strata=[1] * 8), 'strata is a list')


@pytest.mark.parametrize('call, word', [
    (lambda: evaluate(model, x, draws=2.5), 'draws=2.5'), (lambda: evaluate(model, x, T=2.5), 'T=2.5'),
    (lambda: evaluate(model, x, batch_size=2.5), 'batch_size=2.5'),
    (lambda: sample(model, 2.5, 2), 'n=2.5'),
    (lambda: sample(model, 2, 2.5), 'steps=2.5'), (lambda: sample(model, 0, 2), 'n=0'),
    (lambda: sample(model, 2, 2, batch_size=2.), 'batch_size=2.0'),
    (lambda: model.sample(-1, steps=2), 'n=-1')])
def test_whole_numbers(call, word): refused(call, word)


def test_a_time_may_be_a_number():
    "In one's own loop over times a float is as good as a tensor."
    z = torch.randn(2, *model.event_shape)
    both = torch.full((2,), 0.3)
    for a, b in zip(model.denoise(z, 0.3), model.denoise(z, both)): torch.testing.assert_close(a, b)
    torch.testing.assert_close(model.gamma(0.3), model.gamma(torch.tensor([0.3])))
    refused(lambda: model.gamma(1.5), 'outside [0, 1]')


def trained(model, data=digits, **changes):
    for step in fit(model, data, **few | changes): pass
    return step


def test_fit_that_nobody_iterates_says_so():
    with pytest.warns(UserWarning, match='nothing was trained'):
        steps = fit(small(), digits, **few)
        assert 'for step in fit(...)' in repr(steps)
        del steps


def test_fit_learns_wherever_it_is_called():
    "Under no_grad as outside of it; under inference_mode or all frozen one line says why not."
    torch.manual_seed(0)
    outside = trained(small()).loss
    torch.manual_seed(0)
    with torch.no_grad():
        assert trained(small()).loss == outside
        assert not torch.is_grad_enabled()
    with torch.inference_mode(): refused(lambda: trained(small()), 'inference_mode')
    refused(lambda: trained(small().requires_grad_(False)), 'requires_grad_()')
    part = small()
    part.net.conv_in.requires_grad_(False)
    before = part.net.conv_in.weight.clone()
    trained(part)
    assert torch.equal(part.net.conv_in.weight, before)


def test_fit_without_test_images():
    alone = digits._replace(test=digits.test._replace(x=digits.test.x[:0], y=digits.test.y[:0]))
    assert trained(small(), alone).step == 2
    refused(lambda: trained(small(), alone, validate_every=1), 'no test images')


def test_a_step_is_shown_in_one_line():
    step = trained(small())
    assert '\n' not in repr(step) and f'"loss": {step.loss}' in repr(step)


def test_compiled_parts_are_kept_under_their_own_names(tmp_path):
    "What was trained with `model.net = torch.compile(model.net)` is loaded, resumed and shared without it."
    from mulan_vdm import Diffusion, load_run
    model = small()
    model.net = torch.compile(model.net, backend='eager')
    step = trained(model, out=tmp_path / 'run')
    found, _, steps = load_run(tmp_path / 'run')
    assert steps == 2 and not any('_orig_mod' in name for name in found.state_dict())
    assert torch.equal(found.net.conv_in.weight, step.model.net._orig_mod.conv_in.weight)
    trained(small(), out=tmp_path / 'run', resume=True, steps=3)
    trained(model, out=tmp_path / 'run', resume=True, steps=4)
    again = Diffusion.from_pretrained(step.model.save_pretrained(tmp_path / 'saved'))
    assert torch.equal(again.net.conv_in.weight, found.net.conv_in.weight)


def test_a_resume_that_trains_nothing_changes_no_setting(tmp_path):
    from mulan_vdm.runs import Run
    trained(small(), out=tmp_path)
    before = Run(tmp_path).config
    assert list(fit(small(), digits, **few | dict(steps=1, lr=0.5), out=tmp_path, resume=True)) == []
    assert Run(tmp_path).config == before


def test_what_is_shown_is_short():
    "Models say their events, levels and noise; examples and results their kind and mean, not all numbers."
    found = evaluate(model, x, draws=2)
    mean = found.bpd.mean()
    assert repr(digits.test) == 'Split(x: uint8 (360, 1, 8, 8), y: int64 (360,))'
    assert repr(found).startswith(f'Evaluation({mean:.4f} ± ') and '8 images, 2 draws each' in repr(found)
    assert '± nan' in repr(evaluate(model, x[:1], draws=2))
    assert 'events (1, 8, 8), Codec(17)' in repr(model) and 'Linear(gamma -7.9 to 5)' in repr(model)
    with torch.device('meta'): assert 'Linear' in repr(small())


@pytest.mark.parametrize('name', ['vdm-digits', 'mulan-digits'])
def test_another_default_device(name):
    "Where torch.set_default_device names one, the model says where it works; data stay with the processor."
    from mulan_vdm.evaluation import bits_per_pixel, importance_evaluate
    model = small(name)
    asked = dict(table=lambda: evaluate(model, x, draws=2).table(), nats=lambda: model.log_prob(x),
                 five=lambda: evaluate(model, x, draws=4, T=5).bpd,
                 maps=lambda: bits_per_pixel(model, x, draws=2).bpd,
                 drawn=lambda: sample(model, 2, 2, step='heun', batch_size=1))
    if model.latent.size: asked.update(several=lambda: importance_evaluate(model, x, 3, 2).bpd)
    for ask in asked.values():
        torch.manual_seed(0)
        expected = ask()
        torch.manual_seed(0)
        with torch.device('meta'): found = ask()
        assert found == expected if isinstance(found, str) else torch.equal(found, expected)
    with torch.device('meta'): again = load('digits', size=4)
    assert again.train.x.is_cpu and again.fingerprint == load('digits', size=4).fingerprint
