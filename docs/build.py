"""Render the site: MyST sources in _proc/ from the notebooks as they are stored, then pages in
_docs/. No notebook is run.

`_quarto.yml` is the table of contents. Equation labels, links and names of the public API are resolved here
or by Sphinx; one that leads nowhere ends the build.
"""
import ast, importlib, inspect, json, re, shutil, sys
from collections import Counter
from pathlib import Path
from posixpath import relpath

import yaml
from execnb.nbio import NbCell
from fastcore.docments import docments
from nbdev.config import get_config
from nbdev.process import extract_directives
from sphinx.cmd.build import main as sphinx

root = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(root/'.ci'))
from papers import cited, paper_of, paragraph, papers

work, site = root/'_proc', root/'_docs'
source = work/'source'
config = get_config(path=root)
problems = []

# ---- the table of contents ---------------------------------------------------------------------------------

def contents():
    """(caption, [notebook paths without suffix]) of each group in the sidebar of `_quarto.yml`;
    single pages have no caption."""
    for entry in yaml.safe_load((root/'_quarto.yml')
                                .read_text(encoding='utf-8'))['website']['sidebar']['contents']:
        if isinstance(entry, str): yield '', [entry.removesuffix('.ipynb')]
        else: yield entry['section'], [page.removesuffix('.ipynb') for page in entry['contents']]

def toctree(pages, caption='', hidden=True):
    "A Sphinx toctree of `pages`, absolute names."
    options = [f':caption: {caption}'] * bool(caption) + [':hidden:'] * hidden
    return '\n'.join(['```{toctree}', *options, '', *(f'/{p}' for p in pages), '```'])

# ---- notebooks ---------------------------------------------------------------------------------------------

equation = r'^\$\$(?P<tex>.+?)\$\$[ ]*(?:\{\#(?P<label>eq-[\w-]+)\})?[ ]*$'
labelled = re.compile(equation, re.M | re.S)
heading = re.compile(r'^(#{1,6})[ ]+(.+?)[ ]*$', re.M)

def patched(node):
    "(class, is it a property?) of a function that `patch` adds to a class, else None."
    for d in getattr(node, 'decorator_list', ()):
        keywords = d.keywords if isinstance(d, ast.Call) else []
        if ast.unparse(d).split('(')[0] == 'patch':
            return ast.unparse(node.args.args[0].annotation), any(k.arg == 'as_prop' for k in keywords)
    return None

def names_of(node):
    "The names that a statement defines."
    if hasattr(node, 'name'): return [node.name]
    targets = getattr(node, 'targets', None) or [getattr(node, 'target', None)]
    return [t.id for t in targets if isinstance(t, ast.Name)]

def is_exported(flags):
    "Is a cell with these directives part of a module?"
    return bool({'export', 'exporti'} & flags.keys())

class Page:
    """A notebook: its cells as (kind, text, directives, cell), its title, its labels, the section and
    cell that define each name, and the methods that it adds to classes cell by cell."""
    def __init__(self, name):
        self.name = name
        self.cells = []
        self.defined = {}
        self.added = []
        section = ''
        path = root/'nbs'/f'{name}.ipynb'
        if not path.exists(): sys.exit(f'_quarto.yml lists {name}.ipynb, which is not in nbs/')
        for i, cell in enumerate(json.loads(path.read_text(encoding='utf-8'))['cells']):
            code = NbCell(i, {**cell, 'source': ''.join(cell['source'])})
            # takes nbdev's directives out of code.source
            flags = extract_directives(code) if cell['cell_type'] == 'code' else {}
            if flags: code.source = re.sub(r'^#\|.*\n?', '', code.source, flags=re.M)   # Quarto's stay in it
            self.cells.append((cell['cell_type'], code.source.strip('\n'), flags, cell))
            if cell['cell_type'] == 'markdown':
                section = ([t for _, t in heading.findall(code.source)] or [section])[-1]
            if not is_exported(flags): continue
            for node in ast.parse(code.source).body:
                if patched(node): self.added.append((patched(node)[0], cell['id'], node))
                else:
                    self.defined.update({n: (section, cell['id'], node, code.source) for n in names_of(node)})
        self.title = next((t for kind, text, *_ in self.cells if kind == 'markdown'
                           for _, t in heading.findall(text)), name)
        self.said = next((m[1] for kind, text, *_ in self.cells if kind == 'markdown'
                          for m in [re.search(r'^> (.+(?:\n> .+)*)', text, re.M)] if m), '')
        self.module = next((flags['default_exp'][0] for _, _, flags, _ in self.cells
                            if 'default_exp' in flags), None)
        found = Counter(m['label'] for kind, text, *_ in self.cells if kind == 'markdown'
                        for m in labelled.finditer(text) if m['label'])
        problems.extend(f'{name}: the label {l} is given {n} times' for l, n in found.items() if n > 1)
        self.labels = set(found)

