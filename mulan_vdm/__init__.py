"""Diffusion models that are trained and judged by likelihood, in bits per dimension.

The names of every day, each from the module that holds it; the rest is in the modules.

- data: `load`
- models: `vdm`, `vdmpp`, `mulan`, `repvdm`, or ready made by `preset`
- training: `fit`, a generator; `load_run` gives back what it kept
- likelihood: `evaluate`, the bound; `ode_evaluate`, the probability flow; `model.log_prob`
- samples: `sample` or `model.sample`, `plot_images`
- several runs: `compare_runs`
- a network trained elsewhere: `from_diffusers`
- to build with: `Diffusion` and its parts `Schedule`, `Latent`, `Codec`
"""
__version__ = "0.1.0"

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .codec import Codec
    from .data import load
    from .diffusion import Diffusion
    from .evaluation import evaluate
    from .foreign import from_diffusers
    from .latents import Latent
    from .likelihood import ode_evaluate
    from .plots import plot_images
    from .reports import compare_runs
    from .runs import load_run
    from .sampling import sample
    from .schedules import Schedule
    from .systems import mulan, preset, repvdm, vdm, vdmpp
    from .training import fit

__all__ = ['Codec', 'Diffusion', 'Latent', 'Schedule', 'compare_runs', 'evaluate', 'fit', 'from_diffusers',
           'load', 'load_run', 'mulan', 'ode_evaluate', 'plot_images', 'preset', 'repvdm', 'sample', 'vdm',
           'vdmpp']

_modules = dict(codec='Codec', data='load', diffusion='Diffusion', evaluation='evaluate',
                foreign='from_diffusers', latents='Latent', likelihood='ode_evaluate', plots='plot_images',
                reports='compare_runs', runs='load_run', sampling='sample', schedules='Schedule',
                systems='mulan preset repvdm vdm vdmpp', training='fit')
_of_models = 'diffusion', 'foreign', 'runs', 'systems' # `likelihood` gives every model its log_prob
_home = {name: module for module, names in _modules.items() for name in names.split()}

def __getattr__(name: str):
    "A name of `__all__`, its module imported when it is asked for: importing the package costs nothing."
    if name not in _home: raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if _home[name] in _of_models: import_module(f'{__name__}.likelihood')
    return getattr(import_module(f'{__name__}.{_home[name]}'), name)

def __dir__() -> list[str]: return sorted([*globals(), *__all__])
