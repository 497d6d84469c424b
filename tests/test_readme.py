"""What README.md prints is run: the example as it stands, and every `mulan-vdm` line with its own words,
at a thousandth of its steps."""
import functools, math, re, shlex
from pathlib import Path
import pytest
import torch

root = Path(__file__).resolve().parent.parent
text = (root / 'README.md').read_text(encoding='utf-8')
blocks = re.findall(r'^```\w*\n(.*?)^```$', text, re.M | re.S)
lines = [shlex.split(line, comments=True)[1:] for block in blocks
         for line in block.splitlines() if line.startswith('mulan-vdm ')]

def numbers(table):
    return {m[1]: (float(m[2]), float(m[3]))
            for m in re.finditer(r'^(\w+)[^\d\n]*?([\d.]+)\s+± ([\d.]+)$', table, re.M)}

def test_the_example_prints_what_it_shows(capsys):
    """The same table, its total the sum of its terms; below what every level equally likely costs. The
    figures of so short a training are another processor's own."""
    code, shown = re.search(r'^```python\n(import torch.*?)^```\n+```\n(.*?)^```', text, re.M | re.S).groups()
    assert len([l for l in code.splitlines() if l.strip()]) <= 8  # "Eight lines"
    scope = {}
    exec(code, scope)
    for table in (capsys.readouterr().out, shown):
        terms = numbers(table)
        total, se = terms.pop('total')
        assert terms.keys() == {'reconstruction', 'prior', 'diffusion', 'latent'}
        assert abs(total - sum(mean for mean, _ in terms.values())) < 5 * 5e-5  # five roundings
        assert 0 < total < math.log2(17) - 5 * se
    assert scope['images'].shape == (32, 1, 8, 8)

@pytest.fixture(scope='module')
def small(tmp_path_factory):
    """The package with less to do: a thousandth of the training steps, two draws, four images for the
    flow, few sampling steps."""
    from mulan_vdm import reports, training
    patch = pytest.MonkeyPatch()
    here = tmp_path_factory.mktemp('readme')
    patch.chdir(here)
    fit = training.fit
    evaluate = reports.evaluate
    flow = reports.ode_evaluate
    sample = reports.sample
    figures = reports.latent_figures
    # wrapped: flags are read from its signature
    patch.setattr(training, 'fit',
                  functools.wraps(fit)(lambda *a, steps=3000, **k: fit(*a, steps=max(2, steps // 1000),
                                                                       **{**k, 'batch_size': 16})))
    patch.setattr(reports, 'evaluate', lambda model, x, draws, *a, **k: evaluate(model, x, 2, *a, **k))
    patch.setattr(reports, 'ode_evaluate',
                  lambda model, x, *a, strata=None, **k: flow(model, x[:4], *a, **{**k, 'tolerance': 0.1}))
    patch.setattr(reports, 'sample', lambda model, n, steps, **k: sample(
        model, min(n, 9), min(steps, 4), **{**k, 'y': None if k.get('y') is None else k['y'][:9]}))
    patch.setattr(reports, 'latent_figures', lambda model, data, n, steps: figures(model, data, n, 3))
    yield here
    patch.undo()

others = {'convert'} # on a page of its own

def test_commands_are_those_of_the_package():
    from mulan_vdm.cli import commands
    assert len(lines) >= 12 and {words[0] for words in lines} == set(commands) - others

@pytest.mark.parametrize('words', lines, ids=' '.join)
def test_line(small, words, capsys):
    from mulan_vdm.cli import main
    assert main(words) == 0, capsys.readouterr().err
    if words[0] == 'train' and '--resume' not in words:
        assert (Path(words[words.index('--out') + 1]) / 'checkpoint' / 'state.safetensors').exists()
    if words[0] == 'encode': assert Path(words[words.index('--out') + 1]).exists()