def name_in(module, entry):
    "The name under which a module holds an entry of a table, or what the entry is a `partial` of."
    entry = getattr(entry, 'func', entry)
    return next((name for name, value in vars(module).items() if value is entry), None)

def key(page, label): return f"{page.replace('/', '-')}-{label}"
def anchor(page, cell): return f"cell-{page.replace('/', '-')}-{cell}"

class Book:
    "All pages: what needs to know of more than one."
    def __init__(self):
        self.groups = list(contents())
        self.pages = {name: Page(name) for _, names in self.groups for name in names}
        self.modules = {p.module: p for p in self.pages.values() if p.module}
        unlisted = {p.relative_to(root/'nbs').with_suffix('').as_posix() for p in (root/'nbs')
                    .rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts} - set(self.pages)
        problems.extend(f'{name}.ipynb is not listed in _quarto.yml' for name in sorted(unlisted))
        self.public = dict(self.names())
        self.tables = dict(self.listed())
        self.public.update({f'{module}.{c}.{f.name}': module for module in self.modules
                            for c in importlib.import_module(f'{config.lib_path.name}.{module}').__all__
                            for _, _, f in self.added(c)})

    def added(self, c):
        "(page, cell, syntax tree) of the public methods that notebooks add to the class `c` cell by cell."
        return [(page, cell, f) for page in self.pages.values() for name, cell, f in page.added
                if name == c and not f.name.startswith('_')]

    def names(self):
        """(full name, module) of what the API pages describe: nbdev's index without private
        names, and exported constants."""
        for module, page in self.modules.items():
            index = importlib.import_module(
                f'{config.lib_path.name}._modidx').d['syms'][f'{config.lib_path.name}.{module}']
            exported = importlib.import_module(f'{config.lib_path.name}.{module}').__all__
            for name in [n.split('.', 2)[2] for n in index] + exported:
                if (not any(part.startswith('_') for part in name.split('.'))
                    and name.split('.')[0] in exported):
                    yield f'{module}.{name}', module

    def listed(self):
        "(full name, that of the table) of what has no entry of its own, but stands in a public table."
        for full, module in self.public.items():
            home = importlib.import_module(f'{config.lib_path.name}.{module}')
            table = getattr(home, full.split('.')[1])
            for entry in table.values() if isinstance(table, dict) else ():
                name = name_in(home, entry)
                own = name in self.modules[module].defined and not name.startswith('_')
                if own and f'{module}.{name}' not in self.public: yield f'{module}.{name}', full

    def full_name(self, text, home):
        """The public object that the code `text` names, seen from the module `home`, or None. What the
        command line defines are words such as `train`, which name other things elsewhere."""
        name = text.removeprefix(f'{config.lib_path.name}.').split('(')[0]
        for module in [home, *(m for m in self.modules if m != 'cli')]:
            if f'{module}.{name}' in self.public: return f'{module}.{name}'
            if f'{module}.{name}' in self.tables: return self.tables[f'{module}.{name}']
        return name if name in self.public else None

    def api_link(self, text, home):
        "The code `text`, as a link to the API if it names something there, seen from the module `home`."
        lib = config.lib_path.name
        if text.removeprefix(f'{lib}.') in self.modules and text.startswith(lib): return f'{{py:mod}}`{text}`'
        name = self.full_name(text, home)
        return f'{{py:obj}}`{text} <{lib}.{name}>`' if name else f'`{text}`'

    def reference(self, label, home, here):
        "The equation `label`, written on or for the page `home`, read on the page `here`."
        owners = ([home] if home in self.pages and label in self.pages[home].labels
                  else [p.name for p in self.pages.values() if label in p.labels])
        if len(owners) == 1:
            return f'{{eq}}`{key(owners[0], label)}`' + (f' of {self.link(owners[0], here)}'
                                                         if owners[0] != here else '')
        problems.append(f"{home}: @{label} is "
                        + (f"ambiguous: {', '.join(owners)}" if owners else 'nowhere'))
        return f'@{label}'

    def link(self, name, here):
        "A link from the page `here` to the page `name`."
        return f'[{self.pages[name].title}]({relpath(name, here.rpartition("/")[0] or ".")}.ipynb)'

