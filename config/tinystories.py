# TinyStories on one modern GPU: 29.5M parameters, 655M tokens (about 1.4 epochs).
#   python prepare.py --dataset=tinystories --vocab_size=8192        a download of 1.9 GB
#   python train.py config/tinystories.py
# Needs: 4.8 GB for 16 sequences at once (--micro_batch_size). Computed: 8 minutes at least on an H100, 2
# hours on a T4, 9 days on two CPU cores. Its loss is not measured yet.
out_dir = 'out/tinystories'
dataset = 'tinystories'
n_layer, n_head, n_embd = 8, 8, 512
block_size = 512                    # most stories fit whole
batch_size = 128
max_iters = 10000
learning_rate = 3e-3
decay_fraction = 0.5
warmup_iters = 200
eval_interval = 500
eval_tokens = 2_000_000
