"""Pictures for plot.py and attention.py: readable on any background, in any script."""
import contextlib
import os
import warnings

from lib.errors import Error
from lib.files import atomic
from lib.terminal import warn


@contextlib.contextmanager
def new_picture(path, size: tuple[float, float], text: str, layout: str, dpi: float = 160):
    """Yield a figure of `size` inches with fonts for the text; then write it to `path` as PNG.
    Raises Error if matplotlib is missing or the file cannot be written."""
    try:
        from matplotlib import style
        from matplotlib.figure import Figure
    except ImportError as e:
        raise Error(f'pictures need matplotlib: pip install matplotlib ({e})') from e
    settings = {'font.family': fonts_for(text), 'text.parse_math': False}       # $ is just text
    with style.context(['default', settings]), warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'Glyph')              # fonts_for has already warned
        figure = Figure(size, layout=layout, facecolor='white')
        yield figure
        with atomic(path) as temporary:
            figure.savefig(temporary, format='png', dpi=dpi, facecolor='white')


def name_of(path) -> str:
    """A path as text, also where Python was told to use ASCII, and str() cannot be drawn."""
    return os.fsencode(path).decode(errors='replace')


def fonts_for(text: str) -> list[str]:
    """Font families for a text: matplotlib's own, then installed ones for the characters it lacks.
    Warns about characters that no font has."""
    from matplotlib.font_manager import findfont, fontManager, get_font

    families = ['DejaVu Sans']
    missing = set(map(ord, text)) - {10} - get_font(findfont(families[0])).get_charmap().keys()
    for font in fontManager.ttflist:
        is_fallback = 'LastResort' in font.name.replace(' ', '')    # a box for every character
        if missing and not is_fallback:
            found = missing & get_font(font.fname).get_charmap().keys()
            families += [font.name] if found else []
            missing -= found
    if missing:
        shown = ' '.join(map(chr, sorted(missing)[:9]))
        warn(f'no installed font has {shown}: the picture shows boxes; install a Noto font')
    return families
