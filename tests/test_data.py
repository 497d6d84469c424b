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
    (dict(name='mnits'), 'name', "'mnits'", 'digits, fashion_mnist'),
    (dict(name='fashion_mnist', bits=0), 'bits', '0', 'from 1 to 8'),
    (dict(name='fashion_mnist', bits=9), 'bits', '9', 'from 1 to 8'),
    (dict(name='fashion_mnist', bits=3.0), 'bits', '3.0', 'integer'),
    (dict(name='fashion_mnist', bits=True), 'bits', 'True', 'integer'),
    (dict(name='fashion_mnist', bits='3'), 'bits', "'3'", 'integer'),
    (dict(name='fashion_mnist', size=0), 'size', '0', 'from 1 to 28'),
    (dict(name='fashion_mnist', size=29), 'size', '29', 'from 1 to 28'),
    (dict(name='imagenet64', size=65), 'size', '65', 'from 1 to 64'),
    (dict(name='folder', path='.', size=-1), 'size', '-1', 'at least 1'),
    (dict(name='folder', path='.', size=(8, 0)), 'size', '0', 'at least 1'),
    (dict(name='folder', path='.', size=(8, 8, 3)), 'size', '(8, 8, 3)', 'height and width'),
    (dict(name='folder', path='.', size=()), 'size', '()', 'height and width'),
    (dict(name='folder', path='.', size='8'), 'size', "'8'", 'integer'),
    (dict(name='folder', path='.', size=8.), 'size', '8.0', 'integer'),
    (dict(name='folder', path=''), 'path', "''", 'name of a folder'),
    (dict(name='folder', path=7), 'path', '7', 'name of a folder'),
    (dict(name='folder', path='a\0b'), 'path', "'a\\x00b'", 'name of a folder'),
    (dict(name='folder', path='~nobody-of-this-name/x'), 'path', "'~nobody-of-this-name/x'", 'home folder'),
    (dict(name='digits', grey=True), 'grey', 'True', 'leave it out'),
    (dict(name='folder', path='.', vocab=9), 'vocab', '9', 'leave it out'),
    (dict(name='folder', path='.', grey='no'), 'grey', "'no'", 'True or False'),
    (dict(name='arrays', path='.', vocab=1), 'vocab', '1', 'at least 2'),
    (dict(name='arrays'), 'path', 'None', 'pass path=..., a .npy or .npz file'),
    (dict(name='imagenet32', path='.', download=True), 'download', 'True', 'Get Imagenet32_train_npz.zip'),
    (dict(name='digits', size=(4, 8)), 'size', '(4, 8)', 'is square'),
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

x = torch.zeros(4, 1, 2, 2).byte()
y = torch.tensor([0, 1, 1, 0])
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
    few = data_.draw(st.integers(1, n))
    more = data_.draw(st.integers(few, n))
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
    one = x.clone()
    one[3, 0, 1, 1] = 1
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
    s = data_.draw(st.integers(1, m))
    seed = data_.draw(st.integers(0, 99))
    x = np.random.default_rng(seed).integers(0, 256, (m, m))
    y = area_resize(torch.tensor(x, dtype=torch.uint8), s)
    i, j = data_.draw(st.integers(0, s - 1)), data_.draw(st.integers(0, s - 1))
    share = lambda i, k: max(Fraction(0), min(Fraction((i + 1) * m, s), k + 1) - max(Fraction(i * m, s), k))
    mean = sum(share(i, k) * share(j, l) * int(x[k, l]) for k in range(m)
               for l in range(m)) / Fraction(m, s)**2
    assert y.dtype == torch.uint8 and y[i, j].item() == round(mean)

