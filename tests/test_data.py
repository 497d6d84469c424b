"""Data sets: bad input, real file formats in miniature, missing and damaged files, and the
laws of splits and batches."""
import gzip, hashlib, os, pickle, subprocess, sys, zlib
from itertools import islice
from pathlib import Path
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from mulan_vdm import data
from mulan_vdm.data import area_resize, available, batch_indices, batches, keep_bits, load

@pytest.fixture(autouse=True)
def home(tmp_path_factory, monkeypatch):
    "An empty home folder and no environment variable: only what a test makes can be found there"
    home = tmp_path_factory.mktemp('home')
    monkeypatch.setattr(Path, 'home', lambda: home)
    monkeypatch.delenv('MULAN_VDM_DATA', raising=False)
    return home

def message(error, call, *args, **kwargs):
    with pytest.raises(error) as e: call(*args, **kwargs)
    return str(e.value)

# Arguments

@pytest.mark.parametrize('kwargs, argument, value, remedy', [
    (dict(name='mnist'), 'name', "'mnist'", 'digits, fashion_mnist'),
    (dict(name='fashion_mnist', bits=0), 'bits', '0', 'from 1 to 8'),
    (dict(name='fashion_mnist', bits=9), 'bits', '9', 'from 1 to 8'),
    (dict(name='fashion_mnist', bits=3.0), 'bits', '3.0', 'integer'),
    (dict(name='fashion_mnist', bits=True), 'bits', 'True', 'integer'),
    (dict(name='fashion_mnist', bits='3'), 'bits', "'3'", 'integer'),
    (dict(name='fashion_mnist', size=0), 'size', '0', 'from 1 to 28'),
    (dict(name='fashion_mnist', size=29), 'size', '29', 'from 1 to 28'),
    (dict(name='imagenet64', size=65), 'size', '65', 'from 1 to 64'),
    (dict(name='folder', path='x', size=-1), 'size', '-1', 'at least 1'),
    (dict(name='digits', bits=3), 'bits', '3', 'leave bits out'),
    (dict(name='digits', path='x'), 'path', "'x'", 'leave path out'),
    (dict(name='swiss_roll', bits=3), 'bits', '3', 'leave both out'),
    (dict(name='swiss_roll', size=3), 'size', '3', 'leave both out'),
    (dict(name='folder'), 'path', 'None', 'pass path'),
])
def test_bad_arguments(kwargs, argument, value, remedy):
    m = message(ValueError, load, **kwargs)
    assert '\n' not in m and f'{argument}={value}' in m and remedy in m

@pytest.mark.parametrize('kwargs, words', [(dict(batch_size=0), ['batch_size=0', 'at least 1']),
    (dict(batch_size=2.), ['batch_size=2.0', 'integer']),
    (dict(seed=-1), ['seed=-1', 'at least 0']), (dict(step=-1), ['step=-1', 'at least 0']),
    (dict(world=0), ['world=0', 'at least 1']), (dict(rank=2, world=2), ['rank=2', 'from 0 to 1']),
    (dict(rank=-1), ['rank=-1', 'from 0 to 0']), (dict(world='2'), ["world='2'", 'integer']),
    (dict(batch_size=5, world=2), ['batch_size=5', 'multiple of world=2']),
    (dict(x=torch.zeros(0, 3)), ['no examples', 'at least one']),
    (dict(y=torch.zeros(9)), ['9 labels for 10', 'or None']),
   ])
def test_bad_batches(kwargs, words):
    "Raised at the call, not at the first batch"
    m = message(ValueError, batches, **(dict(x=torch.zeros(10, 3), y=None, batch_size=4, seed=0) | kwargs))
    assert '\n' not in m and all(w in m for w in words)

def test_missing_files(tmp_path, home, monkeypatch):
    for name in ('cifar10', 'imagenet32', 'imagenet64'):
        m = message(FileNotFoundError, load, name)
        assert (m.count('\n') == 1 and name in m and '/usr/share/datasets' in m
                and str(home/'.cache'/'mulan_vdm') in m and 'Get ' in m)
        m = message(FileNotFoundError, load, name, path=tmp_path/'a')
        assert m.count('\n') == 1 and str(tmp_path/'a') in m and '/usr/share' not in m
        assert available()[name] is None
    monkeypatch.setenv('MULAN_VDM_DATA', str(tmp_path/'b'))
    assert str(tmp_path/'b') in message(FileNotFoundError, load, 'cifar10')
    assert 'not a folder' in message(FileNotFoundError, load, 'folder', path=tmp_path/'c')

