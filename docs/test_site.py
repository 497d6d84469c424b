"""The pages in _docs/, read as files and in a browser: links, pictures, sliders, equations, requests, width,
search. `make docs-test` runs this.

SCREENSHOTS=folder also stores pictures of some pages at both widths, light and dark.
"""
import functools, json, os, re, shutil, threading
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest
from playwright.sync_api import sync_playwright

root = Path(__file__).resolve().parent.parent
site = root/'_docs'
names = sorted(p.relative_to(site).as_posix() for p in site.rglob('*.html') if '_static' not in p.parts)
flags = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-background-networking', '--disable-quic',
         '--no-first-run', '--disable-component-update', '--disable-sync']
desktop, phone = dict(width=1280, height=900), dict(width=390, height=844)
pictured = ['index', '00_noise', '13_systems', 'studies/errata', 'studies/mulan_digits',
            'reference/api/schedules', 'reference/cli', 'glossary']
loads = {('link', 'href'), ('script', 'src'), ('img', 'src'), ('source', 'src'), ('iframe', 'src'),
         ('video', 'src'), ('audio', 'src'), ('object', 'data')}

class Html(HTMLParser):
    """A page as a file: ids, links, what it loads, texts of pictures, pictures without one,
    number of equations, prose."""
    def __init__(self, path):
        super().__init__()
        self.ids = set()
        self.links = []
        self.loaded = []
        self.alts = []
        self.mute = []
        self.twice = []
        self.maths = 0
        self.prose = []
        self.text = ''
        self.code = 0
        self.feed(path.read_text(encoding='utf-8'))
    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.twice += [a.get('id')] * (a.get('id') in self.ids)
        self.ids |= {a[k] for k in ('id', 'name') if a.get(k)}
        self.links += [a.get('href', '')] * (tag == 'a' and 'href' in a)
        self.loaded += [v for k, v in attrs
                        if (tag, k) in loads
                           and not (tag == 'link' and a.get('rel') in ('index', 'search', 'next', 'prev'))]
        self.alts += [a.get('alt')] * (tag == 'img')
        self.mute += [a.get('src', '')[-60:]] * (tag == 'img' and not (a.get('alt') or '').strip())
        self.maths += 'math' in a.get('class', '').split() and tag in ('div', 'span')
        self.code += tag in ('pre', 'code', 'script', 'style')
    def handle_endtag(self, tag): self.code -= tag in ('pre', 'code', 'script', 'style')
    def handle_data(self, data):
        self.prose += [data] * (not self.code)
        self.text += data

@functools.cache
def html(name): return Html(site/name)

@functools.cache
def pictures(name):
    """Of each cell of the page's notebook that shows stored pictures: its `fig-alt`, empty without one,
    and are they under a slider?"""
    notebook = root/'nbs'/Path(name).with_suffix('.ipynb')
    found = []
    for cell in json.loads(notebook.read_text(encoding='utf-8'))['cells'] if notebook.exists() else ():
        said = dict(re.findall(r'^#\|\s*([\w-]+):?[ \t]*(.*?)[ \t]*$', ''.join(cell['source']), re.M))
        if cell['cell_type'] != 'code' or 'hide' in said or 'false' in (said.get('include'),
                                                                        said.get('output')):
            continue
        shown = [o['data'] for o in cell['outputs'] if 'image/png' in o.get('data', {})]
        if shown: found.append((said.get('fig-alt', '').strip('"\''), any('text/html' in d for d in shown)))
    return found

class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args): pass

@pytest.fixture(scope='session')
def address():
    "A local server of the site."
    server = ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/'
    server.shutdown()

@pytest.fixture(scope='session')
def browser(tmp_path_factory):
    "Headless Chromium with a profile of its own."
    chromium = (shutil.which(os.environ.get('CHROMIUM', 'chromium')) or shutil.which('chromium-browser')
                or shutil.which('google-chrome'))
    if not chromium:
        pytest.exit('no Chromium: apt-get install chromium, or name one by CHROMIUM=path', returncode=2)
    with sync_playwright() as p:
        context = p.chromium.launch_persistent_context(tmp_path_factory.mktemp('profile'),
                                                       executable_path=chromium, headless=True, args=flags,
                                                       viewport=desktop)
        context.set_default_timeout(120_000)                    # a busy machine is no fault of the page
        yield context
        context.close()

