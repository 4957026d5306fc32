"""Compare a model with others on the same text: python -m extras.compare --models=A,B

All models run in transformers, in float32. Each reads every validation document on its own, in its
own tokens, at most 1,024 at once. The result is the total loss over the bytes of the text: bits per
byte can be compared across tokenizers. Ends of documents do not count, because not every model
predicts them."""
from lib.settings import configure

out_dir = 'out'             # a run, a checkpoint, or the folder of a Hugging Face model
models = ''                 # names or folders of Hugging Face models: A,B,...
start = ''                  # the prompt to continue, or FILE:path; '' = the text's first words
dataset = ''                # NAME of data/NAME; '' = the one the model was trained on
eval_tokens = 0             # tokens of the validation split to read; 0 = all
max_new_tokens = 100        # per sample; stops early at end-of-text
temperature = 0.8           # lower is more conservative, higher more diverse; 0 = greedy
settings = configure(globals())

import os
import tempfile
import time
from importlib.util import find_spec

import torch
import torch.nn.functional as F

from extras.evaluate import open_validation
from extras.export import export
from lib.dataset import bits_per_byte
from lib.device import pick_device
from lib.errors import Error, brief, require
from sample import load, read_prompt

MAX_CONTEXT = 1024              # tokens


class HubModel:
    """A transformers model with its tokenizer, and the id that starts a text."""

    def __init__(self, source: str, name: str):
        from transformers import AutoModelForCausalLM, AutoTokenizer
        try:
            self.model = AutoModelForCausalLM.from_pretrained(
                source, dtype='float32', trust_remote_code=False)
            self.tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        except Exception as e:                  # bad folders make transformers raise anything
            raise Error(f'models={name}: {type(e).__name__}: {brief(e)}') from e
        self.model.to(pick_device()).eval()
        self.begin = self.tokenizer.bos_token_id
        if self.begin is None:
            self.begin = self.tokenizer.eos_token_id
        require(self.begin is not None,
                f'models={name}: its tokenizer has no token to begin a text with')
        longest = getattr(self.model.config, 'max_position_embeddings', None) or MAX_CONTEXT
        self.context = min(MAX_CONTEXT, longest)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)

    def nats(self, text: str) -> float:
        """The total loss of a text, read in windows of `context` tokens."""
        ids = torch.tensor([self.begin, *self.encode(text)], device=self.model.device)
        total = 0.0
        for start in range(0, len(ids) - 1, self.context):
            window = ids[start:start + self.context + 1]
            logits = self.model(window[None, :-1], use_cache=False).logits[0]
            total += F.cross_entropy(logits, window[1:], reduction='sum').item()
        return total

    def sample(self, prompt: str) -> tuple[str, float]:
        """A continuation of the prompt's last context / 2 tokens, and its tokens per second."""
        torch.manual_seed(0)
        ids = [self.begin, *self.encode(prompt)][-(self.context // 2):]
        idx = torch.tensor([ids], device=self.model.device)
        began = time.perf_counter()
        new = self.model.generate(
            idx, attention_mask=torch.ones_like(idx), pad_token_id=self.begin,
            max_new_tokens=min(max_new_tokens, self.context - len(ids)),
            do_sample=temperature > 0, temperature=temperature or None, top_k=0)[0, len(ids):]
        speed = len(new) / (time.perf_counter() - began)
        return self.tokenizer.decode(new, skip_special_tokens=True), speed


@torch.inference_mode()
def main():
    require(models, 'set --models to names or folders of Hugging Face models: A,B,...')
    require(find_spec('transformers'), 'compare needs transformers: pip install transformers')
    require(temperature >= 0 and max_new_tokens >= 1,
            'temperature must be at least 0, and max_new_tokens at least 1')
    prompt = read_prompt(start)
    from transformers import logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    lm = load(out_dir, device='cpu', dtype='float32')
    documents = open_validation(lm, dataset, eval_tokens)[1]
    texts = [lm.tokenizer.decode(document) for document in documents]
    size = sum(len(text.encode()) for text in texts)
    prompt = prompt or ' '.join(texts[0].split()[:5])
    samples = []
    print(f'{"model":32}{"parameters":>16}{"bits per byte":>16}{"tokens/s":>12}')
    with tempfile.TemporaryDirectory() as own:
        export(lm, own)
        folders = {name: os.path.expanduser(name) for name in models.split(',')}
        folders[out_dir] = own
        for name, folder in folders.items():
            hub_model = HubModel(folder, name)
            bits = bits_per_byte(sum(map(hub_model.nats, texts)), size)
            text, speed = hub_model.sample(prompt)
            number = hub_model.model.num_parameters()
            print(f'{name[-31:]:32}{number:16,}{bits:16.4f}{speed:12,.0f}')
            samples.append(f'\n{name}: {prompt}{text}')
    print('\n'.join(samples))


if __name__ == '__main__':
    main()
