"""Parse a story back into its derivations: a backtracking matcher that shares no code with the
teller."""
import functools
import math
import re


@functools.cache
def plain(text):
    """Undo `an` before a vowel, which is told for `a`; capital letters stay."""
    return re.sub(r'\b([Aa])n (?=[aeiou])', r'\1 ', text)


def parse(grammar, text) -> list[float]:
    """The nats, -ln of the probability, of each derivation of a story from the rule `plot`."""
    if re.search(r'\b[Aa] [aeiou]', text):
        return []
    text = plain(text)

    def literal(word, capital, at):
        """Where the word ends if it stands at `at`, as a list of one or none."""
        word = plain(word[0].upper() + word[1:] if capital else word)
        return [at + len(word)] if text.startswith(word, at) else []

    def rule(name, capital, at, memory):
        """Yield (end, memory, nats, word) for each way in which a text of the rule stands at
        `at`."""
        used = {word[''] for word in memory.values()}
        options = [option for option in grammar[name] if option.word[''] not in used]
        for parts, word in options:
            if not any(part.name for part in parts):
                ends = [(end, memory, 0.0) for end in literal(word[''], capital, at)]
            elif capital and text[at:at + 1].islower():
                ends = []
            else:
                ends = sequence(parts, at, memory)
            for end, after, nats in ends:
                yield end, after, nats + math.log(len(options)), word

    def sequence(parts, at, memory):
        """Yield (end, memory, nats) for each way in which the parts stand at `at`, one after the
        other."""
        if not parts:
            yield at, memory, 0.0
            return
        (before, variable, reference, attribute), *rest = parts
        name, capital = reference.lower(), reference[:1].isupper()
        for start in literal(before, False, at) if before else [at]:
            if not name:
                found = [(start, memory, 0.0, None)]
            elif name in memory:
                ends = literal(memory[name][attribute], capital, start)
                found = [(end, memory, 0.0, None) for end in ends]
            else:
                found = rule(name, capital, start, memory)
            for end, after, nats, word in found:
                known = {**after, variable: word} if variable else after
                for last, final, more in sequence(rest, end, known):
                    yield last, final, nats + more

    return [nats for end, _, nats, _ in rule('plot', False, 0, {}) if end == len(text)]
