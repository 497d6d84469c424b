"""Generated folders, archives, arrays and damaged files: what is read is what was there, and all the rest is
refused in one line that names it. Two thousand cases here, twenty thousand in `make nightly`."""
import gzip, hashlib, io, os, random, shutil, warnings
import numpy as np, pytest, torch
from PIL import Image
from mulan_vdm import data
from mulan_vdm.data import load

few = 2_000
many = 20_000

def outcome(*args, **kwargs):
    "Data and warnings, or the message; any other end of a call, or a message of two lines, is a fault"
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter('always')
        try: result = load(*args, **kwargs)
        except (ValueError, OSError) as e:
            assert '\n' not in str(e) and str(e), repr(e)
            return str(e), [str(w.message) for w in found]
    return result, [str(w.message) for w in found]

# Folders

def pixels(k, form):
    "An image of 2x3 pixels that says its number, in one of the forms that are read"
    a = np.zeros((2, 3, 3), np.uint8)
    a[..., 0] = k // 256
    a[..., 1] = k % 256
    if form == 'ppm': return b'P6\n3 2\n255\n' + a.tobytes()
    Image.fromarray(a).save(f := io.BytesIO(), form)
    return f.getvalue()

def tail(rng): return rng.choice(['', '', '', '_set', '2017', '-images', '_32x32', 'Data'])
def cased(rng, word): return rng.choice([str, str.upper, str.title])(word)
trains = ['train', 'training']
tests = ['test', 'testing', 'val', 'valid', 'validation', 'eval', 'evaluation', 'dev']
plain = ['cat', 'dog', 'test_tube', 'valley', 'trains', 'Ünï cödé', 'a b', '0', '%s', "it's", 'x' * 100]

def spoil(rng, place, names):
    "Adds something; the name that an error must hold, or that a warning must, or neither"
    inside = place/rng.choice(names).rpartition('/')[0]
    kind = rng.choice(['nothing'] * 6 + ['dead', 'loop', 'pipe', 'empty', 'text', 'heic', 'frames', 'deep',
                                         'eps', 'cut', 'licence', 'run', 'hidden'])
    file = inside/'spoilt.png'
    if kind == 'dead': file.symlink_to('nowhere')
    elif kind == 'loop': (inside/'spoilt').symlink_to(rng.choice(['.', '..'] if inside != place else ['.']))
    elif kind == 'pipe': os.mkfifo(file)
    elif kind == 'empty': file.touch()
    elif kind == 'text': file.write_text(rng.choice(['words', 'P6\n', '\0' * 9]))
    elif kind == 'heic': (inside/'spoilt.HEIC').write_bytes(b'ftypheic')
    elif kind == 'eps': Image.new('RGB', (3, 2)).save(file, 'EPS')
    elif kind == 'cut': file.write_bytes(pixels(9, 'PNG')[:rng.randrange(1, 40)])
    elif kind == 'frames':
        frames = [Image.new('RGB', (3, 2), (90 * k, 0, 0)) for k in range(2)]
        frames[0].save(file, rng.choice(['GIF', 'PNG', 'TIFF']), save_all=True, append_images=frames[1:])
    elif kind == 'deep': file.write_bytes(b'P6\n3 2\n65535\n' + bytes(36))
    elif kind == 'licence': (inside/'spoilt').write_text('words')
    elif kind == 'hidden': (inside/'.spoilt.png').write_text('words')
    elif kind == 'run':
        (inside/'spoilt').mkdir()
        for name in ('config.json', 'metrics.jsonl', 'samples.png'): (inside/'spoilt'/name).write_text('{}')
    said = 'one folder' if kind == 'loop' else 'spoilt'
    return (said if kind not in ('nothing', 'hidden', 'licence', 'run') else None,
            'spoilt' if kind in ('licence', 'run') else None)

