"""Measure speed and memory again: run nbs/studies/speed.ipynb with its slow cells, then print its tables."""
import json, subprocess, sys
from pathlib import Path

root = Path(__file__).resolve().parent.parent
notebook = root/'nbs'/'studies'/'speed.ipynb'

subprocess.run([sys.executable, root/'.ci'/'execute.py', notebook, '--flags', 'slow'], check=True)
for cell in json.loads(notebook.read_text(encoding='utf-8'))['cells']:
    source = ''.join(cell['source'])
    if cell['cell_type'] == 'markdown' and source.startswith('## '): print('\n' + source.splitlines()[0])
    for output in cell.get('outputs', []): print(''.join(output.get('text', '')), end='')