# ---- markdown ----------------------------------------------------------------------------------------------

references = list(papers())
called = {name: paper for paper in references for name in paper.short}
short_names = '|'.join(map(re.escape, sorted(called, key=len, reverse=True)))

tokens = re.compile(rf'''(?P<fence>^(?P<ticks>`{{3,}}|~{{3,}}).*?^(?P=ticks)[ ]*$)
    | (?P<heading>^\#{{1,6}}[ ][^\n]*$) | (?P<equation>{equation}) | (?P<math>\$[^$\n]+(?:\n[^$\n]+)?\$)
    | (?P<link>!?\[[^\]\n]*(?:\n[^\]\n]+)?\]\([^)\n]*\)) (?P<attributes>\{{[^}}\n]*\}})?
    | `(?P<code>[^`\n]+)` | (?<![\w.@])@(?P<ref>eq-[\w-]*\w)
    | ^(?P<colons>:{{3,}})[ ]*(?P<div>\{{[^}}\n]*\}})?[ ]*$
    | {cited.pattern} | (?<![\w-])(?P<short>{short_names})(?![\w+-])''', re.M | re.S | re.X)

def cite(text, paper): return f"{{ref}}`{' '.join(text.split())} <{paper.anchor}>`"

def citation(m, home):
    "The citation that `tokens` found, as a link to the references."
    try: paper = paper_of(m, references)
    except LookupError as e: problems.append(f'{home}: {e}')
    else: return cite(m[0], paper) if paper else m[0]
    return m[0]

def mention(m, seen):
    "The short name of a paper, a link where it is `seen` for the first time; no link if None are counted."
    if seen is None or m['short'] in seen: return m[0]
    seen.add(m['short'])
    return cite(m[0], called[m['short']])

def markdown(text, book, home, here=None, seen=None):
    """MyST for Quarto's `text` of the page `home`: equations, references, callouts, names of the API, papers;
    `seen` are the papers that the page has named."""
    here, module = here or home, book.pages[home].module if home in book.pages else None
    if home == 'references':
        anchors = {paper.label: paper.anchor for paper in references}
        return paragraph.sub(lambda m: f"({anchors[m['label']]})=\n{m[0]}", text)
    # a badge is a picture from another host: its words stay
    text = re.sub(r'\[!\[([^\]]*)\]\(https?:[^)]*\)\](\([^)]*\))( (?=\[!))?',
                  lambda m: f"[{m[1]}]{m[2]}{' · ' * bool(m[3])}", text)
    def token(m):
        if m['equation']:
            return '\n'.join(['```{math}', *([f":label: {key(home, m['label'])}"] if m['label'] else []), '',
                              m['tex'].strip(), '```'])
        if m['ref']: return book.reference(m['ref'], home, here)
        if m['link']: return m['link']
        if m['code']: return book.api_link(m['code'], module)
        if m['colons']: return m['colons'] + callout(m['div'] or '', home)
        if m['year']: return citation(m, home)
        if m['short']: return mention(m, seen)
        return m[0]
    return tokens.sub(token, text)