def test_bits_and_release():
    d = load('digits')
    half = load('digits', size=4)
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
    files = {f: idx(a) for f, a in zip(data._idx_files, arrays)}
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
    name = data._idx_files[2] + '.gz'
    whole = (tmp_path/name).read_bytes()
    (tmp_path/name).write_bytes(whole[:len(whole) // 2])
    assert (name in (m := message(ValueError, load, 'fashion_mnist', path=tmp_path)) and 'fetch it again' in m
            and '\n' not in m)
    (tmp_path/name).write_bytes(gzip.compress(files[data._idx_files[2]][:-1] + b'x'))
    assert 'MNIST has the same file names' in (m := message(ValueError, load, 'fashion_mnist',
                                                            path=tmp_path)) and '\n' not in m
    (tmp_path/name).unlink()
    assert data._idx_files[2] in message(FileNotFoundError, load, 'fashion_mnist', path=tmp_path)

def test_fashion_mnist_never_waits_and_never_grows(tmp_path, fashion):
    files, _ = fashion
    write(tmp_path, files)
    bad = tmp_path/(data._idx_files[0] + '.gz')
    whole = bad.read_bytes()
    large = gzip.compress(bytes(2**26))
    for change, words in ((lambda: bad.write_bytes(large), 'more than 47,040,016 bytes'),
                          (lambda: bad.write_bytes(b''), 'is empty'), (lambda: os.mkfifo(bad), 'pipe'),
                          (lambda: bad.symlink_to('/dev/zero'), 'device'),
                          (lambda: bad.symlink_to('gone'), 'cannot be read'),
                          (lambda: bad.mkdir(), 'folder'), (lambda: bad.write_bytes(b'words'), 'damaged')):
        bad.unlink()
        change()
        m = message(ValueError, load, 'fashion_mnist', path=tmp_path)
        assert bad.name in m and words in m and 'fetch it again' in m and '\n' not in m
        if bad.is_dir():
            bad.rmdir()
            bad.touch()
    bad.unlink()
    bad.write_bytes(whole)
    load('fashion_mnist', path=tmp_path)

@pytest.mark.skipif(available()['fashion_mnist'] is None, reason='Fashion-MNIST is not on this machine')
def test_real_fashion_mnist():
    d = load('fashion_mnist')
    assert (len(d.train.x), len(d.test.x)) == (60_000, 10_000) and (d.test.y.bincount() == 1000).all()

# CIFAR-10

@pytest.fixture
def cifar(tmp_path, monkeypatch):
    "CIFAR-10's files in miniature; their md5 sums stand in for the real ones"
    from torchvision.datasets import CIFAR10
    folder = tmp_path/'cifar-10-batches-py'
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = []
    labels = []
    def put(f, content):
        (folder/f).write_bytes(raw := pickle.dumps(content))
        return hashlib.md5(raw).hexdigest()
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

def test_cifar10_never_waits_and_never_grows(cifar):
    folder = cifar[0]
    bad = folder/'data_batch_2'
    for change, word in ((lambda: os.mkfifo(bad), 'pipe'), (lambda: bad.touch(), 'empty'),
                         (lambda: (bad.touch(), os.truncate(bad, 2**30)), 'too long'),
                         (lambda: bad.symlink_to('/dev/zero'), 'device')):
        bad.unlink()
        change()
        m = message(ValueError, load, 'cifar10', path=folder)
        assert word in m and 'again' in m and '\n' not in m
    bad.unlink()
    bad.symlink_to('data_batch_1')
    (folder/'batches.meta').unlink()
    os.mkfifo(folder/'batches.meta')
    assert 'pipe' in message(ValueError, load, 'cifar10', path=folder)

# ImageNet

def imagenet(folder, side, per_batch=2, val=3, split=True):
    rng = np.random.default_rng(0)
    all_ = []
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
    monkeypatch.undo()
    monkeypatch.setattr(data, '_imagenet_counts', dict(train=20, test=3))
    val = tmp_path/'Imagenet32_val_npz/val_data.npz'
    date = val.stat().st_mtime
    np.savez(val, data=255 - first.test.x.flatten(1).numpy(), labels=[1, 2, 3])
    os.utime(val, (date, date))
    # other archives are read again, whatever their date, and the file of the old ones is removed
    assert torch.equal(load('imagenet32', path=tmp_path).test.x, 255 - first.test.x)
    assert len(list(tmp_path.glob('*.npy'))) == 2

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

def test_imagenet_archives_that_are_none(tmp_path, few):
    "Unequal numbers, other labels, empty, cut, pickled, too large: one line that names the file"
    imagenet(tmp_path, 32)
    val = tmp_path/'Imagenet32_val_npz/val_data.npz'
    whole = val.read_bytes()
    x = np.zeros((3, 3072), np.uint8)
    def refused(*words):
        m = message(ValueError, load, 'imagenet32', path=tmp_path)
        assert '\n' not in m and all(w in m for w in words)
        assert not list(tmp_path.glob('*.part'))
    for content in (b'', whole[:100], whole[:-200], pickle.dumps({'data': x, 'labels': [1, 2, 3]}), b'words'):
        val.write_bytes(content)
        refused("val_data.npz'", 'fetch it again')
    for changed, words in ((dict(data=x[:2]), ['3 labels for 2 images']),
                           (dict(labels=[0, 1, 2]), ['0 to 2', '1 to 1000']),
                           (dict(labels=[1, 2, 1001]), ['1 to 1001']),
                           (dict(labels=[1., 2., 3.]), ['float64']),
                           (dict(labels=[[1], [2], [3]]), ['(3, 1)']),
                           (dict(data=x.astype(int)), ['int64', 'not uint8']),
                           (dict(labels=np.array([1, 2, {}])), ['objects']),
                           (dict(data=np.array([{}])), ['objects'])):
        np.savez(val, **{**dict(data=x, labels=[1, 2, 3]), **changed})
        refused(*words)
    np.savez(val, images=x, labels=[1, 2, 3])
    refused('data.npy', 'fetch it again')
    val.unlink()
    os.mkfifo(val)
    refused('pipe')
    val.unlink()
    val.write_bytes(whole)
    batch = tmp_path/'Imagenet32_train_part1_npz/train_data_batch_2.npz'
    right = batch.read_bytes()
    date = batch.stat().st_mtime
    np.savez(batch, data=x[:1], labels=[1, 2])
    refused('2 labels for 1 images')
    batch.write_bytes(right)
    os.utime(batch, (date, date))      # the right one is back
    assert load('imagenet32', path=tmp_path).train.x.shape == (20, 3, 32, 32)

def test_imagenet_says_what_it_holds_before_it_is_unpacked(tmp_path, few, monkeypatch):
    "A header that claims more than the release is refused; nothing is unpacked"
    imagenet(tmp_path, 32)
    val = tmp_path/'Imagenet32_val_npz/val_data.npz'
    import io, zipfile
    with zipfile.ZipFile(val, 'w', zipfile.ZIP_DEFLATED) as z:
        for key, shape, kind in (('data', (2**40, 3072), '|u1'), ('labels', (2**40,), '<i8')):
            header = dict(descr=kind, fortran_order=False, shape=shape)
            np.lib.format.write_array_header_1_0(f := io.BytesIO(), header)
            z.writestr(f'{key}.npy', f.getvalue() + bytes(1000))
    monkeypatch.setattr(np, 'load', lambda *a, **k: pytest.fail('unpacked'))
    assert f'{2**40:,} test images' in message(ValueError, load, 'imagenet32', path=tmp_path)

def test_imagenet_file_that_is_short_is_made_again(tmp_path, few):
    train, _ = imagenet(tmp_path, 32)
    load('imagenet32', path=tmp_path)
    for cut in (-1, 60, 0):
        for f in tmp_path.glob('*.npy'): f.write_bytes(f.read_bytes()[:cut])
        assert np.array_equal(load('imagenet32', path=tmp_path).train.x.flatten(1), train[0])

# Folders

def image(file, w=20, h=20, colour=(10, 200, 30), mode='RGB', **kwargs):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (w, h), colour).save(file, **kwargs)

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
    (tmp_path/'.git').mkdir()
    (tmp_path/'.git/HEAD').write_text('x')
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
    exif = Image.Exif()
    exif[0x0112] = 6                                        # stored lying on its side
    for side in ('train', 'test'):
        (tmp_path/side).mkdir()
        a = np.zeros((8, 8, 3), np.uint8)
        a[:4] = 255
        Image.fromarray(a).save(tmp_path/side/'a.png', exif=exif)
    x = load('folder', path=tmp_path).train.x[0, 0]
    assert (x[:, 4:] == 255).all() and (x[:, :4] == 0).all()

def test_folder_names_the_broken_file(tmp_path):
    many(tmp_path)
    bad = tmp_path/'bad.png'
    whole = (tmp_path/'1.png').read_bytes()
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8))
    noise.save(bad)
    cut = bad.read_bytes()[:2000]
    deep = Image.fromarray(np.full((20, 20), 40_000, np.uint16))
    deep.save(bad)
    deep = bad.read_bytes()
    for content in (b'', b'notes', whole[:40], cut, deep):
        bad.write_bytes(content)
        m = message(ValueError, load, 'folder', path=tmp_path)
        assert 'bad.png' in m and 'readable 8-bit image' in m and 'move it away' in m and '\n' not in m
    image(bad, 30, 12)
    assert ('bad.png' in (m := message(ValueError, load, 'folder', path=tmp_path, size=16)) and '30x12' in m
            and 'size=12' in m)
    assert 'bad.png' in (m := message(ValueError, load, 'folder', path=tmp_path)) and 'pass size=' in m
    assert load('folder', path=tmp_path, size=12).event_shape == (3, 12, 12)
    bad.unlink()
    image(tmp_path/'cat/0.png')
    assert 'beside labelled' in message(ValueError, load, 'folder', path=tmp_path)