def folder(rng, place):
    "Writes images; their names, which are for test, and their labels, or None for what must be refused"
    shape = rng.choice(['flat', 'classes', 'split', 'split', 'split and classes', 'broken'])
    classes = rng.sample(plain, rng.randrange(1, 4)) if 'classes' in shape else ['']
    sides = ['']
    if 'split' in shape: sides = [cased(rng, rng.choice(words)) + tail(rng) for words in (trains, tests)]
    if shape == 'broken':
        sides = rng.choice([['train', 'test', 'val'], ['train', 'Train', 'test'], ['val'], ['train'],
                            ['test', 'cat'], ['my_train', 'my_val'], ['wrap/train', 'wrap/test'],
                            ['cat/train', 'cat/test', 'dog'], ['train', 'test', 'cat']])
    names = [os.path.normpath(f'{side}/{label}/{k}').lstrip('/') for side in sides for label in classes
             for k in rng.sample(range(90), rng.randrange(2, 9))]
    names = sorted(f"{name}.{rng.choice(['ppm', 'PPM', 'ppm', 'png'])}" for name in set(names))
    for k, name in enumerate(names):
        (place/name).parent.mkdir(parents=True, exist_ok=True)
        (place/name).write_bytes(pixels(k, 'png' if name.endswith('png') else 'ppm'))
    if shape == 'broken': return names, None, None
    inside = [name.split('/')[len(sides) - 1:] for name in names]
    labels = [parts[0] for parts in inside] if classes != [''] else None
    test = [name.split('/')[0] == sides[-1] if len(sides) == 2 else
            int(hashlib.sha256(name.encode()).hexdigest(), 16) % 10 == 0 for name in names]
    return names, test, labels

def check_folder(rng, place):
    names, test, labels = folder(rng, place)
    wrong, left_out = spoil(rng, place, names)
    found, said = outcome('folder', path=place)
    if wrong or test is None or not any(test) or all(test):
        assert isinstance(found, str), found
        if test is not None and any(test) and not all(test): assert wrong in found, found
        return
    if isinstance(found, str):   # the other reason for which it may be refused: a class that is in test alone
        learned = {label for label, held in zip(labels, test) if not held}
        assert set(labels) != learned and 'no training image' in found, found
        return
    order = [k for held in (False, True) for k in range(len(names)) if test[k] == held]
    numbers = [side.x[:, 0, 0, 0].long() * 256 + side.x[:, 1, 0, 0] for side in (found.train, found.test)]
    assert torch.cat(numbers).tolist() == order and len(numbers[1]) == sum(test)
    assert any('spoilt' in w for w in said) == bool(left_out)
    if labels is None: assert found.train.y is None and found.test.y is None
    else:
        kinds = sorted(set(labels))
        assert torch.cat([found.train.y, found.test.y]).tolist() == [kinds.index(labels[k]) for k in order]

# Arrays

def check_arrays(rng, place):
    "Any type, shape, name and packing: the same numbers come back, or one line says which array is not read"
    kind = rng.choice(['u1', 'u1', 'u1', '?', 'i1', 'i2', '>i4', 'i8', 'u2', 'u8', 'f2', 'f4', '>f8', 'c8',
                       'U2', 'O'])
    dims = rng.choice([1, 2, 2, 3, 3, 4, 4, 4, 5])
    shape = [rng.choice([0, 1, 30, 60])] + [rng.randrange(1, 7) for _ in range(dims - 1)]
    vocab = rng.choice([None, None, 7, 300])
    most = 2 if kind == '?' else 7
    x = np.array([rng.randrange(most) for _ in range(int(np.prod(shape)))]).reshape(shape).astype(kind)
    if rng.random() < .5: x = np.asfortranarray(x)
    names = rng.choice([('x',), ('train', 'test'), ('x_train', 'x_val'), ('train', 'mean'), ('a', 'b')])
    packed = rng.random() < .5
    arrays = {name: x for name in names}
    if packed: np.savez(place/'a.npz', **arrays)
    else:
        (place/'a').mkdir()
        for name in arrays: np.save(place/f'a/{name}.npy', x)
    found, _ = outcome('arrays', path=place/('a.npz' if packed else 'a'), vocab=vocab)
    floats = kind[-2:] in ('f2', 'f4', 'f8')
    right = (dims in (2, 3, 4, 5) and kind not in ('u8', 'c8', 'U2', 'O')
             and (floats or kind in ('u1', '?') or vocab))
    if isinstance(found, str) or not right:
        assert isinstance(found, str), (kind, shape, vocab, names)
        few_rows = len(names) == 1 and shape[0] < 2
        assert not right or names in (('train', 'mean'), ('a', 'b')) or few_rows, found
        return
    order = np.arange(len(x))
    if len(names) == 1:
        test = np.array([int(hashlib.sha256(str(k).encode()).hexdigest(), 16) % 10 == 0 for k in order])
        order = np.concatenate([order[~test], order[test]])
        got = np.concatenate([found.train.x.numpy(), found.test.x.numpy()])
    else: got = found.train.x.numpy()
    moved = np.moveaxis(x, -1, 1) if dims == 4 and x.shape[3] <= 4 < x.shape[1] else x
    assert np.array_equal(got.reshape(moved.shape), moved[order].astype(got.dtype))
    assert found.vocab == (vocab or (None if floats else 256)) # whole numbers as floats are levels

