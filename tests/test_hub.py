"""A model in a folder: written, read, damaged; and what is asked of the hub, which is never reached."""
import json

import pytest
import torch

from mulan_vdm import Diffusion, evaluate, load, load_run, vdm
from mulan_vdm.systems import shipped

small = dict(channels=8, blocks=1)


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    made = vdm((1, 8, 8), 17, **small).eval()
    for p in made.parameters(): p.data += 0.1 * torch.randn_like(p)
    return made

def same(a, b): return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())

def test_a_folder_holds_the_model_and_what_is_known_of_it(model, tmp_path):
    model.save_pretrained(tmp_path / 'm', release='some digits', bpd=1.75, bpd_se=0.01, licence='mit')
    again = Diffusion.from_pretrained(tmp_path / 'm')
    assert same(again, model) and not again.training and again.card['bpd'] == 1.75
    card = (tmp_path / 'm/README.md').read_text()
    assert '1.7500 ± 0.0100' in card and 'license: mit' in card and 'some digits' in card
    again.save_pretrained(tmp_path / 'n', steps=3)  # facts go on, with those that are added
    assert Diffusion.from_pretrained(tmp_path / 'n').card == again.card | dict(steps=3)

def test_a_figure_that_is_no_number_is_not_written(model, tmp_path):
    with pytest.raises(ValueError): model.save_pretrained(tmp_path / 'm', bpd=float('nan'))
    assert not (tmp_path / 'm').exists()

@pytest.mark.parametrize('file, content', [
    ('config.json', b''), ('config.json', b'[]'), ('config.json', b'{"system": "vdm"}'),
    ('config.json', b'{"system": "vdm", "model": {"event_shape": [1, 8, 8], "vocab": 17}}'),
    ('config.json', b'{"system": "vdm", "model": {"event_shape": 8, "vocab": "many"}}'),
    ('config.json', b'{"system": "ddpm", "model": {"event_shape": [1, 8, 8]}}'), ('config.json', b'\xff\xfe'),
    ('model.safetensors', b''), ('model.safetensors', b'\x08\0\0\0\0\0\0\0{}'),
    ('model.safetensors', b'\xff' * 64)])
def test_a_damaged_folder_is_refused_in_one_line(model, tmp_path, file, content):
    model.save_pretrained(tmp_path)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match='no model of this package, or a damaged one') as e:
        Diffusion.from_pretrained(tmp_path)
    assert '\n' not in str(e.value)

@pytest.mark.parametrize('file', ['config.json', 'model.safetensors'])
def test_a_missing_file_is_named(model, tmp_path, file):
    model.save_pretrained(tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(FileNotFoundError, match=file): Diffusion.from_pretrained(tmp_path)

def test_weights_that_are_not_finite_are_refused(model, tmp_path):
    from safetensors.torch import load_file, save_file
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / 'model.safetensors')
    tensors['net.conv_in.bias'][0] = float('inf')
    save_file(tensors, tmp_path / 'model.safetensors')
    with pytest.raises(ValueError, match='net.conv_in.bias has values that are not finite'):
        Diffusion.from_pretrained(tmp_path)

def test_the_hub_is_asked_for_three_files(model, tmp_path, monkeypatch):
    import huggingface_hub
    asked = {}
    def snapshot_download(name, **how):
        asked.update(how, name=name)
        return str(model.save_pretrained(tmp_path, steps=7))
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', snapshot_download)
    found, config, steps = load_run('hf:someone/digits')
    assert same(found, model) and config['system'] == 'vdm' and steps == 7
    assert asked['name'] == 'someone/digits'
    assert asked['allow_patterns'] == ['config.json', 'model.safetensors', 'README.md']

def test_what_the_hub_refuses_is_said_in_one_line(monkeypatch):
    import huggingface_hub
    def snapshot_download(name, **how): raise OSError('no such\nrepository')
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', snapshot_download)
    said = 'mulan-digits, and the hub did not give it .no such repository'
    with pytest.raises(FileNotFoundError, match=said):
        Diffusion.from_pretrained('someone/nothing')

def test_pushing_makes_a_repository_and_sends_the_folder(model, monkeypatch):
    import huggingface_hub
    sent = {}
    class Hub:
        def create_repo(self, name, private, exist_ok): sent.update(name=name, private=private)
        def upload_folder(self, repo_id, folder_path):
            sent.update(model=Diffusion.from_pretrained(folder_path), to=repo_id)
            return f'https://hub/{repo_id}'
    monkeypatch.setattr(huggingface_hub, 'HfApi', Hub)
    assert model.push_to_hub('someone/digits', private=True, steps=5) == 'https://hub/someone/digits'
    assert (sent['name'], sent['private'], sent['to']) == ('someone/digits', True, 'someone/digits')
    assert same(sent['model'], model) and sent['model'].card == dict(steps=5)

def test_the_model_that_ships_is_what_its_card_says():
    "With fewer draws, within five standard errors."
    assert shipped() == ['mulan-digits']
    model, config, steps = load_run('mulan-digits')
    assert steps == 3000 and config['preset'] == 'mulan-digits'
    digits = load('digits')
    found = evaluate(model, digits.test.x, 4, digits.strata)
    assert abs(found.report()['bpd'] - model.card['bpd']) < 5 * found.report()['bpd_se']
    assert model.card['release'] == digits.release and model.card['n'] == len(digits.test.x)

def test_a_run_hands_its_figures_over(tmp_path):
    from pathlib import Path
    run = Path(__file__).parent / 'earlier/vdm'
    model, _, steps = load_run(run)
    report = json.loads((run / 'report.json').read_text())
    assert model.card == {k: report[k] for k in ('steps', 'release', 'bpd', 'bpd_se', 'n')} and steps == 20
    model.save_pretrained(tmp_path)
    assert same(Diffusion.from_pretrained(tmp_path), model)
