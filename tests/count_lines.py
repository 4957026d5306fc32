"""Count lines: python tests/count_lines.py

Prints how many lines of the project a short default run of train.py and of sample.py execute, file
by file; then the lines of each folder."""
import os
import runpy
import subprocess
import sys
import tempfile
import trace
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {'four scripts': '*.py', **{name: f'{name}/**/*.py' for name in
                                      ('lib', 'text', 'extras', 'config', 'tests')}}


def count_executed(script: str, *options: str):
    """Run a script, and print how many lines it executes, in all and in each file."""
    sys.path[0] = str(ROOT)
    sys.argv = [script, *options]
    tracer = trace.Trace(trace=False, ignoredirs=[sys.prefix, sys.base_prefix])
    sys.stdout, shown = open(os.devnull, 'w'), sys.stdout
    tracer.runfunc(runpy.run_path, str(ROOT / script), run_name='__main__')
    sys.stdout = shown
    files = Counter(file for file, _ in tracer.results().counts if file.startswith(str(ROOT)))
    print(f'python {script} executes {files.total():,} lines in {len(files)} files')
    for file, count in files.most_common():
        print(f'{count:8,}  {os.path.relpath(file, ROOT)}')


def count_written():
    """Print the lines of each folder."""
    for name, pattern in FOLDERS.items():
        paths = list(ROOT.glob(pattern))
        lines = sum(len(path.read_text(encoding='utf-8').splitlines()) for path in paths)
        print(f'{lines:8,}  {name}, {len(paths)} files')


def run(*command):
    subprocess.run([sys.executable, *command], check=True)


if __name__ == '__main__':
    if sys.argv[1:]:
        count_executed(*sys.argv[1:])
    else:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            run(ROOT / 'prepare.py', '--num_stories=300', '--vocab_size=300')
            run(__file__, 'train.py', '--max_iters=4', '--eval_interval=2', '--device=cpu')
            run(__file__, 'sample.py', '--max_new_tokens=20', '--device=cpu')
            os.chdir(ROOT)
        count_written()
