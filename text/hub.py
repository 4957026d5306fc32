"""Documents from Hugging Face datasets: by name, or in a folder."""
import os
from pathlib import Path

from lib.errors import Error, brief, require
from text.inputs import read_files
from text.readers import ROWS, find_reader, read_arrow

HELD_OUT = ('validation', 'valid', 'val', 'dev', 'test')        # names of splits, best first
SAVED = ('dataset_dict.json', 'state.json')         # save_to_disk writes one of these


def read_dataset(source: str, text_column: str, config: str = '',
                 split: str = '') -> tuple[dict, str | None]:
    """({split: iterator of its documents}, license) of a Hugging Face dataset: a name or a folder.

    The splits are 'train', the source's split `split` ('' = train), and 'val', its held-out split:
    for train_sft that is validation_sft, test_sft or the like. Without one the only split is ''."""
    source = os.path.expanduser(source)
    contents, license = open_dataset(source, config)
    train = split or 'train'
    require(train in contents, f'dataset {source} has no split {train}, but '
                               f'{", ".join(map(str, contents))}; set --split')
    held_out = [train.replace('train', name) for name in HELD_OUT]
    held_out = [name for name in held_out if name in contents and name != train]
    names = {'': train}
    if held_out:                                # val first: a document in both stays there
        names = {'val': held_out[0], 'train': train}
    return {side: read_split(source, config, name, contents[name], text_column)
            for side, name in names.items()}, license


def open_dataset(source: str, config: str) -> tuple[dict, str | None]:
    """({split: its files' paths or URLs, or its rows if save_to_disk wrote them}, license)."""
    import datasets
    try:
        if any(os.path.exists(os.path.join(source, name)) for name in SAVED):
            saved = datasets.load_from_disk(source)
            return saved if isinstance(saved, dict) else {'train': saved}, None
        builder = datasets.load_dataset_builder(source, config or None)
    except Exception as e:
        hint = '; set --dataset_config' if isinstance(e, ValueError) else ''
        raise Error(f'dataset {source} cannot be opened ({type(e).__name__}: {brief(e)})'
                    f'{hint}') from e
    require(builder.name != 'text', f'dataset {source} holds text files: use --input')
    return builder.config.data_files or {}, builder.info.license or None


def read_split(source: str, config: str, split: str, content, text_column: str):
    """The documents of a split, given its content as in open_dataset."""
    import datasets
    try:
        if isinstance(content, datasets.Dataset):
            yield from read_arrow(content.with_format('arrow').iter(ROWS), text_column)
        elif all(map(find_reader, content)):
            paths = datasets.DownloadManager().download(list(content))
            yield from read_files([Path(path) for path in paths], text_column, separator='')
        else:                                   # kinds of files that only `datasets` can read
            rows = datasets.load_dataset(source, config or None, split=split, streaming=True)
            yield from read_arrow(rows.with_format('arrow').iter(ROWS), text_column)
    except Error:
        raise
    except Exception as e:
        raise Error(f'dataset {source} cannot be read ({type(e).__name__}: {brief(e)})') from e
