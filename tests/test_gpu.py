"""What can be known of an accelerator without one: bytes on a pretended device, launches, graphs."""
import contextlib
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from mulan_vdm.latents import KHot
from mulan_vdm.systems import build, presets

# ---- memory

@contextlib.contextmanager
def autocast(on):
    "What torch.autocast('cuda') does where there is such a device."
    torch.set_autocast_dtype('cuda', torch.bfloat16)
    torch.set_autocast_enabled('cuda', on)
    torch.set_autocast_cache_enabled(False)
    try: yield
    finally:
        torch.set_autocast_cache_enabled(True)
        torch.set_autocast_enabled('cuda', False)

def kept(name, half, n=128):
    "GiB that a preset's denoiser keeps of n images for the backward pass, on a pretended GPU."
    preset = presets[name]
    with torch.device('meta'):
        model = build(dict(system=preset['system'],
                           model={**preset['model'], 'event_shape': (3, 32, 32), 'vocab': 256}))
    net = model.net.train()
    kept = {}
    with FakeTensorMode(), torch.device('cuda'):
        own = {k: torch.empty_strided(v.shape, v.stride(), requires_grad=True)
               for k, v in net.named_parameters()}
        weights = {v.untyped_storage()._cdata for v in own.values()}
        def pack(v):
            storage = v.untyped_storage()
            if storage._cdata not in weights: kept[storage._cdata] = storage
            return v
        z = torch.randn(n, 3, 32, 32)
        gamma = torch.zeros(n, 1, 1, 1)
        w = torch.zeros(n, model.latent.size) if model.latent.size else None
        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda v: v)
        with hooks, autocast(half):
            out = torch.func.functional_call(net, own, (z, gamma), dict(w=w))
        return sum(storage.nbytes() for storage in kept.values()) / 2**30

@pytest.mark.skipif(torch.__version__ < '2.9', reason='torch 2.8 aborts in autocast on a pretended GPU')
def test_half_precision_halves_what_is_kept():
    "MuLAN's CIFAR preset at 128 images: a card of 24 GiB holds it in bfloat16, nothing computed twice."
    whole, half = (kept('mulan-cifar10', half) for half in (False, True))
    assert 30 < whole < 36
    assert half < 18.5 and half < 0.55 * whole

# ---- launches

class Launches(TorchDispatchMode):
    "Counts operations that are no views."
    n = 0
    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.n += not op.is_view
        return op(*args, **(kwargs or {}))

def of_a_subset(m):
    "Launches of a draw of k of m, its divergence, and the gradient of both."
    latent = KHot(torch.nn.Linear(4, m), m, max(1, m // 3))
    x = torch.randn(3, 4)
    with Launches() as seen:
        w, kl = latent(x)
        (w.square().sum() + kl.sum()).backward()
    return seen.n

def test_launches_of_a_subset_grow_with_the_logarithm():
    "As many more from 60 items to 240 as from 15 to 60, and fewer than with a step for each item."
    few, some, many = (of_a_subset(m) for m in (15, 60, 240))
    assert many - some == some - few
    assert some < 500 < 60 * 15
