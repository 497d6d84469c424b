"""What cannot work is refused before the first second of work: no data are read, no network is built, no run
is opened. Whatever was typed is named, in one line."""
import contextlib
import io
import json
import os
import shutil
from pathlib import Path
import pytest
import torch
from mulan_vdm import reports, systems
from mulan_vdm.cli import main
from mulan_vdm.data import load, sources
from mulan_vdm.runs import Run
from mulan_vdm.schedules import schedules

EARLIER = Path(__file__).parent / 'earlier'

def said(*words):
    "Exit status, and the lines of standard error."
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([str(word) for word in words])
    return status, err.getvalue().splitlines()

def refused(words, message):
    "One line, which says so and is no bug."
    status, lines = said(*words)
    assert status in (1, 2) and len(lines) == 1 and lines[0].startswith('mulan-vdm: '), (words, lines)
    assert message in lines[0] and 'a bug in' not in lines[0], (words, lines)

def worked(*_, **__): raise AssertionError('work before the check')

# ---- before the first second of work

TRAIN = {
    'vdm-digits': [
        ('--fourier 7 999', '--fourier 999.0: single precision overflows'),
        ('--gamma_min -89', '--gamma_min -89.0: single precision overflows'),
        ('--gamma_min 6', '--gamma_min 6.0 must be below --gamma_max 5.0'),
        ('--schedule sigmoid', "unknown --schedule 'sigmoid': choose one of linear"),
        ('--schedule cosine --learn_ends', 'has fixed ends'),
        ('--variance', 'variance'),
        ('--prediction noise', "unknown --prediction 'noise': choose one of x, eps"),
        ('--style new', "unknown --style 'new': choose one of ours, released"),
        ('--channels 6', '--channels 6 must be a multiple of 4'),
        ('--decay linear', "unknown --decay 'linear': choose one of constant, cosine"),
        ('--precision fp8', "unknown --precision 'fp8': choose one of no, bf16, fp16"),
        ('--track paper', "unknown --track 'paper': choose one of tensorboard"),
        ('--shard --compile', '--shard with --compile'), ('--shard --precision fp16', 'use bf16'),
        ('--data digits --bits 3', '--bits 3: digits has 17 levels'),
        ('--data mnits', '--data mnits: choose one of digits')],
    'mulan-digits': [
        ('--latent gumbel', "unknown --latent 'gumbel': choose one of khot"),
        ('--estimator score', "unknown --estimator 'score': choose one of identity"),
        ('--k 51', '--k 51: a subset of --m 16'), ('--bound -1', '--bound -1.0: pass a positive bound'),
        ('--schedule sigmoid', "unknown --schedule 'sigmoid'")],
    'vdmpp-digits': [
        ('--weighting snr', "unknown --weighting 'snr'"), ('--network dit', "unknown --network 'dit'"),
        ('--gamma_max 99', '--gamma_max 99.0: single precision')],
    'repvdm-digits': [
        ('--network adm', "unknown --network 'adm': choose one of unet, decoder"),
        ('--weighting snr', "unknown --weighting 'snr'")]}

CASES = [(preset, *case) for preset, cases in TRAIN.items() for case in cases]
@pytest.mark.parametrize('preset, words, message', CASES)
def test_before_data_are_read(preset, words, message, tmp_path, monkeypatch):
    monkeypatch.setitem(sources, 'digits', sources['digits']._replace(read=worked))
    monkeypatch.setattr(systems, 'build', worked)
    out = tmp_path / 'run'
    refused(['train', '--preset', preset, *words.split(), '--out', out], message)
    assert not out.exists()

def test_what_any_images_forbid_is_all_that_is_forbidden():
    "Every preset passes, and every preset with any schedule that its system has."
    for preset in systems.presets.values(): systems.check_arguments(preset)
    for name in schedules:
        model = dict(schedule=name, learn_ends=None, gamma_min=-8., gamma_max=8.)
        systems.check_arguments(dict(system='mulan', model=model))

OTHERS = [
    ('evaluate', '--split valid', "unknown --split 'valid': choose one of test, train"),
    ('evaluate', '--method elbo', "unknown --method 'elbo': choose one of vlb, ode"),
    ('evaluate', '--T 9 --variance small', "unknown --variance 'small': choose one of fixed"),
    ('evaluate', '--T 9 --grid log', "unknown --grid 'log': choose one of time, best"),
    ('evaluate', '--variance large', '--variance large and --grid time are of steps back'),
    ('evaluate', '--method ode --trace none', "unknown --trace 'none': choose one of rademacher"),
    ('evaluate', '--method ode --dequantization none', "unknown --dequantization 'none'"),
    ('evaluate', '--method ode --T 9', '--T 9 goes with --method vlb'),
    ('evaluate', '--tolerance 1e-4', '--tolerance 0.0001 goes with --method ode'),
    ('evaluate', '--draws 1', '--draws 1: pass at least 2'),
    ('evaluate', '--data mnits', "unknown --data 'mnits': choose one of digits"),
    ('evaluate', '--bits 3', '--bits 3 without'), ('evaluate', '--table new/x', "there is no folder 'new'"),
    ('sample', '--step euler', "unknown --step 'euler': choose one of ddpm"),
    ('sample', '--grid log', "unknown --grid 'log': choose one of time"),
    ('encode', '--data mnits', "unknown --data 'mnits'"), ('encode', '--path x', '--path x without'),
    ('encode', '--out new/x', "there is no folder 'new'"),
    ('explore', '--n 1', '--n 1: pass at least 2'),
    ('compress', '--split valid', "unknown --split 'valid'"),
    ('compress', '--grid log', "unknown --grid 'log'"),
    ('compress', '--variance small', "unknown --variance 'small'"),
    ('compress', '--out new/x', "there is no folder 'new'"),
    ('compress', '--out there', 'exists: name another'),
    ('decompress', '--run x --out new/x', "there is no folder 'new'"),
    ('decompress', '--run x --out there', 'exists: name another'),
    ('decompress', '--run x --out x', 'is no file'),
    ('convert', '--preset mulan --out x', "unknown --preset 'mulan'"),
    ('convert', '--prediction noise --out x', "unknown --prediction 'noise'")]

@pytest.mark.parametrize('command, words, message', OTHERS)
def test_before_a_run_is_opened(command, words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('there').touch()
    for name in ('load_run', '_opened', 'contents', 'Run'): monkeypatch.setattr(reports, name, worked)
    refused([command, EARLIER / 'vdm', *words.split()], message)
    assert os.listdir() == ['there']

def test_before_the_data_of_a_run_are_read(monkeypatch, tmp_path):
    "What the model alone forbids."
    monkeypatch.setattr(Run, 'data', worked)
    refused(['probe', EARLIER / 'vdm'], 'the model has no latent to encode with')
    refused(['encode', EARLIER / 'vdm', '--out', tmp_path / 'z'], 'the model has no latent to encode with')
    refused(['explore', EARLIER / 'mulan'], 'these pictures need a Gaussian latent of images')
    refused(['sample', EARLIER / 'vdm', '--score', '--guidance', '2'], '--guidance 2.0')
    refused(['sample', EARLIER / 'vdm', '--score', '--label', '2'], '--label 2')