def test_folder_too_small(tmp_path):
    assert '0 images' in message(ValueError, load, 'folder', path=tmp_path)
    image(tmp_path/'0.png')
    assert 'add images' in message(ValueError, load, 'folder', path=tmp_path)

def test_folder_of_grey_files(tmp_path):
    "One channel if all files are stored in grey, whatever their form; a choice goes before"
    for k in range(30): image(tmp_path/f'{k}.png', mode='L', colour=7 * k)
    image(tmp_path/'la.png', mode='LA', colour=(9, 128))
    image(tmp_path/'one.png', mode='1', colour=1)
    d = load('folder', path=tmp_path)
    assert d.event_shape == (1, 20, 20) and ', grey' in d.release
    three = load('folder', path=tmp_path, grey=False)
    assert torch.equal(three.train.x, d.train.x.expand(-1, 3, -1, -1)) and ', grey' not in three.release
    image(tmp_path/'colour.png', colour=(200, 100, 50))
    mixed = load('folder', path=tmp_path)
    one = load('folder', path=tmp_path, grey=True)
    assert mixed.event_shape == (3, 20, 20) and one.event_shape == (1, 20, 20)
    weighted = (mixed.train.x * torch.tensor([.299, .587, .114]).view(3, 1, 1)).sum(1, keepdim=True)
    assert (one.train.x - weighted).abs().max() <= .51

