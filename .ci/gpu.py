"""What the package does on an accelerator: parity with the processor, speed and memory, then a training.

Parts run in order of value under one time budget, each stored in nbs/reports/gpu (or `--out`) as soon as it
ends, with the card and the versions. Without an accelerator everything runs scaled down, to test itself.
Images are random pixels; in the training, Fashion-MNIST from `--images`, the folder of its four files.
"""
import atexit, contextlib, gc, json, os, platform, re, select, subprocess, sys, tempfile, time
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median

import numpy as np
import torch
from fastcore.script import call_parse
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

root = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(root))
from mulan_vdm.codec import Codec
from mulan_vdm.data import Data, Split, load
from mulan_vdm.diffusion import Diffusion
from mulan_vdm.evaluation import evaluate, mean_se
from mulan_vdm.flow import log_density
from mulan_vdm.nets import ADM, UNet
from mulan_vdm.processes import Rows, fast_products, mixed_seed
from mulan_vdm.sampling import sample
from mulan_vdm.schedules import Linear
from mulan_vdm.systems import preset
from mulan_vdm.training import _compiled, adapted, fit

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
        for p in model.parameters(): p.add_(0.01 * torch.randn_like(p))
    model.to(where)
    x, y = data.test.x[:8].to(where), data.test.y[:8].to(where)
    y = y if getattr(model.net, 'classes', 0) else None
    with NoiseOfTheCpu(), fast_products(False):
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
        if y is None:
            torch.manual_seed(2)
            w = model.latent.prior(2).cpu().to(where) if model.latent.size else None
            z = model.codec.encode(x[:2]).double()
            found['flow'] = log_density(model, z, w, probes=torch.ones_like(z)[None], tolerance=1e-5).log_prob
        found['sample'] = sample(model, 8, 8, y=y, generator=torch.Generator().manual_seed(1)).double()
        if model.latent.size: found['encode'] = torch.stack(model.encode(x))
    return {k: v.detach().cpu() for k, v in found.items()}

tried = 'vdm-digits', 'mulan-digits', 'vdmpp-digits', 'repvdm-digits', 'vae-digits'

def answering(folder):
    "A process that asks the CPU meanwhile, and where it leaves the answers."
    path = Path(folder)/'answers.pt'
    command = [sys.executable, __file__, '--one', 'answers', '--out', path]
    process = subprocess.Popen(list(map(str, command)))
    atexit.register(process.kill)
    return process, path

def parity(seconds, process, path):
    "Largest relative differences between the devices, and between losses in bf16 and in float32."
    end = time.monotonic() + seconds
    rows = []
    there = {name: answers(name, device) for name in tried}
    again = resumed()
    process.wait(max(0, end - time.monotonic()))
    here = torch.load(path)
    for name in tried:
        kinds = {}
        for k, v in there[name].items():
            if k == 'bf16': continue
            kind = k.split(':')[0]
            kinds[kind] = max(kinds.get(kind, 0.), difference(v, here[name][k]))
        nats = float(there[name]['loss: whole'].mean())
        rows.append(dict(name=name, **kinds, bf16=float(there[name]['bf16']), nats=nats))
        print(rows[-1], flush=True)
    return dict(rows=rows, resumed=again)

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

# Precision

def precision(seconds):
    "Evaluations of the flow and its log-density with exact products and with TF32, by tolerance."
    end = time.monotonic() + min(seconds, 25)
    rows = []
    torch.manual_seed(0)
    data = load('digits')
    model = preset('vdm-digits', data)
    with torch.no_grad():
        for p in model.parameters(): p.add_(0.01 * torch.randn_like(p))
    model.to(device).eval()
    z = model.codec.encode(data.test.x[:4]).double().to(device)
    probes = torch.randn(1, *z.shape, generator=torch.Generator().manual_seed(1)).sign().to(device)
    for tolerance in (1e-3, 1e-4, 1e-5, 1e-6, 1e-7) if big else (1e-2,):
        row = dict(tolerance=tolerance)
        for name, allowed in dict(exact=False, tf32=True).items():
            if time.monotonic() > end: break
            with fast_products(allowed):
                try: found = log_density(model, z, probes=probes, tolerance=tolerance, max_steps=500)
                except FloatingPointError as error: row[name] = dict(error=str(error)[:200])
                else:
                    nats, calls = (v.double().mean().item() for v in (found.log_prob, found.nfe))
                    row[name] = dict(nats=nats, calls=calls)
        rows.append(row)
        print(row, flush=True)
    return dict(rows=rows)

