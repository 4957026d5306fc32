"""PDF files: letters, words, lines, paragraphs, running heads, and hostile files."""
import importlib.util
import random
import re
import resource
import sys
import zlib

import numpy as np
import pytest
from reportlab.lib.utils import simpleSplit
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.cidfonts import UnicodeCIDFont
from reportlab.pdfgen.canvas import Canvas

from lib.errors import Error
from text.layout import glued, text_of_pages
from text.letters import Letter, mend_spaces
from text.lines import Line
from text.pdf import read_pdf_file
from text.readers import read_pdf

STORY = ('The miller had three sons and only a cat to leave to the youngest of them, who did not know '
         'what to do with it and sat down by the river to think about his luck. The cat was quiet '
         'for a while and then asked for a pair of boots and a bag.')


def pdf(path, pages, encrypt=None):
    """A PDF with pages of (x, y, line), or of lines below each other."""
    canvas = Canvas(str(path), encrypt=encrypt)
    for page in pages:
        for i, line in enumerate(page):
            canvas.drawString(*(line if isinstance(line, tuple) else (72, 760 - 14 * i, line)))
        canvas.showPage()
    canvas.save()
    return path


def raw_pdf(path, content: bytes, glyphs='', more='', pages=1, **objects):
    """A PDF whose pages share one content stream (compressed); `glyphs` names those of codes 65 up.
    `more` goes into the page, `objects` are numbered from 10 up."""
    codes = 1 + len(glyphs.split('/'))
    encoding = f'/Encoding<</Differences[65{glyphs}]>>/FirstChar 65/LastChar {64 + codes}'
    font = f'<</Type/Font/Subtype/Type1/BaseFont/Helvetica{encoding}/Widths[{"600 " * codes}]>>'
    if not glyphs:
        font = '<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>'
    page = ('<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Contents 4 0 R'
            f'/Resources<</Font<</F 3 0 R>>>>{more}>>').encode()
    kids = b'5 0 R ' * pages
    form = '/AcroForm<</Fields[10 0 R]/DR<</Font<</F 3 0 R>>>>/NeedAppearances true>>'
    bodies = {1: f'<</Type/Catalog/Pages 2 0 R{form if objects else ""}>>'.encode(),
              2: b'<</Type/Pages/Kids[%s]/Count %d>>' % (kids, pages), 3: font.encode(),
              4: b'<</Length %d/Filter/FlateDecode>>stream\n%s\nendstream' % (len(content), content),
              5: page, **{int(name[1:]): body.encode() for name, body in objects.items()}}
    body = b''.join(b'%d 0 obj\n%s\nendobj\n' % item for item in bodies.items())
    path.write_bytes(b'%PDF-1.4\n' + body + b'trailer<</Size 20/Root 1 0 R>>\n%%EOF\n')
    return path


def page(*lines, top=700, left=72, size=10, **fields):
    """Lines below each other, of letters half as wide as they are high; '' leaves a gap."""
    return [Line(text, left, left + len(text) * size / 2, top - 1.2 * size * i, size,
                 len(text.split()[0]) * size / 2, **fields) for i, text in enumerate(lines) if text]


def text_of(*pages):
    return text_of_pages([page(*lines) for lines in pages])


@pytest.fixture
def canvas(tmp_path):
    """A canvas for a PDF of one page; canvas.read() is its text."""
    canvas = Canvas(str(tmp_path / 'a.pdf'))
    canvas.read = lambda: canvas.save() or read_pdf_file(tmp_path / 'a.pdf')
    return canvas


def draw_vertically(canvas, *lines):
    """Draw lines from right to left, in a Japanese font that the PDF does not embed."""
    font = UnicodeCIDFont('HeiseiMin-W3', isVertical=True)
    pdfmetrics.registerFont(font)
    canvas.setFont(font.fontName, 14)
    for i, line in enumerate(lines):
        canvas.drawString(500 - 24 * i, 750, line)