def test_folder_of_rectangles(tmp_path):
    "Crop and shrink to (h, w) against the definition; a pair of equal numbers is the square"
    rng = np.random.default_rng(0)
    files = {f'{side}/{k}.png': rng.integers(0, 256, shape + (3,), dtype=np.uint8)
             for side in ('train', 'test') for k, shape in enumerate([(37, 53), (53, 37), (30, 90), (20, 9)])}
    for name, a in files.items():
        (tmp_path/name).parent.mkdir(exist_ok=True)
        Image.fromarray(a).save(tmp_path/name)
    d = load('folder', path=tmp_path, size=(20, 9))
    assert d.event_shape == (3, 20, 9) and 'resized to 20x9 by area' in d.release
    for x, (name, a) in zip((*d.train.x, *d.test.x), files.items()):
        h, w = a.shape[:2]
        b = min(h, 20 * w // 9), min(w, 9 * h // 20)
        top, left = (h - b[0]) // 2, (w - b[1]) // 2
        cut = torch.tensor(a).permute(2, 0, 1)[:, top:top + b[0], left:left + b[1]].double()
        fine = cut.repeat_interleave(20, -2).repeat_interleave(9, -1)
        exact = torch.nn.functional.avg_pool2d(fine[None], b)[0]
        assert (x - exact).abs().max() <= .5 + 1e-9
    assert load('folder', path=tmp_path, size=[20, 9]).fingerprint == d.fingerprint  # as JSON gives it
    square = load('folder', path=tmp_path, size=9)
    assert load('folder', path=tmp_path, size=(9, 9)).fingerprint == square.fingerprint
    assert 'smaller than size=(9, 20)' in message(ValueError, load, 'folder', path=tmp_path, size=(9, 20))

@pytest.mark.parametrize('train', ['train', 'Training', 'TRAIN', 'train_32x32', 'training_set', 'train2017'])
@pytest.mark.parametrize('test', ['validation', 'Valid', 'val2017', 'test-images', 'eval', 'TESTING', 'dev'])
def test_folder_splits_by_any_name(tmp_path, train, test):
    for k in range(4): image(tmp_path/train/f'{k}.png', colour=(k, 0, 0))
    for k in range(3): image(tmp_path/test/f'{k}.png', colour=(k, 9, 0))
    d = load('folder', path=tmp_path)
    assert (len(d.train.x), len(d.test.x), d.train.y, d.test.y) == (4, 3, None, None) and 'own' in d.release
    assert (d.train.x[:, 1] == 0).all() and (d.test.x[:, 1] == 9).all()

@pytest.mark.parametrize('names, words', [
    ('train/1 validation/1 test/1', ['test, train, validation', 'keep two']),
    ('train/1 Train/2 test/1', ['Train, test, train', 'keep two']), ('train/1', ['holds train', 'keep two']),
    ('val/1 test/1', ['keep two']), ('test/1 cat/1 dog/1', ['cat, dog, test', 'rename']),
    ('train/1 test/1 extra/1', ['extra, test, train', 'keep two']),
    ('train/1 test/1 0', ['0.png, test, train']),
    ('my_train/1 my_val/1', ['look like a split', 'call one train']),
    ('catsTrain/1 catsTest/2', ['look like a split']),
    ('x/train/1 x/validation/1', ["pass path=", "/x'"]),
    ('cat/train/1 cat/test/1 dog/train/1', ["'cat' holds a split", 'on top']),
    ('train/a/1 test/1', ["'test' in", 'no classes', 'same sub-folders']),
    ('train/1 test/b/1', ["'train' in", 'no classes']),
    ('train/a/1 test/a/1 test/2', ["'test/2.png' lies beside"]),
    ('train/a/1 test/b/1', ["'b' in", 'no training image', 'same sub-folders'])])
def test_folder_is_never_split_anew(tmp_path, names, words):
    "What looks like a split is one, or refused"
    for name in names.split(): image(tmp_path/f'{name}.png')
    m = message(ValueError, load, 'folder', path=tmp_path)
    assert '\n' not in m and m.startswith('folder: ') and all(w in m for w in words)

def test_folder_classes_called_train_or_test_tube(tmp_path):
    "Classes whose names merely begin like a split, or a train among vehicles, stay classes"
    for label in ('train', 'car', 'test_tube', 'valley'):
        for k in range(30): image(tmp_path/label/f'{k}.png')
    assert load('folder', path=tmp_path).train.y.unique().tolist() == [0, 1, 2, 3]

def said(call, *args, **kwargs):
    "What a call gives and the warnings that it makes"
    import warnings
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter('always')
        result = call(*args, **kwargs)
    return result, [str(w.message) for w in found]

def test_folder_says_what_it_leaves_out(tmp_path):
    for side in ('train', 'test'):
        for k in range(4): image(tmp_path/side/'cat'/f'{k}.png')
    for name in ('LICENSE', 'train/labels.csv', 'Thumbs.db', 'notes.txt'): (tmp_path/name).write_text('words')
    d, words = said(load, 'folder', path=tmp_path)
    assert len(d.train.x) == len(d.test.x) == 4 and len(words) == 1
    assert "no images are left out: 'LICENSE', 'Thumbs.db', 'notes.txt' and 1 more" in words[0]
    (tmp_path/'train/cat/x').write_bytes((tmp_path/'train/cat/0.png').read_bytes())  # an image without ending
    assert len(load('folder', path=tmp_path).train.x) == 5
    for name in ('a.heic', 'b.AVIF', 'c.svg', 'd.mp4', 'e.cr2'):
        (tmp_path/name).write_bytes(b'words')
        m = message(ValueError, load, 'folder', path=tmp_path)
        assert name in m and 'not read' in m and 'save it as one of' in m and '\n' not in m
        (tmp_path/name).unlink()

def test_folder_too_few(tmp_path):
    "One test image, and classes that nothing is learned of, are said when the folder is read"
    names = [f'{k}.png' for k in range(200)]
    test = [n for n in names if int(hashlib.sha256(n.encode()).hexdigest(), 16) % 10 == 0]
    for n in [n for n in names if n not in test][:5] + test[:1]: image(tmp_path/n)
    d, words = said(load, 'folder', path=tmp_path)
    assert len(d.test.x) == len(words) == 1 and 'one test image' in words[0] and 'add images' in words[0]
    names = [f'b/{k}.png' for k in range(200)]
    alone = next(n for n in names if int(hashlib.sha256(n.encode()).hexdigest(), 16) % 10 == 0)
    for k in range(40): image(tmp_path/'more/a'/f'{k}.png')
    image(tmp_path/'more'/alone)
    d, words = said(load, 'folder', path=tmp_path/'more')
    assert len(words) == 1 and "'b' in" in words[0] and 'no training image' in words[0]

def test_folder_links(tmp_path):
    "Links to files and folders count, wherever they lead; dead ones, loops and doubles are refused by name"
    place = tmp_path/'photos'
    for k in range(20):
        image(place/'cat'/f'{k}.png')
        image(tmp_path/'else/dogs'/f'{k}.png', colour=(k, 0, 0))
    (place/'dog').symlink_to(tmp_path/'else/dogs')
    (place/'cat/linked.png').symlink_to(tmp_path/'else/dogs/3.png')
    d = load('folder', path=place)
    assert len(d.train.x) + len(d.test.x) == 41 and d.train.y.unique().tolist() == [0, 1]
    (tmp_path/'way').symlink_to(place)
    assert load('folder', path=tmp_path/'way').fingerprint == d.fingerprint
    for link, target, words in (('dead.png', 'gone.png', 'leads nowhere'), ('dead', 'gone', 'leads nowhere'),
                                ('cat/self.png', 'self.png', 'leads nowhere'),
                                ('cat/up', '..', 'are one folder'),
                                ('again', 'cat', 'are one folder'), ('dog2', 'dog', 'are one folder'),
                                ('cat/here', '.', 'are one folder')):
        (place/link).symlink_to(target)
        m = message(ValueError, load, 'folder', path=place)
        assert words in m and 'remove' in m and '\n' not in m
        (place/link).unlink()
    bomb = tmp_path/'bomb'                                       # 2**30 ways to 31 folders
    for k in range(31): (bomb/f'{k:02}').mkdir(parents=True)
    for k in range(30):
        for way in 'ab': (bomb/f'{k:02}/{way}').symlink_to(f'../{k + 1:02}')
    assert 'are one folder' in message(ValueError, load, 'folder', path=bomb/'00')

def test_folder_never_waits_and_never_reads_what_is_no_file(tmp_path):
    import socket
    many(tmp_path, 30)
    os.mkfifo(tmp_path/'pipe.png')
    assert 'is a pipe, socket or device' in message(ValueError, load, 'folder', path=tmp_path)
    (tmp_path/'pipe.png').rename(tmp_path/'.pipe')
    (tmp_path/'null.png').symlink_to('/dev/zero')
    assert "null.png' is a pipe, socket or device" in message(ValueError, load, 'folder', path=tmp_path)
    (tmp_path/'null.png').unlink()
    with socket.socket(socket.AF_UNIX) as s:
        os.chdir(tmp_path)
        s.bind('s.png')
        assert 'is a pipe, socket or device' in message(ValueError, load, 'folder', path=tmp_path)
    (tmp_path/'s.png').unlink()
    (tmp_path/'x.png').touch()
    m = message(ValueError, load, 'folder', path=tmp_path)
    assert "x.png' is not a readable 8-bit image (it is empty" in m
    (tmp_path/'x.png').unlink()
    (tmp_path/'closed').mkdir()
    if os.geteuid():
        (tmp_path/'closed').chmod(0)
        assert 'cannot be read' in message(ValueError, load, 'folder', path=tmp_path)
        (tmp_path/'closed').chmod(0o700)
    assert load('folder', path=tmp_path).event_shape == (3, 20, 20)

def test_folder_starts_no_program(tmp_path, monkeypatch):
    "Formats that a reader would run, or hand to another program, are not opened under any name"
    monkeypatch.setattr(subprocess, 'Popen', lambda *a, **k: pytest.fail('a program was started'))
    many(tmp_path, 30)
    im = Image.new('RGB', (20, 20))
    for form in ('EPS', 'PDF', 'TGA', 'ICO', 'PCX', 'JPEG2000', 'SGI', 'IM', 'DDS'):
        im.save(tmp_path/'photo.png', form)
        m = message(ValueError, load, 'folder', path=tmp_path)
        assert 'photo.png' in m and 'cannot identify' in m and '\n' not in m
    for form in ('BMP', 'GIF', 'JPEG', 'PPM', 'TIFF', 'WEBP'):  # these are read by content
        im.save(tmp_path/'photo.png', form)
        assert load('folder', path=tmp_path).event_shape == (3, 20, 20)

def png(a, depth, colour):
    "A PNG file of rows `a` of bytes, by hand"
    part = lambda t, d: len(d).to_bytes(4, 'big') + t + d + zlib.crc32(t + d).to_bytes(4, 'big')
    h, w = a.shape[:2]
    head = w.to_bytes(4, 'big') + h.to_bytes(4, 'big') + bytes([depth, colour, 0, 0, 0])
    rows = b''.join(b'\0' + row.tobytes() for row in a)
    return (b'\x89PNG\r\n\x1a\n' + part(b'IHDR', head) + part(b'IDAT', zlib.compress(rows, 9))
            + part(b'IEND', b''))

def test_folder_refuses_what_it_would_cut(tmp_path):
    "More than eight bits a colour and more than one picture, in every format that has them"
    many(tmp_path, 30)
    deep = np.full((20, 20, 4), 0x12f0, '>u2')
    bad = {f'{colour}.png': png(deep[..., :channels], 16, colour)
           for colour, channels in ((0, 1), (2, 3), (4, 2), (6, 4))}
    bad['a.ppm'] = b'P6\n20 20\n65535\n' + deep[..., :3].tobytes()
    bad['b.pgm'] = b'P5\n20 20\n1000\n' + deep[..., 0].tobytes()
    bad['c.ppm'] = b'P3\n20 20\n1000\n' + b'999 ' * 1200
    for name, content in bad.items():
        (tmp_path/name).write_bytes(content)
        m = message(ValueError, load, 'folder', path=tmp_path)
        assert name in m and 'more than 8 bits' in m and 'readable 8-bit image' in m and '\n' not in m
        (tmp_path/name).unlink()
    Image.fromarray(deep[..., 0].astype('f')).save(tmp_path/'f.tiff')
    assert 'more than 8 bits' in message(ValueError, load, 'folder', path=tmp_path)
    (tmp_path/'f.tiff').unlink()
    frames = [Image.new('RGB', (20, 20), (90 * k, 0, 0)) for k in range(3)]
    for name in ('a.gif', 'a.png', 'a.webp', 'a.tiff'):
        frames[0].save(tmp_path/name, save_all=True, append_images=frames[1:])
        m = message(ValueError, load, 'folder', path=tmp_path)
        assert name in m and 'several pictures' in m and '\n' not in m
        frames[0].save(tmp_path/name)
        assert load('folder', path=tmp_path).event_shape == (3, 20, 20)
        (tmp_path/name).unlink()
    frames[0].save(tmp_path/'camera.jpg', 'MPO', save_all=True, append_images=frames[1:])
    with Image.open(tmp_path/'camera.jpg') as im: written = im.format == 'MPO'  # Pillow 10.1 writes it broken
    if written: assert load('folder', path=tmp_path).event_shape == (3, 20, 20) # the first is the picture

def test_folder_knows_the_size_before_it_decodes(tmp_path, monkeypatch):
    "Small files that claim many pixels are refused by their header; nothing is decoded"
    many(tmp_path, 30)
    monkeypatch.setattr(data, '_upright', lambda *a, **k: pytest.fail('decoded'))
    for h, w in ((10_001, 10_000), (13_000, 13_000), (40_000, 40_000), (2**31 - 1, 1), (1, 2**31 - 1)):
        one = png(np.zeros((1, 1), np.uint8), 1, 0)
        head = b'IHDR' + w.to_bytes(4, 'big') + h.to_bytes(4, 'big') + one[24:29]
        (tmp_path/'bomb.png').write_bytes(one[:12] + head + zlib.crc32(head).to_bytes(4, 'big') + one[33:])
        m, words = said(message, ValueError, load, 'folder', path=tmp_path)
        assert 'bomb.png' in m and '\n' not in m and 'pixels' in m and not words

def test_folder_beyond_the_memory(tmp_path, home, monkeypatch):
    "Mapped from a file that is made once, again when an image changes, and never half"
    many(tmp_path/'a', 40)
    whole = load('folder', path=tmp_path/'a', bits=3)
    monkeypatch.setattr(data, '_in_memory', 1000)
    mapped = load('folder', path=tmp_path/'a', bits=3)
    files = lambda: list((home/'.cache/mulan_vdm').glob('*.npy'))
    assert mapped.fingerprint == whole.fingerprint and len(files()) == 1
    with monkeypatch.context() as m:
        m.setattr(data, '_save_npy', lambda *a: pytest.fail('made again'))
        assert load('folder', path=tmp_path/'a', bits=3).fingerprint == whole.fingerprint
    image(tmp_path/'a/0.png', colour=(255, 255, 255))
    assert load('folder', path=tmp_path/'a', bits=3).fingerprint != whole.fingerprint and len(files()) == 1
    load('folder', path=tmp_path/'a', bits=3, size=10)
    load('folder', path=tmp_path/'a', grey=True)
    assert len(files()) == 3                                      # another change, another file
    os.truncate(files()[0], 5000)
    os.truncate(files()[1], 0)
    load('folder', path=tmp_path/'a', bits=3)
    load('folder', path=tmp_path/'a', bits=3, size=10)
    assert load('folder', path=tmp_path/'a', grey=True).event_shape == (1, 20, 20)
    monkeypatch.setattr(data.shutil, 'disk_usage', lambda p: type('', (), dict(free=10))())
    m = message(OSError, load, 'folder', path=tmp_path/'a', bits=1)
    assert 'do not fit' in m and 'make room' in m and '\n' not in m
    data._cache().rename(tmp_path/'old')
    data._cache().touch()   # no folder
    m = message(OSError, load, 'folder', path=tmp_path/'a')
    assert 'cannot be kept' in m and 'smaller size' in m and '\n' not in m

def test_folder_leaves_out_run_folders(tmp_path):
    many(tmp_path, 30)
    before = load('folder', path=tmp_path).fingerprint
    for run, inside in (('run', 'metrics.jsonl'), ('runs/deep', 'checkpoint/state.safetensors')):
        for f in ('config.json', inside):
            (tmp_path/run/f).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path/run/f).touch()
        image(tmp_path/run/'samples.png')
    d, words = said(load, 'folder', path=tmp_path)
    assert d.fingerprint == before and len(words) == 1
    assert "run folders are left out: 'run', 'runs/deep'" in words[0]
    assert d.path == str(tmp_path) and load('folder', path=os.path.relpath(tmp_path)).path == str(tmp_path)