def callout(attributes, home):
    "The MyST admonition for the attributes of Quarto's fenced div."
    if not attributes: return ''
    kind = re.search(r'\.callout-(note|tip|warning|important|caution)', attributes)
    if not kind: problems.append(f'{home}: no page can show the div {attributes}')
    title = re.search(r'title="([^"]*)"', attributes)
    return (f'{{admonition}} {title[1]}\n:class: {kind[1]}' if kind and title
            else f'{{{kind[1]}}}' if kind else '')

def plain(text):
    "The last paragraph of markdown `text` as one line without markup, for a picture that cannot be seen."
    paragraphs = [p for p in re.split(r'\n\s*\n', labelled.sub('', text))
                  if p.strip() and not p.lstrip().startswith(('#', '|', '$$', ':::'))]
    line = without_markup((paragraphs or [''])[-1])
    return line if len(line) < 400 else line[:400].rsplit('. ', 1)[0] + '.'

def without_markup(text):
    "Markdown `text` as one line of words."
    line = re.sub(r'\s+>?\s*', ' ', text).strip()
    return re.sub(r'!?\[([^\]]*)\]\([^)]*\)|\*\*?([^*]+)\*\*?|`([^`]+)`|\$([^$]+)\$|^[>*-] ',
                  lambda m: next(filter(None, m.groups()), ''), line)

# ---- cells -------------------------------------------------------------------------------------------------

def as_markdown(text): return dict(cell_type='markdown', metadata={}, source=text)

def as_code(text, outputs, tags, alt='', caption=''):
    "A code cell for myst-nb."
    shown = dict(image=dict(alt=alt)) | (dict(figure=dict(caption=caption)) if caption else {})
    return dict(cell_type='code', metadata=dict(tags=tags, mystnb=shown), source=text, outputs=outputs,
                execution_count=None)

def harness(page, text, flags):
    "Is this cell of a study the apparatus of a measurement? Such cells are folded."
    if not page.name.startswith('studies/') or is_exported(flags): return False
    return 'slow' in flags or len(text.splitlines()) > 12 and not re.search(r'\b(assert|test_|error\()', text)

def code(cell, book, page, before):
    """Cells that show the code cell `cell`: source and outputs as its directives ask;
    `before` is the markdown above."""
    _, text, flags, stored = cell
    flags = {k.rstrip(':'): ' '.join(v).strip('"\'') for k, v in flags.items()}
    if ({'hide', 'default_exp'} & flags.keys() or flags.get('include') == 'false'
        or not (text.strip() or stored['outputs'])):
        return
    alt = flags.get('fig-alt') or flags.get('fig-cap') or plain(before) or page.title
    tags = []
    if is_exported(flags):
        tags.append('export')
        yield as_markdown(f"({anchor(page.name, stored['id'])})=")
    if flags.get('echo') == 'false': tags.append('remove-input')
    if flags.get('code-fold') == 'true' or harness(page, text, flags): tags.append('hide-input')
    # live sliders need a kernel; those of Stepped are HTML and stay
    outputs = [] if flags.get('output') == 'false' else [o for o in stored['outputs'] if not ''.join(
        o.get('data', {}).get('text/plain', '')).startswith('interactive(')]
    run = []  # markdown outputs become cells of their own, in their place
    for out in outputs:
        rich = out.get('data', {}).get('text/markdown')
        if not rich:
            run.append(out)
            continue
        yield as_code(text, run, tags, alt)
        yield as_markdown(markdown(''.join(rich), book, page.name))
        run = []
        tags = ['remove-input']
    if run or not outputs or 'remove-input' not in tags:
        yield as_code(text, run, tags, alt, flags.get('fig-cap', ''))

def links(page):
    "Where to run and to read the notebook itself."
    path = f'blob/{config.branch}/nbs/{page.name}.ipynb'
    places = ["[Open in "
              f"Colab]({config.git_url.replace('github.com', 'colab.research.google.com/github')}/{path})",
              f'[notebook on GitHub]({config.git_url}/{path})']
    return ' · '.join(places
                      + [f'exports {{py:mod}}`{config.lib_path.name}.{page.module}`'] * bool(page.module))

