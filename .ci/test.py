"""What `make test` does: the sync check, every notebook, the tests. The last line says what passed, and is
printed only if all did."""
import os, subprocess, sys
from pathlib import Path

root = Path(__file__).resolve().parent.parent
quiet = dict(KINETO_LOG_LEVEL='99') # a profiler complains where no driver is installed

def run(*command):
    "Run `command` and show what it prints; return its last line. A failure ends this script with its status."
    last = ''
    env = {'OMP_NUM_THREADS': '1', **quiet, **os.environ}
    with subprocess.Popen([sys.executable, *command], cwd=root, env=env, stdout=subprocess.PIPE, text=True,
                          bufsize=1) as process:
        for line in process.stdout:
            print(line, end='', flush=True)
            last = line.strip() or last
    if process.returncode: sys.exit(process.returncode)
    return last

def main():
    "Run the three parts in turn."
    said = run('.ci/sync.py')
    notebooks = run('.ci/execute.py', '--check', '--workers', '2')
    tests = run('-m', 'pytest', '-q', '-n', '2', '--dist', 'loadfile', 'tests')
    counts = notebooks.split(' passed')[0], tests.split(' passed')[0] + ' tests'
    print(f"passed: {', '.join(counts)}, {said[0].lower() + said[1:-1]}")

if __name__ == '__main__': main()
