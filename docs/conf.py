"""Sphinx settings; title and description come from _quarto.yml, the rest of the site from build.py."""
import json
from html import escape
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
html_js_files = [('search.js', dict(defer='defer'))]
violet = dict(light='#5b3fb5', dark='#b9a7f0')
html_theme_options = dict(light_logo='logo-light.svg', dark_logo='logo-dark.svg', sidebar_hide_name=True,
                          **{f'{theme}_css_variables': {f'color-brand-{part}': colour
                                                        for part in ('primary', 'content', 'visited')}
                             for theme, colour in violet.items()})
html_copy_source = html_show_sourcelink = False
html_show_sphinx = html_show_copyright = False
add_module_names = False
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = 'hide'
copybutton_exclude = '.linenos, .gp, .go'

# What a page says of itself, for search engines and for those to whom a link is sent; written by build.py.
said = json.loads((Path(__file__).parent.parent/'_proc/said.json').read_text(encoding='utf-8'))

def describe(app, page, template, context, doctree):
    "Add a description and a preview picture to the head of `page`."
    text = escape(said['pages'].get(page, website['description']), quote=True)
    title = escape(context.get('title') or project, quote=True)
    tags = dict(title=title, description=text, type='website', site_name=project,
                image=f"{said['address']}/_static/preview.png", url=f"{said['address']}/{page}.html")
    context['metatags'] = (context.get('metatags', '') + f'<meta name="description" content="{text}">'
                           + ''.join(f'<meta property="og:{k}" content="{v}">' for k, v in tags.items())
                           + '<meta name="twitter:card" content="summary_large_image">')

def setup(app): app.connect('html-page-context', describe)