# ---- whole files
def test_a_word_divided_by_a_page_break_is_rejoined_without_running_heads(tmp_path):
    words = 'the small cat sees a bird over an old wall near some trees'.split()
    bodies = []
    for number in range(5):
        body = ' '.join(random.Random(number).choices(words, k=99))
        bodies.append(simpleSplit('ple ' * (number > 0) + body, 'Helvetica', 12, 330))
    ends = ['small exam-', 'trees exam-', 'other exam-', 'birds exam-', 'brown exam-']
    pages = [['A Journal of Cats', '', *body[:5], end, '', f'1{i}']
             for i, (body, end) in enumerate(zip(bodies, ends))]
    text = read_pdf_file(pdf(tmp_path / 'a.pdf', pages))
    assert text.count('example') == 4 and text.count('exam-') == 1 and text.endswith('exam-')
    assert not any(unwanted in text for unwanted in ('Journal', '13', '\n'))
    assert ' '.join(bodies[2][1:5]) in text


def test_a_word_divided_by_a_page_break_is_rejoined_on_pages_without_a_foot(tmp_path):
    pages = [[STORY[:60], 'and the rest of it was very short, which was a surprising exam-'],
             ['ple of a story that ends on the second page of a small book.']]
    assert 'surprising example of' in read_pdf_file(pdf(tmp_path / 'a.pdf', pages))


LEFT = ['The committee looked at the', 'yearly report and asked for', 'three changes, of which the',
        'first was the most urgent.']
RIGHT = ['In the next year the budget', 'was approved by all members', 'of the board, who also chose',
         'a new chair for two years.']


@pytest.mark.parametrize('drawn', ['by column', 'by row', 'by row, in the middle of a page'])
def test_columns_are_read_one_after_the_other(tmp_path, drawn):
    left = [(72, 700 - 14 * i, line) for i, line in enumerate(LEFT)]
    right = [(330, 700 - 14 * i, line) for i, line in enumerate(RIGHT)]
    lines = left + right if drawn == 'by column' else [x for row in zip(left, right) for x in row]
    if 'middle' in drawn:
        lines = [(72, 760, 'A title'), *lines, (72, 600, STORY[:80])]
    text = read_pdf_file(pdf(tmp_path / 'a.pdf', [lines]))
    assert f'{" ".join(LEFT)}\n\n{" ".join(RIGHT)}' in text
    assert text.count('\n\n') == (3 if 'middle' in drawn else 1)


@pytest.mark.parametrize('table', [
    [('Anna', 'red', '30'), ('Bert', 'green', '41'), ('Carla Schmidt', 'blue', '5')],
    [('Anna', 'white', '4 kg'), ('Bert', 'grey', '5 kg'), ('Carla', 'brown', '6 kg')]])
def test_rows_of_a_table_are_neither_columns_nor_a_paragraph(tmp_path, table):
    cells = [(72 + 100 * k, 700 - 14 * i, cell)
             for i, row in enumerate(table) for k, cell in enumerate(row)]
    assert read_pdf_file(pdf(tmp_path / 'a.pdf', [cells])) == '\n'.join(map(' '.join, table))


def turned(path, angle, rotate_page, upright=False):
    """A story and a table, turned; with `upright`, below an upright story."""
    canvas = Canvas(str(path))
    lines = simpleSplit(STORY, 'Helvetica', 12, 300)
    if rotate_page:
        canvas.setPageRotation(angle)
    if upright:
        for i, line in enumerate(lines):
            canvas.drawString(72, 800 - 14 * i, line)
    canvas.translate(300, 420)
    canvas.rotate(angle)
    for i, line in enumerate(lines):
        canvas.drawString(-150, 100 - 14 * i, line)
    for i, row in enumerate([('Name', 'Weight'), ('Anna Smith', '61 kg'), ('Bert', '80 kg')]):
        for k, cell in enumerate(row):
            canvas.drawString(-150 + 100 * k, -15 * i, cell)
    canvas.save()
    return path


