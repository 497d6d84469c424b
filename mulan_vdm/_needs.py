"""What is asked for beyond a plain install, each kind in one place and one line: an extra, a clone."""
from importlib import import_module
from pathlib import Path
from types import ModuleType

repository = 'https://github.com/mulan-vdm/mulan-vdm'

def extra(module: str, name: str) -> ModuleType:
    "The `module` that the extra `name` brings. Raises ModuleNotFoundError with the command that installs it."
    try: return import_module(module)
    except ModuleNotFoundError as e:
        package = module.split('.')[0]
        if e.name != package: raise
        said = f"{package} is not installed: pip install 'mulan-vdm[{name}]'"
        raise ModuleNotFoundError(said, name=package) from None

def clone(path: str) -> Path:
    "The `path`, which only a clone of the repository has. Raises FileNotFoundError that says how to get one."
    if Path(path).exists(): return Path(path)
    raise FileNotFoundError(f"{path} is not here: this page reads what the repository keeps; run it "
                            f"there, git clone {repository}")