# Speed and memory

big = accelerator is not None
toy = dict(channels=64, blocks=1) # the fewest channels that 32 groups allow
sizes = { # preset: shape, images, changes on an accelerator
    'vdm-cifar10': ((3, 32, 32), 128, {}),
    'mulan-cifar10': ((3, 32, 32), 128, {}),
    'vdmpp-imagenet64': ((3, 64, 64), 64, {}),
    'vdm-fashion': ((1, 28, 28), 128, dict(channels=64, blocks=8)),
    'mulan-fashion': ((1, 28, 28), 128, dict(channels=64, blocks=8))}
variants = { # name: TF32, precision, channels last, checkpointing
    'float32': (False, None, False, False),
    'tf32': (True, None, False, False),
    'bf16': (True, torch.bfloat16, False, False),
    'bf16, channels last': (True, torch.bfloat16, True, False),
    'bf16, checkpointing': (True, torch.bfloat16, False, True),
    'bf16, compiled': (True, torch.bfloat16, False, False),
    'bf16, compiled, CUDA graphs': (True, torch.bfloat16, False, False)}
compiled = [('vdm-cifar10', 'bf16, compiled')]
if big: compiled += [('mulan-cifar10', 'bf16, compiled'), ('vdm-fashion', 'bf16, compiled'),
                     ('vdm-fashion', 'bf16, compiled, CUDA graphs'),
                     ('mulan-fashion', 'bf16, compiled, CUDA graphs')]

def synchronize():
    if accelerator: torch.accelerator.synchronize()

class Operations(TorchDispatchMode):
    "Counts floating-point operations, of gradients and of gradients within gradients too."
    n = 0
    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        out = op(*args, **(kwargs or {}))
        count = flop_registry.get(op._overloadpacket)
        if count: self.n += count(*args, **(kwargs or {}), out_val=out)
        return out

def operations(function):
    "Floating-point operations of a function; attention written out, to be counted."
    with sdpa_kernel(SDPBackend.MATH), Operations() as counter: function()
    return counter.n

def timed(steps, turns):
    "Seconds of functions by name, in turns, and the most memory that each held (GiB); two turns go before."
    took = {name: [] for name in steps}
    held = {}
    for turn in range(-2, turns):
        for name, step in steps.items():
            if accelerator: torch.cuda.reset_peak_memory_stats()
            synchronize()
            start = time.perf_counter()
            step()
            synchronize()
            if turn >= 0: took[name].append(time.perf_counter() - start)
            if accelerator: held[name] = torch.cuda.max_memory_allocated() / 2**30
    return {name: dict(seconds=median(v), least=min(v), most=max(v), gib=held.get(name))
            for name, v in took.items()}

counted = {} # operations for one image by preset, each counted once

def prepared(name, variant):
    "Steps of a preset's objective and of its bare network, without optimizer; a row of them; what is set."
    shape, n, changes = sizes[name]
    if not big: shape, n, changes = (shape[0], 8, 8), 2, toy
    fast, precision, last, checkpointing = variants[variant]
    torch.manual_seed(0)
    data = random_data(shape, 256, n, classes=1000)
    model = preset(name, data, **changes).train()
    x = data.train.x
    y = data.train.y if getattr(model.net, 'classes', 0) else None
    w = model.latent.prior(n) if model.latent.size else None
    gamma = torch.zeros(n, *[1] * len(shape))
    z = torch.randn(n, *shape)
    first = lambda v: None if v is None else v[:1]
    whole = lambda: model(x[:1], y=first(y), check=False).loss.mean().backward()
    alone = lambda: model.net(z[:1], gamma[:1], w=first(w), y=first(y)).sum().backward()
    if name not in counted: counted[name] = dict(objective=operations(whole), bare=operations(alone))
    model.zero_grad()
    model.to(device, memory_format=torch.channels_last if last else torch.contiguous_format)
    x, y, w, gamma, z = (None if v is None else v.to(device) for v in (x, y, w, gamma, z))
    cast = lambda: torch.autocast(device.type, precision) if precision else contextlib.nullcontext()
    around = contextlib.ExitStack()
    around.enter_context(fast_products(fast))
    around.enter_context(adapted(model.net, checkpointing))
    if 'compiled' in variant: around.enter_context(_compiled(model, 'graphs' in variant))
    def objective():
        with cast(): loss = model(x, y=y, check=False).loss.mean()
        loss.backward()
        model.zero_grad()
    def bare():
        with cast(): out = model.net(z, gamma, w=w, y=y)
        out.float().square().mean().backward()
        model.zero_grad()
    row = dict(preset=name, variant=variant, n=n, flops=counted[name])
    return dict(objective=objective, bare=bare), row, around

