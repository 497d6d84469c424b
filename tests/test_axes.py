"""Signals, images, volumes and tables from the command line: from a file to bits, samples and back."""
import json
import math

import numpy as np
import pytest
import torch

from mulan_vdm import evaluate, load, load_run, vdm
from mulan_vdm.cli import main, train_parser
from mulan_vdm.nets import _Attention
from mulan_vdm.reports import _to_fill
from mulan_vdm.systems import denoiser

spellings = dict(signals=((2, 6), ['NCL', 'NLC']), images=((3, 4, 8), ['NCHW', 'NHWC']),
                 volumes=((2, 4, 2, 6), ['NCDHW', 'NDHWC']), lines=((1, 6), ['NL', 'NCL', 'NLC']),
                 grey=((1, 4, 8), ['NHW', 'NCHW', 'NHWC']), cubes=((1, 4, 2, 6), ['NDHW', 'NCDHW', 'NDHWC']))

def laid_out(x, axes): # events with channels in front
    if 'C' not in axes: return x[:, 0]
    return np.moveaxis(x, 1, axes.index('C'))

@pytest.mark.parametrize('kind', spellings)
def test_however_the_axes_lie_the_events_are_the_same(tmp_path, kind):
    event, said = spellings[kind]
    x = np.random.default_rng(0).integers(0, 5, (40, *event))
    found = []
    for axes in said:
        np.save(tmp_path / f'{axes}.npy', laid_out(x, axes))
        found.append(load('arrays', path=tmp_path / f'{axes}.npy', vocab=5, axes=axes))
        assert f', axes {axes},' in found[-1].release
        assert load(**json.loads(json.dumps(found[-1].loaded))).fingerprint == found[0].fingerprint
    assert {data.event_shape for data in found} == {event}
    rows = torch.cat([found[0].train.x, found[0].test.x]).flatten(1).tolist()
    assert sorted(rows) == sorted(x.reshape(40, -1).tolist())

def test_an_array_stays_a_file_however_its_axes_lie(tmp_path):
    (tmp_path / 'a').mkdir()
    x = np.random.default_rng(0).integers(0, 5, (6, 8, 3), dtype=np.uint8)
    for name in ('train', 'test'): np.save(tmp_path / f'a/{name}.npy', x)
    data = load('arrays', path=tmp_path / 'a', axes='NLC')
    np.load(tmp_path / 'a/train.npy', mmap_mode='r+')[2, 7, 1] = 200
    assert data.train.x[2, 1, 7] == 200

runs = dict(signals=((90, 6, 2), ['--axes', 'NLC', '--vocab', '5'], (2, 6)),
            images=((90, 4, 8), ['--vocab', '5'], (1, 4, 8)),
            volumes=((90, 4, 2, 6), ['--axes', 'NDHW', '--vocab', '5'], (1, 4, 2, 6)),
            table=((90, 4), ['--vocab', '5', '9', '5', '7'], (4,)))

@pytest.mark.parametrize('kind', runs)
def test_from_a_file_to_bits_samples_and_back(tmp_path, capsys, kind):
    shape, words, event = runs[kind]
    x = np.random.default_rng(0).integers(0, 5, shape)
    np.save(tmp_path / 'x.npy', x)
    run = str(tmp_path / 'run')
    data = ['--data', 'arrays', '--path', str(tmp_path / 'x.npy'), *words]
    small = ['--channels', '8', '--blocks', '1', '--dropout', '0']
    assert main(['train', *data, *small, '--steps', '2', '--batch-size', '8', '--out', run]) == 0
    assert main(['evaluate', run, '--draws', '4']) == 0
    assert main(['sample', run, '--n', '3', '--steps', '3']) == 0
    assert main(['info', run]) == 0
    assert 'mulan-vdm:' not in capsys.readouterr().err
    model, config, steps = load_run(run)
    test = load('arrays', **{k: v for k, v in config['data'].items() if k != 'name'}).test.x
    assert (model.event_shape, tuple(test.shape[1:]), steps) == (event, event, 2)
    found = evaluate(model, test, 4)
    report = json.loads((tmp_path / 'run/report.json').read_text())
    assert math.isclose(report['bpd'], found.bpd.mean().item(), rel_tol=1e-5)
    drawn = np.load(tmp_path / 'run/samples.npy')
    assert drawn.shape == (3, *event)
    model.codec.check(torch.from_numpy(drawn).long())
    assert (tmp_path / 'run/samples.png').stat().st_size > 1000

    assert main(['evaluate', run, *data, '--draws', '4']) == 0 # the same file, as other data
    assert f"{report['bpd']:.4f}" in capsys.readouterr().out
    assert main(['train', '--out', run, '--resume', '--steps', '3']) == 0
    assert load_run(run)[2] == 3