def test_light_import():
    "Only torch and numpy at import; the libraries that read files come when they are needed"
    code = ('import sys, torch; before = set(sys.modules); import mulan_vdm.data; new = set(sys.modules) - '
            'before; print([m for m in ("torchvision", "sklearn", "PIL") if m in new])')
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True,
                          cwd=Path(data.__file__).parents[1]).stdout.strip() == '[]'

# What a data set is made of

x, y = torch.zeros(4, 1, 2, 2).byte(), torch.tensor([0, 1, 1, 0])
fine = data.Data('mine', 'here', 16, (1, 2, 2), data.Split(x, y), data.Split(x, y))

@pytest.mark.parametrize('x, y, error, words', [
    (x.numpy(), None, TypeError, ['ndarray', 'torch.as_tensor']), ([1, 2], None, TypeError, ['list']),
    (None, None, TypeError, ['NoneType']), (torch.tensor(3), None, ValueError, ['(N, ...)']),
    (x.bool(), None, ValueError, ['bool', 'x.byte()']), (x + 1j, None, ValueError, ['complex']),
    (torch.tensor([[0., torch.nan]]), None, ValueError, ['not finite', 'leave']),
    (torch.tensor([[0., -torch.inf]]).half(), None, ValueError, ['not finite']),
    (x, y.float(), ValueError, ['float32', 'y.long()']), (x, y.bool(), ValueError, ['bool']),
    (x, y.numpy(), TypeError, ['ndarray', 'or None']), (x, [0, 1, 1, 0], TypeError, ['list']),
    (x, y[:3], ValueError, ['(3,)', '4 examples', '(4,)']), (x, y[:, None], ValueError, ['(4, 1)']),
    (x, torch.eye(4).long(), ValueError, ['(4, 4)']), (x, y - 1, ValueError, ['-1', 'from 0']),
    (x, torch.tensor(0), ValueError, ['()']), (x[:0], y, ValueError, ['0 examples'])])
def test_splits_refuse_what_is_none(x, y, error, words):
    m = message(error, data.Split, x, y)
    assert '\n' not in m and all(w in m for w in words)

@pytest.mark.parametrize('changed, error, words', [
    (dict(vocab=0), ValueError, ['vocab=0']), (dict(vocab=1), ValueError, ['vocab=1']),
    (dict(vocab=16.), ValueError, ['vocab=16.0', 'integer']), (dict(vocab='16'), ValueError, ["vocab='16'"]),
    (dict(vocab=None), ValueError, ['vocab=None', 'number of levels']),
    (dict(train=data.Split(x.float())), ValueError, ['train.x', 'float32', 'vocab=None']),
    (dict(test=data.Split(x + 16)), ValueError, ['test.x', '16 to 16', '0 to 15']),
    (dict(train=data.Split(x.short() - 1)), ValueError, ['train.x', '-1 to -1', '0 to 15']),
    (dict(train=data.Split(x.long() + 2**40), vocab=256), ValueError, [str(2**40)]),
    (dict(test=data.Split(x[:, :, :1])), ValueError, ['test.x', '(1, 1, 2)', '(1, 2, 2)']),
    (dict(event_shape=(2, 2)), ValueError, ['(2, 2)']),
    (dict(train=x), TypeError, ['train', 'Split(x, y)']),
    (dict(test=(x, y)), TypeError, ['test', 'tuple'])])
def test_data_refuse_parts_that_do_not_fit(changed, error, words):
    "At construction, and when a part is replaced"
    for call in (lambda: data.Data(**{**fine._asdict(), **changed}), lambda: fine._replace(**changed)):
        m = message(error, call)
        assert '\n' not in m and all(w in m for w in words)

