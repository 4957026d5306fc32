"""The stories: each has exactly one derivation, with the probability reported, and makes sense."""
import itertools
import math
import re

import pytest
from grammar_parser import parse

from lib.errors import Error
from lib.tokenizer import load_tokenizer
from text.stories.teller import read_grammar, tell_stories

GRAMMAR = read_grammar()
STORIES = list(tell_stories(GRAMMAR, 1000, 0))
TEXTS = [text for text, _ in STORIES]
WORDS = {rule: [word[''] for _, word in options] for rule, options in GRAMMAR.items()}
SWAPPED = {'he': 'she', 'she': 'he', 'him': 'her', 'her': 'his', 'his': 'her',
           'He': 'She', 'She': 'He', 'His': 'Her', 'Her': 'His'}
OBJECTS = 'toy treat fruit clothes treasure breakable vehicle crop award bag lamp'.split()


def small(tmp_path, text):
    (tmp_path / 'grammar.txt').write_text(text)
    return read_grammar(tmp_path / 'grammar.txt')


def hero(text):
    """The hero's name and sex as a reader infers them, without the grammar."""
    return re.search(r'\b(girl|boy) named (\w+)', text).group(2, 1)


def children(text):
    names = WORDS['girl'] + WORDS['boy'] + WORDS['child']
    return {name for name in names if re.search(rf'\b{name}\b', text)}


def test_every_story_has_one_derivation_with_its_nats():
    for text, nats in STORIES:
        assert parse(GRAMMAR, text) == [pytest.approx(nats, abs=1e-9)]


def test_an_altered_story_does_not_parse():
    for text in TEXTS[:300]:
        name, sex = hero(text)
        other = next(child for child in WORDS[sex] if child not in children(text))
        second = [m.start() for m in re.finditer(rf'\b{name}\b', text)][1]
        start, end = re.search(r'\b(he|she|him|her|his)\b', text, re.I).span()
        flipped = text[:start] + SWAPPED[text[start:end]] + text[end:]
        renamed = text[:second] + other + text[second + len(name):]
        for altered in (renamed, flipped, text + ' ', text[:-1], text + text,
                        text.replace('\n', ' '), text[0].lower() + text[1:],
                        text.replace(' a ', ' an ')):
            assert altered != text and parse(GRAMMAR, altered) == []
    assert parse(GRAMMAR, '') == []


def test_stories_are_written_well():
    for text in TEXTS:
        assert text.isascii() and text.strip() == text and '  ' not in text
        assert not set('{}=_') & set(text)
        paragraphs = r'(?:[A-Z"][^\n]*[.!?"]\n?)+'
        assert re.fullmatch(paragraphs, text), 'paragraphs consist of sentences'
        assert not re.search(r'[.!?] [a-z]', text), 'a sentence starts with a capital'
        assert not re.search(r'\b[Aa] [aeiou]|\b[Aa]n [^aeiou]', text), 'a or an'
        assert 70 <= len(text.split()) <= 125


def test_characters_stay_consistent():
    for text in TEXTS:
        name, sex = hero(text)
        he, she = (set(words.split()) for words in ('he him his', 'she her hers'))
        pronouns = set(re.findall(r'\b(?:he|him|his|she|her|hers)\b', text.lower()))
        assert pronouns and pronouns <= (she if sex == 'girl' else he)
        assert text.count(name) >= 3 and len(children(text)) <= 2
        assert sum(bool(re.search(rf'\b{name}\b', text)) for name in WORDS['grown_up']) <= 1


def test_stored_words_are_not_picked_again(tmp_path):
    grammar = small(tmp_path, 'plot:\n  - {x=n} {y=n} {n}.\nn: a, b, c\n')
    stories = list(tell_stories(grammar, 200, 1))
    orders = itertools.permutations('abc')
    assert {text for text, _ in stories} == {f'{x} {y} {z}.' for x, y, z in orders}
    for text, nats in stories:
        assert nats == pytest.approx(math.log(3) + math.log(2))
        assert parse(grammar, text) == [pytest.approx(nats)]
    assert parse(grammar, 'a b a.') == []


def test_the_parser_detects_an_ambiguous_grammar(tmp_path):
    grammar = small(tmp_path, 'plot:\n  - {x} day\n  - {y} day\nx: one, two\ny: two, three\n')
    assert parse(grammar, 'two day') == [pytest.approx(math.log(4))] * 2


def test_reported_probabilities_match_frequencies(tmp_path):
    grammar = small(tmp_path, 'plot:\n  - {x=n} or {m}\n  - {m}\nn: a, b\nm: a, b, c\n')
    told = [text for text, _ in tell_stories(grammar, 20_000, 2)]
    possible = {text: parse(grammar, text) for text in set(told)}
    assert len(possible) == 7
    assert sum(math.exp(-nats) for nats, in possible.values()) == pytest.approx(1)
    for text, (nats,) in possible.items():
        assert told.count(text) / len(told) == pytest.approx(math.exp(-nats), abs=.02)


