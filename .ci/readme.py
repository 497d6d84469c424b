"""Write README.md, and its figures in nbs/index_files/, from nbs/index.ipynb as it is
stored: nothing is run."""
import base64, json, posixpath, re, shutil
from pathlib import Path

root = Path(__file__).resolve().parent.parent
figures = root/'nbs/index_files'
directive = re.compile(r'^#\|\s*([\w-]+):?[ \t]*(.*?)[ \t]*$\n?', re.M)

def prose(text):
    "Markdown as GitHub shows it: without Quarto's attributes and fences, links relative to the project root."
    text = re.sub(r'[ \t]*\{(?:[.#][a-z]|width=|height=|fig-\w+=)[^{}\n]*\}|^:{3,}.*\n?', '',
                  text, flags=re.M)
    relative = r'(?<=\]\()(?![a-z]+:)([^)\s#]*[./][a-z][^)\s#]*)'
    return re.sub(relative, lambda m: posixpath.normpath(f'nbs/{m[1]}'), text)

def figure(png, name, alt):
    "Store `png` (base64) as the figure `name` and return the link to it."
    figures.mkdir(exist_ok=True)
    (figures/f'{name}.png').write_bytes(base64.b64decode(png))
    return f'![{alt}](nbs/index_files/{name}.png)'

def output(out, name, alt):
    "One stored output as markdown, empty for what a page cannot show."
    data = {k: ''.join(v) for k, v in out.get('data', {}).items()}
    if 'image/png' in data: return figure(data['image/png'], name, alt)
    if 'text/markdown' in data: return prose(data['text/markdown'])
    text = ''.join(out.get('text', '')) or data.get('text/plain', '')
    return f'```\n{text.rstrip()}\n```' if text.strip() else ''

def code(cell):
    "Source and outputs of a code cell, as far as its directives let them show."
    source = ''.join(cell['source'])
    flags = {k: v.strip('"\'') for k, v in directive.findall(source)}
    if {'hide', 'default_exp'} & flags.keys() or flags.get('include') == 'false': return
    source = directive.sub('', source).strip()
    if source and flags.get('echo') != 'false': yield f'```python\n{source}\n```'
    if flags.get('output') == 'false': return
    name = flags.get('label', cell['id'])
    alt = flags.get('fig-alt') or flags.get('fig-cap', '')
    for i, out in enumerate(cell['outputs']): yield output(out, name + (f'-{i}' if i else ''), alt)

def main():
    "Write README.md and its figures; figures of an earlier README go."
    shutil.rmtree(figures, ignore_errors=True)
    parts = ['<!-- Written from nbs/index.ipynb by `make readme`: edit the notebook. -->']
    for cell in json.loads((root/'nbs/index.ipynb').read_text(encoding='utf-8'))['cells']:
        if cell['cell_type'] == 'markdown': parts.append(prose(''.join(cell['source'])))
        if cell['cell_type'] == 'code': parts.extend(code(cell))
    (root/'README.md').write_text('\n\n'.join(p.strip() for p in parts if p.strip()) + '\n', encoding='utf-8')

if __name__ == '__main__': main()