def test_tuples_stay_tuples():
    "Unpacked, copied, pickled, with lists for shapes and small integers for labels"
    import copy
    again = pickle.loads(pickle.dumps(fine))
    assert again.fingerprint == copy.deepcopy(fine).fingerprint == fine.fingerprint
    assert type(again) is data.Data and type(again.train) is data.Split
    a, b = fine.train
    assert a is x and b is y and data.Split(x).y is None
    assert data.Split(x, y.byte()).y.dtype == torch.int64
    assert fine._replace(event_shape=[1, 2, 2]).event_shape == (1, 2, 2)

@settings(deadline=None, max_examples=60)
@given(n=st.integers(1, 40), seed=st.integers(0, 2**32 - 1), data_=st.data())
def test_some_are_drawn_once_and_for_all(n, seed, data_):
    "Nested, in their order, without repetition, labels with them"
    few = data_.draw(st.integers(1, n)); more = data_.draw(st.integers(few, n))
    split = data.Split(torch.arange(n)[:, None], torch.arange(n))
    a, b = split.some(few, seed), split.some(more, seed)
    assert len(a.x) == few and set(a.y.tolist()) <= set(b.y.tolist())
    assert torch.equal(a.x[:, 0], a.y) and (a.y.diff() > 0).all()
    assert torch.equal(split.some(n, seed).x, split.x)

@pytest.mark.parametrize('n', [0, -1, 5, 2., True, '2', float('nan')])
def test_some_says_how_many_there_are(n):
    assert (m := message(ValueError, fine.train.some, n)).startswith('n=') and 'from 1 to 4' in m

def test_fingerprints():
    "Each pixel, label, shape and side counts, in any layout in memory; names, places and types do not"
    one = x.clone(); one[3, 0, 1, 1] = 1
    same = [fine._replace(name='a', release='b', path='c'), fine._replace(train=data.Split(x.long(), y)),
            fine._replace(test=data.Split(x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0), y.int()))]
    others = [fine._replace(train=data.Split(one, y)), fine._replace(test=data.Split(one, y)),
              fine._replace(train=data.Split(x, 1 - y)), fine._replace(train=data.Split(x)),
              fine._replace(train=data.Split(x[:3], y[:3])), fine._replace(vocab=17),
              data.Data('mine', 'here', 16, (4,), data.Split(x.flatten(1), y), data.Split(x.flatten(1), y))]
    assert {d.fingerprint for d in same} == {fine.fingerprint}
    assert len({d.fingerprint for d in [fine, *others]}) == 8
    # twice the images of half the size are the same bytes
    tall, wide = torch.arange(8).view(2, 1, 2, 2).byte(), torch.arange(8).view(4, 1, 1, 2).byte()
    assert len({data.Data('a', 'b', 256, x.shape[1:], data.Split(x), data.Split(x)).fingerprint
                for x in (tall, wide)}) == 2

def test_fingerprints_of_a_large_side(monkeypatch):
    "Whole examples at even distances, the first and the last among them"
    x = torch.zeros(1, 2**14, dtype=torch.uint8).expand(2**15, -1)  # 2**29 numbers of one row
    large = data.Data('a', 'b', 256, (2**14,), data.Split(x), data.Split(x[:1]))
    seen = []
    monkeypatch.setattr(data, '_pieces', lambda x, f=data._pieces: seen.append(len(x)) or f(x))
    assert len(large.fingerprint) == 12 and max(seen) == 2**14

# Pixels

@settings(deadline=None, max_examples=40)
@given(m=st.integers(1, 40), data_=st.data())
def test_area_resize_is_the_exact_rational(m, data_):
    "Against exact fractions, ties to even"
    from fractions import Fraction
    s, seed = data_.draw(st.integers(1, m)), data_.draw(st.integers(0, 99))
    x = np.random.default_rng(seed).integers(0, 256, (m, m))
    y = area_resize(torch.tensor(x, dtype=torch.uint8), s)
    i, j = data_.draw(st.integers(0, s - 1)), data_.draw(st.integers(0, s - 1))
    share = lambda i, k: max(Fraction(0), min(Fraction((i + 1) * m, s), k + 1) - max(Fraction(i * m, s), k))
    mean = sum(share(i, k) * share(j, l) * int(x[k, l]) for k in range(m)
               for l in range(m)) / Fraction(m, s)**2
    assert y.dtype == torch.uint8 and y[i, j].item() == round(mean)

