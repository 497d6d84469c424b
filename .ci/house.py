"""Measure how the modules and notebooks read, and print a table beside the goals: `make house`.

`unfair` is also used by sync.py: it names statements that hold more than one idea.
"""
import ast
import json
import math
import re
import resource
import statistics
import subprocess
import sys
from pathlib import Path

root = Path(__file__).resolve().parent.parent
directive = re.compile(r'^#\|.*$', re.M)
exported = re.compile(r'^#\|\s*exporti?\b', re.M)

def modules(package):
    "Source of every module that notebooks wrote, by name."
    return {f.stem: f.read_text(encoding='utf-8') for f in sorted(package.glob('[a-z]*.py'))}

def body(function):
    "Statements of a function after its docstring."
    first = function.body[0]
    documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    return function.body[documented:]

def functions(tree):
    return [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]

def shape(node):
    "A syntax tree without its names and numbers."
    return re.sub(r"(id|attr|value|arg)=('[^']*'|[-\d.e]+|None|True|False)", r'\1', ast.dump(node))

def fair(assign):
    "Is a tuple assignment an unpacking, a parallel update, or one expression over several arguments?"
    target = assign.targets[0]
    value = assign.value
    if not (isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)): return True
    said = {ast.unparse(t) for t in target.elts}
    places = ast.Name, ast.Attribute, ast.Subscript
    read = {ast.unparse(n) for n in ast.walk(value) if isinstance(n, places)}
    if said & read: return True
    alike = len({shape(v) for v in value.elts}) == 1
    return alike and isinstance(value.elts[0], (ast.Call, ast.BinOp, ast.Subscript))

def semicolons(source):
    "Lines on which a statement follows another."
    ends = {}
    for n in ast.walk(ast.parse(source)):
        for block in ('body', 'orelse', 'finalbody'):
            statements = getattr(n, block, None)
            if not isinstance(statements, list): continue
            for a, b in zip(statements, statements[1:]):
                if b.lineno == a.end_lineno: ends[b.lineno] = True
    return list(ends)

def unfair(source):
    "(line, why) of statements that hold more than one idea."
    for line in semicolons(source): yield line, 'two statements'
    for n in ast.walk(ast.parse(source)):
        if isinstance(n, ast.Assign) and not fair(n): yield n.lineno, 'a tuple assignment of unlike things'

def shared_comments(source):
    "(line, why) of comments behind several parameters, which documents would give to the last alone."
    lines = source.splitlines()
    for f in functions(ast.parse(source)):
        named = {}
        for a in (*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs, f.args.vararg, f.args.kwarg):
            if a is None or a.arg in ('self', 'cls', 'ctx'): continue
            named.setdefault(a.lineno, []).append(a.arg)
        for line, names in named.items():
            code, _, comment = lines[line - 1].partition(' # ')
            if comment and '->' not in code and len(names) > 1:
                yield line, f'one comment for {", ".join(names)}'
            if comment and re.search(r'-> None:\s*$', code): yield line, 'a comment on -> None'

def nodes_per_line(sources):
    "Of every function, the nodes of its syntax tree over its lines."
    for source in sources.values():
        lines = source.splitlines()
        for f in functions(ast.parse(source)):
            said = body(f)
            if not said: continue
            text = lines[said[0].lineno - 1:said[-1].end_lineno]
            yield sum(1 for s in said for _ in ast.walk(s)) / sum(bool(l.strip()) for l in text)

def cells(notebook):
    "(source, is it code?) of every cell."
    found = json.loads(notebook.read_text(encoding='utf-8'))['cells']
    return [(''.join(c['source']), c['cell_type'] == 'code') for c in found]

def exports(cells):
    return [source for source, code in cells if code and exported.search(source)]

def definitions(cell):
    return [n.name for n in ast.parse(cell).body if isinstance(n, (ast.FunctionDef, ast.ClassDef))]