def notebook(page, book):
    "The notebook that myst-nb reads."
    cells = []
    before = ''
    seen = set()
    for i, cell in enumerate(page.cells):
        if cell[0] == 'markdown':
            before = cell[1]
            text = markdown(cell[1], book, page.name, seen=seen)
            if i == 0:
                text = heading.sub(lambda m: f'{m[0]}\n\n```{{container}} notebook-links\n{links(page)}\n```',
                                   text, count=1)
            cells.append(as_markdown(text))
        if cell[0] == 'code': cells.extend(code(cell, book, page, before))
    if page.name == 'index':
        cells.extend(as_markdown(toctree([n for n in names if n != 'index'], caption))
                     for caption, names in grouped(book.groups))
    if page.name == 'reference/api':
        cells.append(as_markdown(toctree([f'reference/api/{m}' for m in book.modules])))
    for i, c in enumerate(cells): c['id'] = f'c{i}'
    python = dict(kernelspec=dict(name='python3', display_name='python3', language='python'),
                  language_info=dict(name='python', pygments_lexer='python'))
    return json.dumps(dict(cells=cells, metadata=python, nbformat=4, nbformat_minor=5), ensure_ascii=False)

def grouped(groups):
    "Groups of the sidebar, single pages that follow each other in one."
    together = []
    for caption, names in groups:
        if not caption and together and not together[-1][0]: together[-1][1].extend(names)
        else: together.append((caption, [*names]))
    return [(c, n) for c, n in together if n != ['index']]

# ---- the API -----------------------------------------------------------------------------------------------

def cell_text(text): return ' '.join(str(text or '').split()).replace('|', '\\|')
def in_code(text): return f"`{cell_text(text)}`" if text else ''

def signature(f, method=False):
    "(arguments as written, type of the result) of the syntax tree `f` of a function."
    arguments = ast.unparse(f.args)
    if method: arguments = re.sub(r'^(self|cls)(: \w+)?(, /)?(, |$)', '', arguments)
    return f'({arguments})' + (f' -> {ast.unparse(f.returns)}' if f.returns else '')

def handed_on(f, obj):
    "Arguments of a function that its syntax tree `f` does not name: it hands them on to another."
    if not (f.args.kwarg and callable(obj)): return []
    own = {p.arg for p in f.args.posonlyargs + f.args.args + f.args.kwonlyargs}
    return [p for p in inspect.signature(obj).parameters.values()
            if p.name not in own and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]

def type_of(p):
    "The type of a parameter as written, or nothing."
    return '' if p.annotation is p.empty else inspect.formatannotation(p.annotation)

def table(f, obj, described, say):
    """The docments table of the syntax tree `f` of a function: one row per argument, those it hands on
    included, one for the result."""
    a = f.args
    rows = []
    positional = a.posonlyargs + a.args
    defaults = (dict(zip([p.arg for p in positional[::-1]], a.defaults[::-1]))
                | {p.arg: d for p, d in zip(a.kwonlyargs, a.kw_defaults) if d})
    more = handed_on(f, obj)
    stars = [(s, p) for s, p in (('*', a.vararg), ('**', None if more else a.kwarg)) if p]
    for star, p in [('', p) for p in positional + a.kwonlyargs if p.arg not in ('self', 'cls')] + stars:
        d, meaning = defaults.get(p.arg), described.get(p.arg)
        rows.append((in_code(star + p.arg), in_code(p.annotation and ast.unparse(p.annotation)),
                     in_code(d and ast.unparse(d)), say(cell_text(meaning))))
    rows += [(in_code(p.name), in_code(type_of(p)), in_code('' if p.default is p.empty else repr(p.default)),
              say(cell_text(described.get(p.name)))) for p in more]
    if f.returns or described.get('return'):
        rows.append(('*returns*', in_code(f.returns and ast.unparse(f.returns)), '',
                     say(cell_text(described.get('return')))))
    return '\n'.join(['| argument | type | default | meaning |', '|---|---|---|---|',
                      *(f"| {' | '.join(r)} |" for r in rows)]) if rows else ''