def test_folder_with_names_that_no_line_can_hold(tmp_path):
    "Line breaks, bytes that are no text: read, and said in one line that can be printed"
    place = Path(os.fsdecode(os.fsencode(tmp_path) + b'/a\nb\xff'))
    many(place, 30)
    d = load('folder', path=place)
    assert '\n' not in d.release and d.release.encode() and len(d.train.x) + len(d.test.x) == 30
    for name in (b'c\nd.png', b'\xff\r.png'):
        file = place/os.fsdecode(name)
        file.write_bytes(b'words')
        m = message(ValueError, load, 'folder', path=place)
        assert m.isprintable() and m.encode() and '.png' in m
        file.unlink()
    (place/os.fsdecode(b'\xff\nnote')).write_text('words')
    d, words = said(load, 'folder', path=place)
    assert words[0].isprintable() and words[0].encode()

def test_same_names_other_pictures(tmp_path):
    "Two folders of one name hold two data sets; a folder that is moved stays the same one"
    many(tmp_path/'a/images', 30)
    many(tmp_path/'b/images', 30)
    image(tmp_path/'b/images/7.png')
    a, b = (load('folder', path=tmp_path/f/'images') for f in 'ab')
    assert a.release == b.release and a.fingerprint != b.fingerprint
    (tmp_path/'a/images').rename(tmp_path/'moved')
    assert load('folder', path=tmp_path/'moved').fingerprint == a.fingerprint

