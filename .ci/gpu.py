"""What the package does on an accelerator: parity with the processor, speed and memory, then a training.

Parts run in order of value under one time budget, each stored in nbs/reports/gpu (or `--out`) as soon as it
ends, with the card and the versions. Without an accelerator everything runs scaled down, to test itself.
Images are random pixels; in the training, Fashion-MNIST from `--images`, the folder of its four files.
"""
import contextlib, gc, json, platform, subprocess, sys, tempfile, time
from pathlib import Path

import torch
from fastcore.script import call_parse
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

root = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(root))
from mulan_vdm.data import Data, Split, load
from mulan_vdm.evaluation import evaluate, mean_se
from mulan_vdm.likelihood import ode_evaluate
from mulan_vdm.processes import Rows, mixed_seed
from mulan_vdm.sampling import sample
from mulan_vdm.systems import preset
from mulan_vdm.training import _compiled, fit

accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
device = accelerator or torch.device('cpu')
peak = {'H100': 989e12, 'H200': 989e12, 'A100': 312e12, 'L4': 121e12} # bf16, dense, operations a second

def random_data(shape, vocab, n, classes=0):
    "n images of uniform pixels."
    g = torch.Generator().manual_seed(0)
    split = lambda n: Split(torch.randint(vocab, (n, *shape), generator=g),
                            torch.randint(max(classes, 1), (n,), generator=g) if classes else None)
    return Data('random', 'random pixels', vocab, shape, split(n), split(2))

class GeneratorOfTheCpu(torch.Generator):
    "A generator that stays on the CPU, whatever device is asked for."
    def __new__(cls, device=None): return super().__new__(cls, device='cpu')

class NoiseOfTheCpu(TorchFunctionMode):
    "Random numbers are drawn on the CPU and moved, so that two devices see the same."
    def __enter__(self):
        self.made, torch.Generator = torch.Generator, GeneratorOfTheCpu
        return super().__enter__()

    def __exit__(self, *error):
        torch.Generator = self.made
        return super().__exit__(*error)

    def __torch_function__(self, f, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        like = {torch.rand_like: torch.rand, torch.randn_like: torch.randn}
        if f in like:
            where = kwargs.pop('device', args[0].device)
            return like[f](args[0].shape, dtype=kwargs.pop('dtype', args[0].dtype), **kwargs).to(where)
        if f in (torch.rand, torch.randn, torch.randint, torch.randperm):
            return f(*args, **{**kwargs, 'device': 'cpu'}).to(kwargs.get('device') or 'cpu')
        return f(*args, **kwargs)

@contextlib.contextmanager
def tf32(allowed):
    "Products of matrices and convolutions in TF32, or in float32."
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision('high' if allowed else 'highest')
    torch.backends.cudnn.allow_tf32 = allowed
    try: yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]

def difference(a, b):
    "Largest difference beside the size of b."
    a, b = (v.detach().double().cpu() for v in (a, b))
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-12))

# Parity

def answers(name, where):
    "What a preset's model says of the same images with the same noise on a device, by name of the question."
    torch.manual_seed(0)
    data = load('digits')
    model = preset(name, data, dropout=0.) if 'vae' not in name else preset(name, data)
    with torch.no_grad(): # last layers start at zero: nothing would be compared
        for p in model.parameters(): p.add_(0.02 * torch.randn_like(p))
    model.to(where)
    x, y = data.test.x[:8].to(where), data.test.y[:8].to(where)
    y = y if getattr(model.net, 'classes', 0) else None
    with NoiseOfTheCpu(), tf32(False):
        terms = model.train()(x, y=y, rows=Rows(torch.Generator().manual_seed(0)))
        terms.loss.mean().backward()
        found = {f'loss: {k}': v for k, v in dict(terms._asdict(), whole=terms.loss).items()}
        found |= {f'gradient: {k}': p.grad for k, p in model.named_parameters() if p.grad is not None}
        model.eval()
        with torch.no_grad():
            again = lambda: model(x, y=y, rows=Rows(torch.Generator().manual_seed(0))).loss.mean()
            whole = again()
            with torch.autocast(where.type, torch.bfloat16): found['bf16'] = again() / whole - 1
        found['evaluate'] = evaluate(model, x, draws=4).bpd
        if y is None: found['flow'] = ode_evaluate(model, x[:2], probes=2, tolerance=1e-4).bpd
        found['sample'] = sample(model, 8, 8, y=y, generator=torch.Generator().manual_seed(1)).double()
        if model.latent.size: found['encode'] = torch.stack(model.encode(x))
    return {k: v.detach().cpu() for k, v in found.items()}

def parity(seconds):
    "Largest relative differences between the devices, and between losses in bf16 and in float32."
    rows = []
    for name in ('vdm-digits', 'mulan-digits', 'vdmpp-digits', 'repvdm-digits', 'vae-digits'):
        here, there = answers(name, torch.device('cpu')), answers(name, device)
        kinds = {}
        for k, v in there.items():
            if k == 'bf16': continue
            kind = k.split(':')[0]
            kinds[kind] = max(kinds.get(kind, 0.), difference(v, here[k]))
        nats = float(there['loss: whole'].mean())
        rows.append(dict(name=name, **kinds, bf16=float(there['bf16']), nats=nats))
        print(rows[-1], flush=True)
    return dict(rows=rows, resumed=resumed())

