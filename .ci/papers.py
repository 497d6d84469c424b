"""What the pages cite, from nbs/references.ipynb: a paragraph each, `**Authors year** (short names)`."""
import json, re
from pathlib import Path
from typing import NamedTuple

root = Path(__file__).resolve().parent.parent
name = r"(?:van\sden\s)?[A-ZÄÖÜ][\w’-]+"
several = rf'(?:(?:,\s{name})*,?\sand\s{name}|(?:,\s{name})*\set\sal\.)'
cited = re.compile(rf'(?P<first>{name})(?P<rest>{several})?,?\s\(?(?P<year>(?:19|20)\d\d)(?!\d)')
paragraph = re.compile(r'^\*\*(?P<label>[^*\n]+)\*\*(?: \((?P<short>[^)\n]+)\))?\. ', re.M)

class Paper(NamedTuple):
    "An entry of the references: how it is cited, its short names, the rest of its paragraph."
    label: str
    short: tuple[str, ...]
    text: str

    @property
    def anchor(self):
        "The name of its place on the page."
        return 'ref-' + re.sub(r'[^a-z0-9]+', '-', self.label.lower()).strip('-')

def papers():
    "All entries of the references, in their order."
    cells = json.loads((root/'nbs/references.ipynb').read_text(encoding='utf-8'))['cells']
    for text in '\n\n'.join(''.join(c['source']) for c in cells).split('\n\n'):
        m = paragraph.match(text)
        if not m: continue
        short = tuple(m['short'].split(', ')) if m['short'] else ()
        yield Paper(m['label'], short, text[m.end():])

def paper_of(match, entries):
    """The entry that a `match` of `cited` means. Raises LookupError for several authors with no entry of that
    year, or with two; a single name before a year need not be a citation."""
    wanted = match.group('first', 'year')
    same = [p for p in entries if (m := cited.match(p.label)) and m.group('first', 'year') == wanted]
    said = ' '.join(f"{match['first']}{match['rest'] or ''} {match['year']}".split())
    exact = [p for p in same if p.label == said]
    found = exact or same
    if len(found) == 1: return found[0]
    if not match['rest']: return None
    raise LookupError(f'{match[0]!r} ' + ('may be ' + ' or '.join(p.label for p in found) if found
                                          else 'is not on the references page'))
