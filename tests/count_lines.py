"""Count lines: python tests/count_lines.py

Prints how many lines of the project a short default run of train.py and of sample.py execute, file
by file; then the lines of each folder, the longest functions and the longest line."""
import ast
import json
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = [ROOT / f'{name}.py' for name in ('prepare', 'model', 'train', 'sample')]
FOLDERS = {'four scripts': SCRIPTS} | {
    name: sorted((ROOT / name).rglob('*.py')) for name in ('lib', 'text', 'extras', 'config', 'tests')}
PROJECT = [path for paths in FOLDERS.values() for path in paths]
PRODUCT = [path for path in PROJECT if path not in FOLDERS['tests']]
PREPARE = ['prepare.py', '--num_stories=300', '--vocab_size=300']
TRAIN = ['train.py', '--max_iters=4', '--eval_interval=2', '--log_interval=1', '--device=cpu']
SAMPLE = ['sample.py', '--max_new_tokens=20', '--device=cpu']


def trace(output: str, script: str, *options: str):
    """Run a script, and write {file: lines executed} to the file `output`."""
    executed = {str(path): set() for path in PROJECT}

    def enter(frame, event, argument):
        lines = executed.get(frame.f_code.co_filename)
        if lines is None:                       # not of the project
            return None

        def step(frame, event, argument):
            if event == 'line':
                lines.add(frame.f_lineno)
            return step

        return step

    sys.path[0] = str(ROOT)
    sys.argv = [script, *options]
    sys.settrace(enter)
    runpy.run_path(str(ROOT / script), run_name='__main__')
    sys.settrace(None)
    counts = {file: len(lines) for file, lines in executed.items() if lines}
    Path(output).write_text(json.dumps(counts))


def count_executed(command: list[str]):
    """Print how many lines a command executes, in all and in each file."""
    words = [sys.executable, __file__, 'trace', 'counts.json', *command]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    counts = json.loads(Path('counts.json').read_text())
    print(f'python {command[0]} executes {sum(counts.values()):,} lines in {len(counts)} files')
    for file, count in sorted(counts.items(), key=lambda item: -item[1]):
        print(f'{count:8,}  {os.path.relpath(file, ROOT)}')


def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding='utf-8').splitlines()


def functions_of(path: Path):
    """Yield (lines, name) of each function in a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.FunctionDef):
            yield node.end_lineno - node.lineno + 1, f'{path.relative_to(ROOT)}: {node.name}'


def count_written():
    """Print the lines of each folder, and what is longest."""
    for name, paths in FOLDERS.items():
        print(f'{sum(len(lines_of(path)) for path in paths):8,}  {name}, {len(paths)} files')
    print(f'{sum(len(lines_of(path)) for path in PRODUCT):8,}  in all without tests')
    for what, paths in (('product', PRODUCT), ('tests', FOLDERS['tests'])):
        functions = sorted((found for path in paths for found in functions_of(path)), reverse=True)
        print(f'longest functions, {what}')
        for length, name in functions[:3]:
            print(f'{length:8}  {name}')
        length, place = max((len(line), f'{path.relative_to(ROOT)}:{i}') for path in paths
                            for i, line in enumerate(lines_of(path), start=1))
        print(f'longest line, {what}\n{length:8}  {place}')


if __name__ == '__main__':
    if sys.argv[1:2] == ['trace']:
        trace(*sys.argv[2:])
    else:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            subprocess.run([sys.executable, ROOT / PREPARE[0], *PREPARE[1:]], check=True,
                           stdout=subprocess.DEVNULL)
            count_executed(TRAIN)
            count_executed(SAMPLE)
            os.chdir(ROOT)
        count_written()