def test_threads_give_the_order_of_names(tmp_path, monkeypatch):
    many(tmp_path, 60)
    one = load('folder', path=tmp_path)
    monkeypatch.setattr(torch, 'get_num_threads', lambda: 5)
    assert load('folder', path=tmp_path).fingerprint == one.fingerprint
    for k in (50, 20): (tmp_path/f'{k}.png').write_bytes(b'words')
    assert "20.png'" in message(ValueError, load, 'folder', path=tmp_path)  # the first of them, always

def test_folder_says_who_reads_other_things(tmp_path):
    np.save(tmp_path/'a.npy', np.zeros((5, 4, 4), np.uint8))
    for path in (tmp_path, tmp_path/'a.npy'):
        m, words = said(message, ValueError, load, 'folder', path=path)
        assert "load('arrays')" in m and '\n' not in m
    assert 'is not a folder or file' in message(FileNotFoundError, load, 'arrays', path=tmp_path/'b.npy')

# Arrays

def arrays(place, packed, **named):
    "Writes arrays as an archive or a folder of files"
    if packed:
        np.savez(place, **named)
        return place
    place.mkdir()
    for name, a in named.items(): np.save(place/f'{name}.npy', a)
    return place

@pytest.mark.parametrize('packed', [True, False])
@pytest.mark.parametrize('x, y, held', [('train', 'train_labels', 'test'), ('x_train', 'y_train', 'x_test'),
    ('train_images', 'train_targets', 'val_images'), ('XTrain', 'trainLabels', 'validation'),
    ('Train', 'classes_train', 'eval')])
def test_arrays_by_name(tmp_path, packed, x, y, held):
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 256, (n, 8, 6), dtype=np.uint8) for n in (9, 4))
    if x == 'XTrain': x = 'xTrain'
    place = arrays(tmp_path/('a.npz' if packed else 'a'), packed, **{x: a, y: np.arange(9)[:, None], held: b})
    d = load('arrays', path=place)
    assert np.array_equal(d.train.x[:, 0], a) and np.array_equal(d.test.x[:, 0], b) and d.vocab == 256
    assert d.train.y.tolist() == list(range(9)) and d.test.y is None and d.event_shape == (1, 8, 6)
    assert 'own split' in d.release and d.path == str(place) and d.strata is None

@pytest.mark.parametrize('shape, event', [((40, 5), (5,)), ((40, 8, 6), (1, 8, 6)),
    ((40, 3, 8, 6), (3, 8, 6)), ((40, 8, 6, 3), (3, 8, 6)), ((40, 8, 6, 1), (1, 8, 6)),
    ((40, 16, 4, 4), (4, 16, 4)), ((40, 4, 4, 4), (4, 4, 4)), ((40, 1, 1, 1), (1, 1, 1))])
@pytest.mark.parametrize('kind, vocab, expected', [('u1', None, 256), ('u1', 9, 9), ('?', 2, 2),
    ('i8', 9, 9), ('>u2', 300, 300), ('i1', 5, 5), ('f8', None, None), ('f2', None, None),
    ('>f4', None, None)])
def test_arrays_by_shape_and_type(tmp_path, shape, event, kind, vocab, expected):
    "One array without a side: a tenth of the rows for test, in order, as they were"
    a = (np.arange(np.prod(shape)) % (2 if kind == '?' else 5)).reshape(shape).astype(kind)
    np.save(tmp_path/'a.npy', a)
    d = load('arrays', path=tmp_path/'a.npy', vocab=vocab)
    assert d.event_shape == event and d.vocab == expected and d.train.y is None
    test = np.array([int(hashlib.sha256(str(k).encode()).hexdigest(), 16) % 10 == 0 for k in range(40)])
    same = len(shape) < 4 or event == shape[1:]
    moved = a.reshape(-1, *event) if same else np.moveaxis(a, -1, 1)
    assert np.array_equal(d.test.x.numpy(), moved[test].astype(float)) and len(d.train.x) == (~test).sum()

@pytest.mark.parametrize('named, kwargs, words', [
    (dict(), {}, ['no array', 'name them']), (dict(mean=np.zeros(4), std=np.zeros(4)), {}, ['name them']),
    (dict(train=np.zeros((9, 4), 'u1'), y=np.zeros(9, int)), {}, ["'train', 'y'", 'name them']),
    ({name: np.zeros((9, 4), 'u1') for name in ('train', 'val', 'test')}, {}, ['name them']),
    (dict(x=np.zeros((9, 4), 'c8')), {}, ["'x'", 'complex64', 'uint8, int32']),
    (dict(x=np.array([{}] * 9)), {}, ["'x'", 'objects']), (dict(x=np.array(['a'] * 9)), {}, ["'x'", '<U1']),
    (dict(x=np.zeros(9)), {}, ["'x'", '(9,)', '(N, D)']),
    (dict(x=np.zeros((9, 1, 2, 3, 4, 5))), {}, ["'x'", '(9, 1, 2, 3, 4, 5)']),
    (dict(x=np.zeros((9, 4), int)), {}, ["'x'", 'int64', 'pass vocab=']),
    (dict(x=np.full((9, 4), .5)), dict(vocab=3), ["'x'", 'float32', 'leave vocab out']),
    (dict(x=np.zeros((9, 4))), dict(bits=3), ["'x'", '256 levels', 'leave size and bits out']),
    (dict(x=np.zeros((9, 4, 4), 'u1')), dict(size=5), ["'x'", '(9, 1, 4, 4)', 'size=5']),
    (dict(x=np.zeros((9, 4), 'u1')), dict(size=2), ["'x'", '(9, 4)', 'size=2']),
    (dict(x=np.full((40, 4), 9, 'u1')), dict(vocab=9), ['9 to 9', '0 to 8']),
    (dict(x=np.full((40, 4), -1)), dict(vocab=9), ['-1 to -1', '0 to 8']),
    (dict(x=np.full((40, 4), np.nan)), {}, ['not finite']), (dict(x=np.zeros((1, 4))), {}, ['1 examples']),
    (dict(x=np.zeros((0, 4))), {}, ['0 examples']),
    (dict(x=np.zeros((40, 4)), y=np.zeros(40)), {}, ["'y'", 'float32']),
    (dict(x=np.zeros((40, 4)), y=np.zeros(39, int)), {}, ['39']),
    (dict(x=np.zeros((40, 4)), y=np.full(40, -1)), {}, ["'y'", '-1', 'from 0']),
    (dict(train=np.zeros((9, 4), 'u1'), test=np.zeros((9, 5), 'u1')), {}, ['test.x', '(5,)', '(4,)']),
    (dict(train=np.zeros((9, 4), 'u1'), test=np.zeros((9, 4))), {}, ['test.x', 'float32'])])