@pytest.mark.parametrize('angle', [0, 90, 180, 270])
def test_turned_text_reads_like_upright_text(tmp_path, angle):
    expected = read_pdf_file(turned(tmp_path / 'upright.pdf', 0, False))
    assert STORY in expected and 'Anna Smith 61 kg' in expected
    assert read_pdf_file(turned(tmp_path / 'text.pdf', angle, False)) == expected
    assert read_pdf_file(turned(tmp_path / 'page.pdf', angle, True)) == expected
    mixed = read_pdf_file(turned(tmp_path / 'mixed.pdf', angle, False, upright=True))
    assert mixed.count(STORY) == 2 and 'Anna Smith 61 kg\nBert 80 kg' in mixed


def test_a_stamp_in_the_margin_is_whole_and_apart_from_the_text(canvas):
    canvas.rotate(90)
    canvas.drawString(200, -30, 'arXiv:2401.01234v2 [cs.XX] 5 Jan 2024')
    canvas.rotate(-90)
    for i, line in enumerate(simpleSplit(STORY, 'Helvetica', 12, 300)):
        canvas.drawString(72, 700 - 14 * i, line)
    assert canvas.read() == f'arXiv:2401.01234v2 [cs.XX] 5 Jan 2024\n\n{STORY}'


def test_letterspaced_titles_are_words(canvas):
    for i, spacing in enumerate([1, 3, 6]):
        canvas.drawString(72, 700 - 50 * i, 'CHAPTER THE FIRST', charSpace=spacing)
    x = 72
    for letter in 'CHAPTER THE SECOND':                     # each letter placed on its own
        canvas.drawString(x, 550, letter.strip())
        x += canvas.stringWidth(letter, 'Helvetica', 12) + 4
    titles = ['CHAPTER THE FIRST'] * 3 + ['CHAPTER THE SECOND']
    assert canvas.read() == ' '.join(titles)


def test_letterspaced_words_in_a_line_are_words(canvas):
    text = canvas.beginText(72, 700)
    for part, spacing in (('The goose was', 0), (' ', 0), ('very', 3), (' ', 0), ('clever', 3),
                          (' and so on.', 0)):
        text.setCharSpace(spacing)
        text.textOut(part)
    canvas.drawText(text)
    assert canvas.read() == 'The goose was very clever and so on.'


def test_vertical_lines_are_read_from_right_to_left(canvas):
    draw_vertically(canvas, 'むかしむかしある', 'ところにおじいさ', 'んがいました。')
    text = canvas.read()
    if len(text) < 20:
        pytest.skip('PDFium needs a Japanese font on this machine')
    assert text == 'むかしむかしあるところにおじいさんがいました。'


HEBREW_LETTERS = dict(zip('אבגדהוזחט', 'ABCDEFGHI'))


def test_hebrew_keeps_its_spaces_and_paragraphs(tmp_path):
    lines = ['אבגד הוז חט אבג דה', 'גדה וז אבגדה וזחט', 'אבג']
    glyphs = ''.join(f'/uni05D{i:X}' for i in range(9)) + '/space/one/nine'
    codes = str.maketrans({**HEBREW_LETTERS, ' ': 'J', '1': 'K', '9': 'L'})
    content = b''
    for i, line in enumerate([*lines[:2], lines[2] + ' 19']):
        shown = line[::-1].replace('91', '19').translate(codes)    # from left to right, as drawn
        right = 500 - 7.2 * len(shown)
        content += f'BT /F 12 Tf {right} {700 - 14 * i} Td ({shown}) Tj ET\n'.encode()
    path = raw_pdf(tmp_path / 'a.pdf', zlib.compress(content), glyphs)
    assert read_pdf_file(path) == ' '.join(lines) + ' 19'


