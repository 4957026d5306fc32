# TinyStories on a laptop without a GPU: 2.6M parameters, 12M tokens.
#   python prepare.py --dataset=tinystories --vocab_size=4096        1.9 GB download
#   python train.py config/tinystories_cpu.py
# Without the download: any folder laid out like the dataset, --dataset=FOLDER --name=tinystories.
# Needs: 1.1 GB of memory, 20 minutes on two cores (from its first steps), 1 on a T4 (computed). On 960 of
# the stories it came to 1.21 bits per byte in 300 steps. The stories have a plot by then, but not always a
# point.
out_dir = 'out/tinystories_cpu'
dataset = 'tinystories'
n_layer, n_head, n_embd = 4, 4, 192
head_gain = 1.0
block_size = 256
batch_size = 16
max_iters = 3000
learning_rate = 4e-3
decay_fraction = 0.6
eval_interval = 500
eval_tokens = 200_000
