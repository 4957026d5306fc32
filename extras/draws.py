"""Where the grammar of the stories draws the next word, and where the text determines it.

Every choice of the grammar is visible in the text, so the probability of each next word, given the
text before it, can be computed exactly: follow all ways of telling a story that agree with the text
so far. Their words are what can come next."""
import math
import re
from typing import NamedTuple

from lib.errors import Error
from lib.tokenizer import Tokenizer
from text.stories.teller import Option, Part

WORD = re.compile(r' ?\S+\n?')                  # no token of bpe or gpt2 crosses its borders
COMPLETE = re.compile(r' ?\S+(\n| (?=\S))\S')   # a word, and the letter that decides `a` or `an`


class Telling(NamedTuple):
    """A way of telling a story, up to some point."""
    p: float                    # probability of its choices
    ahead: str                  # what it tells after the words read so far
    rest: tuple[Part, ...]      # what it has not told yet
    memory: dict                # the words remembered, by variable
    is_capital: bool            # whether the next letter is a capital

    def say(self, text: str):
        """This telling, with a text added."""
        if self.is_capital and text:
            text = text[0].upper() + text[1:]
        return self._replace(ahead=self.ahead + text, is_capital=self.is_capital and not text)


def go_on(grammar: dict[str, list[Option]], telling: Telling) -> list[Telling]:
    """The ways in which a telling can continue with its next part; compare Story.fill."""
    part, *rest = telling.rest
    telling = telling.say(part.text)._replace(rest=tuple(rest))
    if not part.name:
        return [telling]
    name = part.name.lower()
    telling = telling._replace(is_capital=telling.is_capital or name != part.name)
    remembered = telling.memory.get(name, {})
    if part.attribute in remembered:
        return [telling.say(remembered[part.attribute])]
    used = {word[''] for word in telling.memory.values()}
    options = [option for option in grammar[name] if option.word[''] not in used]
    return [telling._replace(p=telling.p / len(options), rest=(*option.parts, *rest),
                             memory={**telling.memory, part.variable: option.word}
                             if part.variable else telling.memory)
            for option in options]


def split_word(grammar: dict[str, list[Option]], telling: Telling):
    """Yield (word, telling after it) for each way to tell the next word; '' is the end."""
    if telling.rest and not COMPLETE.match(telling.ahead):
        for longer in go_on(grammar, telling):
            yield from split_word(grammar, longer)
        return
    found = WORD.match(telling.ahead)
    end = found.end() if found else 0
    told = re.sub(r'\b([Aa]) (?=[aeiou])', r'\1n ', telling.ahead)      # as in tell_stories
    word = WORD.match(told)[0] if found else ''
    yield word, telling._replace(ahead=telling.ahead[end:])


def next_words(grammar: dict[str, list[Option]], words: list[str]):
    """Yield, for each word of a text, {word: probability} of all that can stand there. Stops after
    a word that cannot."""
    tellings = [Telling(1.0, '', (Part('', '', 'plot', ''),), {}, False)]
    for actual in words:
        found = [pair for telling in tellings for pair in split_word(grammar, telling)]
        total = sum(telling.p for telling in tellings)
        possible = {}
        for word, telling in found:
            possible[word] = possible.get(word, 0.0) + telling.p / total
        yield possible
        tellings = [telling for word, telling in found if word == actual]
        if not tellings:
            return


def draws(grammar: dict[str, list[Option]], tokenizer: Tokenizer, text: str) -> list | None:
    """-log2 of each token's probability in the grammar, given the text before it: 0 where the text
    determines the token. None if the text is not the beginning of a story, cut at a token."""
    words, bits = WORD.findall(text), []
    encoded = [tokenizer.encode(word) for word in words]
    if ''.join(words) != text or sum(encoded, []) != tokenizer.encode(text):
        return None
    before = 1.0                            # the probability of the tokens before
    for word, ids, possible in zip(words, encoded, next_words(grammar, words)):
        try:
            candidates = [(p, tokenizer.encode(other)) for other, p in possible.items()]
        except Error:                       # a letter of the grammar is not in its alphabet
            return None
        for i in range(len(ids)):
            candidates = [(p, other) for p, other in candidates if other[i:i + 1] == ids[i:i + 1]]
            p = sum(p for p, _ in candidates)
            if p == 0:
                return None
            bits.append(max(0.0, round(math.log2(before / p), 6)))
            before = p
        # From here on `before` is relative to that of this word. It exceeds 1 if a longer word
        # begins with the same tokens, which the next token rules out.
        before /= possible.get(word, p)
    return bits if len(bits) == sum(map(len, encoded)) else None
