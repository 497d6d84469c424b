"""One process or several: the same losses, the same statistics, one writer. And the options that trade memory for time leave the loss where it is."""
import json, os, socket, subprocess, sys, textwrap
from pathlib import Path
import pytest, torch
from torch.testing import assert_close
from mulan_vdm.data import load
from mulan_vdm.diffusion import Codec, Diffusion
from mulan_vdm.nets import ADM, UNet
from mulan_vdm.schedules import Linear
from mulan_vdm.systems import build, presets
from mulan_vdm.training import fit, load_checkpoint, adapted

ENV = {**os.environ, 'OMP_NUM_THREADS': '1', 'ACCELERATE_USE_CPU': 'true', 'PYTHONPATH': str(Path(__file__).parent.parent)}
small = dict(channels=8, blocks=1)
kinds = {                                            # name: preset, arguments of the system
    'adaptive': ('vdm-digits', dict(schedule='adaptive')), 'variance': ('vdm-digits', dict(schedule='monotone', variance=True, learn_ends=True)),
    'khot': ('mulan-digits', dict(encoder_channels=8, clock=True)), 'categorical': ('mulan-digits', dict(encoder_channels=8, latent='categorical')),
    'labels': ('vdmpp-digits', dict(channels=8)), 'double': ('vdm-digits', dict(schedule='adaptive'))}

def digits_model(kind):
    name, arguments = kinds[kind]; preset = presets[name]
    model = build(dict(system=preset['system'], model={**preset['model'], **small, 'event_shape': (1, 8, 8), 'vocab': 17, **arguments}))
    return model.double() if kind == 'double' else model

def curve(kind, steps=4, out=None, **changed):
    "Loss, terms and gradient norm of every step; the trained model and its average."
    model = digits_model(kind); rows = []
    for p in fit(model, load('digits'), progress=False, out=out, **{**dict(steps=steps, batch_size=16, lr=1e-3, warmup=0, ema=0.9, save_every=2, log_every=1), **changed}): rows.append([p.loss, *p.terms.values(), p.grad_norm])
    return torch.tensor(rows, dtype=torch.float64), model, p.model

def state(model): return {k: v.double() for k, v in model.state_dict().items()}

worker = textwrap.dedent("""
    import sys; sys.path.insert(0, sys.argv[1]); import torch, test_scale, tempfile, pathlib
    import torch.distributed as dist
    out = pathlib.Path(sys.argv[2]); seen = {}
    for kind in test_scale.kinds:
        rows, model, average = test_scale.curve(kind, out=out / kind)
        seen[kind] = rows, test_scale.state(model), test_scale.state(average)
    halves = test_scale.curve('khot', accumulate=2)[0]
    try: test_scale.curve('khot', out=out / 'khot'); said = 'nothing'
    except FileExistsError as e: said = str(e)
    asked = []; import mulan_vdm.training as training
    steps = [p.step for p in training.fit(test_scale.digits_model('khot'), test_scale.load('digits'), 9, 16, progress=False, stop=lambda: dist.get_rank() == 1 and len(asked.append(1) or asked) == 3)]
    odd = []
    try: test_scale.curve('khot', batch_size=15)
    except ValueError as e: odd = str(e)
    torch.save((seen, halves, said, steps, odd), out / f'rank{dist.get_rank()}.pt')
    dist.barrier(); dist.destroy_process_group()
""")

def free_port():
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); return s.getsockname()[1]

