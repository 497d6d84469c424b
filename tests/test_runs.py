"""Run folders written by version 0.1.0, one of each system: they load, evaluate to the figures of their
reports, and continue as that version did. Labels left out in training are now drawn by `fit`, outside the
network and before the noise, so the losses of `vdmpp`, the one run with labels, go on from the same step with
the same images but other noise: of its lines only what depends on the images alone is compared."""
import json, os, shutil
from pathlib import Path
import pytest
import torch
from mulan_vdm import evaluate, fit, load, load_run, ode_evaluate
from mulan_vdm.systems import build, translated

earlier = Path(__file__).parent / 'earlier'
names = 'vdm', 'vdmpp', 'mulan', 'repvdm'
by_run = pytest.mark.parametrize('name', names)
own_seeds = pytest.mark.skipif(int(os.environ.get('SEED_SHIFT', 0)) != 0, reason='stored with other seeds')

@pytest.fixture(scope='module')
def digits(): return load('digits')

def stored(name, file): return json.loads((earlier / name / file).read_text())

def lines(path): return [json.loads(line) for line in path.read_text().splitlines()]

rounding = dict(rel=1e-5, abs=1e-7)  # absolute: a divergence of 1e-6 is a difference of numbers near one

def agrees(found, reported, solved=(), error=0.):
    "Figures and their standard errors, term by term; those that a solver gave within its error, bits/dim."
    assert found['n'] == reported['n']
    pairs = {'bound': [found['bpd'], found['bpd_se']], **found['terms']}
    said = {'bound': [reported['bpd'], reported['bpd_se']], **reported['terms']}
    assert pairs.keys() == said.keys()
    for term in said:
        allowed = dict(rel=0, abs=error) if term in solved else rounding
        assert pairs[term] == pytest.approx(said[term], **allowed), term

@by_run
def test_it_loads(name):
    model, config, steps = load_run(earlier / name)
    report = stored(name, 'report.json')
    assert (steps, sum(p.numel() for p in model.parameters())) == (report['steps'], report['params'])
    assert model.config['system'] == name and not model.training
    # read in today's words and built, a configuration says the same again
    again = json.loads(json.dumps(model.config['model']))
    same = build(dict(system=name, model=again)).config
    assert json.loads(json.dumps(same)) == json.loads(json.dumps(model.config))
    assert {k: v for k, v in translated(config)['model'].items() if again[k] != v} == {}

@own_seeds
@by_run
def test_its_bound_is_the_reported_one(name, digits):
    report = stored(name, 'report.json')
    found = evaluate(load_run(earlier / name)[0], digits.test.x, report['draws'], digits.strata,
                     seed=report['seed'], T=report['T'], even=report['even'])
    agrees(found.report(), report)

@own_seeds
@by_run
def test_its_likelihood_by_the_flow_is_the_reported_one(name, digits):
    """What no solver touches to rounding; the rest as far as errors of `tolerance` may add up on the way,
    since versions step in different places."""
    report = stored(name, 'report_ode.json')
    generator = torch.Generator().manual_seed(report['seed'])
    found = ode_evaluate(load_run(earlier / name)[0], digits.test.x[:report['n']], draws=report['draws'],
                         trace=report['trace'], dequantization=report['dequantization'], generator=generator,
                         tolerance=report['tolerance'])
    agrees(found.report(), report, ('bound', 'density'), report['tolerance'] * report['nfe_max'])

@own_seeds
@by_run
def test_it_continues_as_it_did(name, digits, tmp_path):
    run = shutil.copytree(earlier / name, tmp_path / name)
    config = translated(stored(name, 'config.json'))
    settings = {**config['fit'], 'steps': 24}
    for step in fit(build(config), digits, out=run, config=config, resume=True, progress=False, **settings):
        pass
    assert step.step == 24
    found = lines(run / 'metrics.jsonl')
    said = lines(earlier / name / 'continued.jsonl')
    assert [line['step'] for line in found] == [*range(1, 25)]
    labelled = config['model'].get('classes', 0) > 0
    compared = ['prior', 'latent', 'lr']
    if not labelled: compared += ['loss', 'reconstruction', 'diffusion', 'weighted']
    for now, then in zip(found[20:], said, strict=True):
        assert {k: now[k] for k in compared} == pytest.approx({k: then[k] for k in compared}, **rounding)
