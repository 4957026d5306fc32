# TinyStories on a laptop without a GPU: 3.3M parameters, 12.3M tokens.
#   python prepare.py --dataset=tinystories --vocab_size=4096        (downloads 1.9 GB)
#   python train.py config/tinystories_cpu.py
# It needs 0.7 GB of memory. If you already have the dataset's files, skip the download with
# --dataset=FOLDER --name=tinystories.
out_dir = 'out/tinystories_cpu'
dataset = 'tinystories'
n_embd = 192
tie_weights = False
fused_attention = False
optimizer = 'muon'
learning_rate = 4e-3
min_lr = 0.0
schedule = 'linear'
warmup_iters = 50
max_iters = 3000
eval_interval = 500
eval_tokens = 200_000
compile = True                      # pays off after a minute or two