@pytest.fixture(scope='module')
def two(tmp_path_factory):
    "What each of two processes saw."
    out, port = tmp_path_factory.mktemp('two'), str(free_port())
    env = lambda rank: {**ENV, 'RANK': str(rank), 'LOCAL_RANK': str(rank), 'WORLD_SIZE': '2', 'LOCAL_WORLD_SIZE': '2', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': port}
    processes = [subprocess.Popen([sys.executable, '-c', worker, str(Path(__file__).parent), str(out)], env=env(rank), stderr=subprocess.PIPE, text=True) for rank in range(2)]
    for p in processes: assert p.wait(300) == 0 or pytest.fail(p.stderr.read())
    return out, [torch.load(out / f'rank{rank}.pt') for rank in range(2)]

@pytest.mark.parametrize('kind', kinds)
def test_two_processes_are_one(two, kind):
    "Every term of every step within 1e-5 (1e-12 in double precision); the same numbers on both ranks to the last bit: weights, average, schedule."
    rows, model, average = curve(kind); (a, m, e), (b, *other) = (rank[0][kind] for rank in two[1])
    bound = 1e-12 if kind == 'double' else 1e-5
    assert_close(a[:, :-1], rows[:, :-1], rtol=bound, atol=bound); assert_close(a[:, -1], rows[:, -1], rtol=10 * bound, atol=0)
    assert torch.equal(a, b)
    for here, there in zip((m, e), other): assert all(torch.equal(here[k], there[k]) for k in here)
    for k, v in state(model).items():
        if 'average' in k or 'visits' in k: assert_close(m[k], v, rtol=100 * bound, atol=0)
    assert len({r[0].item() for r in a}) == len(a)

def test_the_two_ranks_would_differ_without_sharing():
    "The comparison above is sharp: another offset of the times, or other noise, moves the loss by more than a hundred times its tolerance."
    rows, other = curve('adaptive', 1)[0], curve('adaptive', 1, seed=1)[0]
    assert (rows - other).abs().max() > 1e-3

def test_parts_on_two_processes(two): assert_close(two[1][0][1][:, :-1], curve('khot')[0][:, :-1], rtol=1e-5, atol=1e-5)

def test_one_writer(two):
    "The folder holds one line per step, and both processes refuse a used folder with the same words."
    out, ranks = two
    assert [json.loads(l)['step'] for l in (out / 'khot' / 'metrics.jsonl').read_text().splitlines()] == [1, 2, 3, 4]
    assert ranks[0][2] == ranks[1][2] and 'is not empty' in ranks[0][2]
    assert ranks[0][4] == ranks[1][4] and 'choose a multiple of 2' in ranks[0][4]

def test_one_process_asked_to_stop_stops_both(two): assert [r[3] for r in two[1]] == [[1, 2, 3]] * 2

def test_continued_by_one_process(two):
    "A run of two processes is continued by one; what follows is what two would have seen."
    out, _ = two; rest = curve('khot', 6, out=out / 'khot', resume=True)[0]
    assert_close(rest[:, :-1], curve('khot', 6)[0][4:, :-1], rtol=1e-5, atol=1e-5)

def test_accelerate_launch(tmp_path):
    "The command line, started by accelerate on two processes and alone: the same metrics, no line changed."
    words = ['train', '--preset', 'vdm-digits', '--channels', '8', '--blocks', '1', '--batch_size', '16', '--steps', '3', '--log_every', '1', '--out']
    two = subprocess.Popen([sys.executable, '-m', 'accelerate.commands.launch', '--cpu', '--num_processes', '2', '--main_process_port', str(free_port()), '-m', 'mulan_vdm.cli', *words, str(tmp_path / 'two')], env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    one = subprocess.run([sys.executable, '-m', 'mulan_vdm.cli', *words, str(tmp_path / 'one')], env=ENV, capture_output=True, text=True)
    said, errors = two.communicate(timeout=300); assert (two.returncode, one.returncode) == (0, 0), errors + one.stderr
    assert said.count('parameters, run folder') == 1 and said.count('last batch') == 1
    read = lambda run: [[v for k, v in json.loads(l).items() if k != 'seconds'] for l in (tmp_path / run / 'metrics.jsonl').read_text().splitlines()]
    assert_close(torch.tensor(read('two')), torch.tensor(read('one')), rtol=1e-5, atol=1e-5)

# ---- options that trade memory for time

def saved_bytes(checkpointing):
    "What the network keeps between the forward and the backward pass."
    torch.manual_seed(0); net, z = UNet(1, 16, 6), torch.randn(8, 1, 8, 8); kept = {}
    def pack(v): kept[v.untyped_storage().data_ptr()] = v.untyped_storage().nbytes(); return v
    with adapted(net, checkpointing, False), torch.autograd.graph.saved_tensors_hooks(pack, lambda v: v): net(z, torch.zeros(8, 1, 1, 1)).sum()
    return sum(kept.values())

def test_checkpointing_keeps_less():
    assert saved_bytes(True) < 0.4 * saved_bytes(False)

def test_checkpointing_repeats_dropout():
    "The second time through a block meets the same dropout: losses and gradients are those of one pass, to the last bit."
    def model(): torch.manual_seed(0); return Diffusion(ADM(1, 16, 1, (1, 2), (1,), dropout=0.3), Linear(-7.9, 5.), Codec(17), (1, 8, 8))
    run = lambda **changed: torch.tensor([[p.loss, p.grad_norm] for p in fit(model(), load('digits'), 3, 16, 1e-3, warmup=0, progress=False, **changed)])
    assert_close(run(checkpointing=True), run(), rtol=1e-6, atol=0)

def test_the_network_is_left_as_it_was():
    model = digits_model('adaptive'); forwards = [m.__dict__.get('forward') for m in model.modules()]
    steps = fit(model, load('digits'), 2, 8, checkpointing=True, compile=True, progress=False); steps.close()
    for _ in fit(model, load('digits'), 1, 8, checkpointing=True, progress=False): pass
    assert [m.__dict__.get('forward') for m in model.modules()] == forwards and model.net._compiled_call_impl is None

def test_bf16_moves_the_loss_by_less_than_a_percent():
    "bfloat16 in the network, single precision in schedule, codec and divergences: loss within 1%, reconstruction and prior of the first step within rounding."
    whole, half = (curve('khot', 5, precision=precision)[0] for precision in ('no', 'bf16'))
    change = (half[:, 0] / whole[:, 0] - 1).abs(); assert 0 < change.max() < 0.01
    assert_close(half[0, 1:3], whole[0, 1:3], rtol=1e-5, atol=1e-6)

@pytest.mark.skipif(not os.environ.get('SLOW'), reason='compiling takes minutes: SLOW=1 runs it')
def test_compiled_equals_eager():
    "Loss within 1e-5 of the network that is not compiled, labels left out included, in parts too."
    for changed in ({}, dict(accumulate=2)): assert_close(curve('labels', 2, compile=True, **changed)[0][:, :-1], curve('labels', 2)[0][:, :-1], rtol=1e-5, atol=1e-5)