def test_the_notation_of_the_header(tmp_path):
    grammar = small(tmp_path, """# a comment
plot:
  - {who=girl} has a
    {thing}.

    # {unknown} in a comment
    {Who.he} smiles.
girl (he=she, his=her): Ann, Zoe
thing (of):
    owl, wood
""")
    told = {text for text, _ in tell_stories(grammar, 50, 0)}
    assert told == {'Ann has an owl.\nShe smiles.', 'Zoe has an owl.\nShe smiles.'}


def test_a_story_depends_on_seed_and_number_only(tmp_path):
    assert list(tell_stories(GRAMMAR, 50, 0)) == STORIES[:50]
    assert not {text for text, _ in tell_stories(GRAMMAR, 1000, 1)} & set(TEXTS)
    grammar = small(tmp_path, 'plot:\n  - {d}{d}{d}{d}{d}{d}\nd: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9\n')
    assert [text for text, _ in tell_stories(grammar, 3, 0)] == ['891431', '188846', '427162']


@pytest.mark.parametrize('text, named', [
    ('plot:\n  - a {cat}\n', 'cat'),
    ('plot:\n  - {x=n} {x.he}\nn: a, b\n', 'he'),
    ('plot:\n  - {n.he}\nn (he=she): a\n', 'he'),
    ('plot:\n  - {x=n} {x.he}\nn: {a}, {b}\na (he=she): Ann\nb: Bob\n', 'x'),
    ('plot:\n  - {x} {x=n}\nn: a, b\n', 'x'),
    ('plot:\n  - {m} {x}\nm:\n  - {x=n}\n  - none\nn: a, b\n', 'x'),
    ('plot:\n  - {x=m}\nm:\n  - {n}\nn: a, b\n', 'x'),
    ('plot:\n  - {x=n} {n}\nn: a\n', 'n'),
    ('plot:\n  - {n}\nn:\n', 'n'),
    ('plot:\n  - {n}\nn: a,, b\n', 'n'),
    ('plot:\n  - {n}\nn: a, a\n', 'n'),
    ('plot:\n  - {n}\nn: a, b\nn: c\n', 'n'),
    ('plot:\n  - {n}\nn (he, him):\n  a, b\n', 'n'),
    ('plot:\n  - {n}\nn = m\n', 'n = m'),
    ('plot:\n  - {n\nn: a\n', 'plot'),
    ('plot:\n  - n}\nn: a\n', 'plot'),
    ('plot:\n  - {n=n}\nn: a\n', 'n'),
    ('plot:\n  - x\n- y\n', '- y'),
    ('Plot:\n  - x\n', 'Plot'),
    ('plots:\n  - x\n', 'plot'),
    ('', 'plot')])
def test_a_broken_grammar_is_one_line(tmp_path, text, named):
    with pytest.raises(Error, match=rf'^.*{re.escape(named)}.*$'):
        list(tell_stories(small(tmp_path, text), 20, 0))

@pytest.mark.slow
def test_the_storyteller_learns_the_grammar(run):
    import torch

    from lib import checkpoint as checkpoints
    from lib.dataset import open_dataset
    from model import GPT, GPTConfig
    run('prepare.py')
    run('train.py', 'config/stories.py', '--out_dir=out')
    checkpoint = checkpoints.load('out')
    tokenizer = load_tokenizer(checkpoint['tokenizer'])
    _, _, val = open_dataset('stories')
    nats = dict(tell_stories(GRAMMAR, 60_000, 1337))
    floor = sum(nats[text] for text in split(val.tolist(), tokenizer)) / len(val)
    assert floor < checkpoint['best_val_loss'] < 1.006 * floor

    model = GPT(GPTConfig(**checkpoint['model_config'])).eval()
    model.load_state_dict(checkpoint['model'])
    prompts = torch.full((1000, 1), tokenizer.eot)
    steps = model.generate(prompts, 250, eot=tokenizer.eot, temperature=0.8, seed=5)
    ids = torch.stack(list(steps), dim=1)                               # (B, T)
    texts = [split(row + [tokenizer.eot], tokenizer)[0] for row in ids.tolist()]
    told = sum(len(parse(GRAMMAR, text)) == 1 for text in texts)
    print(f'{told} of 1,000 samples are stories of the grammar')
    assert told >= 985


def split(ids, tokenizer):
    """The texts of the documents in ids, each of which ends with end-of-text."""
    texts = []
    start = 0
    while start < len(ids):
        end = ids.index(tokenizer.eot, start)
        texts.append(tokenizer.decode(ids[start:end]))
        start = end + 1
    return texts
