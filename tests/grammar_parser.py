"""Give a story back its derivations: a backtracking matcher that shares no code with what tells stories."""
import functools
import math
import re


@functools.cache
def plain(text):
    """Undo that `a` is told as `an` before a vowel; capital letters are left as they are."""
    return re.sub(r'\b([Aa])n (?=[aeiou])', r'\1 ', text)


def parse(grammar, text) -> list[float]:
    """Return the nats, -ln of the probability, of each derivation of a story from the rule `plot`."""
    if re.search(r'\b[Aa] [aeiou]', text):
        return []
    text = plain(text)

    def literal(word, capital, at):
        """Return where the word ends if it stands at `at`, as a list of one or none."""
        word = plain(word[0].upper() + word[1:] if capital else word)
        return [at + len(word)] if text.startswith(word, at) else []

    def rule(name, capital, at, memory):
        """Yield (end, memory, nats, word) for each way in which a text of the rule stands at `at`."""
        told = {word[''] for word in memory.values()}
        options = [(parts, word) for parts, word in grammar[name] if word[''] not in told]
        for parts, word in options:
            if not any(part.name for part in parts):
                ends = [(end, memory, 0.) for end in literal(word[''], capital, at)]
            else:
                ends = () if capital and text[at:at + 1].islower() else sequence(parts, at, memory)
            for end, after, nats in ends:
                yield end, after, nats + math.log(len(options)), word

    def sequence(parts, at, memory):
        """Yield (end, memory, nats) for each way in which the parts in turn stand at `at`."""
        if not parts:
            yield at, memory, 0.
            return
        (before, variable, reference, attribute), *rest = parts
        if before and not (found := literal(before, False, at)):
            return
        at, name, capital = found[0] if before else at, reference.lower(), reference[:1].isupper()
        if not name:
            starts = [(at, memory, 0., None)]
        elif name in memory:
            starts = [(end, memory, 0., None) for end in literal(memory[name][attribute], capital, at)]
        else:
            starts = rule(name, capital, at, memory)
        for start, after, nats, word in starts:
            known = {**after, variable: word} if variable else after
            for end, final, more in sequence(rest, start, known):
                yield end, final, nats + more

    return [nats for end, _, nats, _ in rule('plot', False, 0, {}) if end == len(text)]
