"""Count lines: python tests/count_lines.py

Prints how many lines of the project a short default run of train.py and of sample.py execute, file
by file; then the lines of each folder."""
import contextlib
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {'four scripts': sorted(ROOT.glob('*.py'))}
for name in ('lib', 'text', 'extras', 'config', 'tests'):
    FOLDERS[name] = sorted((ROOT / name).rglob('*.py'))


def count_executed(script: str, *options: str):
    """Run a script, and print how many lines it executes, in all and in each file."""
    executed = {str(path): set() for paths in FOLDERS.values() for path in paths}

    def enter(frame, event, argument):
        lines = executed.get(frame.f_code.co_filename)

        def step(frame, event, argument):
            lines.add(frame.f_lineno)
            return step

        return None if lines is None else step

    sys.path[0] = str(ROOT)
    sys.argv = [script, *options]
    with open(os.devnull, 'w') as nothing, contextlib.redirect_stdout(nothing):
        sys.settrace(enter)
        runpy.run_path(str(ROOT / script), run_name='__main__')
        sys.settrace(None)
    counts = sorted(((len(lines), file) for file, lines in executed.items() if lines), reverse=True)
    total = sum(count for count, _ in counts)
    print(f'python {script} executes {total:,} lines in {len(counts)} files')
    for count, file in counts:
        print(f'{count:8,}  {os.path.relpath(file, ROOT)}')


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
        for name, paths in FOLDERS.items():
            lines = sum(len(path.read_text(encoding='utf-8').splitlines()) for path in paths)
            print(f'{lines:8,}  {name}, {len(paths)} files')
