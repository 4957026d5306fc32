"""Train a BPE vocabulary on the text of a dataset."""
import re

from lib.tokenizer import EOT


def train_bpe(texts, size: int) -> dict:
    """The spec of a byte-level BPE (Sennrich et al. 2016) of `size` tokens, including eot, trained
    on texts. It has fewer tokens if too few pairs occur at least twice."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    every_byte = pre_tokenizers.ByteLevel.alphabet()    # without it, bytes not in texts are dropped
    trainer = trainers.BpeTrainer(vocab_size=size - 1, min_frequency=2, initial_alphabet=every_byte,
                                  show_progress=False)
    bpe.train_from_iterator(limit_words(texts), trainer)
    bpe.add_special_tokens([EOT])                       # after training, so it gets the last id
    return {'kind': 'bpe', 'json': bpe.to_str()}


def limit_words(texts, limit: int = 4_000_000):
    """Yield texts until their distinct words exceed `limit` characters, to limit memory: training
    takes 100 bytes for each. Words are split every 200 characters, because long ones are slow."""
    seen = set()
    for text in texts:
        new = set(text.split()) - seen
        seen |= new
        limit -= sum(map(len, new))
        yield re.sub(r'\S{200}', r'\g<0>\n', text)
        if limit < 0:
            return