def fields(c, text):
    "The fields of the class with syntax tree `c`, a NamedTuple or the like, and the comments beside them."
    lines = text.splitlines()
    rows = [(in_code(n.target.id), in_code(ast.unparse(n.annotation)),
             in_code(n.value and ast.unparse(n.value)),
             cell_text(lines[n.end_lineno - 1][n.end_col_offset:].strip(' #')))
                for n in c.body if isinstance(n, ast.AnnAssign)]
    return '\n'.join(['| field | type | default | meaning |', '|---|---|---|---|',
                      *(f"| {' | '.join(r)} |" for r in rows)]) if rows else ''

def directive(colons, kind, head, *parts):
    "A directive of Sphinx's Python domain."
    return '\n'.join([f'{colons}{{py:{kind}}} {head}', '', *(p + '\n' for p in parts if p), colons])

def describe(f, name, obj, say, colons, kind, *more):
    "A function or method: signature, docstring, table."
    described = {k: v for k, v in docments(obj).items() if v} if obj else {}
    return directive(colons, kind, name + signature(f, kind != 'function'), say(ast.get_docstring(f) or ''),
                     table(f, obj, described, say), *more)

def method(f, c, obj, say, *more):
    "A method of the class `c`."
    marks = {getattr(d, 'id', '') for d in f.decorator_list}
    if 'property' in marks or (patched(f) or ('', False))[1]:
        return directive('::::', 'property', f'{c}.{f.name}', say(ast.get_docstring(f) or ''), *more)
    kind = ('classmethod' if 'classmethod' in marks
            else 'staticmethod' if 'staticmethod' in marks else 'method')
    return describe(f, f'{c}.{f.name}', getattr(obj, f.name, None), say, '::::', kind, *more)

def source_of(page, cell): return f'{{ref}}`source <{anchor(page.name, cell)}>`'

def klass(c, obj, say, text, more, added):
    "A class: signature, docstring, fields or arguments, public methods, those of its own cell first."
    init = next((n for n in c.body if isinstance(n, ast.FunctionDef) and n.name == '__init__'), None)
    bases = [ast.unparse(b) for b in c.bases]
    public = [n for n in c.body if isinstance(n, ast.FunctionDef)
                                   and (not n.name.startswith('_') or n.name == '__call__')]
    described = {k: v for k, v in docments(obj.__init__).items() if v} if init else {}
    return directive(':::::', 'class', c.name + (signature(init, True) if init else ''),
            f"Bases: {', '.join(map(in_code, bases))}" if bases else '', say(ast.get_docstring(c) or ''),
            say(ast.get_docstring(init) or '') if init else '',
            table(init, obj.__init__, described, say) if init else '',
            fields(c, text), more, *(method(f, c.name, obj, say) for f in public),
            *(method(f, c.name, obj, say, source_of(page, cell)) for page, cell, f in added))

def entries(table, page, book, module, say):
    "What a table holds by name, a row each: what it says of itself, and where it is defined."
    rows = []
    for name, entry in table.items():
        called = name_in(module, entry)
        if called not in page.defined: return ''
        _, cell, node, _ = page.defined[called]
        said = say(cell_text((ast.get_docstring(node) or '').partition('\n\n')[0])) # its source, too
        link = '' if called.startswith('_') else book.api_link(called, page.module)
        rows.append((f'`{name}`', link, said, source_of(page, cell)))
    return '\n'.join(['| name | entry | is | |', '|---|---|---|---|',
                      *(f"| {' | '.join(r)} |" for r in rows)])

def constant(node, text, name, *more):
    "A constant: its value as written, if short."
    value = ast.get_source_segment(text, node.value)
    return directive(':::::', 'data', name,
                     f'```python\n{name} = {value}\n```' if len(value) < 1500 else '', *more)

