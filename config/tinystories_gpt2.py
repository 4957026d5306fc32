# The model of the well-known TinyStories notebooks: GPT-2's tokenizer and architecture, AdamW,
# cosine decay.
#   python prepare.py --dataset=tinystories --tokenizer=gpt2         (downloads 1.9 GB)
#   python train.py config/tinystories_gpt2.py (30.0M parameters)
# The notebooks' other sizes:
#   python train.py config/tinystories_gpt2.py --n_layer=4 --n_head=4 --n_embd=112 (6.3M)
#   python train.py config/tinystories_gpt2.py --n_layer=12 --n_head=12 --n_embd=192 (15.0M)
#   python train.py config/tinystories_gpt2.py --n_layer=6 --n_head=6 --n_embd=336 (25.1M)
#   python train.py config/tinystories_gpt2.py --n_layer=8 --n_head=8 --n_embd=544 (55.9M)
#   python train.py config/tinystories_gpt2.py --n_layer=10 --n_head=10 --n_embd=640 (81.6M)
# A micro-batch of 32 sequences takes 2.8 GB. Most of the parameters are in the embedding's
# 50,257 rows; config/tinystories.py uses a smaller vocabulary, trained on the stories.
out_dir = 'out/tinystories_gpt2'
dataset = 'tinystories_gpt2'
arch = 'gpt2'
n_layer, n_head, n_embd = 6, 6, 384
bias = True
dropout = 0.1
batch_size = 128
learning_rate = 6e-4
min_lr = 6e-5                       # the notebooks set it above their learning_rate
warmup_iters = 500
max_iters = 20000
eval_interval = 1000
eval_tokens = 2_000_000
