# TinyStories on a laptop without a GPU: 3.3M parameters, 12.3M tokens.
#   python prepare.py --dataset=tinystories --vocab_size=4096        (downloads 1.9 GB)
#   python train.py config/tinystories_cpu.py
# It needs 0.7 GB of memory. Any folder with the dataset's layout does instead of the download:
# --dataset=FOLDER --name=tinystories.
out_dir = 'out/tinystories_cpu'
dataset = 'tinystories'
n_layer, n_head, n_embd = 4, 4, 192
block_size = 256
head_gain = 1.0
tie_weights = False
batch_size = 16
max_iters = 3000
learning_rate = 4e-3
decay_fraction = 0.6
decay_power = 1.0
eval_interval = 500
eval_tokens = 200_000
compile = True                      # pays after a minute or two