# Damage

def check_damage(rng, place):
    "Bytes that are changed, cut off or put in: read or refused in one line, by every reader"
    name = rng.choice(['image', 'image', 'npy', 'npz', 'idx', 'imagenet'])
    form = rng.choice(['PNG', 'JPEG', 'GIF', 'BMP', 'TIFF', 'WEBP', 'PPM'])
    whole = seeds[name, form]
    raw = bytearray(whole)
    for _ in range(rng.choice([0, 1, 1, 3, 30])):
        raw[rng.randrange(min(len(raw), 400))] = rng.randrange(256)
    if rng.random() < .4: del raw[rng.randrange(len(raw)):]
    if rng.random() < .2: raw[rng.randrange(len(raw) + 1):0] = bytes(rng.randrange(256) for _ in range(40))
    if name == 'image':
        for k in range(20): (place/f'{k}.png').write_bytes(pixels(k, 'ppm'))
        (place/'damaged.png').write_bytes(raw)
        outcome('folder', path=place, size=2)
    elif name == 'idx':
        for f in data._idx_files: (place/f'{f}.gz').write_bytes(whole)
        (place/f'{data._idx_files[rng.randrange(4)]}.gz').write_bytes(raw)
        assert isinstance(outcome('fashion_mnist', path=place)[0], str)
    elif name == 'imagenet':
        for k in range(1, 11): (place/f'train_data_batch_{k}.npz').write_bytes(whole)
        (place/'val_data.npz').write_bytes(raw)
        assert isinstance(outcome('imagenet32', path=place)[0], str)
    else:
        (place/f'a.{name}').write_bytes(raw)
        outcome('arrays', path=place/f'a.{name}')

def packed(save, **arrays):
    save(f := io.BytesIO(), **arrays)
    return f.getvalue()

def made(form):
    noise = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    Image.fromarray(noise).save(f := io.BytesIO(), form)
    return f.getvalue()

x = np.random.default_rng(0).integers(0, 256, (40, 3, 4), dtype=np.uint8)
kinds = dict(npy=packed(lambda f: np.save(f, x)), npz=packed(np.savez, x=x, y=np.arange(40)),
             idx=gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 40]) + bytes(40)),
             imagenet=packed(np.savez_compressed, data=np.zeros((1, 3072), np.uint8), labels=np.array([1])))
forms = ['PNG', 'JPEG', 'GIF', 'BMP', 'TIFF', 'WEBP', 'PPM']
seeds = {(name, form): content for form in forms for name, content in {**kinds, 'image': made(form)}.items()}

checks = [check_folder, check_arrays, check_damage]

def run(tmp_path, cases):
    for case in cases:
        place = tmp_path/'case'
        place.mkdir()
        try: checks[case % 3](random.Random(case), place)
        except BaseException:
            print('case', case)
            raise
        shutil.rmtree(place)

def test_some_cases(tmp_path): run(tmp_path, range(few))

@pytest.mark.nightly
@pytest.mark.parametrize('part', range(10))
def test_many_cases(tmp_path, part): run(tmp_path, range(part * many // 10, (part + 1) * many // 10))
