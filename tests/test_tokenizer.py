"""Tokenizers: text to ids and back, long documents, text that a vocabulary does not cover."""
import json
import pickle

import numpy as np
import pytest
import tokenizers as library
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from extras.foreign import read_tokenizer
from lib.errors import Error
from lib.tokenizer import BORDER, Tokenizer, cut, load_tokenizer, to_utf8
from text.vocabulary import train_bpe

PROSE = ['The cat sat on the mat. It wasn\'t a dog!', 'Ünïcode  and\n\nnew lines',
         'numbers 12 4567 and 日本', 'if x:\n        return  {\n\n\n}   # 8  spaces,  or\t\ttabs',
         *(' ' * n + '.' for n in range(8))]
STORY = ''.join(f'{i} little girls saw a dog, and\nthe cat sat on mat {i * i}.\n\n'
                for i in range(200))
TRAINING = [STORY + ' zz zzz' * 50]         # runs of z: their tokens depend on where they begin
PARTS = ['a', 'dog', ' ', '  ', '\n', '\r\n', '\t', '.', '\'s', '12', 'é', '日', '\u3000', '\xa0',
         '\x1c', '<|endoftext|>', '<|', '\'', '\u200b', '💡']
any_text = st.one_of(st.text(st.characters(exclude_categories=['Cs']), max_size=60),
                     st.lists(st.sampled_from(PARTS), max_size=40).map(''.join))


# ---- small tokenizers of every kind
def metaspace(unk: str | None = '<unk>', scheme: str = 'first') -> library.Tokenizer:
    tokenizer = library.Tokenizer(models.BPE(unk_token=unk))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    specials = [token for token in (unk, '</s>') if token]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator(TRAINING, trainer)
    return tokenizer


def llama() -> library.Tokenizer:
    """BPE over the whole document as a single word; other characters are spelled in bytes."""
    tokens = json.loads(metaspace().to_str())
    vocab = tokens['model']['vocab']
    tokens['model'] |= {'byte_fallback': True, 'fuse_unk': True}
    tokens['model']['vocab'] |= {f'<0x{b:02X}>': len(vocab) + b for b in range(256)}
    tokens['pre_tokenizer'] = None
    tokenizer = library.Tokenizer.from_str(json.dumps(tokens))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(' ', 1, 0)])
    return tokenizer


def t5() -> library.Tokenizer:
    tokenizer = library.Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(' {2,}'), ' ')])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=100, special_tokens=['</s>', '<unk>'],
                                      unk_token='<unk>', show_progress=False)
    tokenizer.train_from_iterator(TRAINING, trainer)
    return tokenizer


def byte_level(prefix: bool) -> library.Tokenizer:
    tokenizer = library.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    every_byte = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=['<s>', '</s>'],
                                  initial_alphabet=every_byte, show_progress=False)
    tokenizer.train_from_iterator(TRAINING, trainer)
    return tokenizer


def bert() -> library.Tokenizer:
    tokenizer = library.Tokenizer(models.WordPiece(unk_token='[UNK]'))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=['[UNK]', '</s>'],
                                        show_progress=False)
    tokenizer.train_from_iterator(TRAINING, trainer)
    return tokenizer


KINDS = {'metaspace': metaspace(), 'always': metaspace(scheme='always'),
         'no_unk': metaspace(None, 'never'), 'llama': llama(), 't5': t5(),
         'roberta': byte_level(True), 'byte_level': byte_level(False), 'bert': bert()}


def wrapped(tokenizer: library.Tokenizer) -> Tokenizer:
    eot = tokenizer.token_to_id('</s>')
    return load_tokenizer({'kind': 'hf', 'json': tokenizer.to_str(), 'eot': eot})


def reference(kind: str, text: str) -> list[int]:
    tokenizer = library.Tokenizer.from_str(KINDS[kind].to_str())
    tokenizer.encode_special_tokens = True
    return tokenizer.encode(text, add_special_tokens=False).ids


