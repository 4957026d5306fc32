"""What the source of the scripts says of their knobs: the defaults of a dataclass, the comments."""
import ast
import re
import shutil
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def read_fields(file: str, class_name: str) -> dict:
    """{field: default} of a dataclass in a file of the project. It is read as text, not
    imported: model.py would load torch, and --help and a mistyped knob should be answered at
    once."""
    tree = ast.parse((ROOT / file).read_text(encoding='utf-8'))
    body = next(node.body for node in tree.body
                if isinstance(node, ast.ClassDef) and node.name == class_name)
    return {field.target.id: ast.literal_eval(field.value) for field in body
            if isinstance(field, ast.AnnAssign) and field.value is not None}


def print_help(knobs: dict, defaults: dict, dataclass: tuple[str, str] | None):
    """Print the script's docstring and each knob with its default and the comment behind it."""
    source = Path(knobs['__file__']).read_text(encoding='utf-8').partition('\nconfig = ')[0]
    if dataclass:
        source = (ROOT / dataclass[0]).read_text(encoding='utf-8') + source
    comments = dict(re.findall(r'^ *(\w+)(?:: \w+)? = .*?  # (.*)$', source, re.M))
    width = shutil.get_terminal_size().columns if sys.stdout and sys.stdout.isatty() else 1000
    for line in [*knobs['__doc__'].splitlines(), '', 'knobs, as --key=value or in a config file:']:
        print(textwrap.fill(line, width))
    for name, value in defaults.items():
        line = f'  --{name}={value!r}'.ljust(32) + ' ' + comments.get(name, '')
        print(textwrap.fill(line, width, subsequent_indent=' ' * 33))