@pytest.mark.parametrize('words, line', [
    (['--axes', 'NLD'], '--axes NLD: choose one of NL, NCL, NLC, NHW, NCHW, NHWC, NDHW, NCDHW, NDHWC'),
    (['--axes', 'NCHW'], "--axes NCHW: 'x' has shape (40, 2, 8); give one letter for each of its axes"),
    (['--axes', 'NCL', '--size', '4'], 'no images: --size 4 is for them; leave it out')])
def test_axes_that_an_array_does_not_have_are_one_line(tmp_path, capsys, words, line):
    np.save(tmp_path / 'x.npy', np.zeros((40, 2, 8), np.uint8))
    data = ['--data', 'arrays', '--path', str(tmp_path / 'x.npy')]
    assert main(['train', *data, *words, '--out', str(tmp_path / 'run')]) == 1
    said = capsys.readouterr().err
    assert line in said and said.count('\n') == 1
    assert not (tmp_path / 'run').exists()

def test_axes_are_for_arrays_and_are_not_changed_on_the_way(tmp_path, capsys):
    assert main(['train', '--data', 'digits', '--axes', 'NCHW', '--out', str(tmp_path / 'run')]) == 1
    assert 'digits has no choice there; leave it out' in capsys.readouterr().err
    np.save(tmp_path / 'x.npy', np.zeros((40, 2, 8), np.uint8))
    data = ['--data', 'arrays', '--path', str(tmp_path / 'x.npy')]
    small = ['--channels', '8', '--blocks', '1', '--steps', '1', '--batch-size', '4']
    assert main(['train', *data, *small, '--axes', 'NCL', '--out', str(tmp_path / 'run')]) == 0
    assert main(['evaluate', str(tmp_path / 'run'), *data, '--draws', '2']) == 1
    said = capsys.readouterr().err
    assert 'its images are (1, 2, 8) of 256 levels' in said
    assert 'by --bits ... or --size ... or --axes ..., or name' in said
    assert main(['train', '--resume', '--out', str(tmp_path / 'run'), '--axes', 'NLC']) == 1
    assert 'cannot change when resuming' in capsys.readouterr().err

def test_a_picture_cannot_be_filled_where_data_are_real_numbers():
    model = vdm((1, 8, 8), None, channels=8, blocks=1)
    with pytest.raises(ValueError, match="given='a.png': the run's data are real numbers"):
        _to_fill(model, 'a.png', 'b.png')

# attention: a switch, or levels

@pytest.mark.parametrize('system', ['vdm', 'mulan', 'vdmpp'])
@pytest.mark.parametrize('words, said, levels', [
    ('--attention', True, 1), ('--no-attention', False, 0), ('--attention 0 1', [0, 1], 2),
    ('--attention=1', [1], 1)])
def test_attention_is_a_switch_or_levels(system, words, said, levels):
    "One attending block a level on the way in, two on the way out, and one in the middle."
    given = train_parser(system).parse_args(['--out', 'run', *words.split()])
    assert given.attention == said
    net = denoiser((1, 8, 8), 'adm', 8, 1, multipliers=(1, 1), attention=given.attention)
    assert sum(isinstance(part, _Attention) for part in net.modules()) == 1 + 3 * levels

def test_levels_of_attention_are_kept_in_a_run(tmp_path):
    small = ['--network', 'adm', '--channels', '8', '--blocks', '1', '--multipliers', '1', '1']
    short = ['--steps', '1', '--batch-size', '2', '--out', str(tmp_path / 'run')]
    assert main(['train', *small, *short, '--attention', '0']) == 0
    model, config, _ = load_run(tmp_path / 'run')
    assert config['model']['attention'] == [0]
    assert sum(isinstance(part, _Attention) for part in model.net.modules()) == 4

@pytest.mark.parametrize('words, line', [
    (['--no-attention', '1'], '--no-attention takes no value: write it alone'),
    (['--attention', 'yes'], '--attention yes: pass a whole number, at least 0'),
    (['--attention', '-1'], '--attention -1: pass a whole number, at least 0')])
def test_other_words_after_attention_are_one_line(tmp_path, capsys, words, line):
    assert main(['train', '--network', 'adm', *words, '--out', str(tmp_path / 'run')]) == 2
    assert line in capsys.readouterr().err
