"""A table of a trained model and others of Hugging Face on the same text, for --compare=A,B,...

All are run by transformers in the same way. Each reads the validation documents in its own
tokens, whole where they fit into its context (1,024 tokens at most are used), each after its
beginning-of-text or else its end-of-text. The nats of all their tokens are divided by the bytes
of the text, which compares across tokenizers. The ends of documents do not count, as not every
model knows them."""
import tempfile
import time
from importlib.util import find_spec

import numpy as np
import torch
import torch.nn.functional as F

from config import Error, brief, require
from data.files import bits_per_byte
from extras.evaluation import open_validation
from extras.hf_export import export_folder
from prepare import evaluation_windows

CONTEXT = 1024                  # tokens of context that are used, at most
TOKENS_AT_ONCE = 2048


class Compared:
    """A model of Hugging Face with its tokenizer, and the id that begins a text."""

    def __init__(self, name: str, source: str, device):
        from transformers import AutoModelForCausalLM, AutoTokenizer
        self.name = name
        try:
            model = AutoModelForCausalLM.from_pretrained(source, dtype='float32',
                                                         trust_remote_code=False)
            self.tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        except Exception as e:        # other people's folders make transformers raise any exception
            raise Error(f'compare={name}: {type(e).__name__}: {brief(e)}') from e
        self.begin = self.tokenizer.bos_token_id
        if self.begin is None:
            self.begin = self.tokenizer.eos_token_id
        require(self.begin is not None,
                f'compare={name}: its tokenizer has no token to begin a text with')
        self.model = model.to(device).eval()
        self.device = device
        longest = getattr(model.config, 'max_position_embeddings', None) or CONTEXT
        self.context = min(CONTEXT, longest)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)

    def nats(self, texts: list[str]) -> float:
        """-ln of the probability of the texts."""
        stream = [i for text in texts for i in (*self.encode(text), self.begin)]
        windows = evaluation_windows(np.array(stream), self.begin, self.context)
        inputs, targets = (torch.from_numpy(ids).to(self.device) for ids in windows)
        targets[targets == self.begin] = -1
        rows, total = max(1, TOKENS_AT_ONCE // self.context), 0.0
        for x, y in zip(inputs.split(rows), targets.split(rows)):
            logits = self.model(x, use_cache=False).logits.float().flatten(0, 1)
            total += F.cross_entropy(logits, y.flatten(), ignore_index=-1, reduction='sum').item()
        return total

    def sample(self, prompt: str, max_new_tokens: int, temperature: float, top_k: int, top_p: float,
               repetition_penalty: float, seed: int) -> tuple[str, float]:
        """A continuation, and tokens per second. Of a long prompt the last half context is read."""
        torch.manual_seed(seed)
        prompt_ids = [self.begin, *self.encode(prompt)][-(self.context // 2):]
        idx = torch.tensor([prompt_ids], device=self.device)
        began = time.perf_counter()
        ids = self.model.generate(
            idx, attention_mask=torch.ones_like(idx), pad_token_id=self.begin,
            max_new_tokens=min(max_new_tokens, self.context - idx.shape[1]),
            do_sample=temperature > 0, temperature=temperature or None, top_k=top_k, top_p=top_p,
            repetition_penalty=repetition_penalty)[0, idx.shape[1]:]
        speed = len(ids) / (time.perf_counter() - began)
        return self.tokenizer.decode(ids, skip_special_tokens=True), speed


def print_comparison(lm, own_name: str, names: list[str], prompt: str, dataset: str,
                     eval_tokens: int, sampling: dict):
    """Print the table, and what each model makes of the prompt; without one, of a document's
    first words."""
    require(find_spec('transformers'), 'compare needs transformers: pip install transformers')
    from transformers import logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    documents = open_validation(lm, dataset, eval_tokens).documents
    texts = [lm.tokenizer.decode(document) for document in documents]
    size = sum(len(text.encode()) for text in texts)
    prompt = prompt or ' '.join(texts[0].split()[:5])
    device = lm.model.wte.weight.device
    samples = []
    print(f'{"model":32}{"parameters":>16}{"bits per byte":>16}{"tokens/s":>12}')
    with tempfile.TemporaryDirectory() as own, torch.inference_mode():
        export_folder(lm, own)
        for name, source in [*zip(names, names), (own_name, own)]:
            compared = Compared(name, source, device)
            bits = bits_per_byte(compared.nats(texts), size)
            text, speed = compared.sample(prompt, **sampling)
            print(f'{name[-31:]:32}{compared.model.num_parameters():16,}{bits:16.4f}{speed:12,.0f}')
            samples.append(f'\n{name}: {prompt}{text}')
    print('\n'.join(samples))
