"""Thousands of generated command lines, from the flags that there are and values that nobody means. Each
ends with status 0, or with one line that names the flag, and never with a traceback."""
import argparse
import contextlib
import io
import re
import hypothesis.strategies as st
import pytest
from pathlib import Path
from hypothesis import HealthCheck, given, settings
from mulan_vdm import cli, reports, systems, training
from mulan_vdm.cli import commands, main

HOSTILE = [
    '0', '-1', '-3', '1', '2', '3', '7.5', '1e9', '-1e1', '1e400', 'nan', 'NaN', '-nan', 'inf', '-inf',
    '-Infinity', '9' * 30, '-' + '9' * 30, '9' * 5000, '', ' ', 'None', 'True', 'False', 'many', 'é', '±',
    '漢字', '\udcff', '0x10', '1_000', '١', '--', '-', '-x', '~', '~nobody/x', '.', '..', '/',
    '/dev/null', '/proc/x', 'a b', "a'b", 'a"b', 'a=b', '%s', '%(prog)s', '{}', '\n', '\t', '\\', '*',
    '$HOME', '[1,2]', 'digits', 'vdm-digits', 'mulan-digits', 'vdmpp-digits',
    'x' * 300, 'linear', 'ode', 'vlb', 'exact']

def _flags(command, system='vdm'):
    "Every flag of a command, and how argparse describes it."
    if command == 'train': parser = cli.train_parser(system)
    else:
        parser = argparse.ArgumentParser()
        cli.add_flags(parser, cli._function(command), ('progress', *cli._places.get(command, ('run',))))
    return sorted(option for option in parser._option_string_actions if option.startswith('--'))

@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "A run of one step."
    out = tmp_path_factory.mktemp('runs') / 'vdm'
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        assert main(['train', '--channels', '4', '--blocks', '1', '--steps', '1', '--out', str(out)]) == 0
    return out

@pytest.fixture
def stopped(monkeypatch, run, tmp_path):
    "Commands are understood and checked, in an empty folder; the work itself is left out."
    monkeypatch.chdir(tmp_path)
    model, config, steps = reports.load_run(run)
    digits = reports.load('digits')
    small = digits._replace(train=digits.train.some(64), test=digits.test.some(8))
    monkeypatch.setattr(reports, 'load_run', lambda run: (model, config, steps))
    monkeypatch.setattr(reports.Run, 'model', lambda self: model)
    monkeypatch.setattr(reports.Run, 'data', lambda self: small)
    done = ValueError('--all flags are right') # what the work would begin with
    def work(*_, **__): raise done
    for name in ('evaluate', 'importance_evaluate', 'ode_evaluate', 'sample', 'describe', 'latent_figures',
                 'compress', 'contents', '_with_steps', '_size_table',
                 '_moments', 'principal'): monkeypatch.setattr(reports, name, work)
    monkeypatch.setattr(systems, 'build', work)
    monkeypatch.setattr(training, 'fit', training.fit)

one = st.tuples(st.integers(0, 99), st.sampled_from(HOSTILE + [None]), st.booleans(), st.booleans())
words = st.lists(one, min_size=1, max_size=4) # number of a flag, its value, glued on, with hyphens

def _line(command, drawn, flags, run):
    "Words of a command line: flags with values, glued or apart, with hyphens or underscores."
    line = [command]
    if command != 'train': line += [str(run)]
    for number, value, glued, hyphens in drawn:
        flag = flags[number % len(flags)]
        if hyphens: flag = '--' + flag[2:].replace('_', '-')
        if value is None: line.append(flag)
        elif glued: line.append(f'{flag}={value}')
        else: line += [flag, value]
    if command == 'train': line += ['--out', str(run.parent / 'never')]
    return line

def _check(command, drawn, flags, run):
    "Status 0, or one line that names a flag or a value that was typed, or the run."
    line = _line(command, drawn, flags, run)
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err): status = main(line)
    except SystemExit as end: # --help
        assert end.code == 0
        return
    said = err.getvalue()
    if status == 0: return
    assert status in (1, 2) and said.startswith('mulan-vdm: ') and said.count('\n') == 1, (line, said)
    assert 'a bug in' not in said and 'Traceback' not in said, (line, said)
    typed = [value for _, value, _, _ in drawn if value and value.strip()]
    names = ['--', 'one word too many', 'the model has no latent', 'need a Gaussian latent', str(run), *typed]
    assert any(name in said for name in names), (line, said)

def _try(command, run, n, system='vdm'):
    flags = _flags(command, system)
    @settings(max_examples=n, deadline=None, database=None, derandomize=True,
              suppress_health_check=list(HealthCheck))
    @given(words)
    def each(drawn): _check(command, drawn, flags, run)
    each()

@pytest.mark.parametrize('command', [c for c in commands])
def test_generated_command_lines_end_in_one_line(stopped, run, command):
    _try(command, run, 250)
    assert not (run.parent / 'never').exists() and not list(Path().iterdir())

@pytest.mark.nightly
@pytest.mark.parametrize('system', list(systems.systems))
@pytest.mark.parametrize('command', [c for c in commands])
def test_many_generated_command_lines_end_in_one_line(stopped, run, command, system):
    "Twenty thousand and more."
    if command != 'train' and system != 'vdm': pytest.skip('its flags are those of every system')
    _try(command, run, 2000 if command == 'train' else 1750, system)

def test_every_command_is_generated():
    "A flag that is misspelled by one letter is refused by its name."
    needed = dict(train=['--out', 'x'], convert=['x', '--out', 'x'],
                  decompress=['x', '--run', 'x', '--out', 'x'])
    for command in commands:
        for flag in _flags(command):
            said = re.escape(flag + 'q')
            words = [command, *needed.get(command, ['x']), flag + 'q']
            with contextlib.redirect_stderr(io.StringIO()) as err: assert main(words) == 2
            assert re.search(f'unknown flag {said}(: did you mean|: --help)', err.getvalue()), err.getvalue()
