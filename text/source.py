"""The source that prepare.py's settings name: its files and documents, and the new folder."""
import difflib
import re
from hashlib import blake2b
from pathlib import Path

from lib.errors import require
from lib.files import checksum
from text.hub import read_dataset
from text.inputs import find_files, read_files
from text.readers import Piece
from text.stories.teller import GRAMMAR, read_grammar, tell_stories


def check_settings(settings):
    """Raise Error for settings that are out of range or contradict each other."""
    tokenizer, vocab_size, given = settings['tokenizer'], settings['vocab_size'], settings.given
    is_stories = settings['dataset'] == 'stories' and not settings['input']
    near = difflib.get_close_matches(tokenizer, ('bpe', 'gpt2', 'char'), 1, cutoff=0.5)
    is_misspelled = near and tokenizer not in near and not Path(tokenizer).expanduser().exists()
    require(0 < settings['val_fraction'] < 1,
            f'val_fraction={settings["val_fraction"]} is not between 0 and 1')
    require(vocab_size == 0 or 257 <= vocab_size <= 1 << 24,
            f'vocab_size={vocab_size} must be between 257 (all bytes and end-of-text) and '
            '16,777,216')
    require(settings['dataset'], 'dataset is an empty string: name a dataset, or use --input')
    require('vocab_size' not in given or tokenizer == 'bpe',
            f'vocab_size applies only to --tokenizer=bpe; {tokenizer} has its own: omit it')
    require(not is_misspelled, f'tokenizer={tokenizer}: did you mean {"".join(near)}?')
    require(not settings['input'] or 'dataset' not in given,
            '--input replaces --dataset: omit one of them')
    require('num_stories' not in given or is_stories,
            'num_stories applies only to --dataset=stories: omit it')


def dataset_folder(settings) -> Path:
    """data/NAME: the setting, or by default the last part of the source's path."""
    name = settings['name']
    if not name:
        # The first path, up to its first wildcard: texts/*.txt,more/ -> texts
        source = settings['input'] or settings['dataset']
        first = re.split(r'/?[^/]*[*?[]', source.split(',')[0].strip())[0]
        path = Path(first).expanduser().resolve()
        name = path.stem if path.is_file() else path.name
        if settings['tokenizer'] in ('gpt2', 'char'):
            name += f'_{settings["tokenizer"]}'
    require(name == Path(name).name and name not in ('', '..'),
            f'name={name} is not a valid folder name')
    return Path('data', name)


def local_files(settings) -> list[Path]:
    """The source's local files."""
    if settings['input']:
        return find_files(settings['input'])
    if settings['dataset'] == 'stories':
        return [GRAMMAR]
    return [path for path in Path(settings['dataset']).expanduser().rglob('*') if path.is_file()]


def read_source(settings, files: list[Path]) -> tuple[dict, str | None]:
    """Return {split: its documents} and the license; the key is '' if the source has no splits."""
    text_column, dataset = settings['text_column'], settings['dataset']
    if settings['input']:
        return {'': read_files(files, text_column, settings['separator'])}, None
    if dataset == 'stories':
        stories = tell_stories(read_grammar(), settings['num_stories'], settings['seed'])
        return {'': (Piece(text, nats=nats) for text, nats in stories)}, 'MIT'
    source = 'roneneldan/TinyStories' if dataset == 'tinystories' else dataset
    return read_dataset(source, text_column, settings['dataset_config'], settings['split'])


def fingerprint(settings, files: list[Path]) -> str:
    """Hash of the settings and local files that determine a dataset."""
    tokenizer = Path(settings['tokenizer']).expanduser()
    files = sorted(files) + sorted(tokenizer.glob('*.json'))
    values = {key: value for key, value in settings.items() if key not in ('name', 'overwrite')}
    content = repr([values, [(path.name, checksum(path)) for path in files]])
    return blake2b(content.encode(), digest_size=8).hexdigest()