@pytest.mark.parametrize('parts', [['אבגד הוז חט'], ['אבגד', 'הוז', 'חט']])
def test_hebrew_drawn_in_reading_order(tmp_path, parts):
    glyphs = ''.join(f'/uni05D{i:X}' for i in range(9)) + '/space'
    content, x = '', 500
    for part in parts:
        letters = ''.join(f'({HEBREW_LETTERS.get(letter, "J")}) 1200 ' for letter in part)
        content += f'BT /F 12 Tf {x:.1f} 700 Td [{letters}] TJ ET\n'        # each to the left
        x -= 7.2 * len(part + ' ')
    path = raw_pdf(tmp_path / 'a.pdf', zlib.compress(content.encode()), glyphs)
    assert read_pdf_file(path) == ' '.join(parts)


def test_spaces_of_hebrew_are_where_its_gaps_are():
    """MuPDF puts blanks beside punctuation where none are seen."""
    boxes = [('א', 0, 5), (' ', 9, 13), ('.', 5, 9), (' ', 30, 30), ('ב', 13, 18), (' ', 2, 2),
             ('ג', 22, 27)]
    letters = [Letter(text, left, 0, right, 10, 0, 0) for text, left, right in boxes]
    assert mend_spaces(letters) == 'א. ב ג'


def test_a_drop_cap_or_a_large_bullet_does_not_divide_a_paragraph(tmp_path):
    canvas = Canvas(str(tmp_path / 'a.pdf'))
    lines = simpleSplit(STORY[1:], 'Helvetica', 12, 270)
    for first, size, x, bottom in ((STORY[0], 44, 102, 672), ('•', 24, 90, 496)):
        canvas.setFont('Helvetica', size)
        canvas.drawString(72, bottom, first)
        canvas.setFont('Helvetica', 12)
        for i, line in enumerate(lines):
            canvas.drawString(x, bottom + (28 if size == 44 else 4) - 14 * i, line)
    canvas.save()
    assert read_pdf_file(tmp_path / 'a.pdf') == f'{STORY}\n\n• {STORY[1:]}'


def test_soft_hyphens_vanish_between_letters_and_are_hyphens_between_digits(tmp_path):
    content = b'BT /F 12 Tf 72 700 Td (ABCBA) Tj 0 -40 Td (DBE) Tj ET'
    path = raw_pdf(tmp_path / 'a.pdf', zlib.compress(content), '/a/sfthyphen/b/one/two')
    assert read_pdf_file(path) == 'aba 1-2'


def test_the_values_of_a_form_stand_beside_their_labels(canvas):
    for y, label, value in (700, 'Name:', 'Jane Example'), (660, 'Reason:', 'The bridge is broken'):
        canvas.drawString(72, y, label)
        canvas.acroForm.textfield(name=label, value=value, x=200, y=y - 5, width=250, height=20)
    assert canvas.read().split() == 'Name: Jane Example Reason: The bridge is broken'.split()


def test_a_form_field_needs_no_drawing_of_its_value(tmp_path):
    field = ('<</Type/Annot/Subtype/Widget/FT/Tx/T(name)/V(Jane Example)/F 4/DA(/F 12 Tf 0 g)'
             '/Rect[200 690 400 715]/P 5 0 R>>')
    content = zlib.compress(b'BT /F 12 Tf 72 700 Td (Name:) Tj ET')
    path = raw_pdf(tmp_path / 'a.pdf', content, more='/Annots[10 0 R]', n10=field)
    assert read_pdf_file(path) == 'Name: Jane Example'


def test_lost_letters_are_named_with_their_share(canvas, tmp_path, capsys):
    """PDFium drops vertical text in a font that is not embedded."""
    canvas.drawString(72, 100, 'upright')
    draw_vertically(canvas, 'むかしむかしあるところに')
    if 'むかし' in canvas.read():
        pytest.skip('PDFium has found a Japanese font on this machine')
    (warning,) = capsys.readouterr().err.splitlines()
    share = int(re.search(r'a\.pdf: (\d+)% of its letters', warning)[1])
    assert 55 <= share <= 70                                # 12 of 19
    read_pdf_file(pdf(tmp_path / 'good.pdf', [['A good paper.']]))
    assert capsys.readouterr().err == ''