@pytest.mark.parametrize('packed', [True, False])
def test_arrays_that_are_none(tmp_path, packed, named, kwargs, words):
    place = arrays(tmp_path/('a.npz' if packed else 'a'), packed, **named)
    if packed and not named: np.savez(place)
    m, _ = said(message, ValueError, load, 'arrays', path=place, **kwargs)
    assert '\n' not in m and all(w in m for w in words)

def test_arrays_say_what_they_leave_out(tmp_path):
    np.savez(tmp_path/'a.npz', x=np.zeros((90, 4, 4), 'u1'), mean=np.zeros(4))
    d, words = said(load, 'arrays', path=tmp_path/'a.npz')
    assert d.event_shape == (1, 4, 4) and words == ["arrays: other names are left out: 'mean'"]

def test_arrays_that_are_damaged(tmp_path):
    "Cut, empty, foreign, pickled, huge and special files: one line that names them, and no waiting"
    import io, zipfile
    x = np.zeros((40, 4, 4), 'u1')
    np.save(tmp_path/'a.npy', x)
    np.savez(tmp_path/'a.npz', x=x)
    for file in (tmp_path/'a.npy', tmp_path/'a.npz'):
        whole = file.read_bytes()
        newer = b'\x93NUMPY\x07\x00' + whole[8:]
        for content in (b'', b'words', whole[:20], whole[:-1], pickle.dumps([1]), newer):
            file.write_bytes(content)
            m = message(ValueError, load, 'arrays', path=file)
            assert m.startswith('arrays: ') and '\n' not in m
        file.unlink()
        os.mkfifo(file)
        assert 'pipe' in message(ValueError, load, 'arrays', path=file)
    (tmp_path/'b').mkdir()
    os.mkfifo(tmp_path/'b/train.npy')
    assert 'pipe' in message(ValueError, load, 'arrays', path=tmp_path/'b')
    with zipfile.ZipFile(tmp_path/'c.npz', 'w') as z:
        header = dict(descr='|u1', fortran_order=False, shape=(2**33, 4))
        np.lib.format.write_array_header_1_0(f := io.BytesIO(), header)
        z.writestr('x.npy', f.getvalue())
    assert 'unpacks to more than' in message(ValueError, load, 'arrays', path=tmp_path/'c.npz')

def test_arrays_are_mapped_and_not_read_whole(tmp_path, monkeypatch):
    "Sixteen gigabytes that take no room: loaded, looked at, and a batch taken"
    (tmp_path/'a').mkdir()
    for name, n in (('train', 2**22), ('test', 1000)):
        np.lib.format.open_memmap(tmp_path/f'a/{name}.npy', 'w+', 'u1', (n, 64, 64, 1))
    d = load('arrays', path=tmp_path/'a')
    assert d.event_shape == (1, 64, 64) and len(d.train.x) == 2**22
    x, _ = next(batches(*d.train, 8, seed=0))
    assert x.shape == (8, 1, 64, 64) and d.train.some(3).x.shape == (3, 1, 64, 64)
    assert 'are split by no hash' in message(ValueError, load, 'arrays', path=tmp_path/'a/train.npy')

def test_arrays_train(tmp_path):
    "Every kind of array that is read can be learned and judged"
    from mulan_vdm import evaluate, fit, vdm
    rng = np.random.default_rng(0)
    for k, (a, how) in enumerate([(rng.integers(0, 300, (40, 8, 8, 3)), dict(vocab=300)),
                                  (rng.random((40, 5)), {}),
                                  (rng.integers(0, 256, (40, 8, 8)).astype('u1'), dict(size=(4, 6), bits=3)),
                                  (rng.integers(0, 2, (40, 6)).astype(bool), dict(vocab=2))]):
        np.save(tmp_path/f'{k}.npy', a)
        d = load('arrays', path=tmp_path/f'{k}.npy', **how)
        model = vdm(d.event_shape, d.vocab, channels=8, blocks=1, fourier=(3., 4.))
        for step in fit(model, d, steps=1, batch_size=8, progress=False): pass
        assert evaluate(step.model, d.test.x, draws=2).bpd.isfinite().all()

# Hugging Face

def test_huggingface_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'datasets', None)
    assert 'pip install datasets' in message(ValueError, load, 'huggingface', path=tmp_path)