def asserted_soon(cells):
    """For every exported definition: its name, and whether code among the next three cells uses it.
    A module's `forward` is not called by its name."""
    for i, (source, code) in enumerate(cells):
        if not (code and exported.search(source)): continue
        later = '\n'.join(s for s, c in cells[i + 1:i + 4] if c and not exported.search(s))
        for name in definitions(source):
            if name == 'forward': continue
            yield name, bool(re.search(rf'\b{name}\b', later))

def public(sources):
    "Public names by module, from __all__."
    for module, source in sources.items():
        for n in ast.parse(source).body:
            if isinstance(n, ast.Assign) and getattr(n.targets[0], 'id', '') == '__all__':
                yield module, ast.literal_eval(n.value)

def page_words():
    "(page, words of its code), and of CONTRIBUTING."
    for notebook in (root/'nbs').rglob('*.ipynb'):
        plain = [s for s, code in cells(notebook) if code and not exported.search(s)]
        yield notebook.stem, set(re.findall(r'\w+', '\n'.join(plain)))
    yield 'CONTRIBUTING', set(re.findall(r'\w+', (root/'CONTRIBUTING.md').read_text(encoding='utf-8')))

def arguments(sources):
    "(number of own arguments, function), the longest first."
    found = [(len(f.args.args) + len(f.args.kwonlyargs), f'{module}.{f.name}')
             for module, source in sources.items() for f in functions(ast.parse(source))]
    return sorted(found, reverse=True)

def seconds(*command, rounds=5):
    "Least processor time of a command."
    def once():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, cwd=root, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return min(once() for _ in range(rounds))

def quantile(values, share):
    return sorted(values)[math.ceil(share * len(values)) - 1]

def main():
    sources = modules(root/'mulan_vdm')
    notebooks = sorted((root/'nbs').glob('[0-9][0-9]_*.ipynb'))
    pages = [cells(n) for n in notebooks]
    sizes = [len([l for l in directive.sub('', c).splitlines() if l.strip()])
             for page in pages for c in exports(page) if definitions(c)]
    soon = [found for page in pages for _, found in asserted_soon(page)]
    names = dict(public(sources))
    unused = [f'{m}.{n}' for m, ns in names.items() for n in ns
              if not any(re.search(rf'\b{n}\b', s) for k, s in sources.items() if k != m)]
    said = list(page_words())
    unread = [full for full in unused if not any(
        full.split('.')[1] in words for page, words in said if page[3:] != full.split('.')[0])]
    many, where = arguments(sources)[0]
    lines = sum(bool(l.strip()) for s in sources.values() for l in s.splitlines())
    faults = [(m, *f) for m, s in sources.items() for f in unfair(s)]
    python = sys.executable
    bare = seconds(python, '-c', '')
    torch = seconds(python, '-c', 'import torch')
    package = seconds(python, '-c', 'import mulan_vdm.systems')
    command = seconds(python, '-m', 'mulan_vdm', '--help')
    rows = [('syntax nodes per body line, median', f'{statistics.median(nodes_per_line(sources)):.1f}', '12'),
            ('two ideas in a statement', len(faults), '0'),
            ('exported cell, lines: median / 90%',
             f'{statistics.median(sizes):.0f} / {quantile(sizes, 0.9)}', '12 / 25'),
            ('definitions asserted or used within three cells', f'{statistics.mean(soon):.0%}', '85%'),
            ('public names', sum(map(len, names.values())), '170'),
            ('of these named by no other module', len(unused), ''),
            ('nor by another page', len(unread), ''),
            ('longest argument list', f'{many} ({where})', '15'),
            ('library lines', lines, '4703'),
            ('import over torch, processor seconds', f'{package - torch:.2f}', '0.15'),
            ('--help over python, processor seconds', f'{command - bare:.2f}', '0.1')]
    print(f"{'':50}{'now':>22}{'goal':>10}")
    for what, now, goal in rows: print(f'{what:50}{now!s:>22}{goal:>10}')
    if '--names' in sys.argv: print('\nnamed by no other module or page:', ', '.join(unread))
    if '--faults' in sys.argv: print('\n'.join(f'{m}.py:{line}: {why}' for m, line, why in faults))

if __name__ == '__main__': main()