def resumed():
    "Largest difference between the losses of six steps and those of three and three more."
    def losses(folder, stops):
        found = []
        for i, steps in enumerate(stops):
            torch.manual_seed(0)
            model = preset('mulan-digits', load('digits'))
            found += [now.loss for now in fit(model, load('digits'), steps=steps, batch_size=16, out=folder,
                                              resume=i > 0, progress=False)]
        return torch.tensor(found)
    with tempfile.TemporaryDirectory() as a, tempfile.TemporaryDirectory() as b:
        return difference(losses(Path(b)/'run', (3, 6)), losses(Path(a)/'run', (6,)))

# Speed and memory

def operations(model, x, y, w):
    "Floating-point operations of the network, forward and backward, for one image."
    z, gamma = torch.zeros(1, *x.shape[1:]), torch.zeros(1, *[1] * (x.dim() - 1))
    with FlopCounterMode(display=False) as counter:
        w, y = (None if v is None else v[:1] for v in (w, y))
        model.net(z, gamma, w=w, y=y).sum().backward()
    return counter.get_total_flops()

def synchronize():
    if accelerator: torch.accelerator.synchronize()

def rate(step, n, turns):
    "Images a second and the most memory held (GiB), after two turns that are not counted."
    for _ in range(2): step()
    if accelerator: torch.cuda.reset_peak_memory_stats()
    synchronize()
    start = time.perf_counter()
    for _ in range(turns): step()
    synchronize()
    took = (time.perf_counter() - start) / turns
    return dict(images=n / took, gib=torch.cuda.max_memory_allocated() / 2**30 if accelerator else None)

variants = { # name: TF32, precision, channels last, compiled (network or objective)
    'float32': (False, None, False, ''),
    'tf32': (True, None, False, ''),
    'bf16': (True, torch.bfloat16, False, ''),
    'bf16, channels last': (True, torch.bfloat16, True, ''),
    'bf16, compiled network': (True, torch.bfloat16, False, 'network'),
    'bf16, compiled objective': (True, torch.bfloat16, False, 'objective')}

def steps_of(model, x, y, w, precision):
    "A training step without the optimizer, and the bare network's forward and backward pass, as functions."
    cast = lambda: torch.autocast(device.type, precision) if precision else contextlib.nullcontext()
    gamma = torch.zeros(len(x), *[1] * (x.dim() - 1), device=device)
    z = torch.randn(x.shape, device=device)
    def objective():
        with cast(): loss = model(x, y=y).loss.mean()
        loss.backward()
        model.zero_grad()
    def bare():
        with cast(): out = model.net(z, gamma, w=w, y=y)
        out.float().square().mean().backward()
        model.zero_grad()
    return objective, bare

def throughput(seconds):
    "Objective and bare network of the big presets, in every variant that fits the time and the card."
    end, rows = time.monotonic() + seconds, []
    big = accelerator is not None
    small = dict(channels=64, blocks=1) # the fewest that 32 groups allow
    wanted = [('vdm-cifar10', (3, 32, 32), 128), ('mulan-cifar10', (3, 32, 32), 128),
              ('vdmpp-imagenet64', (3, 64, 64), 64)]
    shapes = {name: ((shape, n) if big else (((3, 8, 8), 2))) for name, shape, n in wanted}
    for variant, (fast, precision, last, compiled) in variants.items():
        for name, (shape, n) in shapes.items():
            if time.monotonic() > end: return dict(rows=rows, complete=False)
            torch.manual_seed(0)
            data = random_data(shape, 256, n, classes=1000)
            model = preset(name, data, **({} if big else small))
            x, y = data.train.x, data.train.y if getattr(model.net, 'classes', 0) else None
            w = model.latent.prior(n) if model.latent.size else None
            flops = operations(model, x, y, w)
            model.to(device, memory_format=torch.channels_last if last else torch.contiguous_format).train()
            x, y, w = (None if v is None else v.to(device) for v in (x, y, w))
            if compiled == 'network': model.net.compile()
            graph = _compiled(model) if compiled == 'objective' else contextlib.nullcontext()
            row = dict(preset=name, variant=variant, n=n, flops=flops)
            try:
                with tf32(fast), graph:
                    for what, step in zip(('objective', 'bare'), steps_of(model, x, y, w, precision)):
                        row[what] = rate(step, n, 8 if big else 1)
                at_most = next((v for k, v in peak.items() if k in card()), None)
                if at_most: row['share_of_peak'] = row['objective']['images'] * flops / at_most
            except torch.OutOfMemoryError: row['error'] = 'out of memory'
            except Exception as e: row['error'] = ' '.join(str(e).split())[:300]
            rows.append(row)
            print(row, flush=True)
            del model, x, y, w
            gc.collect()
            torch._dynamo.reset()
            if accelerator: torch.cuda.empty_cache()
    return dict(rows=rows, complete=True)