# ---- letters and words
def test_mojibake_ligatures_and_accents_are_repaired():
    assert text_of(['The eﬃcient ﬁre oﬀ\x07 the ﬂoor']) == 'The efficient fire off the floor'
    assert text_of(['a\x7fb\x08c\x1fd\ue000e\uf8fff']) == 'a b c d e f'     # not text
    assert text_of(['itâ€™s a â€œtestâ€\x9d of cafÃ© “kept” ½ … ™ ²']) == (
        'it’s a “test” of café “kept” ½ … ™ ²')
    assert text_of(['M¨oller, Garc´ıa, Fran¸cois, ˇCech, `code` and x´2']) == (
        'Möller, García, François, Čech, `code` and x´2')
    assert text_of(['cafe\u0301 \uf0b7 \uf8f4and so']) == 'café • and so'


def test_divided_words_are_rejoined():
    def divided(a, b, *more):
        return text_of([f'{a}\ufffe', b, '', *more]).split('\n')[0]

    assert divided('a line that breaks a long', 'term word') == 'a line that breaks a longterm word'
    assert divided('breaks a long', 'term word', 'the long-term plan') == 'breaks a long-term word'
    assert divided('this is for Jean', 'Paul') == 'this is for Jean-Paul'
    assert divided('it is US', 'based') == 'it is US-based'
    assert divided('Impor', 'tant') == 'Important'
    assert divided('the year 19', '45 was') == 'the year 19-45 was'
    assert divided('Wert\xadpapier\xad', 'index') == 'Wertpapierindex'
    assert text_of(['むかしむかし、おじいさ', 'んがいました。']) == 'むかしむかし、おじいさんがいました。'
    assert text_of(['the path /usr/share/doc/', 'package_of_all and foo_', 'bar']) == (
        'the path /usr/share/doc/package_of_all and foo_bar')


def test_gaps_become_spaces_and_covered_spaces_vanish():
    """groff places words without spaces, and leaves spaces under letters."""
    def mended(text, gaps):
        """The text, its letters 5 wide and 10 high, with these gaps after its letters, else none."""
        letters, left = [], 0
        for i, letter in enumerate(text):
            letters.append(Letter(letter, left, 0, left + 5, 10, 0, i))
            left += 5 + gaps.get(i, 0)
        return mend_spaces(letters)

    assert mended('ofwords.Then', {1: 2.5, 7: 3}) == 'of words. Then'
    assert mended('nev er', {3: -5}) == 'never' and mended('a jar', {1: -2}) == 'a jar'
    assert mended('letter', {1: 1}) == 'letter' and mended('x=1', {0: 3, 1: 3}) == 'x=1'
    backward = [Letter(letter, left, 0, left + 5, 10, 0, 0)
                for letter, left in zip('אבגד', (18, 13, 5, 0))]
    assert mend_spaces(backward) == 'אב גד'


def test_a_pdf_without_spaces_is_named_and_kept(tmp_path, capsys):
    line = 'TheDebiansystemismaintainedanddistributedasacollection'
    assert glued(line) == 1 and glued('a short text') == glued('') == glued('日本語' * 20) == 0
    (piece,) = read_pdf(pdf(tmp_path / 'a.pdf', [[line, 'and others']]), 'text', '')
    assert line in piece.text
    (warning,) = capsys.readouterr().err.splitlines()
    assert 'a.pdf' in warning and '83' in warning and '%' in warning


# ---- paragraphs
@pytest.mark.parametrize('indent, between', [(0, ' '), (2, ' '), (10, '\n')])
def test_an_indented_line_begins_a_paragraph(indent, between):
    first, second = 'the first line is as full as it can be, it', 'goes on in the second line, it seems'
    lines = [*page(first), *page(second, top=688, left=72 + indent)]
    assert text_of_pages([lines]) == first + between + second


