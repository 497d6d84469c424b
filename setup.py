"""Packaging. Everything is read from settings.ini; every key that ends in `_requirements` becomes an extra,
and `all` holds those that a user may want."""
import re, shlex
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
ini = ConfigParser()
ini.read(here/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']
lib = cfg['lib_name']
suffix = '_requirements'
extras = {k.removesuffix(suffix): shlex.split(v) for k, v in cfg.items() if k.endswith(suffix)}
extras['all'] = [r for name in ('notebook', 'scores', 'flow') for r in extras[name]]
extras['dev'] += extras['all']
site = cfg['doc_host'] + cfg['doc_baseurl']

def absolute(text):
    "README.md as a package index shows it: what it links to lies in the repository."
    def link(m):
        picture = m[1].startswith('!')
        place = 'raw' if picture else 'blob'
        return f"{m[1]}({cfg['git_url']}/{place}/{cfg['branch']}/{m[2]})"
    return re.sub(r'(!?\[[^\]]*\])\((?![a-z]+:|#)([^)\s]+)\)', link, text)

setup(
    name=lib.replace('_', '-'), version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'],
    author=cfg['author'], license='Apache-2.0', python_requires=f">={cfg['min_python']}", url=site,
    project_urls=dict(Documentation=site, Source=cfg['git_url'], Issues=f"{cfg['git_url']}/issues",
                      Changelog=f"{cfg['git_url']}/blob/{cfg['branch']}/CHANGELOG.md"),
    classifiers=cfg['classifiers'].strip().splitlines(),
    long_description=absolute((here/'README.md').read_text(encoding='utf-8')),
    long_description_content_type='text/markdown',
    packages=find_packages(include=[lib, f'{lib}.*']), package_data={lib: ['py.typed', '*.pyi', 'pretrained/*/*', 'matplotlibrc']}, zip_safe=False,
    install_requires=shlex.split(cfg['requirements']),
    extras_require=extras,
    entry_points={'console_scripts': shlex.split(cfg['console_scripts']), 'nbdev': [f'{lib} = {lib}._modidx:d']},
)
