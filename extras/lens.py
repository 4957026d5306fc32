"""What a model makes of one text: its tokens, what it would say after each layer, and its surprise
at each token."""
import itertools
import math
import re
from typing import NamedTuple

import torch
from tokenizers import pre_tokenizers
from torch import Tensor

from lib.tokenizer import Tokenizer
from model import GPT


class Lens(NamedTuple):
    """Row 0 is after the embedding, row l after layer l; the last row is the model's prediction."""
    bits: list[float]           # -log2 p of each token but the first, (T - 1,)
    next_p: Tensor              # (L + 1, T - 1) probability of the token that comes next
    top_p: Tensor               # (L + 1, T, k) probabilities of the likeliest next tokens
    top_ids: Tensor             # (L + 1, T, k) their ids


def hidden_states(model: GPT, idx: Tensor) -> list[Tensor]:
    """The hidden states (T, C) of ids (1, T) after the embedding and after each layer: what enters
    each block, and the last norm."""
    states = []
    hooks = [module.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0][0]))
             for module in (*model.h, model.norm_f)]
    with torch.inference_mode():
        model.hidden(idx)
    for hook in hooks:
        hook.remove()
    return states


@torch.inference_mode()
def look_through(model: GPT, ids: list[int], vocab_size: int, k: int = 5) -> Lens:
    """The logit lens (nostalgebraist 2020): the model's last norm and output matrix, applied to the
    hidden states after each layer. vocab_size: of the tokenizer; the model may have more rows."""
    idx = torch.tensor([ids], device=model.wte.weight.device)
    rows = []
    for state in hidden_states(model, idx):
        log_p = model.lm_head(model.norm_f(state)).float().log_softmax(dim=-1)          # (T, V)
        of_next = log_p[:-1].gather(1, idx[0, 1:, None])[:, 0]                          # (T - 1,)
        best = log_p[:, :vocab_size].topk(min(k, vocab_size))                           # (T, k)
        rows.append((of_next.exp(), best.values.exp(), best.indices))
    bits = (-of_next / math.log(2)).tolist()                            # of the last row
    return Lens(bits, *(torch.stack(column).cpu() for column in zip(*rows)))


def describe_tokens(tokenizer: Tokenizer, ids: list[int]) -> list[dict]:
    """The id and text of each token and, if it holds a part of a character, its bytes and the
    characters that they belong to."""
    tokens = [{'id': i, 'text': tokenizer.label(i)} for i in ids]
    for has_part, group in itertools.groupby(tokens, lambda token: '\ufffd' in token['text']):
        if has_part:
            group = list(group)
            raw = [token_bytes(tokenizer, token['id']) for token in group]
            text = b''.join(raw).decode(errors='replace')
            owners = [character for character in text for _ in character.encode()]  # of each byte
            for token, part in zip(group, raw):
                token['bytes'] = part.hex(' ')
                token['part_of'] = ''.join(dict.fromkeys(owners[:len(part)]))
                del owners[:len(part)]
    return tokens


def token_bytes(tokenizer: Tokenizer, i: int) -> bytes:
    """The UTF-8 bytes of a token that is no whole text; b'' if they are unknown."""
    if hasattr(tokenizer, 'bpe'):                                       # bpe or gpt2
        return tokenizer.bpe.decode_single_token_bytes(i)
    name = tokenizer.hf.id_to_token(i)
    if re.fullmatch('<0x..>', name):
        return bytes.fromhex(name[3:5])
    # Byte-level BPE spells each byte as a letter: as itself if printable, else as U+0100 and up.
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    of_letter = dict(zip(letters, sorted(range(256), key=lambda byte: chr(byte) not in letters)))
    return bytes(of_letter[letter] for letter in name if letter in of_letter)
