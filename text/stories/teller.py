"""Generate the dataset `stories` from grammar.txt, whose header explains its notation.

Every random choice can be recovered from the text, so the probability of a story is the product
of the probabilities of its choices. -ln of it gives a floor, in nats, that no model can beat on
average: a loss below it means that validation text has leaked."""
import math
import random
import re
from pathlib import Path
from typing import NamedTuple

from lib.errors import Error, require

GRAMMAR = Path(__file__).with_name('grammar.txt')
# `name:` or `name (attributes):` at the left margin, the rest of its line, and the indented lines
RULE = re.compile(r'^([a-z_]+)(?: \(([^()\n]*)\))?:(.*\n(?:[ \t]*\n|[ \t]+.*\n)*)', re.M)
# text, then {name}, {name.attribute} or {variable=name}, or the end
PART = re.compile(r'([^{}]*)(?:{(?:([a-z_]+)=)?([A-Za-z][a-z_]*)(?:\.([a-z_]+))?}|$)')


class Part(NamedTuple):
    """Plain text and the braces that follow it; '' where there is none."""
    text: str
    variable: str
    name: str
    attribute: str


class Option(NamedTuple):
    """One choice of a rule. word is {'': its text, attribute: value, ...}."""
    parts: list[Part]
    word: dict[str, str]


# ---- reading the grammar
def read_grammar(path=GRAMMAR) -> dict[str, list[Option]]:
    """The options of each rule. Raises Error, with the rule's name, for bad notation."""
    text = Path(path).read_text(encoding='utf-8') + '\n'
    text = re.sub(r'^[ \t]*#.*\n', '', text, flags=re.M)            # comments
    for line in RULE.sub('', text).split('\n'):
        require(not line.strip(), f'{path}: expected `rule:` or an indented line, got {line!r}')
    grammar = {}
    for rule, attributes, body in RULE.findall(text):
        try:
            words = read_words(attributes, body)
        except ValueError as e:
            raise Error(f'{path}: rule {rule} has a wrong number of attributes ({e})') from e
        texts = {word[''] for word in words}
        is_new = words and rule not in grammar and len(texts) == len(words)
        is_complete = all(all(word.values()) for word in words)
        has_good_braces = not any(PART.sub('', text) for text in texts)
        require(is_new and is_complete and has_good_braces,
                f'{path}: rule {rule} has broken braces, an empty field, or a duplicate')
        grammar[rule] = []
        for word in words:
            parts = [Part(*found) for found in PART.findall(word['']) if any(found)]
            grammar[rule].append(Option(parts, word))
    require('plot' in grammar, f'{path} has no rule plot')
    return grammar


def read_words(attributes: str, body: str) -> list[dict[str, str]]:
    """The words of a rule's options. Raises ValueError if attributes are missing or left over."""
    names = [name.strip() for name in attributes.split(',') if name]
    if body.lstrip().startswith('- '):                      # texts; one line per paragraph
        texts = re.split(r'^[ \t]+- ', body, flags=re.M)[1:]
        paragraphs = [re.split(r'\n\s*\n', text.strip()) for text in texts]
        return [{'': '\n'.join(' '.join(each.split()) for each in text)} for text in paragraphs]
    if names and '=' not in attributes:                     # a table: a word and its attributes
        rows = [[cell.strip() for cell in row.split(',')] for row in body.strip().split('\n')]
        return [dict(zip(['', *names], row, strict=True)) for row in rows]
    shared = dict(name.split('=') for name in names)        # a list: all words share these
    return [{'': word.strip(), **shared} for word in body.split(',')]


# ---- telling
def tell_stories(grammar: dict[str, list[Option]], n: int, seed: int):
    """Yield (text, nats) n times: a story and -ln of its probability.

    Story i depends only on seed and i, on every machine: Python guarantees the sequence of
    Random.random(). Raises Error for a name that is unknown or has not been drawn yet."""
    for i in range(n):
        story = Story(grammar, random.Random(f'{seed} {i}').random)
        text, _ = story.tell('plot')
        yield re.sub(r'\b([Aa]) (?=[aeiou])', r'\1n ', text), story.nats


class Story:
    """The state of a story while it is generated."""

    def __init__(self, grammar: dict[str, list[Option]], draw):
        self.grammar = grammar
        self.draw = draw                        # returns a random number in [0, 1)
        self.memory = {}                        # the words remembered, by variable
        self.nats = 0.0                         # -ln of the probability of all choices so far

    def tell(self, rule: str) -> tuple[str, dict[str, str]]:
        """Choose an option of the rule; return its text, with all braces filled, and its word."""
        used = {word[''] for word in self.memory.values()}
        options = [option for option in self.grammar[rule] if option.word[''] not in used]
        require(options, f'stories: all words of the list {rule} are in use')
        self.nats += math.log(len(options))
        parts, word = options[int(self.draw() * len(options))]
        text = ''
        for part in parts:
            text += part.text
            if part.name:
                text += self.fill(part, rule)
        return text, word

    def fill(self, part: Part, rule: str) -> str:
        """The text for the braces of a part: a remembered word, its attribute, or a new draw."""
        name = part.name.lower()
        remembered = self.memory.get(name, {})
        if part.attribute in remembered:
            text = remembered[part.attribute]
        elif name in self.grammar and not part.attribute:
            text, word = self.tell(name)
            if part.variable:
                can_remember = part.variable not in self.grammar and text == word['']
                require(can_remember, f'stories: rule {rule}: {part.variable}={part.name} needs '
                                      'a new name and a list of plain words')
                self.memory[part.variable] = word
        else:
            raise Error(f'stories: rule {rule}: {part.name} has not been drawn yet or has no '
                        f'{part.attribute!r}')
        return text if name == part.name else text[0].upper() + text[1:]