@pytest.fixture
def tab(browser, address):
    "A tab that remembers what went wrong in it."
    tab = browser.new_page()
    wrong = []
    tab.on('console',
           lambda m: wrong.append(f'console: {m.text}') if m.type in ('error', 'warning') else None)
    tab.on('pageerror', lambda e: wrong.append(f'script: {e}'))
    tab.on('request', lambda r: wrong.append(f'foreign request: {r.url}')
                                if not r.url.startswith((address, 'data:', 'blob:')) else None)
    tab.on('requestfailed', lambda r: wrong.append(f'failed: {r.url}'))
    tab.on('response', lambda r: wrong.append(f'{r.status}: {r.url}') if r.status >= 400 else None)
    tab.wrong = wrong
    yield tab
    tab.close()

def visit(tab, url):
    "Open `url` and wait for its equations."
    tab.goto(url, wait_until='load')
    tab.evaluate("async () => { if (window.MathJax && MathJax.startup) await MathJax.startup.promise; "
                 "await document.fonts.ready }")

def too_wide(tab, size):
    "What sticks out of the window of this size and cannot be scrolled to, or makes the page scroll sideways."
    tab.set_viewport_size(size)
    return tab.evaluate("""() => {
        const w = document.documentElement
        const slides = e => ['auto', 'scroll'].includes(getComputedStyle(e).overflowX)
        const scrolls = e => e.tagName != 'ARTICLE' && (slides(e) || scrolls(e.parentElement))
        const said = e => `${e.tagName}.${e.className} ${e.textContent.trim().slice(0, 60)}`
        const out = [...document.querySelectorAll('article *:not(mjx-container *)')]
            .filter(e => e.getBoundingClientRect().right > w.clientWidth + 1 && !scrolls(e.parentElement))
            .slice(0, 5).map(said)
        if (w.scrollWidth <= w.clientWidth) return out
        return [`the page is ${w.scrollWidth} wide in ${w.clientWidth}`, ...out] }""")