def test_paragraphs_are_reflowed():
    body = ['The first paragraph runs over the whole line', 'Anna as one more of the same length, then',
            'ends.', 'Another begins here and is as long again as', 'the others are.', '', '', 'Last.']
    assert text_of(body).split('\n') == [
        'The first paragraph runs over the whole line Anna as one more of the same length, then ends.',
        'Another begins here and is as long again as the others are.', '', 'Last.']
    long = 'this line is as long as lines of the page are'
    assert text_of(['• ' + long, 'which goes on', '• a short item', '2. another one']).split('\n') == [
        f'• {long} which goes on', '• a short item', '2. another one']
    assert text_of([long, long], ['and goes on there.'], ['Not here', '']) == (
        f'{long} {long} and goes on there.\n\nNot here')
    indented = page(long, long) + page(long, top=676, left=90) + page(long, top=664)
    assert text_of_pages([indented]) == f'{long} {long}\n{long} {long}'
    assert text_of([long, long, f'{long}\ufffe', '', '', 'word']) == f'{long} {long} {long}-\n\nword'
    assert text_of_pages([page(long), page('a footnote', size=7)]) == f'{long}\n\na footnote'
    assert text_of(['short one', 'of two', '', long]) == f'short one\nof two\n\n{long}'
    heading = page('A heading of its own', top=720, size=14) + page(long, 'and more')
    assert text_of_pages([heading]) == f'A heading of its own\n\n{long} and more'


def test_tables_and_code_keep_their_lines():
    rows = ['bin Essential binaries', 'lib Essential shared libraries and kernel modules',
            'media Where media go', 'opt Add-on application software', 'run Data of processes']
    assert text_of(rows) == '\n'.join(rows)
    left, right = page('one', 'two', 'three'), page('1.5', '12.5', '3', left=200)
    cells = [cell for row in zip(left, right) for cell in row]
    assert text_of_pages([cells]) == 'one 1.5\ntwo 12.5\nthree 3'
    square = page('i') + [Line('2', 77, 80, 704, 7, 3)] + page('. Then', left=80)
    assert text_of_pages([square]) == 'i2. Then'
    code = page('def f():', code=True) + page('return 123', 'x = 1', top=688, left=92, code=True)
    assert text_of_pages([code]) == 'def f():\n    return 123\n    x = 1'


def test_a_table_of_contents_loses_its_leaders():
    contents = ['1 Cats . . . . . . . . . . . . . . . . . 7', '1.1 Of them............................12',
                '2 Their friends · · · · · · · · · · · xi', 'Index ............ iv']
    assert text_of(contents) == '1 Cats\n1.1 Of them\n2 Their friends\nIndex'
    assert text_of(['he said ... and went']) == 'he said ... and went'


# ---- running heads
NAMES = ['Cats', 'Dogs', 'Mice', 'Hens', 'Cows', 'Bees']


def test_running_heads_and_page_numbers_are_dropped():
    pages = [[f'{"Left" if i % 2 else "Right"} running head {i}', 'A second line', '',
              f'Number {letter} is here', 'and on', f'for {letter}', '', f'Page {i} of 10']
             for i, letter in enumerate('abcdefghij')]
    text = text_of(*pages)
    assert not re.search('head|second|Page', text) and text.count('is here and on\nfor') == 10
    numerals = ['i', 'iv', 'ix', 'xii', 'l', 'c']
    chapters = [[f'Chapter {2 * i}: {name} {i + 5}', '', f'{name} are here', f'and {name} there', '',
                 numerals[i]] for i, name in enumerate(NAMES)]
    assert text_of(*chapters) == '\n\n'.join(f'{name} are here and {name} there' for name in NAMES)
    assert text_of([]) == text_of_pages([]) == ''


def test_a_turned_note_in_every_margin_is_dropped():
    pages = [page(f'{name} are here', f'and {name} there') + page('Downloaded today', turns=3)
             for name in NAMES]
    assert 'Downloaded' not in text_of_pages(pages) and 'Bees' in text_of_pages(pages)


