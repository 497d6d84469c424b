"""The paper trail: citations, the files that other services read, a README that works on a package index."""
import configparser, json, re, subprocess, sys
from pathlib import Path
import pytest
import yaml

root = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(root / '.ci'))
from papers import cited, paper_of, papers

ini = configparser.ConfigParser()
ini.read(root / 'settings.ini', encoding='utf-8')
config = ini['DEFAULT']
notebooks = sorted(p for p in (root / 'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
entries = list(papers())

def text(path):
    return '\n'.join(''.join(c['source']) for c in json.loads(path.read_text(encoding='utf-8'))['cells'])

def test_every_paper_has_authors_a_year_and_a_link():
    assert len(entries) > 40
    assert len({p.label for p in entries}) == len({p.anchor for p in entries}) == len(entries)
    for p in entries:
        assert re.search(r'^[^*]{8,}\. (\*[^*]+\*|[\w ]+), ', p.text), f'{p.label}: authors, then a title'
        first = re.match(r'(van den )?[\w-]+', p.label)[0]
        assert first in p.text.split('*')[0], f'{p.label}: first author'
        assert re.search(r'\(https://|pages \d+', p.text), f'{p.label}: no link'
        assert re.search(r'\]\([\w/]+\.ipynb', p.text) or 'Here:' in p.text, f'{p.label}: no page uses it'
    numbers = [n for p in entries for n in re.findall(r'arxiv\.org/abs/([\w./]+)', p.text)]
    assert len(numbers) > 30 and len(set(numbers)) == len(numbers)
    assert all(re.fullmatch(r'\d{4}\.\d{4,5}|[a-z]+/\d{7}', n) for n in numbers)
    assert all(f'[arXiv:{n}](https://arxiv.org/abs/{n})' in p.text for p in entries
               for n in re.findall(r'arXiv:([\w./]+)\]', p.text))

@pytest.mark.parametrize('path', [p for p in notebooks if p.stem != 'references'], ids=lambda p: p.stem)
def test_every_citation_leads_to_an_entry(path):
    for match in cited.finditer(text(path)): paper_of(match, entries)

def test_a_citation_without_an_entry_is_found():
    match = cited.search('as in (Nobody, Noone\nand Nemo, 2020)')
    assert match['first'] == 'Nobody' and match['year'] == '2020'
    with pytest.raises(LookupError, match='is not on the references page'): paper_of(match, entries)
    assert paper_of(cited.search('by Song et al. 2021'), entries).anchor == 'ref-song-et-al-2021'
    assert paper_of(cited.search('by Song, Meng and Ermon (2021)'), entries).short == ('DDIM',)
    assert paper_of(cited.search('In 2021'), entries) is None

def test_the_four_systems_are_cited_where_their_names_first_stand():
    kernel = text(root / 'nbs/00_noise.ipynb')
    for name in ('VDM', 'VDM++', 'MuLAN', 'RepVDM'):
        paper, = (p for p in entries if name in p.short)
        link = re.search(r'\((https://[^)]+)\)', paper.text)[1]
        assert link in kernel and link in (root / 'README.md').read_text(encoding='utf-8')

def test_citation_file():
    cff = yaml.safe_load((root / 'CITATION.cff').read_text(encoding='utf-8'))
    assert {'cff-version', 'message', 'title', 'authors', 'version', 'license'} <= set(cff)
    said = cff['version'], cff['title'], cff['repository-code']
    assert said == (config['version'], config['lib_name'], config['git_url'])
    links = ''.join(p.text for p in entries)
    assert len(cff['references']) == 4 and all(r['url'] in links for r in cff['references'])
    assert [a['name'] for a in cff['authors']] == [config['author']]

def test_changelog_begins_with_this_version():
    changes = (root / 'CHANGELOG.md').read_text(encoding='utf-8')
    assert re.search(r'^## ([\d.]+)', changes, re.M)[1] == config['version']

def test_issue_forms():
    forms = {p.stem: yaml.safe_load(p.read_text()) for p in (root / '.github/ISSUE_TEMPLATE').glob('*.yml')}
    assert set(forms) == {'bug', 'equation', 'idea', 'config'}
    for name, form in forms.items():
        if name == 'config': continue
        assert {'name', 'description', 'body'} <= set(form)
        for part in form['body']: assert part['type'] in ('input', 'textarea') and part['attributes']['label']

def test_workflows_call_targets_that_are_there_on_all_promised_versions():
    targets = set(re.findall(r'^([a-z-]+):', (root / 'Makefile').read_text(), re.M))
    flows = {p.stem: yaml.safe_load(p.read_text()) for p in (root / '.github/workflows').glob('*.yml')}
    called = {w for f in flows.values() for job in f['jobs'].values() for step in job['steps']
              for w in re.findall(r'make ([a-z-]+)', step.get('run', ''))}
    assert called <= targets and {'test', 'test-portable', 'docs-test', 'notebooks-alone'} <= called
    tried = flows['tests']['jobs']['newest']['strategy']['matrix']['python']
    promised = re.findall(r'Python :: (3\.\d+)', config['classifiers'])
    assert tried == promised and promised[0] == config['min_python']

def test_the_index_shows_links_that_work(tmp_path):
    "No link leads into a folder that an index lacks; pictures come from where files are raw."
    command = [sys.executable, 'setup.py', '--quiet', 'egg_info', '--egg-base', tmp_path]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    info = next(tmp_path.glob('*.egg-info')) / 'PKG-INFO'
    meta, _, page = info.read_text(encoding='utf-8').partition('\n\n')
    links = re.findall(r'(!?)\[[^\]]*\]\(([^)\s]+)\)', page)
    assert len(links) > 40 and all(re.match('https://|#', url) for _, url in links)
    own = [(bool(picture), url) for picture, url in links if url.startswith(config['git_url'])]
    assert all(('/raw/' in url) == picture for picture, url in own if url.endswith(('.png', '.ipynb')))
    for _, url in own:
        if m := re.search(r'/(?:raw|blob)/main/([^#]+)', url): assert (root / m[1]).exists(), url
    for label in ('Documentation', 'Source', 'Issues', 'Changelog'):
        assert f'Project-URL: {label}, https://' in meta
    assert 'Classifier: Typing :: Typed' in meta and 'Provides-Extra: dev' in meta
