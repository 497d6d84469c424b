"""One process or several: the same losses, the same statistics, one writer. And the options that trade memory
for time leave the loss where it is."""
import io, json, os, shutil, socket, subprocess, sys, textwrap
from contextlib import redirect_stdout
from pathlib import Path
from unittest.mock import patch
import numpy as np, pytest, torch
from torch.testing import assert_close
from mulan_vdm.data import load
from mulan_vdm.codec import Codec
from mulan_vdm.diffusion import Diffusion
from mulan_vdm.nets import ADM, UNet
from mulan_vdm.schedules import Linear
from mulan_vdm.systems import build, presets
from mulan_vdm import cli, training
from mulan_vdm.runs import Run
from mulan_vdm.training import _adamw, adapted, fit

ENV = {**os.environ, 'OMP_NUM_THREADS': str(torch.get_num_threads()), 'ACCELERATE_USE_CPU': 'true',
       'PYTHONPATH': os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get('PYTHONPATH', '')])}
small = dict(channels=8, blocks=1)
kinds = {                                            # name: preset, arguments of the system
    'adaptive': ('vdm-digits', dict(schedule='adaptive')),
    'variance': ('vdm-digits', dict(schedule='monotone', variance=True, learn_ends=True)),
    'khot': ('mulan-digits', dict(encoder_channels=8, clock=True)),
    'categorical': ('mulan-digits', dict(encoder_channels=8, latent='categorical')),
    'labels': ('vdmpp-digits', dict(channels=8)), 'double': ('vdm-digits', dict(schedule='adaptive'))}

def digits_model(kind):
    name, arguments = kinds[kind]
    preset = presets[name]
    model = build(dict(system=preset['system'], model={**preset['model'], **small, 'event_shape': (1, 8, 8),
                                                       'vocab': 17, **arguments}))
    return model.double() if kind == 'double' else model

def curve(kind, steps=4, out=None, **changed):
    "Loss, terms and gradient norm of every step; the trained model and its average."
    model = digits_model(kind)
    rows = []
    for p in fit(model, load('digits'), progress=False, out=out,
                 **{**dict(steps=steps, batch_size=16, lr=1e-3, warmup=0, ema=0.9, save_every=2, log_every=1),
                    **changed}):
        rows.append([p.loss, *p.terms.values(), p.grad_norm])
    return torch.tensor(rows, dtype=torch.float64), model, p.model

shards = ('khot', 'labels', 'double', 'variance')

def sharded_curve(kind, out):
    """Curves of a sharded run: from the start, and continued; and the largest share of the network, its
    moments and its average that this process keeps."""
    model = digits_model(kind)
    held = []
    rows = [curve(kind, 2, out=out, shard=True)[0],
            curve(kind, 4, out=out, shard=True, resume=True, checkpointing=True)[0]]
    with patch.object(training, '_adamw',
                      side_effect=lambda m, **how: held.append((m, _adamw(m, **how))) or held[0][1]):
        for p in fit(model, load('digits'), 1, 16, 1e-3, warmup=0, shard=True, progress=False): pass
    (model, optimizer), = held
    own = lambda tensors: sum(v.to_local().numel() for v in tensors)
    all = sum(v.numel() for v in model.net.parameters())
    moments = [optimizer.state[v]['exp_avg'] for v in model.net.parameters()]
    return (torch.cat(rows),
            max(own(v) / all for v in (model.net.parameters(), moments, p.model.net.parameters())))

def state(model): return {k: v.double() for k, v in model.state_dict().items()}

worker = textwrap.dedent("""
    import sys; sys.path.insert(0, sys.argv[1]); import torch, test_scale, tempfile, pathlib
    import torch.distributed as dist
    out = pathlib.Path(sys.argv[2]); seen = {}
    for kind in test_scale.kinds:
        rows, model, average = test_scale.curve(kind, out=out / kind)
        seen[kind] = rows, test_scale.state(model), test_scale.state(average)
    halves = test_scale.curve('khot', accumulate=2)[0]
    parts = {kind: test_scale.sharded_curve(kind, out / 'sharded' / kind) for kind in test_scale.shards}
    try: test_scale.curve('khot', out=out / 'khot'); said = 'nothing'
    except FileExistsError as e: said = str(e)
    asked = []; import mulan_vdm.training as training
    steps = [p.step for p in training.fit(
        test_scale.digits_model('khot'), test_scale.load('digits'), 9, 16, progress=False,
        stop=lambda: dist.get_rank() == 1 and len(asked.append(1) or asked) == 3)]
    odd = []
    try: test_scale.curve('khot', batch_size=15)
    except ValueError as e: odd = str(e)
    torch.save((seen, halves, said, steps, odd, parts), out / f'rank{dist.get_rank()}.pt')
    dist.barrier(); dist.destroy_process_group()
""")