def test_there_is_a_page_for_every_notebook():
    notebooks = {p.relative_to(root/'nbs').with_suffix('.html').as_posix()
                 for p in (root/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts}
    assert len(notebooks) > 30 and not notebooks - set(names)

@pytest.mark.parametrize('name', names)
def test_links_lead_somewhere(name):
    broken = []
    for link in html(name).links:
        url = urlsplit(urljoin(f'/{name}', link))
        if url.scheme or url.netloc: continue
        target = site/unquote(url.path).lstrip('/')
        if target.is_dir(): target /= 'index.html'
        if not target.exists(): broken.append(link)
        elif (url.fragment and target.suffix == '.html'
              and unquote(url.fragment) not in html(target.relative_to(site).as_posix()).ids):
            broken.append(link)
    assert not broken

@pytest.mark.parametrize('name', names)
def test_nothing_comes_from_elsewhere_and_pictures_have_words(name):
    assert [u for u in html(name).loaded if urlsplit(u).netloc] == []
    assert html(name).mute == []
    assert not re.search(r'\$\$|\{#eq-|@eq-|\{eq\}|\{ref\}|\{py:|^:{3,}', ''.join(html(name).prose),
                         re.M), 'markup that was not understood'
    assert not re.search(r'^#\|', html(name).text, re.M), 'a directive is shown'

@pytest.mark.parametrize('name', [n for n in names if pictures(n)])
def test_pictures_have_words_of_their_own(name):
    words = [alt for alt, _ in pictures(name)]
    assert all(words), 'a picture without fig-alt'
    assert len(set(words)) == len(words), 'two pictures share their description'
    assert {alt for alt, slider in pictures(name) if not slider} <= set(html(name).alts)
    assert not [i for i in html(name).twice if i.startswith('stepped-')]

@pytest.mark.parametrize('name', [n for n in names if any(slider for _, slider in pictures(n))])
def test_sliders_move(name, tab, address):
    visit(tab, address + name)
    assert tab.locator('.stepped').count() == sum(slider for _, slider in pictures(name))
    for root in tab.locator('.stepped').all():
        frames = root.locator('figure').all()
        slider = root.locator('input[type=range]')
        said = root.locator('output')
        seen = []
        slider.focus()
        tab.keyboard.press('Home')
        for i, frame in enumerate(frames):
            assert [f.is_visible() for f in frames] == [k == i for k in range(len(frames))]
            label = f"{root.locator('label').inner_text()} = {said.inner_text()}"
            image = frame.locator('img')
            assert said.inner_text() and slider.get_attribute('aria-valuetext') == said.inner_text()
            assert (image.get_attribute('alt').startswith(f'{label}: ')
                    and len(image.get_attribute('alt')) > len(label) + 10)
            assert image.evaluate('i => i.complete && i.naturalWidth > 100')
            seen.append((label, image.get_attribute('src')))
            tab.keyboard.press('ArrowRight')
        assert len(seen) > 2 and all(len(set(column)) == len(seen) for column in zip(
            *seen)), 'every stop has a value and a picture of its own'
        slider.fill('0')                                                # as a finger does
        assert frames[0].is_visible() and seen[0][0].endswith(f' = {said.inner_text()}')
        for size in desktop, phone:
            tab.set_viewport_size(size)
            assert slider.bounding_box()['width'] > 120 and slider.bounding_box()['height'] >= 24
            box = frames[0].locator('img').bounding_box()
            assert box['x'] >= 0 and box['x'] + box['width'] <= size['width']
    assert tab.wrong == []

@pytest.mark.parametrize('name', names)
def test_page_in_a_browser(name, tab, address):
    visit(tab, address + name)
    notebook = root/'nbs'/Path(name).with_suffix('.ipynb')
    written = notebook.exists() and any('$' in ''.join(c['source'])
                                        for c in json.loads(notebook.read_text(encoding='utf-8'))['cells']
                                        if c['cell_type'] == 'markdown')
    typeset = tab.locator('mjx-container').count()
    assert typeset == html(name).maths and (typeset > 0 or not written)
    assert tab.locator('mjx-merror, [data-mjx-error], [data-mml-node="merror"]').all_inner_texts() == []
    assert tab.evaluate("[...document.images].filter(i => { i.loading = 'eager'; "
                        "return i.complete && !i.naturalWidth }).map(i => i.src)") == []
    assert too_wide(tab, desktop) == []
    assert too_wide(tab, phone) == []
    assert tab.wrong == []
    if 'SCREENSHOTS' in os.environ and name.removesuffix('.html') in pictured:
        picture(tab, Path(os.environ['SCREENSHOTS'])/name.removesuffix('.html').replace('/', '-'))

def picture(tab, stem):
    "Store how the page looks at both widths, light and dark."
    stem.parent.mkdir(parents=True, exist_ok=True)
    for theme in 'light', 'dark':
        tab.evaluate('t => { document.body.dataset.theme = t }', theme)
        for width, size in dict(desktop=desktop, phone=phone).items():
            tab.set_viewport_size(size)
            tab.screenshot(path=f'{stem}-{width}-{theme}.png',
                           clip=dict(x=0, y=0, width=size['width'], height=4 * size['height']),
                           full_page=True)

def test_pages_say_what_they_are_and_are_told_apart():
    "A description and a preview of its own for each notebook; no two pages have the same title."
    heads = {name: (site/name).read_text(encoding='utf-8').split('</head>')[0] for name in names}
    for name, head in heads.items():
        assert re.search(r'<meta name="description" content="[^"]{15,}">', head), name
        assert re.search(r'<meta property="og:image" content="https://[^"]+/preview.png">', head), name
    assert (site/'_static/preview.png').exists()
    titles = [re.search('<title>(.*?)</title>', head, re.S)[1] for head in heads.values()]
    assert len(set(titles)) == len(titles), [t for t in titles if titles.count(t) > 1]

def test_words_that_name_other_things_do_not_lead_to_commands():
    assert not [link for link in html('use/your_images.html').links if 'api/cli.html#' in link]

def test_citations_lead_to_the_references():
    for name in ('10_sampling.html', 'reference/api/sampling.html'):
        assert [link for link in html(name).links if 'references.html#ref-song-meng-and-ermon-2021' in link]

def test_list_markers_are_seen_on_a_phone(tab, address):
    "Nothing clips what stands left of a list's lines."
    visit(tab, f'{address}reference/equations.html')
    tab.set_viewport_size(phone)
    clipped = tab.evaluate("[...document.querySelectorAll('article li')]"
                           ".filter(e => getComputedStyle(e).overflowX != 'visible').length")
    assert clipped == 0 and tab.locator('article li').count() > 3

def test_search_finds_whole_words_first(tab, address):
    "The words side by side before pages that hold them apart, and excerpts without TeX."
    tab.goto(f'{address}search.html?q=learning rate')
    tab.wait_for_function("document.querySelectorAll('#search-results li p.context').length > 8")
    said = tab.locator('#search-results p.context').all_inner_texts()
    assert all('learning rate' in text.lower() for text in said[:3])
    assert not re.search(r'\\[()[\]]|\\[a-z]+\{', ' '.join(said))
    assert tab.wrong == []

@pytest.mark.parametrize('words, page', [('posterior', '00_noise.html'),
                                         ('low_discrepancy_times', 'reference/api/diffusion.html'),
                                         ('Hutchinson', '09_flow.html')])
def test_search_finds(words, page, tab, address):
    tab.goto(f'{address}search.html?q={words}')
    tab.wait_for_selector(f'#search-results a[href*="{page}"]', timeout=15000)
    assert tab.wrong == []