def stream(tokenizer: Tokenizer, texts) -> list[int]:
    """The ids of documents, given in pieces as prepare.py gives them."""
    raws = [to_utf8(text) for text in texts]
    pieces = [piece for raw in raws for piece in cut(raw, 0, len(raw))]
    return [i for ids in tokenizer.encode_stream(pieces) for i in ids.tolist()]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder with the tokenizer.json of a trained bpe."""
    path = tmp_path_factory.mktemp('bpe')
    spec = train_bpe(PROSE * 5 + [f'{i} a little girl named Lily' for i in range(50)], 320)
    (path / 'tokenizer.json').write_text(spec['json'], encoding='utf-8')
    config = {'eos_token': {'content': '<|endoftext|>'}}
    (path / 'tokenizer_config.json').write_text(json.dumps(config))
    return path


@pytest.fixture(scope='module')
def ours(folder, gpt2_vocabulary):
    """A tokenizer of each kind; hf reads the same tokenizer.json as bpe."""
    bpe = {'kind': 'bpe', 'json': (folder / 'tokenizer.json').read_text(encoding='utf-8')}
    alphabet = ''.join(sorted(set(''.join(PROSE))))
    specs = [bpe, {'kind': 'gpt2'}, read_tokenizer(str(folder)),
             {'kind': 'char', 'alphabet': alphabet}]
    return {spec['kind']: load_tokenizer(spec) for spec in specs}


# ---- every kind
@pytest.mark.parametrize('kind', ['bpe', 'gpt2', 'hf'])
@given(text=any_text)
@settings(deadline=None, max_examples=100)
def test_any_text_round_trips_and_never_yields_end_of_text(ours, kind, text):
    ids = ours[kind].encode(text)
    assert ours[kind].decode(ids) == text
    assert all(0 <= i < ours[kind].vocab_size and i != ours[kind].eot for i in ids)


@pytest.mark.parametrize('kind', ['bpe', 'gpt2', 'hf', 'char'])
def test_spec_rebuilds_the_tokenizer(ours, kind):
    tokenizer = ours[kind]
    again = load_tokenizer(json.loads(json.dumps(tokenizer.spec)))
    assert again == tokenizer and again.encode(PROSE[0]) == tokenizer.encode(PROSE[0])
    assert pickle.loads(pickle.dumps(tokenizer)) == tokenizer
    assert tokenizer.decode([tokenizer.eot]) == '' == tokenizer.decode([])
    assert tokenizer.encode('') == []
    assert all(type(i) is int for i in tokenizer.encode(PROSE[1]))
    assert isinstance(tokenizer.decode(np.arange(tokenizer.vocab_size)), str)
    for outside in (-1, tokenizer.vocab_size):
        with pytest.raises(Error, match=f'^{outside} is not a token id'):
            tokenizer.decode([0, outside])


@pytest.mark.parametrize('kind', ['bpe', 'gpt2', 'hf'])
def test_partial_characters_and_lone_surrogates_become_replacement_characters(ours, kind):
    tokenizer = ours[kind]
    assert tokenizer.decode(tokenizer.encode('𐍈')[:1]) == '\ufffd'
    assert tokenizer.decode(tokenizer.encode('a\ud800b \ud83d\ude00')) == 'a\ufffdb 😀'


def test_equal_tokenizers_of_different_kinds(ours):
    assert ours['bpe'] == ours['hf']
    assert ours['bpe'] != ours['gpt2'] and ours['char'] != ours['bpe']
    assert wrapped(KINDS['roberta']) != wrapped(KINDS['byte_level'])


@pytest.mark.parametrize('kind', ['bpe', 'gpt2', 'char'])
def test_stream_encodes_documents_in_order(ours, kind, monkeypatch):
    monkeypatch.setattr('lib.tokenizer.WORKERS', 1)
    tokenizer = ours[kind]
    texts = [PROSE[i % len(PROSE)] * (i % 7) for i in range(5000)] + ['The cat ' * 2000, '']
    if kind != 'char':
        texts[1500] = 'a <|endoftext|> in the text'
    assert stream(tokenizer, texts) == [i for text in texts
                                        for i in (*tokenizer.encode(text), tokenizer.eot)]


@pytest.mark.parametrize('spec', [
    None, 7, {}, {'kind': 'none'}, {'kind': 'char', 'alphabet': 3},
    {'kind': 'bpe'}, {'kind': 'bpe', 'json': '{'},
    {'kind': 'bpe', 'json': '{"model": {"vocab": {"ab": 1}}}'},
    {'kind': 'bpe', 'json': '{"model": {"vocab": {"ab": 0}}}'},
    {'kind': 'hf', 'json': '{}'},
    {'kind': 'hf', 'json': '{"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}',
     'eot': 1}])
def test_damaged_spec_is_an_error(spec):
    with pytest.raises(Error):
        load_tokenizer(spec)


# ---- bpe, gpt2 and char
@given(text=any_text)
@settings(deadline=None, max_examples=100)
def test_ids_of_bpe_and_gpt2_are_those_of_their_libraries(ours, text):
    import tiktoken
    assert ours['gpt2'].encode(text) == tiktoken.get_encoding('gpt2').encode_ordinary(text)
    assert ours['bpe'].encode(text) == ours['hf'].encode(text)


@pytest.mark.parametrize('kind', ['bpe', 'gpt2'])
@given(text=any_text)
@settings(deadline=None, max_examples=100)
def test_cutting_at_any_border_changes_no_id(ours, kind, text):
    borders = [0, *(border.start() for border in BORDER.finditer(text)), len(text)]
    ids = [i for a, b in zip(borders, borders[1:]) for i in ours[kind].encode(text[a:b])]
    assert ids == ours[kind].encode(text)


@pytest.mark.parametrize('kind', ['bpe', 'gpt2'])
def test_long_text_has_the_same_ids_in_pieces(ours, kind, monkeypatch):
    text = ''.join(f'{i} girls, and\n{"a dog" * (i % 3)}  \n\n it\'s' for i in range(300))
    monkeypatch.setattr('lib.tokenizer.PIECE', 1 << 30)
    whole = ours[kind].encode(text)
    monkeypatch.setattr('lib.tokenizer.PIECE', 100)
    texts, ends = zip(*cut(text.encode(), 0, len(text.encode())))
    assert max(map(len, texts)) <= 100 and ''.join(texts) == text
    assert ends == (False,) * (len(texts) - 1) + (True,)
    assert ours[kind].encode(text) == whole


@pytest.mark.parametrize('text', [' ' * 10**6 + 'x', 'x' * 10**6, '\n' * 10**6 + 'x', '日' * 10**5])
@pytest.mark.parametrize('kind', ['bpe', 'gpt2'])
def test_text_without_a_border_round_trips(ours, kind, text):
    assert ours[kind].decode(ours[kind].encode(text)) == text


def test_bpe_has_the_size_asked_for_and_end_of_text_last(ours, folder):
    assert (ours['bpe'].vocab_size, ours['bpe'].eot) == (320, 319)
    assert load_tokenizer(train_bpe(['ab'], 5000)).vocab_size == 257         # no pair occurs twice
    transformers = pytest.importorskip('transformers')
    auto = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / 'tokenizer.json'))
    assert [auto.encode(text) for text in PROSE] == [ours['bpe'].encode(text) for text in PROSE]
    assert auto.convert_tokens_to_ids('<|endoftext|>') == 319


def test_unknown_character_of_char_is_named(ours):
    with pytest.raises(Error, match='☃.*2603'):
        ours['char'].encode('The ☃')


def test_gpt2_without_its_vocabulary_is_an_error(monkeypatch, tmp_path):
    import tiktoken
    monkeypatch.setattr(tiktoken.registry, 'ENCODINGS', {})
    monkeypatch.setenv('TIKTOKEN_CACHE_DIR', str(tmp_path))
    monkeypatch.setenv('https_proxy', 'http://127.0.0.1:9')
    with pytest.raises(Error, match='TIKTOKEN_CACHE_DIR'):
        load_tokenizer({'kind': 'gpt2'})


# ---- any tokenizer.json
LONG = {'prose': STORY, 'other script': STORY[:3000] + '从前有一个老人住在山上。' * 300 + STORY,
        'no words': 'z' * 9000 + STORY + 'z' * 9000, 'white space': ' ' * 9000 + STORY + '\n' * 99,
        'accents': 'e\u0301 ﬁ ▁ <s> é 12\t ' * 700 + STORY}


@pytest.mark.parametrize('text', LONG)
@pytest.mark.parametrize('kind', KINDS)
def test_ids_of_a_document_are_those_of_the_whole_document(kind, text, monkeypatch):
    text = LONG[text]
    tokenizer = wrapped(KINDS[kind])
    ids = reference(kind, text)
    eot = tokenizer.eot
    assert stream(tokenizer, [text]) == [*ids, eot]
    monkeypatch.setattr('extras.foreign.WINDOW', 3001)       # several windows to a document
    monkeypatch.setattr('extras.foreign.OVERLAP', 1600)
    assert tokenizer.encode(text) == ids
    few = reference(kind, 'a cat')
    assert stream(tokenizer, ['a cat', text, '', 'a cat']) == [*few, eot, *ids, eot, eot, *few, eot]


def test_a_long_document_is_not_encoded_in_one_call(monkeypatch):
    """Its memory is bounded: windows are, although the document is not."""
    tokenizer = wrapped(KINDS['metaspace'])
    lengths = []

    class Watched:
        def encode(self, text, **options):
            lengths.append(len(text))
            return hf.encode(text, **options)

    hf, tokenizer.hf = tokenizer.hf, Watched()
    monkeypatch.setattr('extras.foreign.WINDOW', 3000)
    monkeypatch.setattr('extras.foreign.OVERLAP', 1500)
    assert tokenizer.encode_long(STORY).tolist() == reference('metaspace', STORY)
    assert len(lengths) > 3 and max(lengths) <= 4500


@pytest.mark.parametrize('kind', ['metaspace', 'always', 'llama', 't5', 'roberta', 'byte_level'])
def test_long_prompt_round_trips(kind):
    tokenizer = wrapped(KINDS[kind])
    prompt = STORY.replace('\n', '')[:5000]
    assert tokenizer.decode(tokenizer.encode(prompt)) == prompt
    assert tokenizer.unknown == tokenizer.lost == 0


@pytest.mark.parametrize('kind', KINDS)
@given(data=st.data())
@settings(deadline=None, max_examples=40)
def test_decoding_a_stream_gives_the_text_of_decoding_at_once(kind, data):
    tokenizer = wrapped(KINDS[kind])
    some = st.integers(0, tokenizer.vocab_size - 1)
    ids = data.draw(st.lists(some, max_size=30) | any_text.map(tokenizer.encode))
    assert ''.join(tokenizer.decode_stream(ids)) == tokenizer.decode(ids)


def test_stream_skips_special_tokens_between_bytes():
    tokenizer = wrapped(KINDS['llama'])
    first, *rest = tokenizer.encode('日')[-3:]              # three bytes
    cat = tokenizer.encode('a cat')
    for special in (tokenizer.unk, tokenizer.eot):
        inside = [first, special, *rest, special, *cat]
        assert ''.join(tokenizer.decode_stream(inside)) == tokenizer.decode(inside) == '日 a cat'
        invalid = [first, *rest, special, first, *cat]
        assert ''.join(tokenizer.decode_stream(invalid)) == tokenizer.decode(invalid)


@pytest.mark.parametrize('kind', KINDS)
def test_continuation_keeps_its_first_space(kind):
    tokenizer = wrapped(KINDS[kind])
    ids = tokenizer.encode('the cat sat')
    prompt = tokenizer.encode('the')
    assert ids[:len(prompt)] == prompt
    assert ''.join(tokenizer.decode_stream(ids[len(prompt):], prompt)) == ' cat sat'


def test_stream_shows_text_as_it_comes():
    tokenizer = wrapped(KINDS['llama'])
    shown = list(tokenizer.decode_stream(tokenizer.encode('a 日 dog')))
    assert shown[0] == 'a' and '日' in ''.join(shown[:-1]) and shown[-1] == ''


def test_unknown_tokens_and_lost_text_are_counted():
    tokenizer = wrapped(KINDS['metaspace'])
    tokenizer.encode('the cat')
    assert (tokenizer.unknown, tokenizer.lost, tokenizer.visible) == (0, 0, 6)
    stream(tokenizer, ['the 日本 sat', '日'])
    assert (tokenizer.unknown, tokenizer.lost, tokenizer.visible) == (3, 3, 15)
    drops = wrapped(KINDS['no_unk'])                        # has no unknown token, so drops them
    stream(drops, ['the 日本 sat'])
    assert (drops.unknown, drops.lost, drops.visible) == (0, 2, 8)
    unigram = wrapped(KINDS['t5'])
    unigram.encode('the e\u0301 日 cat')
    assert (unigram.unknown, unigram.lost, unigram.visible) == (2, 2, 8)
    word = wrapped(KINDS['bert'])
    word.encode('the 日 cat')
    assert (word.unknown, word.lost) == (1, 1)


def test_name_of_a_special_token_is_text():
    for kind in ('llama', 'byte_level'):
        tokenizer = wrapped(KINDS[kind])
        ids = tokenizer.encode('a </s> b')
        assert tokenizer.eot not in ids and tokenizer.decode(ids) == 'a </s> b'
    with pytest.raises(Error, match='ordinary text as end-of-text, </s>'):
        wrapped(KINDS['t5']).encode('a </s> b')             # Unigram has no other spelling of it


def test_tokenizers_that_cannot_be_exact_are_refused():
    words = library.Tokenizer(models.WordLevel({'</s>': 0, 'one': 1}, unk_token='</s>'))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(Error, match='ordinary text as end-of-text'):
        stream(wrapped(words), ['one two'])
    no_unknown = library.Tokenizer(models.WordPiece({'a': 0, '</s>': 1}, unk_token='[UNK]'))
    with pytest.raises(Error, match='cannot encode the text .*UNK'):
        stream(wrapped(no_unknown), ['b'])
    random = library.Tokenizer.from_str(KINDS['metaspace'].to_str())
    random.model.dropout = 0.1
    with pytest.raises(Error, match='dropout'):
        wrapped(random)


def test_document_beyond_100_million_characters_is_refused():
    pieces = ((text, False) for text in ['x' * 10**6] * 101)
    with pytest.raises(Error, match='split it'):
        list(wrapped(KINDS['metaspace']).encode_stream(pieces))


def test_truncation_padding_and_frames_do_not_apply_to_documents(ours, folder, tmp_path):
    tokenizer = library.Tokenizer.from_file(str(folder / 'tokenizer.json'))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=50)
    tokenizer.post_processor = library.processors.TemplateProcessing(
        '$A <|endoftext|>', special_tokens=[('<|endoftext|>', 319)])
    tokenizer.save(str(tmp_path / 'tokenizer.json'))
    spec = read_tokenizer(str(tmp_path))                    # finds end-of-text without a config
    assert spec['eot'] == 319
    assert load_tokenizer(spec).encode(PROSE[0]) == ours['bpe'].encode(PROSE[0])


def test_labels_show_spaces_and_newlines(ours):
    for kind in ('bpe', 'hf'):
        label = ours[kind].label
        assert [label(i) for i in ours[kind].encode('\n .')] == ['\\n', '·.']
        assert label(ours[kind].eot) == '<eot>'
    for kind in ('metaspace', 'roberta', 'bert'):
        tokenizer = wrapped(KINDS[kind])
        labels = map(tokenizer.label, tokenizer.encode('girls saw a cat'))
        assert ''.join(labels) == '·girls·saw·a·cat'
        assert tokenizer.label(tokenizer.eot) == '<eot>'
    assert wrapped(KINDS['metaspace']).label(0) == '<unk>'


def test_tokenizer_of_the_home_folder(folder, monkeypatch):
    monkeypatch.setenv('HOME', str(folder.parent))
    assert read_tokenizer(f'~/{folder.name}') == read_tokenizer(str(folder))


def test_folder_without_a_tokenizer_or_end_of_text_is_an_error(tmp_path):
    with pytest.raises(Error, match='neither bpe, gpt2, char nor'):
        read_tokenizer(str(tmp_path / 'nosuch'))
    library.Tokenizer(models.WordLevel({'a': 0})).save(str(tmp_path / 'tokenizer.json'))
    for eos, error in (('"</s>"', 'no end-of-text.*of its vocabulary'), ('5', "'int' object")):
        (tmp_path / 'tokenizer_config.json').write_text(f'{{"eos_token": {eos}}}')
        with pytest.raises(Error, match=error):
            read_tokenizer(str(tmp_path))