def test_huggingface(tmp_path):
    "Parts by name or by hash, decoded here and not by the package, which opens every format"
    datasets = pytest.importorskip('datasets', exc_type=ImportError) # its pyarrow wants a newer numpy
    datasets.disable_progress_bars()
    kinds = dict(image=datasets.Image(), label=datasets.ClassLabel(names=['a', 'b']),
                 caption=datasets.Value('string'))
    def made(n, columns=kinds, **changed):
        rows = dict(image=[Image.new('RGB', (6, 4), (k, 0, 0)) for k in range(n)],
                    label=[k % 2 for k in range(n)], caption=['x'] * n) | changed
        return datasets.Dataset.from_dict({k: rows[k] for k in columns}, datasets.Features(columns))
    made(40).save_to_disk(tmp_path/'one')
    d = load('huggingface', path=tmp_path/'one')
    test = [k for k in range(40) if int(hashlib.sha256(str(k).encode()).hexdigest(), 16) % 10 == 0]
    assert d.test.x[:, 0, 0, 0].tolist() == test and d.test.y.tolist() == [k % 2 for k in test]
    assert sorted(d.train.x[:, 0, 0, 0].tolist() + test) == list(range(40)) and d.event_shape == (3, 4, 6)
    datasets.DatasetDict(validation=made(3), train=made(5)).save_to_disk(tmp_path/'two')
    d = load('huggingface', path=tmp_path/'two', size=(2, 3), grey=True)
    assert (len(d.train.x), len(d.test.x), d.event_shape) == (5, 3, (1, 2, 3))
    assert 'own split, grey' in d.release
    program = dict(bytes=b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', path=None)
    three = {name: made(3) for name in ('train', 'test', 'validation')}
    bad = {'three': (datasets.DatasetDict(three), 'keep train and one of'),
           'eps': (made(40, image=[program] * 40),
                   'is not a readable 8-bit image (cannot identify image file it)'),
           'none': (made(40, dict(label=kinds['label'])), '0 columns of type Image'),
           'both': (made(40, dict(kinds, other=kinds['label']), other=[0] * 40),
                    '2 columns of type ClassLabel'),
           'few': (made(2), '2 images give')}
    for name, (content, words) in bad.items():
        content.save_to_disk(tmp_path/name)
        m = message(ValueError, load, 'huggingface', path=tmp_path/name)
        assert words in m and '\n' not in m
    m = message(ValueError, load, 'huggingface', path=tmp_path/'one', size=9)
    assert m.startswith("huggingface: '0' is 6x4, smaller than size=9")
    wide = [Image.new('RGB', (9, 4))]
    made(20, image=wide + [Image.new('RGB', (6, 4))] * 19).save_to_disk(tmp_path/'wide')
    m = message(ValueError, load, 'huggingface', path=tmp_path/'wide')
    assert m.startswith('huggingface: size=None, but ')
    (tmp_path/'no').mkdir()
    m = message(ValueError, load, 'huggingface', path=tmp_path/'no')
    assert 'save_to_disk' in m and '\n' not in m

# Downloads: torchvision's functions are replaced, nothing is fetched

@pytest.mark.parametrize('name, kind', [('cifar10', 'CIFAR10'), ('mnist', 'MNIST'),
                                        ('fashion_mnist', 'FashionMNIST')])
def test_download_is_asked_for(tmp_path, home, monkeypatch, name, kind):
    import torchvision
    monkeypatch.setattr(data, '_roots', lambda path=None, f=data._roots:
                                        [r for r in f(path) if r != Path('/usr/share/datasets')])
    calls = []
    def fetch(root, download):
        calls.append((root, download))
        raise RuntimeError('no\nnetwork')
    monkeypatch.setattr(torchvision.datasets, kind, fetch)
    assert 'Or pass download=True' in message(FileNotFoundError, load, name) and not calls
    m = message(OSError, load, name, download=True)
    assert f'{name} could not be fetched (no network)' in m and 'Get ' in m and '\n' not in m
    message(OSError, load, name, download=True, path=tmp_path/'here')
    assert calls == [(home/'.cache/mulan_vdm', True), (tmp_path/'here', True)]

def test_download_is_not_repeated(cifar, monkeypatch):
    monkeypatch.setattr(data, '_fetched', lambda *a: pytest.fail('fetched again'))
    assert len(load('cifar10', path=cifar[0], download=True).test.x) == 4

def test_mnist(tmp_path, fashion, monkeypatch):
    from torchvision.datasets import MNIST
    files, arrays = fashion
    write(tmp_path, files)
    assert 'has not the md5 sum' in message(ValueError, load, 'mnist', path=tmp_path)
    sums = [(f.name, hashlib.md5(f.read_bytes()).hexdigest()) for f in tmp_path.iterdir()]
    monkeypatch.setattr(MNIST, 'resources', sums)
    d = load('mnist', path=tmp_path)
    assert np.array_equal(d.train.x[:, 0], arrays[0]) and np.array_equal(d.test.y, arrays[3])
    os.truncate(tmp_path/'train-labels-idx1-ubyte.gz', 12)
    m = message(ValueError, load, 'mnist', path=tmp_path)
    assert "train-labels-idx1-ubyte.gz' is damaged" in m and '\n' not in m

def test_no_home_folder(monkeypatch):
    "A user without an entry and without HOME: what needs no files works, what needs them says so"
    def none(): raise RuntimeError('Could not determine home directory.')
    monkeypatch.setattr(Path, 'home', none)
    assert available()['digits'] and available()['cifar10'] is None and len(load('digits').test.x) == 360
    assert '/usr/share/datasets' in message(FileNotFoundError, load, 'cifar10')
    assert 'set HOME' in message(FileNotFoundError, load, 'cifar10', download=True)

def test_too_few_to_judge_or_to_probe(tmp_path):
    "One class, few images, one test image: said at the beginning, in one line"
    from mulan_vdm.evaluation import mean_se
    from mulan_vdm.judging import check_scores, sample_scores, train_judge
    from mulan_vdm.probing import probe
    digits = load('digits')
    one = digits.train.y == 3
    alone = digits._replace(train=data.Split(digits.train.x[one], digits.train.y[one]))
    few = digits._replace(test=digits.test.some(11))
    split = data.Split(torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))
    for words, call in (('digits has one class', lambda: train_judge(alone)),
                        ('digits has one class', lambda: sample_scores(None, alone, digits.test.x)),
                        ('11 test images of digits: at least 40', lambda: check_scores(few, 40)),
                        ('39 samples: at least 40', lambda: sample_scores(None, digits, digits.test.x[:39])),
                        ('4 training images: five neighbours need at least 5', lambda: probe(split, split)),
                        ('1 image of which no standard error', lambda: mean_se(torch.zeros(1)))):
        m = message(ValueError, call)
        assert words in m and '\n' not in m

def test_data_remember_how_they_were_loaded(tmp_path, monkeypatch):
    "The same data again, from any folder, out of what a configuration can hold"
    import json
    many(tmp_path/'photos', 30)
    np.save(tmp_path/'a.npy', np.zeros((40, 5), int))
    monkeypatch.chdir(tmp_path)
    made = [load('folder', path='photos', size=(4, 6), bits=3, grey=True),
            load('arrays', path='a.npy', vocab=9),
            load('digits'), load('digits', size=4), load('two_moons')]
    monkeypatch.chdir('/')
    for d in made: assert load(**json.loads(json.dumps(d.loaded))).fingerprint == d.fingerprint

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
