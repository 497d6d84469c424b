"""Sphinx settings; title and description come from _quarto.yml, the rest of the site from build.py."""
from importlib.util import find_spec
from pathlib import Path

import yaml

website = yaml.safe_load((Path(__file__).parent.parent/'_quarto.yml').read_text(encoding='utf-8'))['website']
project = html_title = website['title']
language = 'en'
extensions = ['myst_nb', 'sphinx_copybutton', 'sphinx.ext.githubpages']

# Notebooks hold their outputs. Nothing on a page comes from another host: MathJax is a copy,
# there are no live widgets.
nb_execution_mode = 'off'
nb_ipywidgets_js = {}
nb_merge_streams = True
myst_enable_extensions = ['colon_fence', 'dollarmath']
myst_heading_anchors = 4
math_eqref_format = 'equation ({number})'
mathjax_path = 'mathjax/tex-chtml.js'
mathjax3_config = {'options': {'enableMenu': False}}

html_theme = 'furo'
pygments_dark_style = 'github-dark'
html_static_path = ['static', str(Path(find_spec('sphinx-mathjax-offline').origin).parent/'static')]
html_favicon = 'static/icon.svg'
html_css_files = ['site.css']
html_copy_source = html_show_sourcelink = False
html_show_sphinx = html_show_copyright = False
add_module_names = False
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = 'hide'
copybutton_exclude = '.linenos, .gp, .go'
