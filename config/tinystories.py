# TinyStories on one GPU: 29.5M parameters, 655M tokens (1.4 epochs).
#   python prepare.py --dataset=tinystories --vocab_size=8192        (downloads 1.9 GB)
#   python train.py config/tinystories.py
# A micro-batch of 16 sequences takes 4.8 GB.
out_dir = 'out/tinystories'
dataset = 'tinystories'
n_layer, n_head, n_embd = 8, 8, 512
block_size = 512                    # most stories fit in one window
optimizer = 'muon'
learning_rate = 3e-3
min_lr = 0.0
schedule = 'linear'
warmup_iters = 200
max_iters = 10000
batch_size = 128
eval_interval = 500
eval_tokens = 2_000_000
