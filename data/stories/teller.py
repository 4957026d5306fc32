"""Tells the stories of the dataset `stories` by the grammar beside this file, whose header
explains its notation.

The probability of each story is known: it is the product of those of the draws, and every draw
shows in the text. So -ln of it, summed over a text's stories, is the entropy that no model of
the text can undercut."""
import math
import random
import re
from pathlib import Path
from typing import NamedTuple

from config import Error, require

GRAMMAR = Path(__file__).with_name('grammar.txt')
# `name:` or `name (attributes):` at the left margin, the rest of its line, and the indented lines
RULE = re.compile(r'^([a-z_]+)(?: \(([^()\n]*)\))?:(.*\n(?:[ \t]*\n|[ \t]+.*\n)*)', re.M)
# text, and after it one of {name} {name.attribute} {variable=name}, or the end
PART = re.compile(r'([^{}]*)(?:{(?:([a-z_]+)=)?([A-Za-z][a-z_]*)(?:\.([a-z_]+))?}|$)')


class Part(NamedTuple):
    """Plain text and the braces that follow it. What is not there is ''."""
    text: str
    variable: str
    name: str
    attribute: str


class Option(NamedTuple):
    """One of the texts of a rule. word holds the text as it is written under '', and its
    attributes."""
    parts: list[Part]
    word: dict[str, str]


# ---- reading the grammar
def read_grammar(path=GRAMMAR) -> dict[str, list[Option]]:
    """The rules of a grammar and their options. Raises Error, with the rule's name, for bad
    notation."""
    text = Path(path).read_text(encoding='utf-8') + '\n'
    text = re.sub(r'^[ \t]*#.*\n', '', text, flags=re.M)            # comments
    stray = RULE.sub('', text).strip()
    if stray:
        line = stray.splitlines()[0]
        raise Error(f'{path}: expected `rule:` or an indented line, got {line!r}')
    grammar = {}
    for rule, head, body in RULE.findall(text):
        words = read_words(path, rule, head, body)
        texts = {word[''] for word in words}
        has_good_braces = not any(PART.sub('', text) for text in texts)
        is_complete = all(all(word.values()) for word in words)
        is_new = rule not in grammar and len(texts) == len(words)
        require(has_good_braces and is_complete and is_new,
                f'{path}: rule {rule} has broken braces, an empty place, or something twice')
        grammar[rule] = [Option(read_parts(word['']), word) for word in words]
    require('plot' in grammar, f'{path} has no rule plot')
    return grammar


def read_words(path, rule: str, head: str, body: str) -> list[dict[str, str]]:
    """The words of a rule, each as {'': its text, attribute: value, ...}; head is what stands
    in brackets."""
    names = [name.strip() for name in head.split(',') if name]
    is_list_of_texts = body.lstrip().startswith('- ')
    is_table = bool(names) and '=' not in head
    try:
        if is_list_of_texts:
            texts = re.split(r'^[ \t]+- ', body, flags=re.M)[1:]
            return [{'': join_paragraphs(text)} for text in texts]
        if is_table:                                           # a line is a word and its attributes
            rows = [[cell.strip() for cell in row.split(',')] for row in body.strip().split('\n')]
            return [dict(zip(['', *names], row, strict=True)) for row in rows]
        attributes = dict(name.split('=') for name in names)        # of all words of the list
        return [{'': word.strip(), **attributes} for word in body.split(',')]
    except ValueError as e:
        raise Error(f'{path}: rule {rule} has a wrong number of attributes ({e})') from e


def read_parts(text: str) -> list[Part]:
    return [Part(*found) for found in PART.findall(text) if any(found)]


def join_paragraphs(text: str) -> str:
    """The text with each paragraph on one line; an empty line separates paragraphs in the file."""
    paragraphs = (' '.join(paragraph.split()) for paragraph in re.split(r'\n\s*\n', text))
    return '\n'.join(paragraph for paragraph in paragraphs if paragraph)


# ---- telling
def tell_stories(grammar: dict[str, list[Option]], n: int, seed: int):
    """Yield n times (text, nats): a story and -ln of its probability.

    Story i depends on seed and i only, on every machine: Python keeps the sequence of
    Random.random(). Raises Error if a name is unknown or not drawn yet, lacks an attribute, or
    cannot be remembered."""
    for i in range(n):
        story = Story(grammar, random.Random(f'{seed} {i}').random)
        text, _ = story.tell('plot')
        yield re.sub(r'\b([Aa]) (?=[aeiou])', r'\1n ', text), story.nats


class Story:
    """A story that is being told: the words that it remembers, by variable, and the nats drawn
    so far."""

    def __init__(self, grammar: dict[str, list[Option]], draw):
        self.grammar = grammar
        self.draw = draw                        # returns a random number in [0, 1)
        self.memory = {}
        self.nats = 0.0

    def tell(self, rule: str) -> tuple[str, dict[str, str]]:
        """Draw one of the rule's options; return its text, with all braces replaced, and its
        word."""
        used = {word[''] for word in self.memory.values()}
        options = [option for option in self.grammar[rule] if option.word[''] not in used]
        require(options, f'stories: all words of the list {rule} are in use')
        self.nats += math.log(len(options))
        parts, word = options[int(self.draw() * len(options))]
        text = ''
        for part in parts:
            text += part.text
            if part.name:
                text += self.replace(part, rule)
        return text, word

    def replace(self, part: Part, rule: str) -> str:
        """The text for the braces of a part: a remembered word or its attribute, or a new draw."""
        name = part.name.lower()
        remembered = self.memory.get(name, {})
        if part.attribute in remembered:
            text = remembered[part.attribute]
        elif name in self.grammar and not part.attribute:
            text, word = self.tell(name)
            if part.variable:
                is_plain = text == word['']     # not a text with braces of its own
                require(part.variable not in self.grammar and is_plain,
                        f'stories: rule {rule}: {part.variable}={part.name} needs a new name '
                        'and a list')
                self.memory[part.variable] = word
        else:
            raise Error(f'stories: rule {rule}: {part.name} is not drawn yet or has no '
                        f'{part.attribute!r}')
        return text if name == part.name else text[0].upper() + text[1:]
