"""What attention heads look at, measured: a pattern names the tokens that a head of this kind looks
at, and its score is the share of the attention that goes there."""
import contextlib
import itertools

import torch
from torch import Tensor

from extras.attention import attention_weights
from extras.evaluate import open_validation
from lib.errors import Error
from lib.terminal import warn
from sample import LanguageModel
from text.stories.teller import read_grammar

TEXTS, TEXT_TOKENS = 8, 200     # texts to measure on, and tokens of each at most
THRESHOLD = 0.4                 # a head gets a name from this score on ...
TIMES_EVEN = 2                  # ... and this many times the score of even attention
PATTERNS = {                    # in the order in which a name is chosen
    'introduced word': 'if a known name or thing comes next: at its earlier mentions',
    'after the same token': 'if this token occurred before: at what came after it (induction)',
    'same token before': 'at earlier occurrences of this token',
    'previous token': 'at the token just before',
    'first token': 'at the first token; often a resting place'}


def find_patterns(ids: list[int], words: list[list[list[int]]] = ()) -> dict[str, Tensor]:
    """For each pattern which tokens a head of this kind looks at, (T, T): row i for token i.

    words: the spellings, in ids, of each word that a story may introduce. The first and the
    previous token count for their own patterns only: a head should not fit two by chance."""
    x, T = torch.tensor(ids), len(ids)
    i, j = torch.arange(T)[:, None], torch.arange(T)[None]
    earlier = (0 < j) & (j < i - 1)
    same = x[:, None] == x[None]                            # (T, T): token i is token j
    after_same = same.roll(1, dims=1)                       # token i is token j - 1
    found = {'introduced word': find_mentions(ids, words) & earlier,
             'after the same token': after_same & (1 < j) & earlier,
             'same token before': same & earlier,
             'previous token': (j == i - 1) & (0 < j),
             'first token': (j == 0) & (1 < i)}
    return {name: found[name] for name in PATTERNS if words or name != 'introduced word'}


def find_mentions(ids: list[int], words: list[list[list[int]]]) -> Tensor:
    """(T, T): for each token i that a word follows, the tokens j of its earlier mentions."""
    found = torch.zeros(len(ids), len(ids), dtype=torch.bool)
    for spellings in words:
        spans = sorted((start, start + len(spelling)) for spelling in spellings
                       for start in range(len(ids)) if ids[start:start + len(spelling)] == spelling)
        for (start, _), (first, end) in itertools.product(spans, spans):
            if end < start:
                found[start - 1, first:end] = True
    return found


def introduced_words(lm: LanguageModel) -> list[list[list[int]]]:
    """The spellings, in ids, of each word that a story introduces and then repeats."""
    grammar = read_grammar()
    rules = {part.name.lower() for options in grammar.values() for option in options
             for part in option.parts if part.variable}
    found = []
    for word in sorted({option.word[''] for rule in rules for option in grammar[rule]}):
        with contextlib.suppress(Error):        # a letter that is not in the model's alphabet
            found.append([lm.tokenizer.encode(before + word) for before in (' ', '')])
    return found


def read_texts(lm: LanguageModel, dataset: str) -> tuple[list[list[int]], str]:
    """The ids of a few texts to measure heads on, and what they are: held-out ones or, if there is
    no dataset, what the model writes itself."""
    size = min(TEXT_TOKENS, lm.model.config.block_size - 1)
    name = dataset or lm.settings.get('dataset')
    source = f'held-out texts of data/{name}'
    try:
        documents = open_validation(lm, name, eval_tokens=0)[1]
        pieces = (document[start:start + size].tolist() for document in documents
                  for start in range(0, len(document), size))
        rows = list(itertools.islice(pieces, TEXTS))
    except Error as e:
        if dataset:
            raise
        warn(f'{e}; the heads are measured on texts that the model writes')
        source = 'texts that the model wrote itself'
        rows = lm.rows(num_samples=TEXTS, max_new_tokens=min(100, size))
    return [[lm.tokenizer.eot, *row] for row in rows], source


class Measure:
    """Scores heads on a few texts. rows: how many tokens have somewhere to look, by pattern; even:
    the score of a head that looks at itself and all earlier tokens alike."""

    def __init__(self, texts: list[list[int]], words: list[list[list[int]]] = ()):
        self.texts = texts
        self.patterns = [find_patterns(ids, words) for ids in texts]
        self.rows = {name: sum(found[name].any(dim=1).sum().item() for found in self.patterns)
                     for name in self.patterns[0]}
        even = [torch.ones(1, 1, len(ids), len(ids)).tril() for ids in texts]
        even = [weights / weights.sum(dim=-1, keepdim=True) for weights in even]
        self.even = {name: score.item() for name, score in self.add_up(even).items()}

    def add_up(self, weights) -> dict[str, Tensor]:
        """The scores (L, H) by pattern, given the attention weights (L, H, T, T) on each text."""
        total = dict.fromkeys(self.rows, 0.0)
        for w, found in zip(weights, self.patterns):
            for name, looks in found.items():
                total[name] = total[name] + (w * looks).sum(dim=(-2, -1))
        return {name: total[name] / max(1, rows) for name, rows in self.rows.items()}

    def name(self, scores: dict[str, float]) -> str:
        """The name of a head with these scores; '' if none is high enough."""
        for name, score in scores.items():
            if score >= max(THRESHOLD, TIMES_EVEN * self.even[name]):
                return name
        return ''

    def describe(self, model) -> list[list[dict]]:
        """The name and the scores of each head of a model, by layer."""
        device = model.wte.weight.device
        weights = [torch.stack(attention_weights(model, torch.tensor([ids], device=device))).cpu()
                   for ids in self.texts]
        scores = torch.stack(list(self.add_up(weights).values()), dim=-1)   # (L, H, patterns)
        return [[{'name': self.name(dict(zip(self.even, head))),
                  'scores': [round(score, 3) for score in head]} for head in layer]
                for layer in scores.tolist()]

    def explain(self) -> dict:
        """The patterns, and from which score on a head gets the name of one."""
        patterns = [{'name': name, 'looks': PATTERNS[name], 'even': round(even, 3)}
                    for name, even in self.even.items()]
        return {'patterns': patterns, 'threshold': THRESHOLD, 'times_even': TIMES_EVEN}