def test_bits_and_release():
    d, half = load('digits'), load('digits', size=4)
    assert (torch.equal(half.test.x, torch.nn.functional.avg_pool2d(d.test.x.double(), 2).round().byte())
            and half.vocab == 17)
    assert (half.release == d.release + ', resized 8->4 by area'
            and load('digits', size=8).release == d.release)
    assert (half.event_shape == (1, 4, 4) and torch.equal(half.test.y, d.test.y)
            and d.train.y.dtype == torch.int64)
    assert torch.equal(keep_bits(torch.arange(256).byte(), 3).bincount(), torch.full((8,), 32))
    assert repr(d).startswith('digits: scikit-learn digits') and len(repr(d)) < 250

# Fashion-MNIST

def idx(a):
    return bytes([0, 0, 8, a.ndim]) + np.array(a.shape, '>i4').tobytes() + a.astype(np.uint8).tobytes()

@pytest.fixture
def fashion(monkeypatch):
    "The four unpacked files in miniature, by name, with their check sum declared the right one"
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, (7, 28, 28)), rng.integers(0, 10, 7), rng.integers(0, 256, (3, 28, 28)),
              rng.integers(0, 10, 3)]
    files = {f: idx(a) for f, a in zip(data._fashion_files, arrays)}
    monkeypatch.setattr(data, '_fashion_crc', zlib.crc32(b''.join(files.values())))
    return files, arrays

def write(folder, files, packed=True):
    folder.mkdir(parents=True, exist_ok=True)
    for f, raw in files.items():
        (folder/(f + '.gz' if packed else f)).write_bytes(gzip.compress(raw) if packed else raw)

@pytest.mark.parametrize('packed', [True, False])
@pytest.mark.parametrize('where', ['path', 'parent', 'environment', 'cache'])
def test_fashion_mnist(tmp_path, home, monkeypatch, fashion, where, packed):
    files, arrays = fashion
    monkeypatch.setattr(data, '_roots', lambda path=None, f=data._roots:
                                        [r for r in f(path) if r != Path('/usr/share/datasets')])
    assert available()['fashion_mnist'] is None
    write({'cache': home/'.cache/mulan_vdm/FashionMNIST/raw',
           'path': tmp_path}.get(where, tmp_path/'fashion-mnist'), files, packed)
    if where == 'environment': monkeypatch.setenv('MULAN_VDM_DATA', str(tmp_path))
    d = load('fashion_mnist', path=tmp_path if where in ('path', 'parent') else None)
    for got, a in zip((*d.train, *d.test), arrays):
        assert np.array_equal(got.squeeze(1) if got.ndim == 4 else got, a)
    assert d.train.x.shape == (7, 1, 28, 28) and d.train.y.dtype == torch.int64 and d.vocab == 256
    assert (available()['fashion_mnist'] is None) == (where in ('path', 'parent'))
    small = load('fashion_mnist', path=tmp_path if where in ('path', 'parent') else None, size=14, bits=3)
    assert torch.equal(small.test.x, area_resize(d.test.x, 14) >> 5) and small.vocab == 8
    assert small.release == d.release + ', resized 28->14 by area, 3 bits'