def measured(steps, row, n):
    "A row of the table: images a second, their share of the card's peak, and the memory."
    found = timed(steps, 8 if big else 1)
    row |= {name: dict(v, images=n / v['seconds']) for name, v in found.items()}
    at_most = next((v for k, v in peak.items() if k in card()), None)
    if at_most: row['share_of_peak'] = row['objective']['images'] * row['flops']['objective'] / at_most
    return row

def forget():
    gc.collect()
    torch._dynamo.reset()
    if accelerator: torch.cuda.empty_cache()

def eager_row(name, variant):
    "A row of the table, or why there is none."
    try:
        steps, row, around = prepared(name, variant)
        with around: return measured(steps, row, row['n'])
    except torch.OutOfMemoryError: return dict(preset=name, variant=variant, error='out of memory')
    except Exception as e: return dict(preset=name, variant=variant, error=' '.join(str(e).split())[:300])
    finally: forget()

def compiled_row(name, variant):
    "In a process of its own: compile, say so, wait for a word, then measure when nobody else does."
    start = time.monotonic()
    steps, row, around = prepared(name, variant)
    with around:
        for _ in range(2): steps['objective']()
        row['compiling'] = time.monotonic() - start
        if accelerator: torch.cuda.empty_cache()
        print('ready', flush=True)
        sys.stdin.readline()
        print(json.dumps(measured(steps, row, row['n'])), flush=True)

def compiling(only):
    "Processes that compile while other parts run, by preset and variant."
    env = dict(os.environ, TORCHINDUCTOR_COMPILE_THREADS='3')
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    command = [sys.executable, __file__, '--row']
    wanted = [row for row in compiled if re.search(only, '|'.join(row))]
    workers = {row: subprocess.Popen([*command, '|'.join(row)], env=env, **pipes) for row in wanted}
    for process in workers.values(): atexit.register(process.kill)
    return workers

def told(process, word, end):
    "The next line of a process after a word to it; nothing if it does not come in time."
    if word:
        process.stdin.write(word)
        process.stdin.flush()
    ready = select.select([process.stdout], [], [], max(0, end - time.monotonic()))[0]
    return process.stdout.readline() if ready else ''

def throughput(seconds, workers, only):
    "Objective and bare network of the big presets, in every variant that fits the time and the card."
    end = time.monotonic() + seconds
    rows = []
    plain = lambda name, variant: 'fashion' not in name or variant in ('float32', 'bf16')
    eager = [row for row in product(sizes, variants)
             if 'compiled' not in row[1] and plain(*row) and re.search(only, '|'.join(row))]
    large = lambda row: row[1] in ('float32', 'tf32') and 'imagenet' in row[0] # last: beside what compiles
    eager.sort(key=lambda row: (row[1] != 'bf16', large(row), [*variants].index(row[1])))
    for row in eager:
        if time.monotonic() > end - 30 * big: break
        rows.append(eager_row(*row))
        print(rows[-1], flush=True)
    for (name, variant), process in workers.items():
        line = told(process, '', end) and told(process, 'go\n', max(end, time.monotonic() + 20))
        found = json.loads(line) if line.startswith('{') else dict(error='not compiled in time')
        rows.append(dict(preset=name, variant=variant) | found)
        print(rows[-1], flush=True)
    return dict(rows=rows)

