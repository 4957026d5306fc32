# GPT-2 124M from scratch on any large dataset: 124.4M parameters, 295B tokens.
#   python prepare.py --dataset=Skylion007/openwebtext --tokenizer=gpt2 --name=openwebtext
#   torchrun --standalone --nproc_per_node=8 train.py config/gpt2.py
# Expect several days on 8 GPUs with 40 GB each; one GPU takes 8 times as long. A micro-batch of 8
# sequences takes 6.8 GB. This recipe has not been run to completion; nanoGPT reports a loss of
# about 2.85 for this model and dataset.
out_dir = 'out/gpt2'
dataset = 'openwebtext'
arch = 'gpt2'
n_layer, n_head, n_embd = 12, 12, 768
block_size = 1024
bias = True
batch_size = 480                    # 491,520 tokens per step
learning_rate = 6e-4
min_lr = 6e-5
warmup_iters = 2000
max_iters = 600000
eval_interval = 1000
eval_tokens = 1_000_000
