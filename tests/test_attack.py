"""Run folders that something has happened to: files cut, flipped, emptied, exchanged, replaced by folders,
links and pipes; JSON with other keys, kinds and depths; arrays and checkpoints that are whole and not these.
Whoever reads such a folder gets what was written, or one line that names the file and says what to do."""
import io, json, os, shutil
from pathlib import Path
import numpy as np, pytest, torch
from mulan_vdm import reports
from mulan_vdm.data import load
from mulan_vdm.runs import load_run, Run
from mulan_vdm.training import fit

earlier = Path(__file__).parent / 'earlier'
remedies = ('restore', 'delete', 'write ', 'train ', 'correct it', 'draw them', 'move it', 'smaller',
            'use that', 'evaluate ', 'choose one', 'build the model', 'name another', 'pass fit')

@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "A run folder with every kind of file that is read."
    run = Run(shutil.copytree(earlier / 'vdm', tmp_path_factory.mktemp('attack') / 'run'))
    for kind in ('', 'ode'): run.write_report(run.report(kind), kind, **run.per_image(kind))
    run.write_samples(torch.randint(0, 17, (3, 1, 8, 8)))
    scores = dict(fid=[2., 0.1], kid=[0.1, 0.1], n=4, steps=3, step='ddpm', grid='time', guidance=1.,
                  seconds=2.)
    run.write_report(scores, 'samples')
    tensors, step = run.load()
    run.save(tensors, step)
    return run

def odd(rng):
    "A value that JSON can hold, of any kind."
    values = (None, True, False, 0, -1, 1, 10**9, 10**30, -10**400, 0.5, float('nan'), float('inf'),
              -1e308, '', 'a', '1', 'é\n', [], [[]], [1, 'a'], {}, {'a': None}, [None] * 9, 'x' * 9999)
    return values[rng.integers(len(values))]

def places(value, at=()):
    "Paths to all entries of a JSON value."
    if isinstance(value, list): value = dict(enumerate(value))
    for key, inside in value.items() if isinstance(value, dict) else ():
        yield (*at, key)
        yield from places(inside, (*at, key))

def changed_json(text, rng):
    "JSON with an entry of another kind, one less, one more or one far down; or something else altogether."
    if rng.random() < 0.1: return json.dumps(odd(rng))
    if rng.random() < 0.05: return '{"a":' * int(rng.integers(9, 99999))
    value = json.loads(text)
    where = list(places(value))
    *before, last = where[rng.integers(len(where))]
    inside = value
    for key in before: inside = inside[key]
    kind = rng.integers(4)
    if kind == 0: inside[last] = odd(rng)
    elif kind == 1: del inside[last]
    elif kind == 2: value[f'more{rng.integers(9)}'] = odd(rng)
    elif isinstance(inside, dict): inside[f'{last}s'] = inside.pop(last)
    return json.dumps(value)

def other_arrays(rng):
    "An npz or npy file that numpy can write."
    shape = [(), (0,), (1,), (360,), (361,), (360, 1)][rng.integers(6)]
    kinds = 'f8', 'f4', 'i8', 'u1', '?', 'U3', 'c16'
    packed = io.BytesIO()
    array = np.zeros(shape, kinds[rng.integers(7)])
    how = rng.integers(4)
    if how == 0: np.save(packed, array)
    elif how == 1: np.savez(packed, bpd=array)
    elif how == 2: np.savez_compressed(packed, bpd=np.zeros(10**5), latent=array)
    else: np.savez(packed, other=array)
    return packed.getvalue()

def damaged(content, name, rng):
    "The bytes of a file after something has happened to them."
    how = rng.integers(8)
    flipped = bytearray(content)
    if how == 0: return content[:rng.integers(len(content))]
    if how == 1:
        return [b'', b'\0' * len(content), b'\n', b'PK\3\4', b'\x93NUMPY', rng.bytes(99)][rng.integers(6)]
    if how == 2: return content + rng.bytes(rng.integers(1, 99))
    if how == 3:
        a, b = sorted(rng.integers(len(content), size=2))
        return content[:a] + content[b:]
    if how == 4 or name.endswith('safetensors'):
        for _ in range(rng.integers(1, 9)):
            flipped[rng.integers(min(len(content), 4096))] ^= 1 << rng.integers(8)
        return bytes(flipped)
    if name.endswith('json'): return changed_json(content.decode(), rng).encode()
    if name.endswith('jsonl'):
        lines = content.decode().splitlines()
        i = rng.integers(len(lines))
        lines[i] = changed_json(lines[i], rng)
        return '\n'.join(lines + [''][:rng.integers(2)]).encode()
    return other_arrays(rng)

def exchanged(path, rng):
    "Something else that may have a file's name: a folder, nothing, a link to nothing, a pipe, a device."
    path.unlink()
    how = rng.integers(5)
    if how == 0: path.mkdir()
    if how == 1: path.symlink_to('nowhere')
    if how == 2: os.mkfifo(path)
    if how == 3: path.symlink_to('/dev/zero')

readers = {
    'config.json': (load_run, lambda run: run.arguments('fit', fit), lambda run: run.arguments('data', load)),
    'metrics.jsonl': (Run.metrics, lambda run: run.seconds, lambda run: run.trim_log(10)),
    'report.json': (Run.report, Run.per_image, lambda run: reports.compare_runs([run, earlier / 'mulan'])),
    'report_ode.json': (lambda run: run.report('ode'), lambda run: run.per_image('ode')),
    'report_samples.json': (lambda run: run.report('samples'),),
    'per_image.npz': (Run.per_image,), 'per_image_ode.npz': (lambda run: run.per_image('ode'),),
    'samples.npy': (Run.samples, lambda run: reports.gallery([run])),
    'checkpoint/state.safetensors': (Run.load, lambda run: run.steps, load_run)}

def attack(whole, folder, number):
    "Case `number`: one file of a copy of the folder changed, and read by all who read it. What came of it."
    rng = np.random.default_rng(number)
    name = list(readers)[rng.integers(len(readers))]
    path = folder / name
    content = (whole.path / name).read_bytes()
    if rng.random() < 0.1: exchanged(path, rng)
    else: path.write_bytes(damaged(content, name, rng))
    said = []
    try:
        for read in readers[name]:
            try: found = read(Run(folder))
            except (ValueError, OSError) as e:
                message = str(e)
                assert '\n' not in message and len(message) < 1000, (number, message)
                assert Path(name).stem.split('_')[0] in message, (number, name, message)
                assert any(remedy in message for remedy in remedies), (number, name, message)
                said.append(message)
                continue
            if read is Run.load:
                tensors, step = whole.load()
                assert found[1] == step and all(torch.equal(v, tensors[k]) for k, v in found[0].items())
            said.append(None)
    except AssertionError: raise
    except BaseException as e: raise AssertionError(f'case {number}, {name}: {type(e).__name__}: {e}') from e
    finally:
        if path.is_dir() and not path.is_symlink(): shutil.rmtree(path)
        else: path.unlink(missing_ok=True)
        path.write_bytes(content)
    return said

def attacks(whole, tmp_path, numbers):
    folder = shutil.copytree(whole, tmp_path / 'run')
    return [said for number in numbers for said in attack(whole, folder, number)]

def test_damaged_folders(whole, tmp_path):
    "Some of them: most are refused, in one line."
    said = attacks(whole, tmp_path, range(600))
    assert sum(m is not None for m in said) > len(said) / 2

@pytest.mark.nightly
def test_many_damaged_folders(whole, tmp_path): attacks(whole, tmp_path, range(600, 20_600))