@pytest.mark.parametrize('gap', [[], ['']])
def test_refrains_stay(gap):
    pages = [[f'The cake ran past the {name}.', *gap, 'Run, run, as fast as you can!']
             for name in NAMES]
    story = [f'A line about {name} here' for name in NAMES * 4]
    assert text_of(*pages, story).count('Run, run') == len(pages)


@pytest.mark.parametrize('foot', [[], ['', '{}'], ['', 'Page {}']])
def test_headings_of_one_page_chapters_stay(foot):
    pages = [[f'Chapter {i}', '', f'{name} are here', f'and {name} there',
              *[line.format(i) for line in foot]] for i, name in enumerate(NAMES, 1)]
    text = text_of(*pages)
    assert all(f'Chapter {i}\n' in text for i in range(1, 7)) and 'Page' not in text


def test_a_page_that_occurs_twice_stays_twice():
    once = ['A title', '', 'The cake was good', 'and the bread too', 'as was the soup', '', 'The end']
    assert text_of(once, once) == '\n\n'.join([text_of(once)] * 2)
    text = text_of(['Another', '', 'text of a page'], once, once, ['More', '', 'of something else'])
    assert text.count('A title') == text.count('The end') == 2


# ---- bad files
def inflating(path, part: bytes, times: int, pages=1):
    """A PDF of pages that share one content stream, which is a part many times."""
    deflate = zlib.compressobj(9)
    content = b''.join(deflate.compress(part) for _ in range(times)) + deflate.flush()
    return raw_pdf(path, content, pages=pages)


def test_a_pdf_that_takes_too_long_is_given_up(tmp_path, monkeypatch):
    text = b'BT /F 12 Tf 72 700 Td (Hello) Tj ET '
    assert read_pdf_file(inflating(tmp_path / 'good.pdf', text, 1)) == 'Hello'
    monkeypatch.setattr('text.pdf.MAX_SECONDS', 2)
    with pytest.raises(ValueError, match='more than 2 s'):
        read_pdf_file(inflating(tmp_path / 'slow.pdf', b'0 0 m ' * 100_000, 100, pages=100))


@pytest.mark.skipif(sys.platform != 'linux', reason='memory cannot be limited elsewhere')
def test_a_pdf_that_inflates_is_stopped_at_the_memory_limit(tmp_path):
    bomb = inflating(tmp_path / 'bomb.pdf', bytes(1 << 20), 3000)
    with pytest.raises(ValueError, match='memory'):
        read_pdf_file(bomb)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 1.1 * (1 << 20)


def test_without_pypdfium2_a_pdf_is_an_error_that_says_how_to_install_it(tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr('importlib.util.find_spec', lambda name, *rest: (
        None if name == 'pypdfium2' else find_spec(name, *rest)))
    with pytest.raises(Error, match='a.pdf.*pip install pypdfium2'):
        read_pdf_file(pdf(tmp_path / 'a.pdf', [['A good paper.']]))


def test_unreadable_pdfs_raise_a_reason_and_scans_are_empty(tmp_path):
    good = pdf(tmp_path / 'good.pdf', [['A good paper.']])
    assert read_pdf_file(good) == 'A good paper.'
    assert read_pdf_file(pdf(tmp_path / 'scan.pdf', [[], []])) == ''
    pdf(tmp_path / 'locked.pdf', [['secret']], encrypt='password')
    (tmp_path / 'broken.pdf').write_bytes(good.read_bytes()[:300])
    (tmp_path / 'empty.pdf').write_bytes(b'')
    (tmp_path / 'noise.pdf').write_bytes(b'%PDF-1.4\n' + np.random.default_rng(0).bytes(5000))
    for name in ('locked', 'broken', 'empty', 'noise'):
        with pytest.raises(ValueError, match='.'):
            read_pdf_file(tmp_path / f'{name}.pdf')