def wanted(page, book):
    """Names of the module that `page` exports, most wanted first: those of the front door, then those that
    most other pages use."""
    door = importlib.import_module(config.lib_path.name)
    names = importlib.import_module(f'{config.lib_path.name}.{page.module}').__all__
    words = [set(re.findall(r'\w+', ' '.join(text for kind, text, *_ in other.cells if kind == 'code')))
             for other in book.pages.values() if other is not page]
    uses = Counter({name: sum(name in used for used in words) for name in names})
    return sorted((n for n in names if n in page.defined),
                  key=lambda n: (door._home.get(n) != page.module, -uses[n]))

def first_sentence(text): return re.split(r'(?<!et al)[.;](?:\s|$)', ' '.join((text or '').split()))[0]

def summary(page, module, book, say):
    "The names of a module in a table, most wanted first."
    def said(name):
        node = page.defined[name][2]
        value = getattr(module, name)
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)): return first_sentence(ast.get_docstring(node))
        if isinstance(value, dict): return f"by name: {', '.join(map(str, value))}"
        return f'`{ast.unparse(node.value)}`' if node.value else ''
    rows = [f'| {book.api_link(n, page.module)} | {say(cell_text(said(n)))} |' for n in wanted(page, book)]
    return '\n'.join(['| most wanted first | is |', '|---|---|', *rows]) if len(rows) > 3 else ''

def api(page, book):
    "The reference page of the module that `page` exports."
    here = f'reference/api/{page.module}'
    lib = f'{config.lib_path.name}.{page.module}'
    module = importlib.import_module(lib)
    parts = []
    last = None
    say = lambda text: markdown(text, book, page.name, here)
    for name in sorted((n for n in module.__all__ if n in page.defined),
                       key=lambda n: list(page.defined).index(n)):
        section, cell, node, text = page.defined[name]
        if section != last:
            parts.append(f'## {section}')
            last = section
        more = source_of(page, cell)
        obj = getattr(module, name)
        if isinstance(node, ast.FunctionDef):
            parts.append(describe(node, name, obj, say, ':::::', 'function', more))
        elif isinstance(node, ast.ClassDef): parts.append(klass(node, obj, say, text, more, book.added(name)))
        else:
            listed = entries(obj, page, book, module, say) if isinstance(obj, dict) else ''
            parts.append(constant(node, text, name, listed, more))
    problems.extend(f'{lib}.{n} is exported, but no cell of {page.name} defines it'
                    for n in module.__all__ if n not in page.defined)
    return '\n\n'.join([f'# {lib}', f'```{{py:module}} {lib}\n```', say(module.__doc__ or ''),
                        f'Derived, exported and tested in {book.link(page.name, here)}.',
                        summary(page, module, book, say), *parts]) + '\n'

# ---- the build ---------------------------------------------------------------------------------------------

def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding='utf-8')

def main():
    "Write the sources, then let Sphinx make pages of them; every warning is an error."
    sys.path.insert(0, str(root))
    for folder in work, site: shutil.rmtree(folder, ignore_errors=True)
    book = Book()
    for page in book.pages.values(): write(source/f'{page.name}.ipynb', notebook(page, book))
    for module, page in book.modules.items(): write(source/f'reference/api/{module}.md', api(page, book))
    for file in (root/'nbs').rglob('*'):
        if file.suffix in ('.png', '.svg', '.json') and file.is_file():
            (source/file.relative_to(root/'nbs')).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, source/file.relative_to(root/'nbs'))
    pages = {name: without_markup(page.said) for name, page in book.pages.items() if page.said}
    pages |= {f'reference/api/{m}': importlib.import_module(f'{config.lib_path.name}.{m}').__doc__ or ''
              for m in book.modules}
    write(work/'said.json', json.dumps(dict(pages=pages, address=config.doc_host + config.doc_baseurl)))
    if problems: sys.exit('\n'.join(problems))
    if sphinx(['-W', '--keep-going', '-q', '-j', '2', '-c', str(root/'docs'), '-d', str(work/'doctrees'),
               str(source), str(work/'html')]):
        sys.exit(1)
    (work/'html').rename(site)

if __name__ == '__main__': main()