def package(seconds):
    "Loss and gradient of denoising-diffusion-pytorch beside ours, networks of equal operations, in bf16."
    from denoising_diffusion_pytorch import Unet
    from denoising_diffusion_pytorch.continuous_time_gaussian_diffusion import ContinuousTimeGaussianDiffusion
    shape, n = ((3, 32, 32), 128) if big else ((3, 16, 16), 2)
    kinds = dict(adm=lambda c: ADM(3, c, 2, (1, 2, 4), (2,), head_channels=4 * c, dropout=0.),
                 unet=lambda c: UNet(3, c, 2, dropout=0.))
    wide = 64 if big else 16
    kinds['theirs'] = lambda c: Unet(c, learned_sinusoidal_cond=True)
    def flops(name, width): # counted, not computed
        with torch.device('meta'):
            net = kinds[name](width)
            x = torch.empty(1, *shape)
            gamma = torch.zeros(1) if name == 'theirs' else torch.zeros(1, 1, 1, 1)
            return operations(lambda: net(x, gamma).sum().backward())
    goal = flops('theirs', wide)
    widths = {name: min(range(wide // 2, 4 * wide, 8), key=lambda c: abs(flops(name, c) - goal))
              for name in ('adm', 'unet')} | dict(theirs=wide)
    torch.manual_seed(0)
    nets = {name: kind(widths[name]) for name, kind in kinds.items()}
    for net in nets.values(): net.to(device).train()
    x = random_data(shape, 256, n).train.x.to(device)
    other = ContinuousTimeGaussianDiffusion(nets['theirs'], image_size=shape[-1]).to(device)
    ours = {name: Diffusion(nets[name], Linear(), Codec(256), shape).to(device)
            for name in ('adm', 'unet')}
    losses = {name: lambda m=m: m(x, check=False).loss.mean() for name, m in ours.items()}
    losses['theirs'] = lambda: other(x / 255)
    def step(name):
        with torch.autocast(device.type, torch.bfloat16): loss = losses[name]()
        loss.backward()
        nets[name].zero_grad()
    with fast_products(True): found = timed({name: partial(step, name) for name in nets}, 10 if big else 1)
    rows = [dict(network=name, width=widths[name], flops=flops(name, widths[name]), **v)
            for name, v in found.items()]
    for row in rows: print(row, flush=True)
    forget()
    return dict(rows=rows, n=n)

# Training

deep = dict(channels=64, blocks=8) if big else dict(channels=8, blocks=1)
recipes = dict( # times that follow the loss
    vdm=('vdm-fashion', dict(deep, schedule='adaptive')),
    mulan=('mulan-fashion', dict(deep, clock=True)))
alike = dict(latent='none', learn_ends=False, position=True, **{} if big else deep)
cells = { # one denoiser and one pair of ends: paths and times alone differ
    f'{path}, {times}': ('mulan-fashion', dict(alike, schedule=schedule, clock=times == 'loss'))
    for path, schedule in (('one', 'linear'), ('pixel', 'polynomial')) for times in ('even', 'loss')}

def train_one(which, seed, steps, images, compile, graphs, end, out):
    "One training, at most until `end`: bits/dim of 2,000 test images every so many steps."
    data = load('fashion_mnist', path=images) if images else load('digits')
    name, changes = (recipes | cells)[which]
    every, ema = (250, 0.99) if which in recipes else (500, 0.999)
    if not big: every = 2
    torch.manual_seed(mixed_seed(seed))
    model = preset(name, data, **changes)
    judged = data.test.x[:2000 if big else 8].to(device)
    curve = []
    for now in fit(model, data, steps=steps, batch_size=128, lr=1e-3, ema=ema, seed=seed, compile=compile,
                   cuda_graphs=graphs, precision='bf16' if big else 'no', progress=False):
        if now.step % every == 0:
            found = evaluate(now.model, judged, draws=2, batch_size=500, seed=0)
            mean, error = mean_se(found.bpd)
            curve.append(dict(step=now.step, seconds=now.seconds, bpd=float(mean), se=float(error),
                              latent=float(found.terms['latent'].mean()),
                              per_image=[round(float(v), 4) for v in found.bpd]))
            whole = dict(system=which, seed=seed, curve=curve)
            Path(f'{out}.part').write_text(json.dumps(whole))
            os.replace(f'{out}.part', out)
        if time.time() > end: break

def training(seconds, seeds, *how):
    "All seeds of the recipes side by side, as far as they come; pairs image by image where the slowest is."
    rows, per_image, found = together(recipes, seeds, time.time() + seconds, *how)
    pairs = []
    for (system, seed), bpd in per_image.items():
        if system == 'vdm' or ('vdm', seed) not in per_image: continue
        mean, error = mean_se(torch.tensor(bpd) - torch.tensor(per_image['vdm', seed]))
        pairs.append(dict(system=system, seed=seed, over_vdm=float(mean), se=float(error)))
    return dict(found, rows=rows, pairs=pairs)

def claim(seconds, seeds, steps, images, compile, graphs, folder):
    "One schedule or one per pixel, times even or following the loss: curves, and bits/dim of every image."
    end = time.time() + seconds
    how = images, compile, graphs
    if compile: together(cells, 1, end, 3, *how, cores=4) # the others find what was compiled
    rows, per_image, found = together(cells, seeds, end, steps, *how, cores=1)
    bpd = {f'{which}|{seed}': np.array(v, np.float32) for (which, seed), v in per_image.items()}
    np.savez_compressed(folder/'claim.npz', **bpd)
    return dict(found, rows=rows)

def together(some, seeds, end, steps, images, compile, graphs, cores=4):
    "Reports of some entries and all seeds, a process each; bits/dim of every image where the slowest is."
    env = dict(os.environ, TORCHINDUCTOR_COMPILE_THREADS=str(cores))
    steps = steps or (20_000 if big else 6)
    asked = [*(['--compile'] if compile else []), *(['--graphs'] if graphs else [])]
    with tempfile.TemporaryDirectory() as folder:
        jobs = []
        for seed, which in product(range(seeds), some):
            out = Path(folder)/f'{len(jobs)}.json'
            command = [sys.executable, __file__, '--one', which, '--seed', seed, '--steps', steps]
            command += ['--end', end, '--out', out, '--images', images, *asked]
            jobs.append((out, subprocess.Popen(list(map(str, command)), env=env)))
        for _, process in jobs:
            try: process.wait(max(0, end + 10 - time.time()))
            except subprocess.TimeoutExpired: process.kill()
        rows = [json.loads(out.read_text()) for out, _ in jobs if out.exists()]
    common = min((row['curve'][-1]['step'] for row in rows), default=0)
    per_image = {(row['system'], row['seed']): point['per_image']
                 for row in rows for point in row['curve'] if point['step'] == common}
    for row in rows:
        for point in row['curve']: del point['per_image']
    return rows, per_image, dict(step=common, lacking=len(jobs) - len(rows))

def card():
    "Name of what everything ran on."
    return torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()

def store(folder, name, found):
    "Write a part's report with what it ran on."
    versions = dict(torch=torch.__version__, cuda=torch.version.cuda, python=platform.python_version())
    asked = ['nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader']
    if big: versions['driver'] = subprocess.run(asked, capture_output=True, text=True).stdout.strip()
    folder.mkdir(parents=True, exist_ok=True)
    (folder/f'{name}.json').write_text(json.dumps(dict(card=card(), **versions, **found), indent=1) + '\n')

@call_parse
def main(
    out:str='', # folder of the reports; nbs/reports/gpu if there is an accelerator
    budget:float=450., # seconds in all
    parts:str='parity precision throughput package training', # which of these and claim, in order
    images:str='', # folder with the four files of Fashion-MNIST; the digits without
    seeds:int=3, # of each system in the training
    only:str='', # rows of the throughput that match this, as preset|variant
    steps:int=0, # of each training at most; 0: 20,000
    compile:bool=False, # compile the objective of the trainings?
    graphs:bool=False, # and record CUDA graphs, where there are any?
    one:str='', # (a training alone: an entry of `recipes` or `cells`; or answers of the CPU)
    seed:int=0, # (of it)
    end:float=0., # (its end, seconds since 1970)
    row:str='', # (a row of the throughput alone: preset|variant)
):
    "Measure on the accelerator and store reports."
    if one == 'answers': return torch.save({name: answers(name, torch.device('cpu')) for name in tried}, out)
    if one: return train_one(one, seed, steps, images, compile, graphs, end, out)
    if row: return compiled_row(*row.split('|'))
    began = time.monotonic()
    folder = Path(out) if out else root/'nbs/reports/gpu' if big else Path(tempfile.mkdtemp())
    left = lambda: budget - (time.monotonic() - began)
    trained = [seeds if big else 1, steps, images, compile, graphs and big]
    given = dict(training=trained, claim=[*trained, folder])
    folder.mkdir(parents=True, exist_ok=True)
    if 'parity' in parts: given['parity'] = answering(tempfile.mkdtemp())
    if 'throughput' in parts: given['throughput'] = [compiling(only), only]
    shares = dict(throughput=0.75, training=0.95, claim=0.4) | {parts.split()[-1]: 0.95}
    for name in parts.split():
        if left() < (45 if big else 1):
            print(f'{name}: no time left')
            continue
        start = time.monotonic()
        try: found = globals()[name](left() * shares.get(name, 1.), *given.get(name, []))
        except Exception as error: found = dict(error=' '.join(str(error).split())[:300])
        store(folder, name, dict(found, took=round(time.monotonic() - start, 1)))
        said = f", {found['error']}" if 'error' in found else ''
        print(f'{name}: {time.monotonic() - start:.0f} s, {left():.0f} s left{said}', flush=True)
    print(f'reports in {folder}')
