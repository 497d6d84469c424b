"The public names pass a type checker, as whoever uses the package meets them."
import subprocess
import sys
from pathlib import Path

root = Path(__file__).resolve().parent.parent

user = '''
import torch
from mulan_vdm import Diffusion, evaluate, fit, load, mulan, ode_evaluate, preset, sample, vdm
from mulan_vdm.objective import v_prediction # of a table: outside __all__

data = load('digits')
model: Diffusion = vdm(data.event_shape, data.vocab, channels=8, fourier=(3., 4.), schedule='linear')
other: Diffusion = mulan(data.event_shape, data.vocab, m=8, k=3, hidden=8)
for step in fit(model, data, steps=2): print(step.loss + 1.)
table: str = evaluate(step.model, data.test.x, draws=2, strata=data.strata).table()
bits: torch.Tensor = ode_evaluate(model, data.test.x).bpd
images: torch.Tensor = sample(model, 4, 10, step='ddim')
x_hat, eps_hat = model.denoise(torch.zeros(1, 1, 8, 8), torch.zeros(1))
nats: torch.Tensor = model(data.test.x).vlb
mean, std = preset('repvdm-digits', data).encode(data.test.x)
'''

wrong = '''
from mulan_vdm import load, vdm
data = load('digits')
vdm(data.event_shape, data.vocab, chanels=8)
vdm(data.event_shape, data.vocab).denoise('x')
load(17)
'''

def test_public_names_pass_a_type_checker(tmp_path):
    "No stub and no line of `user` is blamed; each wrong call is."
    for name, text in dict(user=user, wrong=wrong).items(): (tmp_path / f'{name}.py').write_text(text)
    stubs = sorted((root / 'mulan_vdm').glob('*.pyi'))
    assert len(stubs) > 20
    files = [*stubs, root / 'mulan_vdm' / '__init__.py', tmp_path / 'user.py', tmp_path / 'wrong.py']
    command = [sys.executable, '-m', 'mypy', '--no-error-summary', '--cache-dir', str(tmp_path / 'cache'),
               '--disable-error-code', 'override', '--disable-error-code', 'import-untyped', *map(str, files)]
    said = subprocess.run(command, cwd=root, capture_output=True, text=True).stdout.splitlines()
    assert [line for line in said if 'wrong.py' not in line] == []
    assert {line.split(':')[1] for line in said if ': error:' in line} == {'4', '5', '6'}, said