def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

@pytest.fixture(scope='module')
def two(tmp_path_factory):
    "What each of two processes saw."
    out = tmp_path_factory.mktemp('two')
    port = str(free_port())
    env = lambda rank: {**ENV, 'RANK': str(rank), 'LOCAL_RANK': str(rank), 'WORLD_SIZE': '2',
                        'LOCAL_WORLD_SIZE': '2', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': port}
    processes = [subprocess.Popen([sys.executable, '-c', worker, str(Path(__file__).parent), str(out)],
                                  env=env(rank), stderr=subprocess.PIPE, text=True) for rank in range(2)]
    for p in processes: assert p.wait(300) == 0 or pytest.fail(p.stderr.read())
    return out, [torch.load(out / f'rank{rank}.pt') for rank in range(2)]

@pytest.mark.parametrize('kind', kinds)
def test_two_processes_are_one(two, kind):
    """Every term of every step within 1e-5 (1e-12 in double precision); the same numbers on both ranks to
    the last bit: weights, average, schedule."""
    rows, model, average = curve(kind)
    (a, m, e), (b, *other) = (rank[0][kind] for rank in two[1])
    bound = 1e-12 if kind == 'double' else 1e-5
    assert_close(a[:, :-1], rows[:, :-1], rtol=bound, atol=bound)
    assert_close(a[:, -1], rows[:, -1], rtol=10 * bound, atol=0)
    assert torch.equal(a, b)
    for here, there in zip((m, e), other): assert all(torch.equal(here[k], there[k]) for k in here)
    for k, v in state(model).items():
        if 'average' in k or 'visits' in k: assert_close(m[k], v, rtol=100 * bound, atol=0)
    assert len({r[0].item() for r in a}) == len(a)

def test_the_two_ranks_would_differ_without_sharing():
    """The comparison above is sharp: another offset of the times, or other noise, moves the loss by more
    than a hundred times its tolerance."""
    rows = curve('adaptive', 1)[0]
    other = curve('adaptive', 1, seed=1)[0]
    assert (rows - other).abs().max() > 1e-3

def test_parts_on_two_processes(two):
    assert_close(two[1][0][1][:, :-1], curve('khot')[0][:, :-1], rtol=1e-5, atol=1e-5)

def test_one_writer(two):
    "The folder holds one line per step, and both processes refuse a used folder with the same words."
    out, ranks = two
    assert [json.loads(l)['step']
            for l in (out / 'khot' / 'metrics.jsonl').read_text().splitlines()] == [1, 2, 3, 4]
    assert ranks[0][2] == ranks[1][2] and 'is not empty' in ranks[0][2]
    assert ranks[0][4] == ranks[1][4] and 'choose a multiple of 2' in ranks[0][4]

def test_one_process_asked_to_stop_stops_both(two): assert [r[3] for r in two[1]] == [[1, 2, 3]] * 2

def test_continued_by_one_process(two):
    "A run of two processes is continued by one; what follows is what two would have seen."
    out, _ = two
    rest = curve('khot', 6, out=out / 'khot', resume=True)[0]
    assert_close(rest[:, :-1], curve('khot', 6)[0][4:, :-1], rtol=1e-5, atol=1e-5)

@pytest.mark.parametrize('kind', shards)
def test_sharded_is_whole(two, kind):
    """Weights spread over two processes, begun and continued: every step is that of one process, half of
    everything is kept, and one process continues the checkpoint."""
    out, ranks = two
    rows, model, _ = curve(kind)
    bound = 1e-12 if kind == 'double' else 1e-5
    for rank in ranks:
        seen, share = rank[5][kind]
        assert 0.45 < share < 0.55
        assert_close(seen[:, :-1], rows[:, :-1], rtol=bound, atol=bound)
        assert_close(seen[:, -1], rows[:, -1], rtol=10 * bound, atol=0)
    stored = Run(out / 'sharded' / kind).load(('model.',))[0]
    for k, v in state(model).items():
        assert_close(stored['model.' + k].double(), v, rtol=1e-2 if bound == 1e-5 else 1e-6,
                     atol=1e-4 if bound == 1e-5 else 1e-9)
    rest = curve(kind, 6, out=out / 'sharded' / kind, resume=True)[0]
    assert_close(rest[:, :-1], curve(kind, 6)[0][4:, :-1], rtol=bound, atol=bound)

def test_what_cannot_be_sharded():
    for changed, said in ((dict(compile=True), 'compile=True'), (dict(precision='fp16'), 'use bf16')):
        with pytest.raises(ValueError, match=said): curve('khot', shard=True, **changed)
    assert torch.equal(curve('khot', 1, shard=True)[0], curve('khot', 1)[0]) # alone there is nothing to share

accelerate = ['accelerate.commands.launch', '--multi_gpu', '--num_processes', '2', '--main_process_port']
torchrun = ['torch.distributed.run', '--nproc_per_node', '2', '--master_port']

def launched(launcher, *words):
    """The command line on two processes; what it printed. Accelerate is told that there are no
    accelerators, torchrun need not be."""
    env = {k: v for k, v in ENV.items() if launcher is accelerate or k != 'ACCELERATE_USE_CPU'}
    command = [sys.executable, '-m', *launcher, str(free_port()), '-m', 'mulan_vdm.cli', *map(str, words)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    ours = [line for line in done.stdout.splitlines(True)
            if line.strip() and 'peer ranks' not in line]        # before torch 2.9 Gloo greets on this stream
    return ''.join(ours), done.stderr

def alone(*words):
    "The command line in this process; what it printed."
    with redirect_stdout(io.StringIO()) as said: assert cli.main([str(word) for word in words]) == 0
    return said.getvalue()

@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    "The same training on one process and on two, and what they printed."
    out = tmp_path_factory.mktemp('launch')
    words = ['train', '--preset', 'mulan-digits', '--channels', 8, '--blocks', 1, '--encoder_channels', 8,
             '--batch_size', 16, '--steps', 3, '--log_every', 1, '--out']
    return out, launched(accelerate, *words, out / 'two'), alone(*words, out / 'one')

def test_accelerate_launch(runs):
    "The command line, started by accelerate on two processes and alone: the same metrics, no line changed."
    out, (said, _), _ = runs
    assert said.count('parameters, 2 processes, run folder') == 1 and said.count('last batch') == 1
    read = lambda run: [[v for k, v in json.loads(l).items() if k != 'seconds']
                        for l in (out / run / 'metrics.jsonl').read_text().splitlines()]
    assert_close(torch.tensor(read('two')), torch.tensor(read('one')), rtol=1e-5, atol=1e-5)

def test_evaluated_and_sampled_by_two(runs):
    """The bound, with one latent and with several, the flow's likelihood and samples are those of one
    process, image by image; one process writes and speaks."""
    out, *_ = runs
    shutil.copytree(out / 'one', out / 'copy')
    noted = {}
    for words in (['evaluate', '--draws', 2, '--samples', 2, '--batch_size', 50],
                  ['evaluate', '--method', 'ode', '--n', 6, '--batch_size', 2, '--tolerance', 1e-2],
                  ['sample', '--n', 5, '--steps', 4]):
        launcher = accelerate if '--n' in words else torchrun     # torchrun takes --n for a flag of its own
        said, _ = launched(launcher, words[0], out / 'copy', *words[1:])
        assert len(said.splitlines()) == len(alone(words[0], out / 'one', *words[1:]).splitlines())
        for name in {'per_image.npz', 'per_image_ode.npz',
                     'samples.npy'} & {p.name for p in (out / 'one').iterdir()}:
            a, b = (np.load(out / run / name) for run in ('copy', 'one'))
            for a, b in [(a, b)] if name.endswith('npy') else [(a[k], b[k]) for k in b]:
                noted[name] = b.std()
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    assert len(noted) == 3 and all(v > 0 for v in noted.values())
    for name in ('report.json', 'report_ode.json'):
        a, b = ({k: v for k, v in json.loads((out / run / name).read_text()).items()
                 if k != 'evaluation_seconds'} for run in ('copy', 'one'))
        assert a['bpd'] == pytest.approx(b['bpd'], rel=1e-6) and a.keys() == b.keys()

def test_one_error_is_the_error_of_all():
    "A job that fails on one process ends all of them with its error, instead of leaving the others waiting."
    code = ("import torch; from accelerate import PartialState; PartialState(); "
            "from mulan_vdm.processes import share_out\nfrom functools import partial\ndef job(i):\n"
            "    if i == 3: raise FloatingPointError('job 3')\n    return torch.zeros(1)\n"
            "try: share_out([partial(job, i) for i in range(4)])\nexcept FloatingPointError as e: print(e)")
    port = str(free_port())
    env = lambda rank: {**ENV, 'RANK': str(rank), 'LOCAL_RANK': str(rank), 'WORLD_SIZE': '2',
                        'LOCAL_WORLD_SIZE': '2', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': port}
    both = [subprocess.Popen([sys.executable, '-c', code], env=env(rank), stdout=subprocess.PIPE, text=True)
            for rank in range(2)]
    printed = [p.communicate(timeout=120)[0].splitlines() for p in both]
    assert [lines[-1] for lines in printed] == ['job 3'] * 2 # earlier versions of gloo print before it

# ---- options that trade memory for time

def saved_bytes(checkpointing):
    "What the network keeps between the forward and the backward pass."
    torch.manual_seed(0)
    net = UNet(1, 16, 6)
    z = torch.randn(8, 1, 8, 8)
    kept = {}
    def pack(v):
        kept[v.untyped_storage().data_ptr()] = v.untyped_storage().nbytes()
        return v
    with adapted(net, checkpointing), torch.autograd.graph.saved_tensors_hooks(pack, lambda v: v):
        net(z, torch.zeros(8, 1, 1, 1)).sum()
    return sum(kept.values())

@pytest.mark.bench
def test_checkpointing_keeps_less():
    assert saved_bytes(True) < 0.4 * saved_bytes(False)

def test_checkpointing_repeats_dropout():
    """The second time through a block meets the same dropout: losses and gradients are those of
    one pass, to the last bit."""
    def model():
        torch.manual_seed(0)
        return Diffusion(ADM(1, 16, 1, (1, 2), (1,), dropout=0.3), Linear(-7.9, 5.), Codec(17), (1, 8, 8))
    run = lambda **changed: torch.tensor([[p.loss, p.grad_norm] for p in fit(
        model(), load('digits'), 3, 16, 1e-3, warmup=0, progress=False, **changed)])
    assert_close(run(checkpointing=True), run(), rtol=1e-6, atol=0)

def test_the_network_is_left_as_it_was():
    model = digits_model('adaptive')
    forwards = [m.__dict__.get('forward') for m in model.modules()]
    steps = fit(model, load('digits'), 2, 8, checkpointing=True, compile=True, progress=False)
    steps.close()
    for _ in fit(model, load('digits'), 1, 8, checkpointing=True, progress=False): pass
    assert ([m.__dict__.get('forward') for m in model.modules()] == forwards
            and 'forward' not in vars(model))

def test_bf16_moves_the_loss_by_less_than_a_percent():
    """bfloat16 in the network, single precision in schedule, codec and divergences: loss within 1%,
    reconstruction and prior of the first step within rounding."""
    whole, half = (curve('khot', 5, precision=precision)[0] for precision in ('no', 'bf16'))
    change = (half[:, 0] / whole[:, 0] - 1).abs()
    assert 0 < change.max() < 0.01
    assert_close(half[0, 1:3], whole[0, 1:3], rtol=1e-5, atol=1e-6)

@pytest.mark.skipif(not os.environ.get('SLOW'), reason='compiling takes minutes: SLOW=1 runs it')
def test_compiled_equals_eager():
    "Loss within 1e-5 of the objective that is not compiled, labels left out included, in parts too."
    for changed in ({}, dict(accumulate=2)):
        assert_close(curve('labels', 2, compile=True, **changed)[0][:, :-1], curve('labels', 2)[0][:, :-1],
                     rtol=1e-5, atol=1e-5)
