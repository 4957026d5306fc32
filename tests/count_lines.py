"""Count lines: python tests/count_lines.py

Prints how many lines of the project a short default run of train.py and of sample.py execute, file
by file; then the lines of each folder, the longest function and the longest line."""
import ast
import json
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
PRODUCT = [path for name, paths in FOLDERS.items() if name != 'tests' for path in paths]


def trace(output: str, script: str, *options: str):
    """Run a script, and write {file: number of lines executed} to the file `output`."""
    executed = {str(path): set() for path in PRODUCT}

    def enter(frame, event, argument):
        lines = executed.get(frame.f_code.co_filename)

        def step(frame, event, argument):
            lines.add(frame.f_lineno)
            return step

        return None if lines is None else step

    sys.path[0] = str(ROOT)
    sys.argv = [script, *options]
    sys.settrace(enter)
    runpy.run_path(str(ROOT / script), run_name='__main__')
    sys.settrace(None)
    Path(output).write_text(json.dumps({file: len(lines) for file, lines in executed.items()}))


def run(*command):
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)


def count_executed(*command):
    """Print how many lines a command executes, in all and in each file."""
    run(__file__, 'trace', 'counts.json', *command)
    counts = json.loads(Path('counts.json').read_text())
    found = sorted(((count, file) for file, count in counts.items() if count), reverse=True)
    print(f'python {command[0]} executes {sum(counts.values()):,} lines in {len(found)} files')
    for count, file in found:
        print(f'{count:8,}  {os.path.relpath(file, ROOT)}')


def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding='utf-8').splitlines()


def functions_of(path: Path) -> list[tuple[int, str]]:
    """The lines and the name of each function in a file."""
    return [(node.end_lineno - node.lineno + 1, f'{path.relative_to(ROOT)}: {node.name}')
            for node in ast.walk(ast.parse(path.read_text(encoding='utf-8')))
            if isinstance(node, ast.FunctionDef)]


def count_written():
    """Print the lines of each folder, and what is longest."""
    for name, paths in FOLDERS.items():
        print(f'{sum(len(lines_of(path)) for path in paths):8,}  {name}, {len(paths)} files')
    print(f'{sum(len(lines_of(path)) for path in PRODUCT):8,}  in all without tests')
    for paths in (PRODUCT, FOLDERS['tests']):
        length, name = max(found for path in paths for found in functions_of(path))
        print(f'{length:8}  lines of the longest function, {name}')
        width, place = max((len(line), f'{path.relative_to(ROOT)}:{i}') for path in paths
                           for i, line in enumerate(lines_of(path), start=1))
        print(f'{width:8}  characters of the longest line, {place}')


if __name__ == '__main__':
    if sys.argv[1:2] == ['trace']:
        trace(*sys.argv[2:])
    else:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            run(ROOT / 'prepare.py', '--num_stories=300', '--vocab_size=300')
            count_executed('train.py', '--max_iters=4', '--eval_interval=2', '--device=cpu')
            count_executed('sample.py', '--max_new_tokens=20', '--device=cpu')
            os.chdir(ROOT)
        count_written()
