"""Other seeds: with this folder on PYTHONPATH every process adds SEED_SHIFT to each seed that torch and numpy
are given, by notebooks, tests and package alike. What holds by the luck of one seed fails."""
import functools, os

if shift := int(os.environ.get('SEED_SHIFT', 0)):
    import numpy as np, torch

    def shifted(seeding):
        "`seeding` with `shift` added to its seed, if that is a number."
        @functools.wraps(seeding)
        def f(seed=None, *args): return seeding(seed + shift if isinstance(seed, int) else seed, *args)
        return f

    class Generator(torch.Generator):
        def manual_seed(self, seed): return super().manual_seed(seed + shift)

    torch.Generator = Generator
    torch.manual_seed, np.random.default_rng = shifted(torch.manual_seed), shifted(np.random.default_rng)