def test_fashion_mnist_refuses_other_files(tmp_path, fashion, monkeypatch):
    files, _ = fashion
    write(tmp_path, files)
    name = data._fashion_files[2] + '.gz'
    whole = (tmp_path/name).read_bytes()
    (tmp_path/name).write_bytes(whole[:len(whole) // 2])
    assert (name in (m := message(ValueError, load, 'fashion_mnist', path=tmp_path)) and 'fetch it again' in m
            and '\n' not in m)
    (tmp_path/name).write_bytes(gzip.compress(files[data._fashion_files[2]][:-1] + b'x'))
    assert 'MNIST has the same file names' in (m := message(ValueError, load, 'fashion_mnist',
                                                            path=tmp_path)) and '\n' not in m
    (tmp_path/name).unlink()
    assert data._fashion_files[2] in message(FileNotFoundError, load, 'fashion_mnist', path=tmp_path)

@pytest.mark.skipif(available()['fashion_mnist'] is None, reason='Fashion-MNIST is not on this machine')
def test_real_fashion_mnist():
    d = load('fashion_mnist')
    assert (len(d.train.x), len(d.test.x)) == (60_000, 10_000) and (d.test.y.bincount() == 1000).all()

# CIFAR-10

@pytest.fixture
def cifar(tmp_path, monkeypatch):
    "CIFAR-10's files in miniature; their md5 sums stand in for the real ones"
    from torchvision.datasets import CIFAR10
    folder = tmp_path/'cifar-10-batches-py'; folder.mkdir()
    rng, rows, labels = np.random.default_rng(0), [], []
    def put(f, content):
        (folder/f).write_bytes(raw := pickle.dumps(content)); return hashlib.md5(raw).hexdigest()
    def batch(f):
        rows.append(rng.integers(0, 256, (4, 3072), dtype=np.uint8))
        labels.append(rng.integers(0, 10, 4).tolist())
        return [f, put(f, {'data': rows[-1], 'labels': labels[-1]})]
    monkeypatch.setattr(CIFAR10, 'train_list', [batch(f'data_batch_{i}') for i in range(1, 6)])
    monkeypatch.setattr(CIFAR10, 'test_list', [batch('test_batch')])
    monkeypatch.setattr(CIFAR10, 'meta',
                        CIFAR10.meta | {'md5': put('batches.meta', {'label_names': list('0123456789')})})
    return folder, rows, labels

def test_cifar10(cifar, monkeypatch):
    folder, rows, labels = cifar
    for path in (folder, folder.parent):
        d = load('cifar10', path=path)
        assert (np.array_equal(d.train.x, np.concatenate(rows[:5]).reshape(-1, 3, 32, 32))
                and d.train.y.tolist() == sum(labels[:5], []))
        assert (np.array_equal(d.test.x, rows[5].reshape(-1, 3, 32, 32)) and d.test.y.tolist() == labels[5]
                and d.event_shape == (3, 32, 32))
    folder = folder.rename(folder.with_name('another name'))
    assert torch.equal(load('cifar10', path=folder).test.x, d.test.x)
    monkeypatch.setenv('MULAN_VDM_DATA', str(folder))
    assert available()['cifar10'] == str(folder)

def test_cifar10_damaged(cifar):
    folder = cifar[0]
    with open(folder/'data_batch_3', 'ab') as f: f.write(b'x')
    assert ('md5' in (m := message(ValueError, load, 'cifar10', path=folder)) and 'again' in m
            and '\n' not in m)
    (folder/'test_batch').unlink()
    assert 'missing' in message(ValueError, load, 'cifar10', path=folder)

# ImageNet

def imagenet(folder, side, per_batch=2, val=3, split=True):
    rng, all_ = np.random.default_rng(0), []
    for i in range(1, 12):
        part = f'Imagenet{side}_train_part{1 + i // 6}_npz' if i < 11 else f'Imagenet{side}_val_npz'
        f = (folder/part if split else folder)/(f'train_data_batch_{i}.npz' if i < 11 else 'val_data.npz')
        f.parent.mkdir(parents=True, exist_ok=True)
        n = per_batch if i < 11 else val
        all_.append((rng.integers(0, 256, (n, 3*side**2), dtype=np.uint8), rng.integers(1, 1001, n)))
        (np.savez_compressed if i % 2 else np.savez)(f, data=all_[-1][0], labels=all_[-1][1],
                                                     mean=all_[-1][0].mean(0))
    return [np.concatenate(a) for a in zip(*all_[:10])], all_[10]

@pytest.fixture
def few(monkeypatch): monkeypatch.setattr(data, '_imagenet_counts', dict(train=20, test=3))

@pytest.mark.parametrize('side', [32, 64])
@pytest.mark.parametrize('split', [True, False])
def test_imagenet(tmp_path, few, monkeypatch, side, split):
    train, test = imagenet(tmp_path/f'imagenet{side}', side, split=split)
    monkeypatch.setenv('MULAN_VDM_DATA', str(tmp_path))
    d = load(f'imagenet{side}')
    for got, (x, y) in ((d.train, train), (d.test, test)):
        assert (np.array_equal(got.x, x.reshape(-1, 3, side, side)) and np.array_equal(got.y, y - 1)
                and got.x.dtype == torch.uint8)
    assert d.release == f'ImageNet-{side} downsampled npz (Chrabaszcz et al. 2017, box)' and d.vocab == 256
    small = load(f'imagenet{side}', size=side // 4, bits=5)
    assert (torch.equal(small.train.x, area_resize(d.train.x, side // 4) >> 3)
            and small.release == d.release + f', resized {side}->{side // 4} by area, 5 bits')
    assert torch.equal(load(f'imagenet{side}', size=side, bits=8).train.x, d.train.x)
    assert len(list(tmp_path.rglob('*.npy'))) == 4 and not list(tmp_path.rglob('*.part'))
    for xb, yb in islice(batches(*d.train, 8, seed=0), 5):  # batches of a memory-mapped set
        for image, label in zip(xb, yb):
            assert any(torch.equal(image, i) and label == l for i, l in zip(*d.train))

def test_imagenet_is_converted_once(tmp_path, few, monkeypatch):
    imagenet(tmp_path, 32)
    load('imagenet32', path=tmp_path)
    stamps = {f: f.stat().st_mtime_ns for f in tmp_path.glob('*.npy')}
    monkeypatch.setattr(data, '_save_npy', lambda *a: pytest.fail('converted again'))
    first = load('imagenet32', path=tmp_path)
    assert {f: f.stat().st_mtime_ns for f in tmp_path.glob('*.npy')} == stamps
    monkeypatch.undo(); monkeypatch.setattr(data, '_imagenet_counts', dict(train=20, test=3))
    val = tmp_path/'Imagenet32_val_npz/val_data.npz'
    np.savez(val, data=255 - first.test.x.flatten(1).numpy(), labels=[1, 2, 3])
    os.utime(val, (later := val.stat().st_mtime + 10, later))
    # newer archives are read again
    assert torch.equal(load('imagenet32', path=tmp_path).test.x, 255 - first.test.x)

def test_imagenet_conversion_is_whole_or_absent(tmp_path, few, monkeypatch):
    imagenet(tmp_path, 32)
    with monkeypatch.context() as m:
        m.setattr(data, 'area_resize', lambda *a: (_ for _ in ()).throw(OSError('disk full')))
        with pytest.raises(OSError, match='disk full'): load('imagenet32', path=tmp_path, size=16)
    assert not list(tmp_path.glob('*.npy')) and not list(tmp_path.glob('*.part'))
    assert load('imagenet32', path=tmp_path, size=16).event_shape == (3, 16, 16)

def test_imagenet_in_a_folder_for_reading_only(tmp_path, home, few, monkeypatch):
    (train, _), _ = imagenet(tmp_path, 32)
    monkeypatch.setattr(data.os, 'access', lambda *a: False)
    assert np.array_equal(load('imagenet32', path=tmp_path).train.x.flatten(1), train)
    assert not list(tmp_path.glob('*.npy')) and len(list((home/'.cache/mulan_vdm').rglob('*.npy'))) == 2

def test_imagenet_refuses_other_releases(tmp_path, monkeypatch):
    imagenet(tmp_path/'old', 32, val=1)
    np.savez_compressed(tmp_path/'old/Imagenet32_val_npz/val_data.npz', data=np.zeros((1, 3072), np.uint8),
                        labels=np.ones(49_999, int))
    m = message(ValueError, load, 'imagenet32', path=tmp_path/'old')
    assert '49,999' in m and 'older release' in m and 'do not compare' in m and '\n' not in m
    monkeypatch.setattr(data, '_imagenet_counts', dict(train=20, test=3))
    imagenet(tmp_path/'big', 64, split=False)
    assert ('12288' in (m := message(ValueError, load, 'imagenet32', path=tmp_path/'big')) and '32x32' in m
            and '\n' not in m)
    imagenet(tmp_path/'part', 32)
    (tmp_path/'part/Imagenet32_train_part2_npz/train_data_batch_7.npz').unlink()
    m = message(FileNotFoundError, load, 'imagenet32', path=tmp_path/'part')
    assert 'train_data_batch_7.npz missing' in m and m.count('\n') == 1
    imagenet(tmp_path/'few', 32, per_batch=1)
    assert '10 train images' in message(ValueError, load, 'imagenet32', path=tmp_path/'few')

# Folders

def image(file, w=20, h=20, colour=(10, 200, 30), **kwargs):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (w, h), colour).save(file, **kwargs)

def many(folder, n=60):
    for k in range(n): image(folder/f'{k}.png', colour=(k, 2*k, 3*k))

def test_folder_split_does_not_move(tmp_path):
    many(tmp_path, 60)
    before = load('folder', path=tmp_path)
    for k in range(60, 80): image(tmp_path/f'{k}.png', colour=(k, 2*k, 3*k))
    after = load('folder', path=str(tmp_path))
    red = lambda s: set(s.x[:, 0, 0, 0].tolist())
    assert red(before.train) | red(before.test) == set(range(60)) and not red(before.train) & red(before.test)
    assert red(before.train) <= red(after.train) and red(before.test) <= red(after.test)
    assert red(before.test) == {k for k in range(60)
                                if int(hashlib.sha256(f'{k}.png'.encode()).hexdigest(), 16) % 10 == 0}
    assert before.train.y is None and before.event_shape == (3, 20, 20) and before.vocab == 256
    assert (load('folder', path=tmp_path, bits=2).vocab == 4
            and '2 bits' in load('folder', path=tmp_path, bits=2).release)

@pytest.mark.parametrize('held', ['test', 'val', 'valid'])
def test_folder_own_split_and_labels(tmp_path, held):
    for side in ('train', held):
        for label in ('b', 'a'):
            for k in range(2):
                image(tmp_path/side/label/f'{k}.png', colour=(100 * (side == held), ord(label), k))
    d = load('folder', path=tmp_path)
    assert (d.train.x[:, 0] == 0).all() and (d.test.x[:, 0] == 100).all() and 'own split' in d.release
    assert (torch.equal(d.train.y, (d.train.x[:, 1, 0, 0] == ord('b')).long())
            and d.train.y.tolist() == [0, 0, 1, 1])
    image(tmp_path/('val' if held == 'test' else 'test')/'a'/'0.png')
    assert 'keep two' in message(ValueError, load, 'folder', path=tmp_path)

def test_folder_odd_images(tmp_path):
    "Crop and resize against the definition, and every mode that an image may have"
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (37, 53, 3), dtype=np.uint8)
    files = {'rgb.png': Image.fromarray(a), 'tall.png': Image.fromarray(a.transpose(1, 0, 2).copy()),
             'grey.png': Image.fromarray(a[..., 0]), 'palette.png': Image.fromarray(a[..., 0]).convert('P'),
             'alpha.png': Image.fromarray(np.concatenate([a, a[..., :1]], 2)),
             'one.png': Image.fromarray(a[..., 0]).convert('1'),
             'cmyk.jpg': Image.fromarray(a).convert('CMYK')}
    for side in ('train', 'test'):
        (tmp_path/side).mkdir()
        for f, im in files.items(): im.save(tmp_path/side/f)
    (tmp_path/'train/.DS_Store').write_text('not an image')
    (tmp_path/'.git').mkdir(); (tmp_path/'.git/HEAD').write_text('x')
    x = dict(zip(sorted(files), load('folder', path=tmp_path, size=16).test.x))
    assert len(x) == len(load('folder', path=tmp_path, size=16).train.x) == 7
    square = torch.tensor(a).permute(2, 0, 1)[:, :, 8:45]
    assert (torch.equal(x['rgb.png'], area_resize(square, 16))
            and torch.equal(x['tall.png'], area_resize(square.mT, 16)))
    assert torch.equal(x['grey.png'], area_resize(square[:1], 16).expand(3, -1, -1))
    assert torch.equal(x['palette.png'][0], x['palette.png'][2])
    alpha = square[:1].double() / 255
    white = square.double() * alpha + 255 * (1 - alpha)
    assert (x['alpha.png'].double() - area_resize(white.round().byte(), 16)).abs().max() <= 1

def test_folder_turns_photographs_upright(tmp_path):
    exif = Image.Exif(); exif[0x0112] = 6                                        # stored lying on its side
    for side in ('train', 'test'):
        (tmp_path/side).mkdir()
        a = np.zeros((8, 8, 3), np.uint8); a[:4] = 255
        Image.fromarray(a).save(tmp_path/side/'a.png', exif=exif)
    x = load('folder', path=tmp_path).train.x[0, 0]
    assert (x[:, 4:] == 255).all() and (x[:, :4] == 0).all()

def test_folder_names_the_broken_file(tmp_path):
    many(tmp_path)
    bad = tmp_path/'bad.png'
    whole = (tmp_path/'1.png').read_bytes()
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8))
    noise.save(bad); cut = bad.read_bytes()[:2000]
    deep = Image.fromarray(np.full((20, 20), 40_000, np.uint16)); deep.save(bad); deep = bad.read_bytes()
    for content in (b'', b'notes', whole[:40], cut, deep):
        bad.write_bytes(content)
        m = message(ValueError, load, 'folder', path=tmp_path)
        assert 'bad.png' in m and 'readable 8-bit image' in m and 'move it away' in m and '\n' not in m
    image(bad, 30, 12)
    assert ('bad.png' in (m := message(ValueError, load, 'folder', path=tmp_path, size=16)) and '30x12' in m
            and 'size=12' in m)
    assert 'bad.png' in (m := message(ValueError, load, 'folder', path=tmp_path)) and 'pass size=' in m
    assert load('folder', path=tmp_path, size=12).event_shape == (3, 12, 12)
    bad.unlink(); image(tmp_path/'cat/0.png')
    assert 'beside labelled' in message(ValueError, load, 'folder', path=tmp_path)

def test_folder_too_small(tmp_path):
    assert '0 files' in message(ValueError, load, 'folder', path=tmp_path)
    image(tmp_path/'0.png')
    assert 'add images' in message(ValueError, load, 'folder', path=tmp_path)

# Toys and batches

def test_toys():
    for name in data._toys:
        d, again = load(name), load(name)
        assert torch.equal(d.train.x, again.train.x) and not torch.equal(d.train.x, d.test.x)
        assert (d.train.x.dtype == torch.float32 and d.vocab is None and d.event_shape == (2,)
                and d.test.x.abs().max() <= 1)
    x = load('swiss_roll').test.x.double() * (4.5 * np.pi + .5)
    turn = (x.norm(dim=1) - torch.atan2(x[:, 1], x[:, 0])) / (2 * np.pi)  # radius = angle, up to whole turns
    assert ((turn - turn.round()).abs() * 2 * np.pi).max() < .5 * 2**.5 * (1 + 1 / 4)
    x, y = load('two_moons').train
    centre = torch.where(y[:, None] == 1, torch.tensor([1., .5]), torch.tensor([0., 0.]))
    r = (x * 1.6 + torch.tensor([.5, .25]) - centre).norm(dim=1)
    assert (r - 1).abs().max() < .1 * 2**.5 + 1e-3 and y.float().mean().sub(.5).abs() < .02

@settings(deadline=None, max_examples=60)
@given(n=st.integers(1, 50), size=st.integers(1, 30), world=st.integers(1, 4), seed=st.integers(0, 2**40),
       k=st.integers(0, 40))
def test_batch_laws(n, size, world, seed, k):
    "Each epoch is a permutation; resuming at k continues; the processes share out the same batch"
    size *= world
    steps = -(-3 * n // size)
    x = torch.arange(n)
    epochs = torch.cat([b for b, _ in islice(batches(x, x, size, seed), steps)])[:3*n].view(3, n)
    assert (epochs.sort(1).values == x).all()
    run = [b for b, _ in islice(batches(x, x, size, seed), k + 2)]
    assert all(torch.equal(a, b) for a, (b, _) in zip(run[k:], batches(x, x, size, seed, step=k)))
    parts = [next(batches(x, None, size, seed, step=k, rank=r, world=world))[0] for r in range(world)]
    assert torch.equal(torch.stack(parts, 1).flatten(), run[k])
    assert all(len(p) == size // world for p in parts)

def test_epochs_and_seeds_differ():
    orders = {tuple(batch_indices(100, 100, seed, epoch)) for seed in range(10) for epoch in range(10)}
    assert len(orders) == 100