# Training

recipes = dict( # times that follow the loss
    vdm=('vdm-fashion', dict(schedule='adaptive')),
    mulan=('mulan-fashion', dict(clock=True)))
cells = dict(recipes, **{ # even times
    'vdm-even': ('vdm-fashion', dict(schedule='linear')),
    'mulan-even': ('mulan-fashion', dict(clock=False))})

def train_one(which, seed, steps, images, out):
    "One training from start to end; bits/dim per test image."
    data = load('fashion_mnist', path=images) if images else load('digits')
    name, changes = cells[which]
    size = dict(channels=64, blocks=8) if accelerator else dict(channels=8, blocks=1)
    torch.manual_seed(mixed_seed(seed))
    model = preset(name, data, **changes, **size)
    start = time.monotonic()
    with tf32(True):
        for now in fit(model, data, steps=steps, batch_size=128, lr=1e-3, ema=0.999, seed=seed,
                       precision='bf16' if accelerator else 'no', progress=False): pass
    trained = time.monotonic() - start
    judged = data.test.x[:2000 if accelerator else 8].to(device)
    with tf32(False): found = evaluate(now.model, judged, draws=8, seed=0)
    mean, error = mean_se(found.bpd)
    report = dict(system=which, seed=seed, steps=steps, seconds=trained, bpd=float(mean), se=float(error),
                  per_image=[round(float(v), 5) for v in found.bpd])
    Path(out).write_text(json.dumps(report))

def training(seconds, images, seeds):
    "As many seeds of both systems as asked, side by side; steps as many as fit the time."
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        together(recipes, folder, seeds, 50 if accelerator else 2, images)
        first = time.monotonic() - started
        started = time.monotonic()
        together(recipes, folder, seeds, 250 if accelerator else 6, images)
        second = time.monotonic() - started
        each = max(second - first, 1e-3) / (200 if accelerator else 4)
        steps = max(10, int((seconds - first - second - first) * 0.85 / each)) if accelerator else 8
        return dict(rows=together(recipes, folder, seeds, steps, images), steps=steps)

def claim(seconds, images, seeds):
    "One schedule or one per pixel, times even or following the loss: all seeds of the four side by side."
    steps = 20_000 if accelerator else 8
    with tempfile.TemporaryDirectory() as folder:
        return dict(rows=together(cells, folder, seeds, steps, images, end=time.monotonic() + seconds),
                    steps=steps)

def together(some, folder, seeds, steps, images, end=None):
    "Reports of some recipes and all seeds, each in a process of its own; those that end in time."
    jobs = []
    for which in some:
        for seed in range(seeds):
            out = Path(folder)/f'{which}-{seed}.json'
            out.unlink(missing_ok=True)
            command = [sys.executable, __file__, '--one', which, '--seed', seed, '--steps', steps]
            command += ['--out', out, '--images', images]
            jobs.append((out, subprocess.Popen(list(map(str, command)))))
    for _, process in jobs:
        try: process.wait(None if end is None else max(0, end - time.monotonic()))
        except subprocess.TimeoutExpired: process.kill()
    return [json.loads(out.read_text()) for out, _ in jobs if out.exists()]

def card():
    "Name of what everything ran on."
    return torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()

def store(folder, name, found):
    "Write a part's report with what it ran on."
    versions = dict(torch=torch.__version__, cuda=torch.version.cuda, python=platform.python_version())
    folder.mkdir(parents=True, exist_ok=True)
    (folder/f'{name}.json').write_text(json.dumps(dict(card=card(), **versions, **found), indent=1) + '\n')

@call_parse
def main(
    out:str='', # folder of the reports; nbs/reports/gpu if there is an accelerator
    budget:float=450., # seconds in all
    parts:str='parity throughput training', # which of these and claim, in order
    images:str='', # folder with the four files of Fashion-MNIST; the digits without
    seeds:int=3, # of each system in the training
    one:str='', # (a training alone: an entry of `cells`)
    seed:int=0, # (of it)
    steps:int=0, # (of it)
):
    "Measure on the accelerator and store reports."
    if one: return train_one(one, seed, steps, images, out)
    began = time.monotonic()
    folder = Path(out) if out else root/'nbs/reports/gpu' if accelerator else Path(tempfile.mkdtemp())
    left = lambda: budget - (time.monotonic() - began)
    shares = dict(parity=1., throughput=0.55, training=0.95, claim=0.95)
    for name in parts.split():
        if left() < (60 if accelerator else 1):
            print(f'{name}: no time left')
            continue
        start = time.monotonic()
        given = [images, seeds if accelerator else 1] if name in ('training', 'claim') else []
        try: found = globals()[name](left() * shares[name], *given)
        except Exception as error: found = dict(error=' '.join(str(error).split())[:300])
        store(folder, name, dict(found, took=round(time.monotonic() - start, 1)))
        said = f", {found['error']}" if 'error' in found else ''
        print(f'{name}: {time.monotonic() - start:.0f} s, {left():.0f} s left{said}', flush=True)
    print(f'reports in {folder}')
